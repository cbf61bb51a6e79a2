"""`metering rejected` on the running stack: found, shown, corrected, counted once however often it is replayed."""

from __future__ import annotations

import json
import subprocess
from decimal import Decimal
from typing import Any

import requests

from tests.e2e.processes import METERING, REPOSITORY, ran, until
from tests.e2e.stack import Stack
from tests.e2e.tables import Tables

TENANT = "replay-tenant"
EVENT = {"tenant_id": TENANT, "metric": "units", "value": "-5", "timestamp": "2024-01-15T10:00:00Z"}
SETTLED_S = 90.0


def put(tables: Tables, data: bytes) -> str:
    """Put one record straight on the stream; return the key of its row."""
    answer = tables.kinesis.put_record(StreamName=tables.settings.stream, Data=data, PartitionKey="another-producer")
    return f"{answer['ShardId']}/{answer['SequenceNumber']}/0"


def rejected(stack: Stack, *arguments: str) -> tuple[int, str]:
    code, output, errors = ran([METERING, "rejected", *arguments, "--local"], stack.environment)
    return code, output + errors


def listed(stack: Stack, *arguments: str) -> list[dict[str, Any]]:
    code, output = rejected(stack, "list", "--json", "--tenant", TENANT, *arguments)
    assert code == 0, output
    return [json.loads(line) for line in output.splitlines()]


def await_row(stack: Stack, key: str) -> None:
    until(lambda: rejected(stack, "show", key)[0] == 0, f"{key} is a rejected row", timeout_s=SETTLED_S)


def total(tables: Tables, metric: str) -> tuple[Decimal, int]:
    return tables.rows().get((f"TENANT#{TENANT}", f"METRIC#{metric}"), (Decimal(0), 0))


def await_replay(tables: Tables, metric: str, usage: int) -> None:
    until(lambda: total(tables, metric)[0] == usage, lambda: f"{usage}: {total(tables, metric)}", timeout_s=SETTLED_S)


def await_all_applied(tables: Tables) -> None:
    """Wait until every record that the stream holds now has been applied."""
    last = {shard_id: records[-1][0] for shard_id, records in tables.records().items() if records}
    wanted = {shard_id: f"{len(number):03d}{number}" for shard_id, number in last.items()}
    until(
        lambda: all(tables.progress()[shard_id].position >= position for shard_id, position in wanted.items()),
        "all that the stream holds is applied",
        timeout_s=SETTLED_S,
    )


def test_a_rejected_event_is_corrected_and_counts_once(stack: Stack, tables: Tables) -> None:
    key = put(tables, json.dumps({**EVENT, "event_id": "replay-1"}).encode())
    await_row(stack, key)
    (row,) = listed(stack, "--reason", "negative_value")
    assert (row["key"], row["event_id"], row["replayed_at"]) == (key, "replay-1", None)
    code, shown = rejected(stack, "show", key)
    assert '"value": "-5"' in shown
    code, output = rejected(stack, "replay", key)
    assert (code, "negative_value" in output) == (1, True), output
    assert rejected(stack, "replay", key, "--set", "value=5", "--dry-run")[0] == 0
    assert listed(stack) == [row]

    code, output = rejected(stack, "replay", key, "--set", "value=5")
    assert (code, output) == (0, f"{key}: replayed: replay-1\n")
    await_replay(tables, "units", 5)
    code, output = rejected(stack, "replay", key, "--set", "value=5")
    assert (code, output) == (0, f"{key}: was replayed already: replay-1\n")

    # As if the first had crashed between put and mark: the mark is gone, the event is put again.
    row_key = {"pk": {"S": f"SHARD#{row['shard']}"}, "sk": {"S": f"{len(row['position']):03d}{row['position']}#00000"}}
    tables.dynamodb.update_item(
        TableName=tables.settings.rejected_table, Key=row_key, UpdateExpression="REMOVE replayed_at, replayed_as"
    )
    assert rejected(stack, "replay", key, "--set", "value=6")[0] == 1
    code, output = rejected(stack, "replay", key)
    assert (code, output) == (0, f"{key}: replayed, as it had been begun before: replay-1\n")
    await_all_applied(tables)
    assert total(tables, "units") == (Decimal(5), 1)

    assert listed(stack) == []
    (marked,) = listed(stack, "--all")
    assert marked["replayed_as"] == ["replay-1"]
    assert marked["replayed_at"]
    answer = requests.get(f"{stack.billing_url}/v1/tenants/{TENANT}/events/replay-1", timeout=30).json()
    assert (answer["status"], answer["duplicates"]) == ("counted", 1)
    assert [each["replayed_as"] for each in answer["rejections"]] == [["replay-1"]]


def test_rows_without_an_id_are_replayed_together_and_count_once(stack: Stack, tables: Tables) -> None:
    fields = {**EVENT, "metric": "many", "valeu": "7"}
    keys = [put(tables, json.dumps(fields | {"value": "7"}).encode()) for _ in range(3)]
    for key in keys:
        await_row(stack, key)
    replay = ["replay", "--reason", "unknown_field", "--tenant", TENANT, "--set", "valeu="]
    assert rejected(stack, *replay)[0] == 1  # nobody is there to say yes
    assert total(tables, "many") == (Decimal(0), 0)
    code, output = rejected(stack, *replay, "--yes")
    assert (code, output.splitlines()[-1]) == (0, "3 row(s), 0 refused")
    code, output = rejected(stack, *replay, "--yes")
    assert (code, output) == (0, "0 row(s), 0 refused\n")
    assert rejected(stack, "replay", *keys, "--set", "valeu=", "--yes")[0] == 0
    await_replay(tables, "many", 21)
    await_all_applied(tables)
    assert total(tables, "many") == (Decimal(21), 3)


def test_bytes_that_are_no_event_are_shown_as_they_are_and_replaced(stack: Stack, tables: Tables) -> None:
    raw = b"\xff\x00 no event \x1b[2J\n"
    key = put(tables, raw)
    await_row(stack, key)
    code, shown = rejected(stack, "show", key)
    assert (code, r"\xff\x00 no event \x1b[2J\n" in shown) == (0, True), shown
    assert run_on_bytes(stack, "show", key, "--raw") == raw
    event = json.dumps({**EVENT, "metric": "given", "value": 4}).encode()
    said = run_on_bytes(stack, "replay", key, "--event", "-", given=event).decode()
    assert said == f"{key}: replayed: replay:{key.replace('/', ':')}\n"
    await_replay(tables, "given", 4)
    answer = requests.get(
        f"{stack.billing_url}/v1/tenants/{TENANT}/events/replay:{key.replace('/', ':')}", timeout=30
    ).json()
    assert answer["status"] == "counted"


def run_on_bytes(stack: Stack, *arguments: str, given: bytes = b"") -> bytes:
    done = subprocess.run(
        [METERING, "rejected", *arguments, "--local"],
        env=stack.environment,
        cwd=REPOSITORY,
        input=given,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
