"""What the stream says each row and each shard must hold, added up record by record. Pure, and not the consumer's way.

Memory is bounded by the number of rows: of an event nothing stays but what it adds to its two rows and its shard.

    a shard's records ────────────────────────────────────────────────────────────────────────►
                              progress row says: applied up to here │     │ this row's own position
    added to a row            ◄──────────────── counted ────────────┴late─┤ later: not in the row yet

The progress rows are read before the others, and a progress row is written after all rows of its batch. So a row must
hold what lies at or below the progress of a shard, and besides what lies at or below its own position. This is true
while the pipeline runs, for each row by itself.

A void moves an event's amount from a row's usage to its voided usage, in one write of the row. So the two together are
what was counted, whenever a void falls between the audit's reads. The voided part by itself only grows, and the row
and the claim change together, so for a row and the voided claims of its events:

    row, as it was read first  <=  claims, read after it  <=  row, as it is read again where the claims say more
    total, as it was read first  <=  its windows, as they are read again where they say less; and the other way round

A window may come into being while the rows are read, and be missed where its total is not. What was voided of it lies
beyond the progress rows: so much more a total may say than its windows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal

from consumer.decoding import PlacedEvent
from metering.aggregation import EXACT
from metering.events import Event
from metering.meters import NO_METERS, Meters
from metering.ports import ShardProgress, ShardRef
from metering.positions import BEGINNING
from metering.readings import KeptReading, Reading, reading_place
from metering.rows import (
    METRIC_PREFIX,
    WINDOW_PREFIX,
    RowKey,
    applied_attribute,
    claim_owner,
    place,
    total_key,
    window_key,
)
from operations.audit_claims import EndedRecord


@dataclass(frozen=True, slots=True)
class Amount:
    """A sum of values, and of how many events."""

    usage: Decimal = Decimal(0)
    events: int = 0

    def plus(self, other: Amount) -> Amount:
        return Amount(EXACT.add(self.usage, other.usage), self.events + other.events)

    def minus(self, other: Amount) -> Amount:
        return Amount(EXACT.subtract(self.usage, other.usage), self.events - other.events)

    def exceeds(self, other: Amount) -> bool:
        """Whether it is more, in usage or in events."""
        return self.usage > other.usage or self.events > other.events


ZERO = Amount()


@dataclass(frozen=True, slots=True)
class FoundRow:
    """A total or window as it is. usage, events: None when it holds no such number. applied: position by attribute.

    voided: what was taken out of usage and events again. readings: what it keeps for meters that are max or latest.
    """

    usage: Decimal | None
    events: int | None
    applied: Mapping[str, str]
    voided: Amount = ZERO
    readings: tuple[KeptReading, ...] = ()

    @property
    def ever_counted(self) -> Amount | None:
        """What is in it and what was taken out again; None when it holds no such numbers."""
        if self.usage is None or self.events is None:
            return None
        return Amount(self.usage, self.events).plus(self.voided)


@dataclass(slots=True)
class AuditedRow:
    """A row as it is, None for one that is not there, and what the records that were read say of it.

    counted: what it must hold, or have held. late: the part of it that lies beyond the progress rows.
    unknown: what may be in it. voided: the part of counted that was taken out again, by its claims.
    voided_late: the part of that which lies beyond the progress rows.
    voided_now: what it says itself of that, when it was last read.
    behind: a shard of which it must hold a record that lies beyond the row's own position.
    reading, unknown_reading: the greatest of what is counted and of what is unknown, for a meter that is max or latest.
    """

    found: FoundRow | None
    counted: Amount = ZERO
    late: Amount = ZERO
    unknown: Amount = ZERO
    voided: Amount = ZERO
    voided_late: Amount = ZERO
    voided_now: Amount = ZERO
    behind: str | None = None
    reading: Reading | None = None
    unknown_reading: Reading | None = None

    def __post_init__(self) -> None:
        if self.found is not None:
            self.voided_now = self.found.voided


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
    """Adds up records; not thread-safe. voids: whether any row says that something was taken out of it."""

    def __init__(
        self,
        rows: Mapping[RowKey, FoundRow],
        shards: Mapping[str, AuditedShard],
        *,
        window_minutes: int,
        meters: Meters = NO_METERS,
    ) -> None:
        self.rows = {key: AuditedRow(row) for key, row in rows.items()}
        self.shards = dict(shards)
        self.voids = any(row.voided != ZERO for row in rows.values())
        self._window_minutes = window_minutes
        self._meters = meters
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
        for placed in record.counted:
            amount, reading = Amount(placed.event.value, 1), self._reading(shard, record, placed)
            for row in self._rows_of(shard, record.position, placed.event):
                row.counted = row.counted.plus(amount)
                row.reading = _greater(row.reading, reading)
                if record.position > shard.applied:
                    row.late = row.late.plus(amount)
                if row.found is not None and record.position > row.found.applied.get(shard.attribute, BEGINNING):
                    row.behind = shard.shard.shard_id
        self._add_voided(shard, record)
        for placed in record.unknown:
            amount, reading = Amount(placed.event.value, 1), self._reading(shard, record, placed)
            for row in self._rows_of(shard, record.position, placed.event):
                row.unknown = row.unknown.plus(amount)
                row.unknown_reading = _greater(row.unknown_reading, reading)

    def voided_totals(self) -> list[tuple[RowKey, Amount]]:
        """Return what the totals, as they were read, say was taken out of them, where anything was; in order."""
        totals = ((key, self.rows[key].found) for key in sorted(self.rows) if total_of(key) == key)
        return [(key, found.voided) for key, found in totals if found is not None and found.voided != ZERO]

    def unsettled(self) -> list[RowKey]:
        """Return the rows to be read again: those that say less than the claims of their events, or than each other."""
        windows = voided_in_windows(self.rows, lambda row: row.found.voided if row.found else ZERO)
        unequal = {
            key
            for key, row in self.rows.items()
            if total_of(key) == key and row.found is not None and row.found.voided != windows.get(key, ZERO)
        }
        return [
            key
            for key, row in self.rows.items()
            if row.found is not None and (row.voided.exceeds(row.voided_now) or total_of(key) in unequal)
        ]

    def _add_voided(self, shard: AuditedShard, record: EndedRecord) -> None:
        for placed in record.voided:
            amount = Amount(placed.event.value, 1)
            for row in self._rows_of(shard, record.position, placed.event):
                row.voided = row.voided.plus(amount)
                if record.position > shard.applied:
                    row.voided_late = row.voided_late.plus(amount)

    def _reading(self, shard: AuditedShard, record: EndedRecord, placed: PlacedEvent) -> Reading | None:
        aggregation = self._meters.for_metric(placed.event.metric).aggregation
        if not aggregation.keeps_reading:
            return None
        where = place(record.position, placed.index)
        owner = claim_owner(shard.shard.stream_created_at, shard.shard.shard_id, where)
        at = reading_place(placed.event, arrived_at=record.arrived_at, owner=owner)
        return Reading(aggregation, placed.event.value, at)

    def _rows_of(self, shard: AuditedShard, position: str, event: Event) -> Iterator[AuditedRow]:
        """Yield the total and the window of an event, each if it must hold the event."""
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
            yield row


def total_of(key: RowKey) -> RowKey:
    """Return the key of the total of a total or window."""
    if not key.sk.startswith(WINDOW_PREFIX):
        return key
    return RowKey(key.pk, METRIC_PREFIX + key.sk.removeprefix(WINDOW_PREFIX).rpartition("#")[0])


def voided_in_windows(rows: Mapping[RowKey, AuditedRow], of: Callable[[AuditedRow], Amount]) -> dict[RowKey, Amount]:
    """Return what was taken out of all windows of a total, by total; left out where it is nothing. of: of one row."""
    voided: dict[RowKey, Amount] = {}
    for key, row in rows.items():
        if (amount := of(row)) != ZERO and total_of(key) != key:
            voided[total_of(key)] = voided.get(total_of(key), ZERO).plus(amount)
    return voided


def _greater(one: Reading | None, other: Reading | None) -> Reading | None:
    if one is None or (other is not None and other.exceeds(one)):
        return other
    return one
