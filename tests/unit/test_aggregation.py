"""What a batch adds to each row, and the law that how records are batched and how often changes nothing."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal, Inexact
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metering.aggregation import EXACT, Contribution, RowWrite, outcomes_beyond, row_writes
from metering.memory import MemoryTables
from metering.positions import BEGINNING
from metering.rows import RowKey
from tests.builders import NOW, at, event, outcome, shard, write

if TYPE_CHECKING:
    from metering.events import Event

TOTAL = RowKey("TENANT#tenant-123", "METRIC#api_calls")


def test_an_event_adds_to_its_total_and_to_its_window() -> None:
    writes = row_writes([(at(1), event(value="2.5"))], window_minutes=60)
    assert [(w.key, w.usage, w.events, w.first, w.last) for w in writes] == [
        (TOTAL, Decimal("2.5"), 1, at(1), at(1)),
        (RowKey("TENANT#tenant-123", "HOUR#api_calls#2024-01-15T10"), Decimal("2.5"), 1, at(1), at(1)),
    ]


def test_events_of_one_record_are_one_contribution() -> None:
    total = row_writes(
        [(at(1), event(value="1")), (at(1), event(value="2")), (at(2), event(value="4"))], window_minutes=60
    )[0]
    assert total.contributions == (Contribution(at(1), Decimal(3), 2), Contribution(at(2), Decimal(4), 1))
    assert (total.usage, total.events, total.first, total.last) == (Decimal(7), 3, at(1), at(2))


def test_first_and_last_are_those_of_the_row_and_not_of_the_batch() -> None:
    batch = [(at(1), event(metric="a")), (at(2), event(metric="b")), (at(3), event(metric="a"))]
    spans = {w.key.sk: (w.first, w.last) for w in row_writes(batch, window_minutes=60)}
    assert spans["METRIC#a"] == (at(1), at(3))
    assert spans["METRIC#b"] == (at(2), at(2))


def test_a_late_event_goes_into_the_window_of_its_own_time() -> None:
    late = event(timestamp=(NOW - timedelta(days=40)).isoformat())
    keys = [w.key.sk for w in row_writes([(at(1), late)], window_minutes=15)]
    assert keys == ["METRIC#api_calls", "HOUR#api_calls#2023-12-06T10:30"]


def test_what_lies_beyond_a_position_is_cut_exactly() -> None:
    whole = write(1, 5, 9)
    assert whole.beyond(BEGINNING) == whole
    assert whole.beyond(at(0)) == whole
    assert whole.beyond(at(1)) == write(5, 9)
    assert whole.beyond(at(4)) == write(5, 9)
    assert whole.beyond(at(5)) == write(9)
    assert whole.beyond(at(9)) is None


def test_outcomes_beyond_a_position_are_cut_exactly() -> None:
    outcomes = [outcome(1), outcome(5), outcome(9)]
    assert outcomes_beyond(outcomes, BEGINNING) == outcomes
    assert outcomes_beyond(outcomes, at(5)) == [outcome(9)]
    assert outcomes_beyond(outcomes, at(9)) == []


def test_an_outcome_counts_each_event_once() -> None:
    assert outcome(1, counted=3, duplicates=2, rejected=1).events == 6


def test_sums_are_exact_and_one_that_does_not_fit_is_never_rounded() -> None:
    tenth_and_fifth = RowWrite(TOTAL, (Contribution(at(1), Decimal("0.1"), 1), Contribution(at(2), Decimal("0.2"), 1)))
    assert tenth_and_fifth.usage == Decimal("0.3")
    largest = Decimal("999999999999999.999999999")
    assert EXACT.multiply(largest, Decimal(10**13)) == largest * 10**13
    with pytest.raises(Inexact):
        EXACT.add(Decimal(10**29), Decimal("1E-9"))


# ── The law ──────────────────────────────────────────────────────────────────────────────────────────────────────────

events = st.builds(
    event,
    metric=st.sampled_from(["a", "b"]),
    value=st.sampled_from(["0", "0.1", "0.2", "999999999999999.999999999", "7"]),
    timestamp=st.sampled_from([None, "2024-01-15T09:59:59Z", "2023-12-31T23:59:59Z"]).map(
        lambda text: text or "2024-01-15T10:00:00Z"
    ),
)
streams = st.lists(st.lists(events, max_size=4), min_size=1, max_size=12)
"""What each record of a shard holds."""


def deliver(tables: MemoryTables, stream: list[list[Event]], begin: int, end: int) -> None:
    batch = [(at(number), one) for number in range(begin, end) for one in stream[number]]
    for row_write in row_writes(batch, window_minutes=60):
        tables.apply(shard(), row_write, now=NOW)


@given(streams, st.data())
def test_any_batching_any_number_of_times_in_order_gives_the_same_rows(
    stream: list[list[Event]], data: st.DataObject
) -> None:
    once = MemoryTables()
    deliver(once, stream, 0, len(stream))

    again, reached = MemoryTables(), 0
    for _ in range(data.draw(st.integers(0, 10), label="deliveries")):
        begin = data.draw(st.integers(0, reached), label="begin")  # from any earlier point, never past what is missing
        end = data.draw(st.integers(begin, len(stream)), label="end")
        deliver(again, stream, begin, end)
        reached = max(reached, end)
    deliver(again, stream, reached, len(stream))

    assert again.rows == once.rows


@given(streams, st.data())
def test_the_rows_hold_the_sums_of_their_events_however_the_records_are_cut(
    stream: list[list[Event]], data: st.DataObject
) -> None:
    tables = MemoryTables()
    cuts = sorted(data.draw(st.sets(st.integers(0, len(stream))), label="cuts") | {0, len(stream)})
    for begin, end in pairwise(cuts):
        deliver(tables, stream, begin, end)
    for metric in ("a", "b"):
        mine = [one for record in stream for one in record if one.metric == metric]
        total = tables.total("tenant-123", metric)
        assert (total.usage, total.events) == (sum(e.value for e in mine), len(mine)) if total else not mine
