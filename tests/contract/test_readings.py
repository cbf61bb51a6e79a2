"""CounterStore.keep_reading: the greatest reading stays, and the row says of how many of its events it is."""

from __future__ import annotations

import itertools
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from metering.memory import MemoryTables
from metering.meters import Aggregation
from metering.readings import KeptReading, Reading
from metering.rows import total_key, window_key
from tests.builders import NOW, shard, write

if TYPE_CHECKING:
    from metering.aggregation import RowWrite
    from metering.windows import WindowRow
    from tests.contract.conftest import DynamoTables, Tables

pytestmark = pytest.mark.contract

HOUR = timedelta(hours=1)
KEY = total_key("tenant-123", "seats")
LARGEST = "999999999999999.999999999"


def maximum(value: str, at: str = "2024-01-15T10:00:00.000000Z#x") -> Reading:
    return Reading(Aggregation.MAX, Decimal(value), at)


def latest(at: str, value: str = "1") -> Reading:
    return Reading(Aggregation.LATEST, Decimal(value), at)


def seats(*numbers: int, reading: Reading | None = None, tenant_id: str = "tenant-123") -> RowWrite:
    return replace(write(*numbers, tenant_id=tenant_id, metric="seats"), reading=reading)


def kept(backend: Tables) -> list[KeptReading]:
    """What the total keeps; something is added to it first, since it is not there before."""
    backend.store.apply(shard(9), seats(1), now=NOW)
    total = backend.reader.total("tenant-123", "seats")
    assert total is not None
    assert backend.reader.totals("tenant-123") == [total]
    return list(total.readings)


@pytest.mark.parametrize(
    ("first", "second", "stays"),
    [
        ("9", "10", "10"),  # as text it would be the other way round
        ("10", "9", "10"),
        ("100", "99.999999999", "100"),
        (LARGEST, "1E+14", LARGEST),
        ("999999999999999.999999998", LARGEST, LARGEST),
        ("0.000000001", "0.000000002", "0.000000002"),
        ("0", "0.000000001", "0.000000001"),
        ("9007199254740992", "9007199254740993", "9007199254740993"),  # one float
    ],
)
def test_the_greater_number_stays_to_the_last_digit(backend: Tables, first: str, second: str, stays: str) -> None:
    assert backend.store.keep_reading(KEY, maximum(first))
    assert backend.store.keep_reading(KEY, maximum(second)) == (stays == second)
    assert kept(backend) == [KeptReading(maximum(stays), 0)]


def test_equal_numbers_are_equal_however_they_are_written_and_the_later_place_stays(backend: Tables) -> None:
    assert backend.store.keep_reading(KEY, maximum("1.0", "b"))
    assert not backend.store.keep_reading(KEY, maximum("1", "b"))
    assert not backend.store.keep_reading(KEY, maximum("1", "a"))
    assert backend.store.keep_reading(KEY, maximum("1.000", "c"))
    assert kept(backend) == [KeptReading(maximum("1", "c"), 0)]


def test_the_latest_is_that_of_the_greatest_place_whatever_its_value(backend: Tables) -> None:
    places = ["2024-01-15T10:00:00.000000Z#", "2024-01-15T10:00:00.000000Z#a", "2024-01-15T10:00:00.000000Z#ü", "3"]
    assert [backend.store.keep_reading(KEY, latest(at)) for at in (places[1], places[0], places[1])] == [
        True,
        False,
        False,
    ]
    assert backend.store.keep_reading(KEY, latest(places[2], "0"))
    assert backend.store.keep_reading(KEY, latest(places[3], LARGEST))
    assert kept(backend) == [KeptReading(latest(places[3], LARGEST), 0)]


def test_a_row_keeps_one_reading_for_each_aggregation(backend: Tables) -> None:
    for reading in (maximum("5"), latest("a", "7"), maximum("6"), latest("b", "2")):
        assert backend.store.keep_reading(KEY, reading)
    assert kept(backend) == [KeptReading(maximum("6"), 0), KeptReading(latest("b", "2"), 0)]


def test_a_row_that_only_keeps_a_reading_is_not_there(backend: Tables) -> None:
    window = window_key("tenant-123", "seats", NOW, 60)
    for key in (KEY, window):
        backend.store.keep_reading(key, maximum("5"))
    assert backend.reader.total("tenant-123", "seats") is None
    assert backend.reader.totals("tenant-123") == []
    rows = list(backend.reader.windows("tenant-123", "seats", start=NOW - NOW_MINUTES, end=NOW + HOUR))
    assert sum(row.events for row in rows) == sum(row.usage for row in rows) == 0


NOW_MINUTES = timedelta(minutes=NOW.minute)


def test_what_is_added_is_covered_once_and_only_where_there_is_a_reading(backend: Tables) -> None:
    backend.store.keep_reading(KEY, maximum("5"))
    for again in range(2):
        assert backend.store.apply(shard(), seats(1, 2, reading=maximum("5")), now=NOW) == (again == 0)
    assert backend.store.apply(shard(), seats(1, 2, 3, reading=maximum("5")), now=NOW)
    assert kept(backend) == [KeptReading(maximum("5"), 3)]  # and one is added that is not covered
    total = backend.reader.total("tenant-123", "seats")
    assert total is not None
    assert (total.usage, total.events) == (4, 4)


def test_windows_are_read_with_what_they_keep(backend: Tables) -> None:
    key = window_key("tenant-123", "seats", NOW, 60)
    for reading in (maximum("5"), latest("b", "3")):
        backend.store.keep_reading(key, reading)
    backend.store.apply(shard(), replace(seats(1, 2, reading=maximum("5")), key=key), now=NOW)
    backend.store.apply(shard(), replace(seats(3, reading=latest("b", "3")), key=key), now=NOW)

    def rows() -> list[WindowRow]:
        return list(backend.reader.windows("tenant-123", "seats", start=NOW - NOW_MINUTES, end=NOW + HOUR))

    (row,) = rows()
    known = (KeptReading(maximum("5", ""), 2), KeptReading(latest("b", "3"), 1))
    assert (row.usage, row.events, row.readings) == (3, 3, known)
    assert backend.reader.window_ends("tenant-123", "seats") == (row, row)


@pytest.mark.parametrize("reading", [maximum("5", ""), latest("b", "3")])
def test_a_window_that_keeps_one_reading_and_nothing_else_is_read_with_it(backend: Tables, reading: Reading) -> None:
    key = window_key("tenant-123", "seats", NOW, 60)
    backend.store.keep_reading(key, reading)
    backend.store.apply(shard(), replace(seats(1, reading=reading), key=key), now=NOW)
    (row,) = backend.reader.windows("tenant-123", "seats", start=NOW - NOW_MINUTES, end=NOW + HOUR)
    assert (row.usage, row.events, row.readings) == (1, 1, (KeptReading(reading, 1),))


# ── The twin ─────────────────────────────────────────────────────────────────────────────────────────────────────────

fresh = itertools.count()
readings = st.builds(
    Reading,
    st.sampled_from([Aggregation.MAX, Aggregation.LATEST]),
    st.sampled_from(["0", "9", "10", "1.5", LARGEST, "0.000000001"]).map(Decimal),
    st.sampled_from(["", "a", "b", "ab", "é", "\U0001d4b3"]).map(lambda text: f"2024{text}"),
)


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(readings, min_size=1, max_size=6))
def test_dynamodb_and_the_twin_agree_on_every_reading(dynamo: DynamoTables, offered: list[Reading]) -> None:
    twin, tenant_id = MemoryTables(), f"tenant-{next(fresh)}"
    key = total_key(tenant_id, "seats")
    for number, reading in enumerate(offered):
        assert dynamo.store.keep_reading(key, reading) == twin.keep_reading(key, reading)
        for store in (dynamo.store, twin):
            store.apply(shard(), seats(number, reading=reading, tenant_id=tenant_id), now=NOW)
        assert dynamo.reader.totals(tenant_id) == twin.totals(tenant_id)
