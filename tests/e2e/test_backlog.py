"""A backlog that comes as one delivery of megabytes: applied part by part, on the real KCL, without a fresh start."""

from __future__ import annotations

import json
from decimal import Decimal

from tests.e2e.parts import Parts
from tests.e2e.processes import json_lines, until
from tests.e2e.tables import Tables
from tests.e2e.truth import COUNTED_S

RECORDS = 150
EVENTS = 120
EVENT = {"tenant_id": "acme", "metric": "api_calls", "value": "0.000000001", "timestamp": "2024-01-15T10:00:00Z"}


def test_a_large_delivery_is_counted_part_by_part(parts: Parts) -> None:
    pipeline = parts.named("backlog")
    pipeline.environment["KINESIS_SHARDS"] = "1"
    pipeline.set_up()
    with pipeline.tables() as tables:
        padded = [{**EVENT, "received_at": "2024-01-15T10:00:00.000Z"}] * EVENTS
        for start in range(0, RECORDS, 50):
            tables.kinesis.put_records(
                StreamName=tables.settings.stream,
                Records=[
                    {
                        "Data": json.dumps({"batch_id": f"backlog-{number}", "events": padded}).encode(),
                        "PartitionKey": "backlog",
                    }
                    for number in range(start, start + 50)
                ],
            )
        with pipeline.consumer() as consumer:
            until(lambda: _counted(tables) == RECORDS * EVENTS, "all is counted", timeout_s=COUNTED_S)
            lines = json_lines(consumer.log)
    assert tables.rows() == {
        ("TENANT#acme", sk): (Decimal("0.000018"), RECORDS * EVENTS)
        for sk in ("METRIC#api_calls", "HOUR#api_calls#2024-01-15T10")
    }
    (received,) = [line for line in lines if str(line["message"]).startswith("Received ")]
    assert received["message"] == f"Received {RECORDS} record(s) from Kinesis", "one delivery, several parts"
    updates = [line for line in lines if str(line["message"]).endswith("sk=METRIC#api_calls")]
    assert len(updates) >= 3
    assert [line for line in lines if line["level"] in {"ERROR", "CRITICAL"}] == []


def _counted(tables: Tables) -> int:
    return sum(shard.counted for shard in tables.progress().values())
