"""From events to row writes: what a batch of one shard adds to each counter row, and what is left of it on a replay.

The law that everything rests on: a row holds exactly the records of a shard up to the row's own position. So applying
the same records in any batching, any number of times, in order, gives the same rows. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Context, Decimal, Inexact

from metering.events import Event
from metering.readings import Reading
from metering.rows import RowKey, total_key, window_key

EXACT = Context(prec=38, traps=[Inexact])
"""38 digits is what a DynamoDB number holds; a sum that would not fit raises Inexact and is never rounded."""

HOURS_KEPT = 24
"""For how many hours a progress row says what it counted: the one that has begun, and those before it."""
_HOUR = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Contribution:
    """What one record adds to one row. position: the record's; usage: sum of its values; events: how many."""

    position: str
    usage: Decimal
    events: int


@dataclass(frozen=True, slots=True)
class RowWrite:
    """One conditional ADD: `first` and `last` are the positions of the first and last contribution in it.

    reading: of a meter that is max or latest, the greatest of these contributions: the row has been offered it before.
    """

    key: RowKey
    contributions: tuple[Contribution, ...]
    reading: Reading | None = None

    @property
    def first(self) -> str:
        return self.contributions[0].position

    @property
    def last(self) -> str:
        return self.contributions[-1].position

    @property
    def usage(self) -> Decimal:
        total = Decimal(0)
        for contribution in self.contributions:
            total = EXACT.add(total, contribution.usage)
        return total

    @property
    def events(self) -> int:
        return sum(contribution.events for contribution in self.contributions)

    def beyond(self, position: str) -> RowWrite | None:
        """Return what lies beyond `position`, the row's own, or None when all of it has been applied already."""
        rest = tuple(c for c in self.contributions if c.position > position)
        return replace(self, contributions=rest) if rest else None


def row_writes(
    counted: Iterable[tuple[str, Event]], *, window_minutes: int, readings: Mapping[RowKey, Reading] | None = None
) -> list[RowWrite]:
    """Return the writes, one for each row touched, for the counted events of a batch of one shard.

    counted: (position of the record, event), positions not decreasing; several events of one record have its position.
    readings: the greatest of these events for each row whose meter is max or latest.
    """
    rows: dict[RowKey, dict[str, Contribution]] = {}
    for position, event in counted:
        for key in row_keys(event, window_minutes=window_minutes):
            by_position = rows.setdefault(key, {})
            before = by_position.get(position)
            by_position[position] = (
                Contribution(position, event.value, 1)
                if before is None
                else Contribution(position, EXACT.add(before.usage, event.value), before.events + 1)
            )
    return [RowWrite(key, tuple(by_position.values()), (readings or {}).get(key)) for key, by_position in rows.items()]


def row_keys(event: Event, *, window_minutes: int) -> tuple[RowKey, RowKey]:
    """Return the two rows that an event is counted in: its counter's total and its window."""
    return (
        total_key(event.tenant_id, event.metric),
        window_key(event.tenant_id, event.metric, event.occurred_at, window_minutes),
    )


@dataclass(frozen=True, slots=True)
class RecordOutcome:
    """How the events of one record ended: events = counted + duplicates + rejected.

    arrived_at: the record's approximate arrival time, aware UTC.
    """

    position: str
    arrived_at: datetime
    counted: int
    duplicates: int
    rejected: int

    @property
    def events(self) -> int:
        return self.counted + self.duplicates + self.rejected


def outcomes_beyond(outcomes: Sequence[RecordOutcome], position: str) -> list[RecordOutcome]:
    """Return the outcomes of records beyond `position`."""
    return [outcome for outcome in outcomes if outcome.position > position]


def counted_by_hour(outcomes: Iterable[RecordOutcome], *, now: datetime) -> dict[datetime, int]:
    """Return how many events were counted of the records that arrived in each of the hours that are kept, without 0.

    now: aware UTC, the time of writing. Keys are the starts of hours, aware UTC. What arrived before them is left out,
    since nothing would remove it again.
    """
    counted: dict[datetime, int] = {}
    oldest = hour_of(now) - (HOURS_KEPT - 1) * _HOUR
    for outcome in outcomes:
        hour = hour_of(outcome.arrived_at)
        if outcome.counted and hour >= oldest:
            counted[hour] = counted.get(hour, 0) + outcome.counted
    return counted


def hours_just_past(now: datetime) -> tuple[datetime, datetime]:
    """Return the two hours that are kept no longer since the last turns of the hour; a heartbeat comes between them."""
    newest = hour_of(now) - HOURS_KEPT * _HOUR
    return newest - _HOUR, newest


def hour_of(moment: datetime) -> datetime:
    """Return the start of the hour of an aware UTC time."""
    return moment.replace(minute=0, second=0, microsecond=0)
