"""A file and a program's events on their way to the real stack: interrupted, sent again, counted once."""

from __future__ import annotations

import subprocess
from decimal import Decimal
from pathlib import Path

from metering.client import MeteringClient
from tests.e2e.parts import Parts
from tests.e2e.processes import METERING, ran, until

ROWS = 300


def test_a_file_and_a_program_are_counted_once_however_often_they_are_interrupted(parts: Parts, tmp_path: Path) -> None:
    pipeline = parts.named("sending")
    pipeline.set_up()
    file = tmp_path / "usage.csv"
    rows = [f"file,api_calls,{n}.5,2024-01-15T10:00:00Z,\n" for n in range(ROWS)]
    file.write_text("tenant_id,metric,value,timestamp,event_id\n" + "".join(rows))
    with pipeline.tables() as tables, pipeline.collector() as url, pipeline.consumer():
        command = [METERING, "send", "--url", url, "--batch-events", "10", str(file)]

        progress = file.with_name(file.name + ".metering-progress")
        with subprocess.Popen(command, env=pipeline.environment, stdout=subprocess.DEVNULL) as interrupted:
            until(progress.exists, "some of it is accepted")
            interrupted.kill()
        code, output, errors = ran(command, pipeline.environment)
        assert code == 0, output + errors
        progress.unlink()  # all is posted again, under the same ids
        code, output, errors = ran(command, pipeline.environment)
        assert (code, output) == (0, f"accepted {ROWS}, duplicate-safe 0, rejected 0\n"), errors

        for _ in range(2):
            with MeteringClient(url) as client:
                for n in range(50):
                    client.submit("program", "api_calls", n, event_id=f"p-{n}")

        until(
            lambda: (
                sum(shard.counted for shard in tables.progress().values()) >= ROWS + 50
                and sum(shard.events for shard in tables.progress().values()) >= 2 * (ROWS + 50)
            ),
            "all that was sent is accounted for",
            timeout_s=120,
        )
        totals = {pk: row for (pk, sk), row in tables.rows().items() if sk.startswith("METRIC#")}
        file_total = sum(Decimal(f"{n}.5") for n in range(ROWS))
        assert totals == {"TENANT#file": (file_total, ROWS), "TENANT#program": (Decimal(1225), 50)}
