"""A stream, its consumer's pipeline and its tables, all in memory; the steps of a batch are real."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from decimal import Decimal
from typing import Any

from consumer.decoding import ReceivedRecord
from consumer.pipeline import ShardPipeline
from metering.memory import MemoryStream, MemoryTables
from metering.memory_rejected import MemoryRejected
from metering.meters import NO_METERS, Meters
from metering.places import StreamPlace
from metering.ports import Held, OutgoingRecord, ShardRef
from metering.positions import position_of
from metering.rejected import RejectedRow
from tests.builders import CREATED_AT, NOW, STREAM

SHARDS = 2
EVENT = {"tenant_id": "tenant-123", "metric": "api_calls", "value": "10", "timestamp": "2024-01-15T10:00:00Z"}


def _once(call: Callable[[], object]) -> None:
    call()


class World:
    """now: the clock of all; a record arrives when it is consumed."""

    def __init__(self, *, claim_events: bool = True, meters: Meters = NO_METERS) -> None:
        self.now = NOW
        self.tables = MemoryTables()
        self.stream = MemoryStream(shards=SHARDS, created_at=CREATED_AT)
        self.rejected = MemoryRejected(self.tables, STREAM)
        self._consumed = 0
        self._pipelines: dict[str, ShardPipeline] = {}
        for shard in self.stream.shards():
            ref = ShardRef(STREAM, CREATED_AT, shard.shard_id)
            self.tables.open_shard(ref, complete_until=self.now, now=self.now)
            self._pipelines[shard.shard_id] = ShardPipeline(
                self.tables,
                self.tables.ledger,
                ref,
                window_minutes=60,
                age_days_max=None,
                claim_events=claim_events,
                meters=meters,
                retry=_once,
                clock=lambda: self.now,
                writers=1,
                claimers=1,  # the twins are not thread-safe
            )

    def put(self, *data: bytes | dict[str, Any], partition: int = 0) -> StreamPlace:
        """Put records on one shard and count them; return the place of the last one's first event."""
        records = [each if isinstance(each, bytes) else json.dumps(each).encode() for each in data]
        held = self.stream.put([OutgoingRecord(partition, record) for record in records])[-1]
        assert isinstance(held, Held)
        self.consume()
        return StreamPlace(held.shard_id, position_of(held.sequence_number), 0)

    def consume(self) -> None:
        """Count what has not been consumed yet, a batch of one record at a time."""
        for record in self.stream.records[self._consumed :]:
            received = ReceivedRecord(record.sequence_number, record.data, self.now)
            self._pipelines[record.shard_id].apply([received], self.now)
        self._consumed = len(self.stream.records)

    def row(self, place: StreamPlace) -> RejectedRow:
        row = self.rejected.get(place)
        assert row is not None
        return row

    def total(self, tenant_id: str = "tenant-123", metric: str = "api_calls") -> tuple[Decimal, int]:
        """Usage and events."""
        total = self.tables.total(tenant_id, metric)
        return (total.usage, total.events) if total else (Decimal(0), 0)

    def windows(self) -> dict[str, Decimal]:
        return {key.sk: row.usage for key, row in self.tables.rows.items() if key.sk.startswith("HOUR#")}

    def at(self, moment: datetime) -> World:
        self.now = moment
        return self
