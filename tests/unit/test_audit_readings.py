"""What an audit finds of max and latest: nothing after any history, and whatever was changed."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metering.meters import NO_METERS, Aggregation
from metering.rows import RowKey, total_key, window_key
from metering.settings import Settings
from metering.voids import VoidOutcome
from operations.audit_report import report_lines
from tests.builders import CREATED_AT, NOW
from tests.unit.audit_world import World, event

if TYPE_CHECKING:
    from operations.audit import AuditReport

YOUNG = NOW - timedelta(hours=1)
MAX, LATEST = Aggregation.MAX, Aggregation.LATEST
TOTALS = {"seats": total_key("tenant-123", "seats"), "disk": total_key("tenant-123", "disk")}
WINDOWS = {metric: window_key("tenant-123", metric, NOW, 60) for metric in TOTALS}
KEYS = [*TOTALS.values(), *WINDOWS.values()]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    path = tmp_path_factory.mktemp("meters") / "meters.yaml"
    path.write_text("meters: {seats: {aggregation: max}, disk: {aggregation: latest}}")
    return Settings.from_environment({"METERS_FILE": str(path)})


@pytest.fixture
def world(settings: Settings) -> World:
    """Seats 9, 10, 3; disk 5, 7, and 6 from earlier that came late; on two shards."""
    world = World(settings, created_at=YOUNG)
    fill(world)
    world.consume()
    return world


def fill(world: World, hour: str = "2024-01-15T10") -> None:
    world.put(event("9", metric="seats"), event("10", metric="seats"), event("1"))
    world.put(event("3", metric="seats"), shard=1)
    for value, minute in (("5", "00"), ("7", "20"), ("6", "10")):
        world.put(event(value, metric="disk", timestamp=f"{hour}:{minute}:00Z"))


def differences(report: AuditReport) -> list[str]:
    return [str(difference) for difference in (*report.rows.shown, *report.events.shown)]


def aggregation(key: RowKey) -> Aggregation:
    return MAX if "#seats" in key.sk else LATEST


def change(world: World, key: RowKey, **members: Any) -> None:
    kept = world.tables.readings[key]
    kept[aggregation(key)] = kept[aggregation(key)]._replace(**members)


# ── No difference ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_was_counted_is_no_difference_and_all_of_it_was_checked(world: World) -> None:
    report = world.audit()
    assert differences(report) == []
    assert report.checked_all
    assert report.checked.exactly == len(world.tables.rows) == 6
    assert [world.tables.readings[key][aggregation(key)].value for key in KEYS] == [10, 7, 10, 7]


records = st.lists(
    st.tuples(
        st.sampled_from(["seats", "disk"]),
        st.sampled_from(["1", "2", "10"]),
        st.sampled_from(["2024-01-15T10:00:00Z", "2024-01-15T10:00:01Z", "2024-01-15T09:00:00Z"]),
        st.integers(0, 1),
        st.integers(0, 3),
    ),
    max_size=8,
)


@given(first=records, second=records, batch=st.integers(1, 4), crashes=st.lists(st.integers(0, 12), max_size=3))
def test_no_history_of_crashes_is_a_difference(
    settings: Settings, first: list[Any], second: list[Any], batch: int, crashes: list[int]
) -> None:
    world = World(settings, created_at=YOUNG)
    for part in (first, second):
        for metric, value, timestamp, shard, event_id in part:
            world.put(event(value, metric=metric, timestamp=timestamp, event_id=str(event_id)), shard=shard)
        for crash_after in crashes:
            world.consume(batch=batch, crash_after=crash_after)
            assert differences(world.audit()) == []
        if part is first:
            world.consume(batch=batch)
    world.consume(batch=batch)
    report = world.audit()
    assert differences(report) == []
    assert report.checked_all


steps = st.lists(
    st.tuples(
        st.sampled_from(["count", "count", "void", "replay"]),
        st.booleans(),
        st.sampled_from(["seats", "disk"]),
        st.sampled_from(["1", "2", "10"]),
        st.sampled_from(["2024-01-15T10:00:00Z", "2024-01-15T09:40:00Z"]),
        st.integers(0, 3),
    ),
    max_size=8,
)


@given(steps)
def test_no_history_of_voids_and_replays_under_changing_meters_is_a_difference(
    settings: Settings, history: list[Any]
) -> None:
    world = World(settings, created_at=YOUNG)
    meters = world.meters
    for step, metered, metric, value, timestamp, event_id in history:
        world.meters = meters if metered else NO_METERS
        if step == "count":
            sent = event(value, metric=metric, timestamp=timestamp, event_id=f"{metric}-{event_id}")
            world.put(sent, shard=event_id % 2)
            world.consume()
        elif step == "replay":
            for shard_id, records in world.records.items():
                world.apply(shard_id, records)
        elif claims := sorted(world.tables.ledger.claims):
            world.void(claims[event_id % len(claims)].rpartition("#")[2])
        assert differences(world.audit()) == []


@pytest.mark.parametrize("crash_after", range(14))
def test_a_reading_that_is_ahead_of_its_count_is_no_difference(world: World, crash_after: int) -> None:
    world.put(event("99", metric="seats"), event("99", metric="disk", timestamp="2024-01-15T10:29:00Z"))
    world.consume(crash_after=crash_after)
    assert differences(world.audit()) == []
    world.consume()
    assert differences(world.audit()) == []


# ── Differences ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("value", ["11", "9", "9.999999999"])
def test_a_value_that_is_off(world: World, key: RowKey, value: str) -> None:
    change(world, key, value=Decimal(value))
    found = differences(world.audit())
    if aggregation(key) is MAX:
        assert [line for line in found if line.startswith(f"{key.pk} {key.sk}: max: expected 10 of 2024-01-15T10:0")]
    else:
        moment = "of 2024-01-15T10:20:00.000000Z"
        assert found == [f"{key.pk} {key.sk}: latest: expected 7 {moment}, found {value} {moment}"]


@pytest.mark.parametrize("key", KEYS)
def test_a_reading_that_is_gone(world: World, key: RowKey) -> None:
    reading = world.tables.readings.pop(key)[aggregation(key)]
    report = world.audit()
    if key not in TOTALS.values():
        assert not report.checked_all  # covered as well, so it reads like a row from before
    world.tables.readings[key] = {
        aggregation(key): reading._replace(at="2024-01-01T00:00:00.000000Z#", value=Decimal(1))
    }
    [found, *_] = differences(world.audit())
    assert found.startswith(f"{key.pk} {key.sk}: {aggregation(key)}: expected ")


@pytest.mark.parametrize("key", KEYS)
def test_a_reading_of_an_event_that_never_was(world: World, key: RowKey) -> None:
    at = world.tables.readings[key][aggregation(key)].at
    change(world, key, value=Decimal(99), at=f"2024-01-15T10:29:59{at[19:]}")
    assert any(f"{key.sk}: {aggregation(key)}: " in line for line in differences(world.audit()))


def test_a_reading_of_another_rows_event_that_the_row_was_applied_beyond(world: World) -> None:
    """Its place lies between the row's own position and that of its shard, so it is under way to nobody."""
    disk = world.tables.readings[TOTALS["disk"]][LATEST]
    change(world, TOTALS["seats"], value=Decimal(99), at=disk.at)
    assert any("METRIC#seats: max: expected 10" in line for line in differences(world.audit()))


def test_a_reading_that_is_off_in_a_row_that_is_ahead_of_its_shard(world: World) -> None:
    world.put(event("50", metric="seats"))
    world.consume(crash_after=4)  # two readings and two rows, and not the progress
    assert differences(world.audit()) == []
    change(world, TOTALS["seats"], value=Decimal(99))
    assert any("METRIC#seats: max: expected 50" in line for line in differences(world.audit()))


@pytest.mark.parametrize("at", ["", "rubbish", "2024-01-15T10:29:59.000000Z#2024-01-15T10:30:00.000Z#x.0@#"])
def test_a_reading_of_no_place(world: World, at: str) -> None:
    change(world, TOTALS["seats"], value=Decimal(99), at=at)
    assert any("METRIC#seats: max: expected 10" in line for line in differences(world.audit()))


@pytest.mark.parametrize(("covered", "differs"), [(4, True), (2, False)])
def test_more_events_covered_than_there_are(world: World, covered: int, *, differs: bool) -> None:
    world.change(TOTALS["seats"], covered={MAX: covered})
    report = world.audit()
    expected = [f"{TOTALS['seats'].pk} METRIC#seats: max_events: expected at most 3, found 4"]
    assert differences(report) == (expected if differs else [])
    assert report.checked.uncovered == (not differs)


# ── What can't be told ───────────────────────────────────────────────────────────────────────────────────────────────


def test_rows_from_before_their_meter_are_said_and_too_great_all_the_same(settings: Settings) -> None:
    world = World(settings, created_at=YOUNG)
    world.meters, meters = NO_METERS, world.meters
    world.put(event("99", metric="seats"))
    world.consume()
    world.meters = meters
    fill(world)
    world.consume()
    report = world.audit()
    assert differences(report) == []
    assert not report.checked_all
    assert "not checked: the max or latest of 2 row(s) with events from before their meter" in report_lines(report)
    change(world, TOTALS["seats"], value=Decimal(100))
    assert any("METRIC#seats: max: expected 99" in line for line in differences(world.audit()))


def test_a_row_whose_events_were_all_voided_before_their_meter_came_needs_no_reading(settings: Settings) -> None:
    world = World(settings, created_at=YOUNG)
    world.meters, meters = NO_METERS, world.meters
    world.put(event("5", metric="seats", event_id="a"), event("5", metric="disk", event_id="b"))
    world.consume()
    assert [world.void("a"), world.void("b")] == [VoidOutcome.VOIDED, VoidOutcome.VOIDED]
    world.meters = meters
    report = world.audit()
    assert differences(report) == []
    assert report.checked_all
    for shard_id, records in world.records.items():
        world.apply(shard_id, records)  # a replay offers what was voided
    assert {*TOTALS.values(), *WINDOWS.values()} <= world.tables.readings.keys()
    assert differences(world.audit()) == []
    world.put(event("3", metric="seats", timestamp="2024-01-15T09:00:00Z"))
    world.consume()
    report = world.audit()
    assert differences(report) == []
    assert report.checked.uncovered == 1, "the total has lost an event that was counted before its meter"


@pytest.fixture
def old(settings: Settings) -> World:
    """The first records are past retention."""
    world = World(settings, created_at=CREATED_AT)
    world.now = NOW - timedelta(days=2)
    fill(world, "2024-01-13T10")
    world.put(event("50", metric="seats", timestamp="2024-01-13T10:00:00Z"))
    world.consume()
    world.trim(before=world.now + timedelta(seconds=1))
    world.now = NOW
    world.put(event("20", metric="seats", timestamp="2024-01-13T11:00:00Z"))
    world.consume()
    return world


def test_past_retention_a_row_keeps_no_less_than_was_read(old: World) -> None:
    assert differences(old.audit()) == []
    key = window_key("tenant-123", "seats", NOW - timedelta(days=2) + timedelta(hours=1), 60)
    change(old, key, value=Decimal(19))
    assert any(f"{key.sk}: max: expected 20" in line for line in differences(old.audit()))


def test_past_retention_a_total_is_the_greatest_of_its_windows(old: World) -> None:
    change(old, TOTALS["seats"], value=Decimal(51))
    assert any(
        line.startswith(f"{TOTALS['seats'].pk} METRIC#seats: total: expected 50 of ")
        for line in differences(old.audit())
    )


def test_a_total_is_not_held_to_windows_from_before_the_meter(old: World) -> None:
    old.change(TOTALS["disk"], covered={})
    change(old, TOTALS["disk"], at="2024-01-01T00:00:00.000000Z#", value=Decimal(1))
    assert differences(old.audit()) == []


def test_a_reading_of_an_event_whose_claim_has_expired_may_be_right(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(replace(settings, ledger_ttl_days=1), created_at=YOUNG)
    world.put(event("1", metric="seats"), event("9", metric="seats", event_id="a"))
    world.consume()
    world.now += timedelta(days=1, minutes=1)
    world.tables.ledger.claims.clear()
    monkeypatch.setattr(world, "retention", lambda: timedelta(days=365))
    report = world.audit()
    assert (report.unknown, differences(report)) == (1, [])
    change(world, TOTALS["seats"], value=Decimal(10))
    assert any("METRIC#seats: max: expected 1 of " in line for line in differences(world.audit()))
