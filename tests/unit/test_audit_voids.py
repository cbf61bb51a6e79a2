"""What an audit says of voids: nothing, where ledger and rows agree, whenever they are made; else what differs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from metering.rows import RowKey, event_claim_key, window_key
from metering.settings import Settings
from metering.voids import VoidOutcome
from operations.audit import AuditReport
from operations.audit_claims import HeldClaim
from operations.audit_compare import SHOWN_MAX
from operations.audit_report import report_lines
from operations.audit_tables import Snapshot
from operations.audit_tally import Amount
from tests.builders import CREATED_AT, NOW
from tests.unit.audit_world import TOTAL, WINDOW, World, envelope, event

YOUNG = NOW - timedelta(hours=1)
OLD = "2024-01-13T10:00:00Z"
OLD_WINDOW = window_key("tenant-123", "api_calls", datetime.fromisoformat(OLD), 60)
VOIDED = VoidOutcome.VOIDED


@pytest.fixture
def world(settings: Settings) -> World:
    return counted(World(settings, created_at=YOUNG))


def counted(world: World) -> World:
    """Three events with ids, one of which came again, and one without: usage 15 in one window."""
    world.put(event("1", event_id="a"), envelope("b-1", event("2", event_id="b"), event("4", event_id="c"), event("8")))
    world.put(event("1", event_id="a"), shard=1)
    world.consume()
    return world


def differences(report: AuditReport) -> list[str]:
    return [str(difference) for difference in (*report.rows.shown, *report.events.shown)]


def named(key: RowKey) -> str:
    return f"{key.pk} {key.sk}"


def test_voids_are_no_difference_and_are_reported(world: World) -> None:
    assert [world.void("a"), world.void("c")] == [VOIDED, VOIDED]
    report = world.audit()
    assert differences(report) == []
    assert report.checked_all
    assert report.checked.exactly == 2
    assert f"voided: 2 event(s), usage 5, of {named(TOTAL)}" in list(report_lines(report))
    assert sum(line.shard.counted for line in report.shards) == 4, "a voided event has been counted"


def test_nothing_is_said_of_voids_where_there_are_none(world: World) -> None:
    assert not any("voided" in line for line in report_lines(world.audit()))


def test_of_many_counters_the_first_are_listed(settings: Settings) -> None:
    world = World(settings, created_at=YOUNG)
    for number in range(SHOWN_MAX + 2):
        world.put(event("1", tenant_id=f"t-{number:03d}", event_id="a"))
    world.consume()
    for number in range(SHOWN_MAX + 2):
        assert world.void("a", f"t-{number:03d}") is VOIDED
    lines = [line for line in report_lines(world.audit()) if line.startswith("voided")]
    assert len(lines) == SHOWN_MAX + 1
    assert lines[-1] == "voided: 2 event(s) of 2 more"


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("now", [True, False])
def test_a_void_of_an_event_that_was_claimed_both_ways_is_no_difference(
    settings: Settings,
    first: bool,  # noqa: FBT001
    now: bool,  # noqa: FBT001
) -> None:
    """LEDGER was changed after a crash, so the record came again and its batch is claimed besides the event's id."""
    world = World(settings, created_at=YOUNG)
    world.claim_events = first
    world.put(envelope("b-1", event("5", event_id="a"), event("7", event_id="b")))
    world.consume(crash_after=0)
    world.claim_events = not first
    world.consume()
    assert world.void("a") is VOIDED
    world.claim_events = now
    report = world.audit()
    assert differences(report) == []
    assert report.checked_all


@pytest.mark.parametrize("now", [True, False])
def test_a_void_is_that_of_the_place_that_holds_the_id(settings: Settings, now: bool) -> None:  # noqa: FBT001
    """The same event came again while LEDGER was off, and was counted by its batch."""
    world = World(settings, created_at=YOUNG)
    world.put(envelope("b-0", event("5", event_id="a")))
    world.consume()
    world.claim_events = False
    world.put(envelope("b-1", event("5", event_id="a")))
    world.consume()
    assert world.void("a") is VOIDED
    world.claim_events = now
    assert differences(world.audit()) == []


# ── Damage ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_claim_that_says_voided_while_the_rows_were_not_reduced_is_a_difference(world: World) -> None:
    world.tables.ledger.claims[event_claim_key("tenant-123", "b")].voided_at = NOW
    assert differences(world.audit()) == [
        f"{named(key)}: voided: expected usage 2, events 1, found usage 0, events 0" for key in (WINDOW, TOTAL)
    ]


def test_rows_that_were_reduced_while_no_claim_is_voided_are_a_difference(world: World) -> None:
    world.void("b")
    world.tables.ledger.claims[event_claim_key("tenant-123", "b")].voided_at = None
    assert differences(world.audit()) == [
        f"{named(key)}: voided: expected usage 0, events 0, found usage 2, events 1" for key in (WINDOW, TOTAL)
    ]


def test_a_claim_that_says_voided_of_an_event_of_zero_is_held_to_the_number_of_events(world: World) -> None:
    world.put(event("0", event_id="z"))
    world.consume()
    world.tables.ledger.claims[event_claim_key("tenant-123", "z")].voided_at = NOW
    assert differences(world.audit()) == [
        f"{named(key)}: voided: expected usage 0, events 1, found usage 0, events 0" for key in (WINDOW, TOTAL)
    ]


@pytest.mark.parametrize("key", [TOTAL, WINDOW])
def test_a_void_of_one_row_alone_is_a_difference_of_the_other(world: World, key: RowKey) -> None:
    world.void("b")
    world.change(key, usage=Decimal(15), events=4, voided_usage=Decimal(0), voided_events=0)
    [found] = differences(world.audit())
    assert found == f"{named(key)}: voided: expected usage 2, events 1, found usage 0, events 0"


def test_an_event_that_was_taken_out_twice_is_a_difference(world: World) -> None:
    for _ in range(2):
        assert world.void("b") is VOIDED
        world.tables.ledger.claims[event_claim_key("tenant-123", "b")].voided_at = None
    world.tables.ledger.claims[event_claim_key("tenant-123", "b")].voided_at = NOW
    assert differences(world.audit()) == [
        f"{named(key)}: voided: expected usage 2, events 1, found usage 4, events 2" for key in (WINDOW, TOTAL)
    ]


@pytest.mark.parametrize("values", [{"usage": Decimal(12)}, {"events": 2}])
def test_a_row_that_is_off_beside_a_void_is_told_by_what_it_must_be_now(world: World, values: dict[str, Any]) -> None:
    world.void("b")
    world.change(WINDOW, **values)
    [(name, value)] = values.items()
    wanted = {"usage": "13", "events": "3"}[name]
    assert differences(world.audit()) == [f"{named(WINDOW)}: {name}: expected {wanted}, found {value}"]


def test_a_voided_event_of_another_window_is_a_difference(world: World) -> None:
    world.put(event("2", event_id="d", timestamp=OLD))
    world.consume()
    world.tables.ledger.claims[event_claim_key("tenant-123", "d")].window = "2024-01-15T10"
    assert world.void("d") is VoidOutcome.NOT_HELD, "the window has not been applied up to the event"
    world.put(event("32"))
    world.consume()
    assert world.void("d") is VOIDED
    assert [line.partition(": ")[0] for line in differences(world.audit())] == [named(OLD_WINDOW), named(WINDOW)]


# ── Voids that are made while the audit reads ────────────────────────────────────────────────────────────────────────


class Disturbed(World):
    """Makes voids between the reads of an audit. before: by the name of the read that they are made before."""

    before: dict[str, Callable[[], object]]

    def _disturb(self, read: str) -> None:
        self.before.pop(read, lambda: None)()

    def snapshot(self, stream_created_at: datetime) -> Snapshot:
        """Windows stand before their total in a table, and so they are read before it."""
        windows = super().snapshot(stream_created_at)
        self._disturb("total")
        totals = super().snapshot(stream_created_at)
        rows = {k: row for k, row in windows.rows.items() if k.sk.startswith("HOUR#")}
        rows |= {k: row for k, row in totals.rows.items() if k.sk.startswith("METRIC#")}
        return Snapshot(windows.progress, rows, other_streams=False)

    def held(self, keys: Iterable[str]) -> dict[str, HeldClaim]:
        self._disturb("claims")
        return super().held(keys)

    def voided_now(self, key: RowKey) -> Amount:
        self._disturb("again")
        return super().voided_now(key)


READS = ("total", "claims", "again")


@pytest.mark.parametrize("retained", [True, False])
@pytest.mark.parametrize("read", READS)
def test_a_void_between_two_reads_is_no_difference(settings: Settings, read: str, retained: bool) -> None:  # noqa: FBT001
    world = Disturbed(settings, created_at=YOUNG if retained else CREATED_AT)
    world.before = {}
    counted(world)
    if not retained:
        world.now = NOW + timedelta(hours=24, minutes=30)
        world.trim(before=world.now - timedelta(hours=24))
        world.put(event("16", event_id="d"))
        world.consume()
    world.void("b")

    def disturb() -> None:
        assert [world.void("a"), world.void("c")] == [VOIDED, VOIDED]

    world.before = {read: disturb}
    if read == "again":  # what makes it read again
        world.before["claims"] = lambda: world.void("d") if not retained else None
    report = world.audit()
    assert differences(report) == []
    world.before = {}
    assert differences(world.audit()) == []


def test_a_void_of_a_window_that_came_between_two_reads_is_no_difference(settings: Settings) -> None:
    world = Disturbed(settings, created_at=YOUNG)
    world.before = {}
    counted(world)

    def disturb() -> None:
        world.put(event("16", event_id="d", timestamp="2024-01-15T09:35:00Z"), event("32", event_id="e"))
        world.consume()
        assert [world.void("b"), world.void("d")] == [VOIDED, VOIDED]

    world.before = {"total": disturb}
    assert differences(world.audit()) == []


@examples(max_examples=40)
@given(
    batch=st.integers(1, 4),
    voids=st.lists(st.tuples(st.sampled_from(["now", *READS]), st.sampled_from("abc")), max_size=5),
    crash_after=st.integers(0, 8),
    data=st.data(),
)
def test_any_voids_are_no_difference_and_any_row_that_is_changed_then_is_one(
    batch: int, voids: list[tuple[str, str]], crash_after: int, data: st.DataObject
) -> None:
    world = Disturbed(Settings.from_environment({}), created_at=YOUNG)
    world.before = {}
    counted(world)
    world.put(event("1", event_id="e"), event("2", metric="m", event_id="f"), event("1", event_id="a"))
    for when, event_id in voids:
        if when == "now":
            world.void(event_id)
        else:
            world.before[when] = lambda event_id=event_id: world.void(event_id)  # type: ignore[misc]
    world.consume(batch=batch, crash_after=crash_after)
    assert differences(world.audit()) == []
    world.before = {}
    world.consume()
    assert differences(world.audit()) == []
    key = data.draw(st.sampled_from(sorted(world.tables.rows)))
    name = data.draw(st.sampled_from(["usage", "events", "voided_usage", "voided_events"]))
    world.change(key, **{name: getattr(world.tables.rows[key], name) + 1})
    assert any(named(key) in line for line in differences(world.audit()))


# ── Past retention ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def old(settings: Settings) -> World:
    """What was voided, or may be, was counted from records that are gone."""
    world = World(settings, created_at=CREATED_AT, now=NOW - timedelta(days=2))
    world.put(event("1", event_id="a", timestamp=OLD), event("2", event_id="b", timestamp=OLD))
    world.consume()
    world.now = NOW
    world.trim(before=NOW - timedelta(days=1))
    world.put(event("4", event_id="c", timestamp=OLD))
    world.consume()
    return world


@pytest.mark.parametrize("voids", ["", "a", "c", "ac", "abc"])
def test_a_void_of_what_is_past_retention_is_no_difference(old: World, voids: str) -> None:
    for event_id in voids:
        assert old.void(event_id) is VOIDED
    assert differences(old.audit()) == []


@pytest.mark.parametrize("key", [TOTAL, OLD_WINDOW])
def test_a_void_past_retention_that_reached_one_row_alone_is_a_difference(old: World, key: RowKey) -> None:
    old.void("c")
    row = old.tables.rows[key]
    old.change(key, usage=row.usage - 1, events=row.events - 1, voided_usage=Decimal(5), voided_events=2)
    [found] = differences(old.audit())
    assert found.startswith(f"{named(TOTAL)}: voided: expected ")


def test_a_claim_that_says_voided_of_what_can_be_read_is_held_to_the_rows_that_can_not(old: World) -> None:
    old.tables.ledger.claims[event_claim_key("tenant-123", "c")].voided_at = NOW
    assert [line.partition(": ")[0] for line in differences(old.audit())] == [named(OLD_WINDOW), named(TOTAL)]
