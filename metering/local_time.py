"""Local hours, days and months, as intervals of time: with the clocks' changes, whatever the zone has been through.

    hour    while the local clock shows the same hour at the same offset: a change of the clock begins a new one
    day     from the first moment of a date, or of a later one, to that of the next
    month   the same, of a month's first date

A day whose midnight does not exist begins where the clock was put to; a date that does not exist (Pacific/Apia,
2011-12-30) is no day; where midnight comes twice the first one counts. So each of them tiles time, and where one ends
depends on where it begins and on nothing else: pages of any size hold the same windows.

Zones come from the tzdata package alone, never from the machine: a bill must be cut the same everywhere. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from functools import cache
from importlib.resources import files
from typing import NamedTuple
from zoneinfo import ZoneInfo

from metering.errors import InvalidRangeError

ZONE_NAME_LENGTH_MAX = 64
"""Of an unknown name, in an error."""
END_OF_TIME = datetime.max.replace(tzinfo=UTC)

_HOUR = timedelta(hours=1)
_DAY = timedelta(days=1)
_SECOND = timedelta(seconds=1)


class Period(StrEnum):
    """What a window lasts, on the local clock."""

    HOUR = "hour"
    DAY = "day"
    MONTH = "month"


class Span(NamedTuple):
    """From `start` up to and without `end`; both aware UTC."""

    start: datetime
    end: datetime


@cache
def zone_names() -> frozenset[str]:
    """Return the names of all zones of the tzdata package."""
    return frozenset((files("tzdata") / "zones").read_text(encoding="utf-8").split())


@cache
def _zone(name: str) -> ZoneInfo:
    with files("tzdata").joinpath("zoneinfo", *name.split("/")).open("rb") as file:
        return ZoneInfo.from_file(file, key=name)


def zone_named(name: str) -> ZoneInfo:
    """Return the zone of an IANA name. Raises InvalidRangeError `invalid_timezone`."""
    if name not in zone_names():  # which also says that the name leads to no other file
        detail = f"there is no time zone {name[:ZONE_NAME_LENGTH_MAX]!r}; it must be an IANA name, as Europe/Berlin"
        raise InvalidRangeError("invalid_timezone", detail, "timezone")
    return _zone(name)


def local(moment: datetime, zone: ZoneInfo) -> datetime:
    """Return an aware time on the clock of `zone`.

    Raises InvalidRangeError `time_out_of_range` where that is not within the years 1 to 9999.
    """
    try:
        return moment.astimezone(zone)
    except OverflowError as error:
        raise out_of_calendar() from error


def out_of_calendar() -> InvalidRangeError:
    """Return the error for a time before year 1 or after year 9999, in UTC or in the zone."""
    return InvalidRangeError("time_out_of_range", "times must lie in the years 1 to 9999, in UTC and in the zone")


def first_moment(day: date, zone: ZoneInfo) -> datetime:
    """Return the first moment (aware UTC) whose local date is `day` or a later one.

    Raises InvalidRangeError `time_out_of_range`.
    """
    try:
        midnight = datetime(day.year, day.month, day.day, tzinfo=zone).astimezone(UTC)  # fold 0: the first of two
        if local(midnight, zone).replace(tzinfo=None) == datetime(day.year, day.month, day.day):  # noqa: DTZ001
            return midnight
        # The clock was put forward over midnight, and the change lies at most that far before it.
        return _first(midnight - _DAY, midnight, lambda moment: local(moment, zone).date() >= day)
    except OverflowError as error:
        raise out_of_calendar() from error


def floor(moment: datetime, period: Period, zone: ZoneInfo) -> datetime:
    """Return where the window that holds `moment` (aware UTC) begins. Raises as first_moment does."""
    try:
        return _begun_hour(moment, zone) if period is Period.HOUR else _begun_date(moment, period, zone)
    except OverflowError as error:
        raise out_of_calendar() from error


def spans(start: datetime, end: datetime, period: Period | None, zone: ZoneInfo) -> Iterator[Span]:
    """Yield the windows of [start, end) in order, the first and the last one cut off there; none when it is empty.

    start, end: aware UTC; period: None for a single window. Lazy, so that a range of any length can be begun.
    Raises InvalidRangeError `time_out_of_range`.
    """
    while start < end:
        after = end if period is None else min(end, ceiling(start, period, zone))
        yield Span(start, after)
        start = after


def ceiling(moment: datetime, period: Period, zone: ZoneInfo) -> datetime:
    """Return where the window that holds `moment` (aware UTC) ends, the end of time for the last of all windows.

    Raises InvalidRangeError `time_out_of_range`.
    """
    here = local(moment, zone)
    try:
        return _next_hour(moment, here, zone) if period is Period.HOUR else _next_date(moment, here, period, zone)
    except OverflowError:
        return END_OF_TIME


def _begun_hour(moment: datetime, zone: ZoneInfo) -> datetime:
    here = moment.astimezone(zone)
    begun, offset = moment - _past_hour(here), here.utcoffset()
    if begun.astimezone(zone).utcoffset() == offset:
        return begun
    return _first(begun, moment, lambda each: each.astimezone(zone).utcoffset() == offset)


def _next_hour(moment: datetime, here: datetime, zone: ZoneInfo) -> datetime:
    after, offset = moment + _HOUR - _past_hour(here), here.utcoffset()
    if after.astimezone(zone).utcoffset() == offset:
        return after
    return _first(moment, after, lambda each: each.astimezone(zone).utcoffset() != offset)


def _past_hour(here: datetime) -> timedelta:
    return timedelta(minutes=here.minute, seconds=here.second, microseconds=here.microsecond)


def _begun_date(moment: datetime, period: Period, zone: ZoneInfo) -> datetime:
    begins = _begins(moment.astimezone(zone).date(), period)
    after = _date_after(begins, period)
    # Where midnight comes twice, the next date has been there for a moment already.
    if after is not None and (begun := first_moment(after, zone)) <= moment:
        return begun
    return first_moment(begins, zone)


def _next_date(moment: datetime, here: datetime, period: Period, zone: ZoneInfo) -> datetime:
    following = _date_after(_begins(here.date(), period), period)
    while following is not None:
        begun = first_moment(following, zone)
        if begun > moment:  # not so where midnight comes twice, in the time between the two
            return begun
        following = _date_after(following, period)
    return END_OF_TIME


def _begins(day: date, period: Period) -> date:
    return day.replace(day=1) if period is Period.MONTH else day


def _date_after(begins: date, period: Period) -> date | None:
    """Return the date on which the next day or month begins, None after year 9999."""
    try:
        return _begins(begins + (timedelta(days=31) if period is Period.MONTH else _DAY), period)
    except OverflowError:
        return None


def _first(before: datetime, reached: datetime, holds: Callable[[datetime], bool]) -> datetime:
    """Return the first second after `before`, and up to `reached`, from which on `holds` does: a change of the clock.

    It does not hold at `before`, and does at `reached`.
    """
    while reached - before > _SECOND:
        middle = before + (reached - before) // 2 // _SECOND * _SECOND
        before, reached = (before, middle) if holds(middle) else (middle, reached)
    return reached
