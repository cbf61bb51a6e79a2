"""Usage by window: what is summed is what the rows hold, wherever windows begin, and nothing is guessed."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metering.errors import InvalidRangeError
from metering.local_time import Period, Span, spans, zone_named
from metering.memory import MemoryTables
from metering.meters import Aggregation
from metering.readings import KeptReading, Reading
from metering.rows import window_key
from metering.windows import (
    UsageWindow,
    WindowRow,
    parts,
    refuse_unaligned,
    refuse_zone_unaligned,
    row_of_stamp,
    stamps,
    summed,
    usage_in,
    usage_of,
)
from tests.builders import count, event

START = datetime(2023, 3, 20, tzinfo=UTC)
HOUR, MINUTE = timedelta(hours=1), timedelta(minutes=1)


def row(hours: float, minutes: int = 60, usage: str = "1") -> WindowRow:
    return WindowRow(START + hours * HOUR, minutes, Decimal(usage), 1)


def span(first: float, last: float) -> Span:
    return Span(START + first * HOUR, START + last * HOUR)


def sums(asked: list[Span], *rows: WindowRow) -> list[str]:
    return [str(window.usage) for window in summed(asked, rows)]


def code_of(call: Callable[[], object]) -> tuple[str, int | None]:
    with pytest.raises(InvalidRangeError) as caught:
        call()
    return caught.value.code, caught.value.window_minutes


# ── Sums ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_row_counts_in_the_window_that_it_begins_in_and_a_gap_is_zero() -> None:
    found = list(summed([span(0, 1), span(1, 2), span(2, 4)], [row(0, usage="0.1"), row(2, usage="2"), row(3)]))
    assert found == [
        UsageWindow(*span(0, 1), Decimal("0.1"), 1),
        UsageWindow(*span(1, 2), Decimal(0), 0),
        UsageWindow(*span(2, 4), Decimal(3), 2),
    ]


def test_rows_of_several_sizes_in_one_hour_are_all_summed() -> None:
    rows = (row(0), row(0, 15), row(0.25, 15), row(0.5, 30), row(1, 30), row(1.5, 15))
    assert sums([span(0, 1), span(1, 2)], *rows) == ["4", "2"]


@pytest.mark.parametrize(
    ("asked", "cut"),
    [
        ([span(0.5, 2)], row(0)),
        ([span(0, 0.5), span(0.5, 1)], row(0)),
        ([span(0, 1.5)], row(1)),
        ([span(0, 0.25), span(0.25, 1)], row(0, 30)),
        ([span(0.25, 1)], row(0, 30)),
        ([span(0, 1), span(1, 1.75)], row(1.5, 30)),
    ],
)
def test_a_row_that_a_border_cuts_is_not_guessed_at(asked: list[Span], cut: WindowRow) -> None:
    assert code_of(lambda: sums(asked, cut)) == ("range_cuts_rows", None)


@pytest.mark.parametrize("borders", [(0, 0.5, 1), (0, 0.25, 0.5, 0.75, 1)])
def test_a_row_that_lies_within_is_summed_at_any_border(borders: tuple[float, ...]) -> None:
    asked = [span(first, last) for first, last in pairwise(borders)]
    assert sums(asked, row(0, 15), row(0.75, 15)) == ["1", *["0"] * (len(asked) - 2), "1"]


quarters = st.integers(0, 4 * 24 * 30)
counted = st.lists(st.tuples(quarters, st.decimals(0, 10**6, places=3)), max_size=12)


@given(
    counted,
    st.tuples(quarters, st.integers(0, 4 * 24 * 15)),
    st.sampled_from(Period),
    st.sampled_from(["Europe/Berlin", "Asia/Kolkata", "Asia/Kathmandu", "Australia/Lord_Howe", "America/St_Johns"]),
    st.integers(1, 90),
)
def test_sums_are_those_of_the_rows_and_the_same_on_pages_of_any_size(
    events: list[tuple[int, Decimal]], asked_for: tuple[int, int], period: Period, name: str, page: int
) -> None:
    tables = MemoryTables()
    tables.window_minutes = 15
    happened = [(START + quarter * 15 * MINUTE + MINUTE, value) for quarter, value in events]
    count(
        tables,
        *(event(value=str(value), timestamp=moment.isoformat()) for moment, value in happened),
        window_minutes=15,
    )
    start = START + asked_for[0] * 15 * MINUTE
    end = start + asked_for[1] * 15 * MINUTE
    asked = list(spans(start, end, period, zone_named(name)))
    refuse_zone_unaligned(asked, name, window_minutes=15)
    found = usage_of(tables, "tenant-123", "api_calls", asked)
    within = [value for moment, value in happened if start <= moment < end]
    assert (sum(window.usage for window in found), sum(window.events for window in found)) == (sum(within), len(within))
    for window in found:
        own = [value for moment, value in happened if window.start <= moment < window.end]
        assert (window.usage, window.events) == (sum(own), len(own))
    paged = [asked[number : number + page] for number in range(0, len(asked), page)]
    assert [each for part in paged for each in usage_of(tables, "tenant-123", "api_calls", part)] == found
    whole = usage_in(tables, "tenant-123", "api_calls", start, end)
    assert (whole.usage, whole.events) == (sum(within), len(within))


def test_an_empty_range_and_a_counter_that_was_never_seen_are_zeros() -> None:
    assert usage_in(MemoryTables(), "t", "m", START, START) == UsageWindow(START, START, Decimal(0), 0)
    assert usage_in(MemoryTables(), "t", "m", START, START + HOUR) == UsageWindow(*span(0, 1), Decimal(0), 0)
    assert usage_of(MemoryTables(), "t", "m", []) == []


def test_an_empty_range_reads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    tables = MemoryTables()
    monkeypatch.setattr(tables, "windows", None)
    assert usage_in(tables, "t", "m", START, START).events == 0


def test_a_reading_that_was_kept_before_its_event_was_counted_is_none_yet() -> None:
    kept, early = (
        KeptReading(Reading(Aggregation.MAX, Decimal(value), ""), events) for value, events in ((5, 1), (9, 0))
    )
    rows = [row(0)._replace(readings=(kept,)), row(1)._replace(usage=Decimal(0), events=0, readings=(early,))]
    (window,) = summed([span(0, 2)], rows)
    assert (window.events, window.readings) == (1, (kept,))


# ── Borders ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("minutes_past", "seconds", "needs"),
    [(0, 0, 60), (30, 0, 30), (15, 0, 15), (45, 0, 15), (20, 0, None), (0, 1, None), (59, 0, None)],
)
def test_a_time_must_be_where_a_row_begins(minutes_past: int, seconds: int, needs: int | None) -> None:
    moment = START.replace(minute=minutes_past, second=seconds)
    for size in (60, 30, 15):
        if needs and size <= needs:
            refuse_unaligned(moment, "from", window_minutes=size)
        else:
            refused = code_of(lambda size=size: refuse_unaligned(moment, "from", window_minutes=size))  # type: ignore[misc]
            assert refused == ("unaligned_time", needs)
    between = moment.replace(microsecond=1)
    assert code_of(lambda: refuse_unaligned(between, "from", window_minutes=15)) == ("unaligned_time", None)


@pytest.mark.parametrize(
    ("name", "day", "needs"),
    [
        ("Europe/Berlin", "2024-03-30", 60),
        ("Asia/Kolkata", "2024-03-30", 30),
        ("Australia/Lord_Howe", "2024-04-06", 30),  # +11:00 and +10:30
        ("Asia/Kathmandu", "2024-03-30", 15),
        ("Africa/Monrovia", "1970-03-30", None),  # -0:44:30
        ("America/New_York", "1880-03-30", None),  # -4:56:02
    ],
)
def test_a_zone_that_needs_smaller_rows_is_told_which(name: str, day: str, needs: int | None) -> None:
    start = datetime.fromisoformat(f"{day}T00:00:00+00:00")
    asked = list(spans(start, start + timedelta(days=3), Period.DAY, zone_named(name)))
    for size in (60, 30, 15):
        if needs and size <= needs:
            refuse_zone_unaligned(asked, name, window_minutes=size)
        else:
            refused = code_of(lambda size=size: refuse_zone_unaligned(asked, name, window_minutes=size))  # type: ignore[misc]
            assert refused == ("timezone_needs_smaller_windows", needs)


# ── Keys ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@given(st.datetimes(timezones=st.just(UTC)), st.sampled_from([60, 30, 15]))
def test_a_row_is_read_back_from_its_key(moment: datetime, size: int) -> None:
    stamp = window_key("t", "m", moment, size).sk.rpartition("#")[2]
    found = row_of_stamp(stamp, Decimal(1), 2, window_minutes=size)
    assert found == WindowRow(found.start, size, Decimal(1), 2)
    assert timedelta(0) <= moment - found.start < size * MINUTE


@pytest.mark.parametrize(
    ("stamp", "today", "size"),
    [
        ("T10", 15, 60),
        ("T10:00", 60, 30),
        ("T10:30", 30, 30),
        ("T10:30", 15, 15),
        ("T10:15", 60, 15),
        ("T10:45", 30, 15),
    ],
)
def test_the_size_of_a_row_that_was_counted_under_another_setting(stamp: str, today: int, size: int) -> None:
    assert row_of_stamp(f"2024-01-15{stamp}", Decimal(1), 1, window_minutes=today).minutes == size


@given(quarters, st.integers(1, 4 * 24 * 3), st.integers(-8, 4 * 24 * 3 + 8), st.sampled_from([60, 30, 15]))
def test_stamps_hold_all_rows_that_overlap_a_range_and_none_that_begins_after_it(
    first: int, length: int, offset: int, size: int
) -> None:
    start = START + first * 15 * MINUTE
    end = start + length * 15 * MINUTE
    stamp = window_key("t", "m", start + offset * 15 * MINUTE, size).sk.rpartition("#")[2]
    found = row_of_stamp(stamp, Decimal(1), 1, window_minutes=size)
    low, high = stamps(start, end)
    if found.start < end and found.end > start:
        assert low <= stamp <= high
    if found.start >= end or found.end <= start - HOUR:
        assert not low <= stamp <= high


@given(quarters, st.integers(1, 10**6), st.sampled_from([60, 30, 15]), st.integers(1, 8))
def test_parts_of_a_range_meet_at_full_hours(first: int, length: int, size: int, most: int) -> None:
    start = START + first * 15 * MINUTE
    end = start + length * 15 * MINUTE
    found = parts(start, end, rows_each=100, parts_max=most, window_minutes=size)
    assert 1 <= len(found) <= most
    assert (found[0].start, found[-1].end) == (start, end)
    assert all(before.end == after.start for before, after in pairwise(found))
    assert all(part.start < part.end for part in found)
    assert all(part.start.minute == 0 for part in found[1:])
