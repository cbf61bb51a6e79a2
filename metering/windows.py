"""Usage by window: from window rows to sums over any ranges of time. Pure.

    usage_in(reader, tenant_id, metric, start, end)      one sum
    usage_of(reader, tenant_id, metric, spans)           one for each span; spans: as metering.local_time makes them

Rows lie at multiples of their size in UTC, and a range must begin and end where rows do: `refuse_unaligned` says so
before anything is read. Rows of another size may be among them, since USAGE_WINDOW_MINUTES was another once; one
that a border cuts can't be divided, and is an error rather than a guess.

A window row's key shows its hour, or its hour and minute when it is smaller. Whether `10:00` is of half an hour or of a
quarter it does not show; half an hour, unless USAGE_WINDOW_MINUTES is 15 today.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from itertools import pairwise
from typing import NamedTuple, Protocol

from metering.aggregation import EXACT
from metering.errors import InvalidRangeError
from metering.events import time_text
from metering.local_time import Span
from metering.readings import KeptReading, merged_readings
from metering.rows import WINDOW_MINUTES_ALLOWED, WINDOW_PREFIX

_HOUR_STAMP_LENGTH = len("2024-01-15T10")
_MINUTE = timedelta(minutes=1)
_NOTHING = Decimal(0)


class WindowRow(NamedTuple):
    """One row of a counter: what happened within `minutes` from `start` (aware UTC).

    readings: what it keeps for a meter that is max or latest (metering.readings); a maximum without its place.
    """

    start: datetime
    minutes: int
    usage: Decimal
    events: int
    readings: tuple[KeptReading, ...] = ()

    @property
    def end(self) -> datetime:
        return self.start + self.minutes * _MINUTE


class UsageWindow(NamedTuple):
    """What a counter counted from `start` up to and without `end`; both aware UTC.

    usage: the sum, however the metric is aggregated; metering.metered makes of windows what their meter says.
    """

    start: datetime
    end: datetime
    usage: Decimal
    events: int
    readings: tuple[KeptReading, ...] = ()


class WindowReader(Protocol):
    """Where window rows are read, strongly consistent. Raises as metering.ports.CounterStore does."""

    def windows(
        self, tenant_id: str, metric: str, *, start: datetime, end: datetime, at_once: bool = False
    ) -> Iterator[WindowRow]:
        """Yield the rows that overlap [start, end), in order of their starts; none for a counter that was never seen.

        start, end: aware UTC, whole minutes, start before end. Reads as it yields, so it can raise at any row.
        at_once: in a single read where they fit into one, and not in parts side by side, which for many is quicker.
        """

    def window_ends(self, tenant_id: str, metric: str) -> tuple[WindowRow, WindowRow] | None:
        """Return the first and the last row of a counter, None when it has no rows."""


def usage_in(reader: WindowReader, tenant_id: str, metric: str, start: datetime, end: datetime) -> UsageWindow:
    """Return what a counter counted in [start, end), aware UTC; zeros for a counter that was never seen.

    Raises InvalidRangeError as usage_of does, and as the reader does.
    """
    if start >= end:
        return UsageWindow(start, end, _NOTHING, 0)
    return usage_of(reader, tenant_id, metric, [Span(start, end)])[0]


def usage_of(reader: WindowReader, tenant_id: str, metric: str, spans: Sequence[Span]) -> list[UsageWindow]:
    """Return what a counter counted in each of `spans`: aware UTC, each beginning where the one before it ends.

    Call refuse_unaligned before. Raises InvalidRangeError `range_cuts_rows`, and as the reader does. Rows are
    summed as they come: memory goes by the spans, not by the rows.
    """
    if not spans:
        return []
    rows = reader.windows(tenant_id, metric, start=spans[0].start, end=spans[-1].end)
    return list(summed(spans, rows))


def summed(spans: Iterable[Span], rows: Iterable[WindowRow]) -> Iterator[UsageWindow]:
    """Yield the sums of `rows`, in order of their starts, over `spans`, each beginning where the one before it ends.

    Raises InvalidRangeError `range_cuts_rows` for a row that lies on both sides of a span's start or end.
    """
    coming = iter(rows)
    row = next(coming, None)
    for span in spans:
        start, end = span
        usage, events = _NOTHING, 0
        readings: list[KeptReading] = []
        ends_within = end.minute != 0 or end.second != 0  # no row begins before a full hour and ends after it
        while row is not None and row.start < end:
            if row.start < start:
                raise _cut(row, start)
            if ends_within and row.end > end:
                raise _cut(row, end)
            usage, events = EXACT.add(usage, row.usage), events + row.events
            if row.readings and row.events:
                readings += row.readings
            row = next(coming, None)
        yield UsageWindow(start, end, usage, events, merged_readings(readings))


def refuse_unaligned(moment: datetime, parameter: str, *, window_minutes: int) -> None:
    """Raise InvalidRangeError `unaligned_time` unless rows of `window_minutes` begin at `moment` (aware UTC).

    parameter: where it was given.
    """
    needed = _minutes_needed([moment])
    if needed is None or needed < window_minutes:
        detail = (
            f"{parameter} must be where a window of {window_minutes} minutes begins in UTC (USAGE_WINDOW_MINUTES); "
            f"{time_text(moment)} is not"
        )
        raise InvalidRangeError("unaligned_time", detail, parameter, window_minutes=needed)


def refuse_zone_unaligned(
    spans: Sequence[Span], zone_name: str, *, window_minutes: int, parameter: str | None = "timezone"
) -> None:
    """Raise InvalidRangeError `timezone_needs_smaller_windows` when rows of `window_minutes` can't tell spans apart.

    spans: of a zone's hours, days or months. parameter: where the zone was given, None when not in the request.
    """
    needed = _minutes_needed(moment for span in spans for moment in span)
    if needed is None or needed < window_minutes:
        first = next(each for span in spans for each in span if (_minutes_needed([each]) or 0) < window_minutes)
        cure = (
            f"USAGE_WINDOW_MINUTES={needed} would do, for what is counted from then on"
            if needed
            else "no USAGE_WINDOW_MINUTES would do"
        )
        detail = (
            f"usage is kept in windows of {window_minutes} minutes from the full hour in UTC, and one of "
            f"{zone_name[:64]} begins or ends at {time_text(first)}; {cure}"
        )
        raise InvalidRangeError("timezone_needs_smaller_windows", detail, parameter, window_minutes=needed)


def stamps(start: datetime, end: datetime) -> tuple[str, str]:
    """Return between which stamps (inclusive) all rows stand that overlap [start, end), and few others.

    start, end: aware UTC, whole minutes, start before end. The hour in which it starts may have a row of its own.
    """
    last = end - _MINUTE  # every stamp of a row that begins before `end` sorts at or below it
    return start.isoformat()[:_HOUR_STAMP_LENGTH], last.isoformat()[: len("2024-01-15T10:00")]


def sort_key(metric: str, stamp: str) -> str:
    """Return a sort key among those of a counter's window rows, as metering.rows.window_key makes them."""
    return f"{WINDOW_PREFIX}{metric}#{stamp}"


def row_of_stamp(
    stamp: str, usage: Decimal, events: int, readings: tuple[KeptReading, ...] = (), *, window_minutes: int
) -> WindowRow:
    """Return the row whose sort key ends with `stamp`. window_minutes: today's USAGE_WINDOW_MINUTES, see the top."""
    if len(stamp) == _HOUR_STAMP_LENGTH:
        return WindowRow(datetime.fromisoformat(f"{stamp}+00:00"), 60, usage, events, readings)
    start = datetime.fromisoformat(f"{stamp}+00:00")
    return WindowRow(start, 15 if start.minute % 30 or window_minutes == 15 else 30, usage, events, readings)


def parts(start: datetime, end: datetime, *, rows_each: int, parts_max: int, window_minutes: int) -> list[Span]:
    """Return [start, end) in up to `parts_max` parts of full hours, of about `rows_each` rows or more each.

    start, end: aware UTC, start before end.
    """
    hours = (end - start) // timedelta(hours=1)
    count = max(1, min(parts_max, hours * 60 // window_minutes // rows_each))
    first = start.replace(minute=0)
    borders = [start, *(first + timedelta(hours=hours * n // count) for n in range(1, count)), end]
    return [Span(*pair) for pair in pairwise(borders)]


def _minutes_needed(moments: Iterable[datetime]) -> int | None:
    """Return the largest size of rows that begin at all of `moments`, None when none do."""
    minutes = {60}
    for moment in moments:
        if moment.second or moment.microsecond:
            return None
        minutes.add(moment.minute)
    fits = (size for size in WINDOW_MINUTES_ALLOWED if all(minute % size == 0 for minute in minutes))
    return next(fits, None)


def _cut(row: WindowRow, at: datetime) -> InvalidRangeError:
    detail = (
        f"{time_text(at)} lies within a window of {row.minutes} minutes that was counted as one, from "
        f"{time_text(row.start)}; begin and end where such windows do, as in a zone whose offset is in full hours"
    )
    return InvalidRangeError("range_cuts_rows", detail)
