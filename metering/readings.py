"""Readings: of a metric whose meter is max or latest, the one event of a row whose value is the row's usage. Pure.

All events have an order, which depends on nothing but the event and where the stream holds it:

    max      value ─► latest's order                                      (of equal values, the later event)
    latest   event time ─► arrival ─► shard ─► position ─► index          (of equal times, what arrived later)

A row keeps the greatest reading that was offered to it. So it does not matter how often, in which batches and in which
order of the shards events are offered: the rows come out alike, and no fence is needed.

A reading is kept before its event is counted, and the row counts, in the fenced write, how many of its events had been
offered. So a row whose `max_events` is its `events` has the maximum of all of them; where the two differ, some were
counted while the metric was aggregated otherwise, and nobody knows their maximum.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from decimal import Decimal
from typing import NamedTuple

from metering.events import Event, time_text
from metering.meters import Aggregation


class Reading(NamedTuple):
    """One event's value. aggregation: max or latest. at: its place in latest's order, as reading_place makes it."""

    aggregation: Aggregation
    value: Decimal
    at: str

    def exceeds(self, other: Reading) -> bool:
        """Return whether this one, of the same aggregation, is later in the order."""
        if self.aggregation is Aggregation.MAX and self.value != other.value:
            return self.value > other.value
        return self.at > other.at


class KeptReading(NamedTuple):
    """What a row keeps. events: how many of the row's events have been offered, less those that were voided.

    Nothing is voided from a row that keeps a reading, so what was voided had not been offered. A later replay of its
    batch may have offered it all the same: such a row must never seem to have been offered all that it has.
    """

    reading: Reading
    events: int


def reading_place(event: Event, *, arrived_at: datetime, owner: str) -> str:
    """Return an event's place in latest's order: text, which sorts by code point as by UTF-8 bytes.

    arrived_at: of its record, aware UTC. owner: the event's place on the stream, as metering.rows.claim_owner makes it;
    positions are compared as text there, which is the order of the shard.
    """
    occurred_at = event.occurred_at.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    return f"{occurred_at}#{time_text(arrived_at)}#{owner}"


def merged_readings(kept: Iterable[KeptReading]) -> tuple[KeptReading, ...]:
    """Return what rows keep together, one of an aggregation at most. kept: of rows that have events."""
    merged: dict[Aggregation, KeptReading] = {}
    for each in kept:
        before = merged.get(each.reading.aggregation)
        if before is None:
            merged[each.reading.aggregation] = each
        else:
            top = each.reading if each.reading.exceeds(before.reading) else before.reading
            merged[top.aggregation] = KeptReading(top, before.events + each.events)
    return tuple(merged.values())
