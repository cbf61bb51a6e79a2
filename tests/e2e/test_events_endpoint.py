"""What billing says of one event, from the collector to the answer. Tenants here are not in the session's truth."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

import requests

from tests.e2e.processes import until
from tests.e2e.stack import Stack
from tests.e2e.tables import Tables

TENANT = "lookup-tenant"
EVENT = {"tenant_id": TENANT, "metric": "units", "value": "2.50", "timestamp": "2024-01-15T10:00:00Z"}
SETTLED_S = 90.0


def post(stack: Stack, event: dict[str, str], **headers: str) -> str:
    """Send one event; return its id, which is a receipt when it has none."""
    answer = requests.post(
        f"{stack.collector_url}/v1/usage",
        data=json.dumps(event).encode(),
        headers={"Content-Type": "application/json", **headers},
        timeout=30,
    )
    assert answer.status_code == 202, answer.text
    return str(answer.json()["event_id"])


def put(tables: Tables, event: dict[str, str]) -> tuple[str, str]:
    """Put one bare event straight on the stream; return shard and sequence number."""
    answer = tables.kinesis.put_record(
        StreamName=tables.settings.stream, Data=json.dumps(event).encode(), PartitionKey="another-producer"
    )
    return answer["ShardId"], answer["SequenceNumber"]


def asked(stack: Stack, event_id: str, **query: str) -> dict[str, Any]:
    path = f"/v1/tenants/{TENANT}/events/{quote(event_id, safe='')}"
    answer = requests.get(stack.billing_url + path, params=query, timeout=30)
    assert answer.status_code == 200, answer.text
    assert answer.headers["Cache-Control"] == "no-store"
    return dict(json.loads(answer.text, parse_float=str))


def settled(stack: Stack, event_id: str, **wanted: Any) -> dict[str, Any]:
    """Wait until the answer has the members `wanted`; return it."""
    found: dict[str, Any] = {}

    def is_so() -> bool:
        nonlocal found
        found = asked(stack, event_id)
        return wanted.items() <= found.items()

    until(is_so, lambda: f"{event_id} is {wanted}, it is {found}", timeout_s=SETTLED_S)
    return found


def test_an_event_is_counted_and_each_repetition_is_seen(stack: Stack, tables: Tables) -> None:
    assert post(stack, {**EVENT, "event_id": "lookup-1"}) == "lookup-1"
    first = settled(stack, "lookup-1", status="counted")
    assert (first["metric"], first["value"], first["timestamp"]) == ("units", "2.5", EVENT["timestamp"])
    assert (first["duplicates"], first["conflicts"], first["last_repeat_at"]) == (0, 0, None)
    assert first["rejections"] == []
    numbers = [number for number, _ in tables.records()[first["shard"]]]
    assert first["position"] in numbers

    for _ in range(2):
        post(stack, {**EVENT, "event_id": "lookup-1"})
    post(stack, {**EVENT, "event_id": "lookup-1", "value": "3"})
    last = settled(stack, "lookup-1", status="counted", duplicates=2, conflicts=1)
    assert last["counted_at"] == first["counted_at"]
    assert last["last_repeat_at"] >= first["counted_at"]
    assert [row["reason"] for row in last["rejections"]] == ["event_id_conflict"]
    total = requests.get(f"{stack.billing_url}/v1/tenants/{TENANT}/usage/units", timeout=30)
    assert '"usage":2.5,"events":1,' in total.text


def test_a_rejected_event_says_why_and_where(stack: Stack, tables: Tables) -> None:
    shard_id, sequence_number = put(tables, {**EVENT, "event_id": "lookup-2", "value": "-1"})
    found = settled(stack, "lookup-2", status="rejected")
    (row,) = found["rejections"]
    assert (row["reason"], row["shard"], row["position"], row["index"], row["replayed_at"]) == (
        "negative_value",
        shard_id,
        sequence_number,
        0,
        None,
    )
    receipt = asked(stack, f"kinesis:{shard_id}:{sequence_number}:0")
    assert (receipt["status"], receipt["rejections"]) == ("rejected", [row])


def test_a_receipt_is_told_by_how_far_its_shard_is(stack: Stack) -> None:
    receipt = post(stack, {**EVENT, "metric": "receipts"})
    assert receipt.startswith("kinesis:")
    found = settled(stack, receipt, status="counted")
    place, _, index = receipt.rpartition(":")
    assert f"kinesis:{found['shard']}:{found['position']}" == place
    assert found["index"] == int(index)
    assert "9" * 56 not in receipt
    assert asked(stack, f"kinesis:{found['shard']}:{'9' * 60}:0")["status"] == "pending"
    assert asked(stack, "kinesis:shardId-000000009999:1:0")["status"] == "unknown"


def test_an_id_of_any_characters_is_found_and_one_never_sent_is_unknown(stack: Stack) -> None:
    event_id = "a/b%2F ü?#/"
    post(stack, {**EVENT, "metric": "ids", "event_id": event_id})
    assert settled(stack, event_id, status="counted")["event_id"] == event_id
    assert asked(stack, "never-sent")["status"] == "unknown"
    assert asked(stack, event_id, source="/another")["status"] == "unknown"
