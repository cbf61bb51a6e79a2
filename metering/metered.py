"""The usage of rows by their meter's aggregation: what billing answers of a total, or of windows together. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Protocol

from metering.aggregation import EXACT
from metering.meters import Aggregation
from metering.readings import KeptReading, merged_readings


class MeteredRow(Protocol):
    """A total or a window, as it is read. readings: one of an aggregation at most."""

    @property
    def usage(self) -> Decimal: ...

    @property
    def events(self) -> int: ...

    @property
    def readings(self) -> Sequence[KeptReading]: ...


def metered_usage(aggregation: Aggregation, rows: Iterable[MeteredRow]) -> Decimal | None:
    """Return the usage of rows together, by `aggregation`; 0 of none.

    rows: of one metric, no event in two of them: a total, or windows.
    None: some of their events were counted while the metric was aggregated otherwise, so that it is not known.
    """
    rows = list(rows)
    match aggregation:
        case Aggregation.SUM:
            total = Decimal(0)
            for row in rows:
                total = EXACT.add(total, row.usage)
            return total
        case Aggregation.COUNT:
            return Decimal(sum(row.events for row in rows))
    events = sum(row.events for row in rows)
    kept = _kept(merged_readings(each for row in rows if row.events for each in row.readings), aggregation)
    if (kept.events if kept else 0) != events:
        return None
    return kept.reading.value if kept else Decimal(0)


def is_complete(row: MeteredRow, aggregation: Aggregation) -> bool:
    """Return whether a row can tell its usage by `aggregation`: a sum and a count always."""
    return metered_usage(aggregation, [row]) is not None


def _kept(readings: Iterable[KeptReading], aggregation: Aggregation) -> KeptReading | None:
    return next((kept for kept in readings if kept.reading.aggregation is aggregation), None)
