"""From events to row writes: what a batch of one shard adds to each counter row, and what is left of it on a replay.

The law that everything rests on: a row holds exactly the records of a shard up to the row's own position. So applying
the same records in any batching, any number of times, in order, gives the same rows. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Context, Decimal, Inexact

from metering.events import Event
from metering.rows import RowKey, total_key, window_key

EXACT = Context(prec=38, traps=[Inexact])
"""38 digits is what a DynamoDB number holds; a sum that would not fit raises Inexact and is never rounded."""


@dataclass(frozen=True, slots=True)
class Contribution:
    """What one record adds to one row. position: the record's; usage: sum of its values; events: how many."""

    position: str
    usage: Decimal
    events: int


@dataclass(frozen=True, slots=True)
class RowWrite:
    """One conditional ADD: `first` and `last` are the positions of the first and last contribution in it."""

    key: RowKey
    contributions: tuple[Contribution, ...]

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
        return RowWrite(self.key, rest) if rest else None


def row_writes(counted: Iterable[tuple[str, Event]], *, window_minutes: int) -> list[RowWrite]:
    """Return the writes, one for each row touched, for the counted events of a batch of one shard.

    counted: (position of the record, event), positions not decreasing; several events of one record have its position.
    """
    rows: dict[RowKey, dict[str, Contribution]] = {}
    for position, event in counted:
        for key in (
            total_key(event.tenant_id, event.metric),
            window_key(event.tenant_id, event.metric, event.occurred_at, window_minutes),
        ):
            by_position = rows.setdefault(key, {})
            before = by_position.get(position)
            by_position[position] = (
                Contribution(position, event.value, 1)
                if before is None
                else Contribution(position, EXACT.add(before.usage, event.value), before.events + 1)
            )
    return [RowWrite(key, tuple(by_position.values())) for key, by_position in rows.items()]


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
