"""Readings: the order of events, and the laws that batching, replays and shards change nothing of what rows keep."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from itertools import permutations
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer.claiming import SettledRecord
from consumer.observing import batch_readings
from metering.local_time import Span
from metering.memory import MemoryTables
from metering.metered import is_complete, metered_usage
from metering.meters import Aggregation, Meter, Meters
from metering.readings import KeptReading, Reading, merged_readings, reading_place
from metering.rows import total_key
from metering.windows import UsageWindow, WindowRow, summed
from tests.builders import NOW, count_batch, event, settled, shard

if TYPE_CHECKING:
    from collections.abc import Sequence

    from metering.ports import ShardRef

METERS = Meters({"seats": Meter("seats", Aggregation.MAX), "disk": Meter("disk", Aggregation.LATEST)})
MAX, LATEST = Aggregation.MAX, Aggregation.LATEST


def keep(tables: MemoryTables, records: Sequence[SettledRecord], where: ShardRef) -> None:
    count_batch(tables, records, where=where, meters=METERS)


def usage(tables: MemoryTables, metric: str) -> Decimal | None:
    total = tables.total("tenant-123", metric)
    assert total is not None
    return metered_usage(METERS.for_metric(metric).aggregation, [total])


# ── The order ────────────────────────────────────────────────────────────────────────────────────────────────────────


def reading(value: str, at_: str = "a", aggregation: Aggregation = MAX) -> Reading:
    return Reading(aggregation, Decimal(value), at_)


@pytest.mark.parametrize(
    ("greater", "less"), [("10", "9"), ("9.5", "9"), ("0.000000001", "0"), ("999999999999999.999999999", "1E+14")]
)
def test_a_maximum_is_that_of_numbers_and_not_of_texts(greater: str, less: str) -> None:
    assert reading(greater).exceeds(reading(less))
    assert not reading(less).exceeds(reading(greater))


def test_of_equal_values_and_of_equal_times_the_later_place_is_greater() -> None:
    assert not reading("1.0").exceeds(reading("1"))
    assert reading("1.0", "b").exceeds(reading("1", "a"))
    assert reading("1", "b", LATEST).exceeds(reading("9", "a", LATEST))


def test_places_are_in_order_of_event_time_then_arrival_then_shard_position_and_index() -> None:
    ten_past = "2024-01-15T10:10:00Z"
    ordered = [
        reading_place(event(timestamp=time), arrived_at=NOW + timedelta(milliseconds=late), owner=owner)
        for time, late, owner in [
            ("2024-01-15T10:00:00Z", 9, "b.2@009"),
            ("2024-01-15T10:00:00.000001Z", 0, "b.1@001"),
            ("2024-01-15T10:09:59.999999999Z", 0, "b.1@001"),
            ("2024-01-15T11:10:00+01:00", 0, "b.1@00299#00000"),
            (ten_past, 0, "b.1@003100#00000"),
            (ten_past, 0, "b.1@003100#00001"),
            (ten_past, 0, "b.2@00299#00000"),
            (ten_past, 1, "b.1@00299#00000"),
        ]
    ]  # fmt: skip
    assert sorted(ordered) == ordered
    assert len(set(ordered)) == len(ordered)
    assert ordered[0].startswith("2024-01-15T10:00:00.000000Z#2024-01-15T10:30:00.009Z#b.2@")


def test_a_time_long_ago_has_its_four_digits() -> None:
    old = reading_place(event(timestamp="0001-01-01T00:00:00Z"), arrived_at=NOW, owner="o")
    assert old.startswith("0001-01-01T00:00:00.000000Z#")


# ── What a batch offers ──────────────────────────────────────────────────────────────────────────────────────────────


def test_each_row_is_offered_one_reading_of_a_batch_and_a_sum_none() -> None:
    batch = [
        settled(1, event(metric="seats", value="9"), event(metric="api_calls", value="99")),
        settled(2, event(metric="seats", value="10"), event(metric="disk", value="4")),
        settled(3, event(metric="seats", value="3", timestamp="2024-01-15T08:00:00Z"), event(metric="disk", value="2")),
    ]
    offered = batch_readings(shard(), batch, METERS, window_minutes=60)
    assert {key.sk: f"{offer.value:f}" for key, offer in offered.items()} == {
        "METRIC#seats": "10",
        "HOUR#seats#2024-01-15T10": "10",
        "HOUR#seats#2024-01-15T08": "3",
        "METRIC#disk": "2",
        "HOUR#disk#2024-01-15T10": "2",
    }


def test_a_reading_keeps_when_its_record_arrived_to_the_millisecond() -> None:
    record = settled(1, event(metric="disk", value="4"), arrived_at=NOW + timedelta(milliseconds=7))
    (places,) = {each.at for each in batch_readings(shard(), [record], METERS, window_minutes=60).values()}
    assert places.split("#")[1] == "2024-01-15T10:30:00.007Z"


def test_what_does_not_count_is_not_offered() -> None:
    record = settled(1, event(metric="seats", value="9"), event(metric="seats", value="10"))
    counted = SettledRecord(record.decoded, record.counted[:1], 1, ())
    (offered,) = {reading.value for reading in batch_readings(shard(), [counted], METERS, window_minutes=60).values()}
    assert offered == 9


# ── The laws ─────────────────────────────────────────────────────────────────────────────────────────────────────────

values = st.sampled_from(["0", "9", "10", "1", "1.000000001", "999999999999999.999999999"])
times = st.sampled_from([f"2024-01-15T{text}Z" for text in ("09:59:59", "10:00:00", "10:00:00.000001", "08:00:00")])
events = st.builds(event, metric=st.sampled_from(["seats", "disk"]), value=values, timestamp=times)
records = st.lists(st.tuples(st.lists(events, min_size=1, max_size=3), st.integers(0, 2)), min_size=1, max_size=5)
streams = st.tuples(records, records)
"""Two shards: the events of each record, and how many seconds after the others it arrived."""


@given(streams, st.data())
def test_any_batching_any_replays_and_any_order_of_shards_give_the_same_rows(
    stream: tuple[list[tuple[list[Any], int]], ...], data: st.DataObject
) -> None:
    shards = [
        [
            settled(number, *found, arrived_at=NOW + timedelta(seconds=seconds))
            for number, (found, seconds) in enumerate(each)
        ]
        for each in stream
    ]
    once = MemoryTables()
    for number, each in enumerate(shards):
        keep(once, each, shard(number))

    again, reached = MemoryTables(), [0, 0]
    for _ in range(data.draw(st.integers(0, 8), label="deliveries")):
        number = data.draw(st.integers(0, 1), label="shard")
        begin = data.draw(st.integers(0, reached[number]), label="begin")
        end = data.draw(st.integers(begin, len(shards[number])), label="end")
        keep(again, shards[number][begin:end], shard(number))
        reached[number] = max(reached[number], end)
    for number in data.draw(st.permutations([0, 1]), label="order"):
        keep(again, shards[number][reached[number] :], shard(number))

    assert again.readings == once.readings
    assert again.rows == once.rows
    everything = [one for each in stream for found, _ in each for one in found]
    seats = [one.value for one in everything if one.metric == "seats"]
    disk = [one for one in everything if one.metric == "disk"]
    if seats:
        assert usage(again, "seats") == max(seats)
    if disk:
        latest = max(one.occurred_at for one in disk)
        assert usage(again, "disk") in {one.value for one in disk if one.occurred_at == latest}


# ── Usage by aggregation ─────────────────────────────────────────────────────────────────────────────────────────────


def window(
    usage_: str, events_: int, value: str | None = None, *, covered: int | None = None, at_: str = "a"
) -> UsageWindow:
    """A window that keeps the same reading for max and for latest."""
    found = [] if value is None else [reading(value, at_, each) for each in (MAX, LATEST)]
    kept = tuple(KeptReading(each, events_ if covered is None else covered) for each in found)
    return UsageWindow(NOW, NOW, Decimal(usage_), events_, kept)


def test_windows_together_have_the_usage_of_their_aggregation() -> None:
    rows = [window("5", 2, "3", at_="c"), window("9", 1, "9", at_="a"), window("0", 0)]
    expected = {Aggregation.SUM: 14, Aggregation.COUNT: 3, MAX: 9, LATEST: 3}
    for order in permutations(rows):
        assert {each: metered_usage(each, order) for each in Aggregation} == expected


def test_no_rows_and_rows_without_events_are_zero() -> None:
    for each in Aggregation:
        assert metered_usage(each, []) == metered_usage(each, [window("0", 0)]) == 0


def test_a_reading_that_is_ahead_of_an_empty_row_is_no_usage_yet() -> None:
    assert metered_usage(MAX, [window("0", 0, "7", covered=0)]) == 0


@pytest.mark.parametrize("covered", [0, -1])
def test_a_row_without_events_speaks_for_none_of_a_span(covered: int) -> None:
    """Its reading is ahead of its count, or its event was voided and offered by a replay."""
    ahead = WindowRow(NOW, 60, Decimal(0), 0, (KeptReading(reading("9", "z"), covered),))
    counted = WindowRow(NOW, 60, Decimal(3), 1, (KeptReading(reading("3"), 1),))
    for rows in ([ahead, counted], [counted, ahead]):
        assert metered_usage(MAX, summed([Span(NOW, NOW + timedelta(days=1))], rows)) == 3


def test_a_row_with_events_from_before_its_meter_is_not_known() -> None:
    before, mixed, after = window("5", 2), window("5", 2, "3", covered=1), window("5", 2, "3")
    for row in (before, mixed, window("5", 2, "3", covered=3)):
        for each in (MAX, LATEST):
            assert metered_usage(each, [row]) is None
            assert metered_usage(each, [after, row]) is None
            assert not is_complete(row, each)
        assert metered_usage(Aggregation.SUM, [row]) == 5
        assert metered_usage(Aggregation.COUNT, [row]) == 2
    assert is_complete(after, MAX)


def test_merged_readings_are_the_greatest_and_speak_for_all_events() -> None:
    kept = [KeptReading(reading("3", "c"), 2), KeptReading(reading("9", "a"), 1), KeptReading(reading("4"), 5)]
    for order in permutations(kept):
        assert merged_readings(order) == (KeptReading(reading("9", "a"), 8),)


def test_a_row_that_was_counted_by_a_worker_without_the_meter_stays_not_known() -> None:
    tables = MemoryTables()
    record = settled(1, event(metric="seats", value="9"))
    count_batch(tables, [record])  # by a worker that has another METERS_FILE
    keep(tables, [record, settled(2, event(metric="seats", value="7"))], shard())
    total = tables.total("tenant-123", "seats")
    assert total is not None
    assert total.readings == (KeptReading(tables.readings[total_key("tenant-123", "seats")][MAX], 1),)
    assert usage(tables, "seats") is None
