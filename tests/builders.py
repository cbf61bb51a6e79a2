"""Events, shards, writes and outcomes for tests, each with a default for whatever a test does not speak of."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from consumer.claiming import SettledRecord
from consumer.decoding import DecodedRecord, PlacedEvent
from consumer.observing import batch_readings
from metering.aggregation import Contribution, RecordOutcome, RowWrite, row_writes
from metering.events import Event, parse_event
from metering.meters import NO_METERS, Meters
from metering.ports import CounterStore, RejectedEvent, ShardRef
from metering.positions import position_of
from metering.rows import total_key

NOW = datetime(2024, 1, 15, 10, 30, tzinfo=UTC)
STREAM = "usage-events"
TTL_DAYS = 36_500
"""NOW is long ago, and DynamoDB Local deletes what has expired, within seconds."""
CREATED_AT = datetime(2024, 1, 1, tzinfo=UTC)


def event(**fields: Any) -> Event:
    """Return the event of these fields, received at NOW."""
    return parse_event({"tenant_id": "tenant-123", "metric": "api_calls", "value": "10", **fields}, now=NOW)


def shard(number: int = 0, *, created_at: datetime = CREATED_AT, stream: str = STREAM) -> ShardRef:
    return ShardRef(stream, created_at, f"shardId-{number:012d}")


def at(number: int) -> str:
    """Return a position: numbers cross a power of ten, so that string order alone would be wrong."""
    return position_of(str(95 + number))


def write(*numbers: int, tenant_id: str = "tenant-123", metric: str = "api_calls", usage: str = "1") -> RowWrite:
    """Return the write of one event of `usage` from each of the records `numbers`."""
    contributions = tuple(Contribution(at(number), Decimal(usage), 1) for number in numbers)
    return RowWrite(total_key(tenant_id, metric), contributions)


def count(
    store: CounterStore, *events: Event, window_minutes: int = 60, first: int = 0, meters: Meters = NO_METERS
) -> None:
    """Count events as the consumer would, one record each, from position `first` on."""
    for number, counted in enumerate(events, first):
        count_batch(store, [settled(number, counted)], window_minutes=window_minutes, meters=meters)


def settled(number: int, *events: Event, arrived_at: datetime = NOW) -> SettledRecord:
    """Return a record whose events all count."""
    placed = tuple(PlacedEvent(index, one, 0, "b") for index, one in enumerate(events))
    return SettledRecord(DecodedRecord(at(number), arrived_at, placed, ()), placed, 0, ())


def count_batch(
    store: CounterStore,
    records: Sequence[SettledRecord],
    *,
    where: ShardRef | None = None,
    window_minutes: int = 60,
    meters: Meters = NO_METERS,
) -> None:
    """Write the rows of a batch as the consumer would."""
    where = where or shard()
    readings = batch_readings(where, records, meters, window_minutes=window_minutes)
    counted = ((record.decoded.position, placed.event) for record in records for placed in record.counted)
    for row_write in row_writes(counted, window_minutes=window_minutes, readings=readings):
        if row_write.reading is not None:
            store.keep_reading(row_write.key, row_write.reading)
        store.apply(where, row_write, now=NOW)


def outcome(
    number: int, *, counted: int = 1, duplicates: int = 0, rejected: int = 0, arrived_at: datetime = NOW
) -> RecordOutcome:
    return RecordOutcome(at(number), arrived_at, counted, duplicates, rejected)


def rejected(number: int, index: int = 0, *, raw: bytes = b'{"value": -1}') -> RejectedEvent:
    return RejectedEvent(at(number), index, "negative_value", "value must not be negative", raw, NOW)
