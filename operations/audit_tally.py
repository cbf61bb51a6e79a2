"""What the stream says each row and each shard must hold, added up record by record. Pure, and not the consumer's way.

Memory is bounded by the number of rows: of an event nothing stays but what it adds to its two rows and its shard.

    a shard's records ────────────────────────────────────────────────────────────────────────►
                              progress row says: applied up to here │     │ this row's own position
    added to a row            ◄──────────────── counted ────────────┴late─┤ later: not in the row yet

The progress rows are read before the others, and a progress row is written after all rows of its batch. So a row must
hold what lies at or below the progress of a shard, and besides what lies at or below its own position. This is true
while the pipeline runs, for each row by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal

from metering.aggregation import EXACT
from metering.events import Event
from metering.ports import ShardProgress, ShardRef
from metering.positions import BEGINNING
from metering.rows import RowKey, applied_attribute, total_key, window_key
from operations.audit_claims import EndedRecord


@dataclass(frozen=True, slots=True)
class FoundRow:
    """A total or window as it is. usage, events: None when it holds no such number. applied: position by attribute."""

    usage: Decimal | None
    events: int | None
    applied: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Amount:
    """A sum of values, and of how many events."""

    usage: Decimal = Decimal(0)
    events: int = 0

    def plus(self, other: Amount) -> Amount:
        return Amount(EXACT.add(self.usage, other.usage), self.events + other.events)

    def minus(self, other: Amount) -> Amount:
        return Amount(EXACT.subtract(self.usage, other.usage), self.events - other.events)


ZERO = Amount()


@dataclass(slots=True)
class AuditedRow:
    """A row as it is, None for one that is not there, and what the records that were read say of it.

    counted: what it must hold. late: the part of it that lies beyond the progress rows. unknown: what may be in it.
    behind: a shard of which it must hold a record that lies beyond the row's own position.
    """

    found: FoundRow | None
    counted: Amount = ZERO
    late: Amount = ZERO
    unknown: Amount = ZERO
    behind: str | None = None


@dataclass(slots=True)
class AuditedShard:
    """A shard that can be read, its progress row, and what its records up to the row's position add up to.

    limit: the greatest position that the progress row or any row holds: how far it must be read.
    read: records read up to there. last: the last position read.
    unclaimed: events that should have a claim in the ledger and have none.
    """

    shard: ShardRef
    progress: ShardProgress | None
    limit: str = BEGINNING
    last: str = BEGINNING
    read: int = 0
    unclaimed: int = 0
    records: int = 0
    counted: int = 0
    duplicates: int = 0
    rejected: int = 0
    unknown: int = 0
    attribute: str = field(init=False)

    def __post_init__(self) -> None:
        self.attribute = applied_attribute(self.shard.stream_created_at, self.shard.shard_id)
        self.limit = max(self.limit, self.applied)

    @property
    def applied(self) -> str:
        """The position up to which the progress row says that all is in."""
        return self.progress.position if self.progress else BEGINNING


class Tally:
    """Adds up records; not thread-safe."""

    def __init__(
        self, rows: Mapping[RowKey, FoundRow], shards: Mapping[str, AuditedShard], *, window_minutes: int
    ) -> None:
        self.rows = {key: AuditedRow(row) for key, row in rows.items()}
        self.shards = dict(shards)
        self._window_minutes = window_minutes
        by_attribute = {shard.attribute: shard for shard in self.shards.values()}
        for row in rows.values():
            for attribute, position in row.applied.items():
                if shard := by_attribute.get(attribute):
                    shard.limit = max(shard.limit, position)

    def add(self, shard: AuditedShard, record: EndedRecord) -> None:
        """Add the next record of a shard, up to its limit."""
        shard.last = record.position
        shard.read += 1
        shard.unclaimed += len(record.unclaimed)
        if record.position <= shard.applied:
            shard.records += 1
            shard.counted += len(record.counted)
            shard.duplicates += record.duplicates
            shard.rejected += len(record.rejected)
            shard.unknown += len(record.unknown)
        for event in record.counted:
            self._add_event(shard, record.position, event, known=True)
        for event in record.unknown:
            self._add_event(shard, record.position, event, known=False)

    def _add_event(self, shard: AuditedShard, position: str, event: Event, *, known: bool) -> None:
        late = position > shard.applied
        for key in (
            total_key(event.tenant_id, event.metric),
            window_key(event.tenant_id, event.metric, event.occurred_at, self._window_minutes),
        ):
            row = self.rows.get(key)
            own = row.found.applied.get(shard.attribute, BEGINNING) if row and row.found else BEGINNING
            if position > max(own, shard.applied):
                continue
            if row is None:
                row = self.rows[key] = AuditedRow(None)
            amount = Amount(event.value, 1)
            if not known:
                row.unknown = row.unknown.plus(amount)
                continue
            row.counted = row.counted.plus(amount)
            if late:
                row.late = row.late.plus(amount)
            if position > own and row.found is not None:
                row.behind = shard.shard.shard_id
