"""Local hours, days and months: held to what a clock on the wall would show, minute by minute, where clocks are odd."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metering.errors import InvalidRangeError
from metering.local_time import Period, Span, ceiling, first_moment, floor, spans, zone_named, zone_names

MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)

ODD = [
    ("Europe/Berlin", "2024-03-30"),
    ("Europe/Berlin", "2024-10-26"),
    ("America/New_York", "2024-03-09"),
    ("America/New_York", "2024-11-02"),
    ("Africa/Casablanca", "2024-03-09"),  # the clock goes back for Ramadan
    ("Africa/Casablanca", "2024-04-13"),
    ("Pacific/Apia", "2011-12-28"),  # the 30th does not exist
    ("Pacific/Kwajalein", "1993-08-19"),  # nor the 21st here
    ("Pacific/Kwajalein", "1969-09-29"),  # a day of 47 hours
    ("America/Sao_Paulo", "2018-11-03"),  # midnight does not exist
    ("America/Sao_Paulo", "2018-02-17"),  # the clock goes back at midnight
    ("America/St_Johns", "2010-11-06"),  # and here a minute after it
    ("America/St_Johns", "2010-03-13"),
    ("America/Toronto", "1919-03-29"),  # from 23:30 to 0:30
    ("Asia/Gaza", "2023-10-27"),
    ("Antarctica/Troll", "2024-03-30"),  # two hours forward
    ("Asia/Kolkata", "2024-01-30"),
    ("Asia/Kathmandu", "2024-01-30"),
    ("Australia/Lord_Howe", "2024-04-06"),  # half an hour back
    ("Australia/Lord_Howe", "2024-10-05"),
    ("Etc/GMT+12", "2024-02-27"),
]


def wall_clock(period: Period, zone: ZoneInfo, start: datetime, end: datetime) -> Iterator[datetime]:
    """Yield the minutes at which a window begins, by looking at every minute."""
    latest: Any = None
    moment = start
    while moment < end:
        here = moment.astimezone(zone)
        if period is Period.HOUR:
            begun = latest != (shown := (here.date(), here.hour, here.utcoffset()))
        else:
            shown = here.date().replace(day=1) if period is Period.MONTH else here.date()
            begun = latest is None or shown > latest  # a date that is there for the second time begins nothing
        if begun:
            latest = shown
            yield moment
        moment += MINUTE


@pytest.mark.parametrize("period", Period)
@pytest.mark.parametrize(("name", "day"), ODD)
def test_windows_are_what_a_clock_on_the_wall_shows(name: str, day: str, period: Period) -> None:
    zone = zone_named(name)
    start = datetime.fromisoformat(f"{day}T00:00:00+00:00")
    end = start + 4 * DAY
    found = list(spans(start, end, period, zone))
    assert [span.start for span in found] == list(wall_clock(period, zone, start, end))
    for span in found:
        for moment in (
            span.start,
            min(span.start + 2 * MINUTE, span.end - MINUTE),
            span.start + (span.end - span.start) // 2,
            span.end - MINUTE,
        ):
            assert max(start, floor(moment, period, zone)) == span.start
            assert min(end, ceiling(moment, period, zone)) == span.end


ZONES = st.sampled_from(sorted({name for name, _ in ODD} | {"UTC", "Africa/Monrovia", "America/Caracas"}))
MOMENTS = st.datetimes(datetime(1890, 1, 1), datetime(2040, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001
RANGES = st.tuples(MOMENTS, st.timedeltas(timedelta(0), 40 * DAY))


@given(RANGES, st.sampled_from(Period), ZONES)
def test_windows_tile_their_range_without_gap_or_overlap(
    asked: tuple[datetime, timedelta], period: Period, name: str
) -> None:
    start, end = asked[0], asked[0] + asked[1]
    found = list(spans(start, end, period, zone_named(name)))
    if start == end:
        assert found == []
        return
    assert (found[0].start, found[-1].end) == (start, end)
    assert all(before.end == after.start for before, after in pairwise(found))
    assert all(span.start < span.end for span in found)
    longest = {Period.HOUR: HOUR, Period.DAY: 49 * HOUR, Period.MONTH: 32 * DAY}[period]
    assert all(span.end - span.start <= longest for span in found)


@given(RANGES, st.sampled_from(Period), ZONES, st.data())
def test_where_a_window_ends_does_not_depend_on_where_the_reading_began(
    asked: tuple[datetime, timedelta], period: Period, name: str, data: st.DataObject
) -> None:
    start, end, zone = asked[0], asked[0] + asked[1], zone_named(name)
    found = list(spans(start, end, period, zone))
    if found:
        begun = data.draw(st.integers(0, len(found) - 1))
        assert list(spans(found[begun].start, end, period, zone)) == found[begun:]


def test_a_day_has_23_24_or_25_hours_and_a_year_of_them_has_one_of_each() -> None:
    for year in range(1981, 2038):
        days = spans(*year_of("Europe/Berlin", year), Period.DAY, zone_named("Europe/Berlin"))
        hours = [(span.end - span.start) // HOUR for span in days]
        assert (hours.count(23), hours.count(25), len(hours)) == (1, 1, 366 if year % 4 == 0 else 365)
        assert set(hours) == {23, 24, 25}


def year_of(name: str, year: int) -> Span:
    zone = zone_named(name)
    return Span(first_moment(date(year, 1, 1), zone), first_moment(date(year + 1, 1, 1), zone))


def test_a_date_that_does_not_exist_is_no_window_and_begins_where_the_next_does() -> None:
    zone = zone_named("Pacific/Apia")
    missing, after = (first_moment(date(2011, 12, day), zone) for day in (30, 31))
    assert missing == after == datetime(2011, 12, 30, 10, tzinfo=UTC)
    assert len(list(spans(*year_of("Pacific/Apia", 2011), Period.DAY, zone))) == 364


def test_a_day_without_a_midnight_begins_where_the_clock_was_put_to() -> None:
    zone = zone_named("America/Sao_Paulo")
    begun = first_moment(date(2018, 11, 4), zone)
    assert begun.astimezone(zone).isoformat() == "2018-11-04T01:00:00-02:00"
    [day] = spans(begun, first_moment(date(2018, 11, 5), zone), Period.DAY, zone)
    assert day.end - day.start == 23 * HOUR


def test_the_first_of_two_midnights_counts() -> None:
    zone = zone_named("America/St_Johns")
    assert first_moment(date(2010, 11, 7), zone) == datetime(2010, 11, 7, 2, 30, tzinfo=UTC)


def test_months_follow_the_local_clock() -> None:
    found = list(spans(*year_of("America/New_York", 2024), Period.MONTH, zone_named("America/New_York")))
    assert [span.start.isoformat()[5:16] for span in found][2:5] == ["03-01T05:00", "04-01T04:00", "05-01T04:00"]
    assert len(found) == 12


# ── The ends of the calendar ─────────────────────────────────────────────────────────────────────────────────────────

LAST = datetime(9999, 12, 31, 23, tzinfo=UTC)


@pytest.mark.parametrize("period", Period)
def test_the_last_window_of_all_ends_where_the_range_does(period: Period) -> None:
    assert list(spans(LAST, LAST + MINUTE, period, zone_named("UTC"))) == [Span(LAST, LAST + MINUTE)]
    first = datetime(1, 1, 1, tzinfo=UTC)
    assert next(spans(first, LAST, period, zone_named("UTC"))).start == floor(first, period, zone_named("UTC")) == first


@pytest.mark.parametrize("period", Period)
@pytest.mark.parametrize(
    ("moment", "name"),
    [(datetime(1, 1, 1, tzinfo=UTC), "Etc/GMT+5"), (datetime(9999, 12, 31, 22, tzinfo=UTC), "Etc/GMT-5")],
)
def test_a_time_that_the_zone_has_no_year_for_is_refused(period: Period, moment: datetime, name: str) -> None:
    refused: list[Callable[[], object]] = [
        lambda: floor(moment, period, zone_named(name)),
        lambda: next(spans(moment, LAST, period, zone_named(name))),
        lambda: first_moment(date(1, 1, 1), zone_named("Asia/Tokyo")),
    ]
    for call in refused:
        with pytest.raises(InvalidRangeError) as caught:
            call()
        assert caught.value.code == "time_out_of_range"


# ── Names ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "name",
    ["", "Europe/Berlin2", "europe/berlin", "localtime", "../../etc/passwd", "/etc/passwd", "Europe", "x" * 300, "\0",
     "Europe/Berlin\n", "tzdata", "zones", "__init__.py", "Europe/../Europe/Berlin", "+01:00", "CEST"],
)  # fmt: skip
def test_what_is_no_zone_is_refused_and_no_file_is_looked_for(name: str) -> None:
    with pytest.raises(InvalidRangeError) as caught:
        zone_named(name)
    assert (caught.value.code, caught.value.parameter) == ("invalid_timezone", "timezone")
    assert len(caught.value.detail) < 200


def test_every_zone_of_the_package_can_be_read_whatever_the_machine_has() -> None:
    moment = datetime(2024, 7, 1, tzinfo=UTC)
    assert len(zone_names()) > 590
    assert all(moment.astimezone(zone_named(name)) == moment for name in zone_names())
