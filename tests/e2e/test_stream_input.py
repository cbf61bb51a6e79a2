"""What other producers put on the stream: counted when it is an event, kept with its reason when it is not."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal

from tests.e2e.tables import Tables
from tests.e2e.truth import TENANT_PREFIX, Sent, Truth, assert_counted_exactly

TENANT = f"{TENANT_PREFIX}stream"
OCCURRED_AT = datetime(2024, 1, 15, 10, tzinfo=UTC)
UNDECODABLE = b"\xff\xfe not JSON \x00"
RAW_MAX = 256 * 1024


def test_what_is_no_event_is_kept_with_reason_and_bytes_and_blocks_nothing(tables: Tables, truth: Truth) -> None:
    before = tables.rejected().keys()
    first = _put(tables, UNDECODABLE)
    good, bad, late = _event("1.5", "a"), _event("-1", "b"), _event("2", "c") | {"timestmap": "2024-01-15T10:00:00Z"}
    second = _put(tables, _envelope(good, bad, late, good | {"event_id": "d"}))
    third = _put(tables, b'{"batch_id": "x", "events": []}')
    _put(tables, json.dumps(_event("3", "bare")).encode())
    _put(tables, _envelope(_event("4", "after")))
    for value in ("1.5", "1.5", "3", "4"):
        truth.add(Sent(TENANT, "units", Decimal(value), OCCURRED_AT, datetime.now(UTC), "put"))
    assert_counted_exactly(tables, truth)

    found = {key: kept for key, kept in tables.rejected().items() if key not in before}
    assert found.keys() == {_key(*first, 0), _key(*second, 1), _key(*second, 2), _key(*third, 0)}
    assert found[_key(*first, 0)] == ("malformed_record", UNDECODABLE)
    assert found[_key(*third, 0)] == ("malformed_record", b'{"batch_id": "x", "events": []}')
    reason, raw = found[_key(*second, 1)]
    assert (reason, json.loads(raw)) == ("negative_value", bad)
    reason, raw = found[_key(*second, 2)]
    assert (reason, json.loads(raw)) == ("unknown_field", late)


def test_a_record_of_a_megabyte_that_is_no_event_does_not_block_its_shard(tables: Tables, truth: Truth) -> None:
    before = tables.rejected().keys()
    data = b"x" * (1024 * 1024 - 64)
    place = _put(tables, data)
    _put(tables, _envelope(_event("5", "after-large")))
    truth.add(Sent(TENANT, "units", Decimal(5), OCCURRED_AT, datetime.now(UTC), "put"))
    assert_counted_exactly(tables, truth)
    found = {key: kept for key, kept in tables.rejected().items() if key not in before}
    assert found == {_key(*place, 0): ("malformed_record", data[:RAW_MAX])}


def _event(value: str, event_id: str) -> dict[str, str]:
    return {
        "tenant_id": TENANT,
        "metric": "units",
        "value": value,
        "timestamp": OCCURRED_AT.isoformat(),
        "event_id": f"stream-{event_id}",
    }


def _envelope(*events: dict[str, str]) -> bytes:
    return json.dumps({"batch_id": "another-producer", "events": events}).encode()


def _put(tables: Tables, data: bytes) -> tuple[str, str]:
    """Put one record on the first shard; return shard and sequence number."""
    answer = tables.kinesis.put_record(
        StreamName=tables.settings.stream, Data=data, PartitionKey="another-producer", ExplicitHashKey="0"
    )
    return answer["ShardId"], answer["SequenceNumber"]


def _key(shard_id: str, sequence_number: str, index: int) -> tuple[str, str]:
    return f"SHARD#{shard_id}", f"{len(sequence_number):03d}{sequence_number}#{index:05d}"
