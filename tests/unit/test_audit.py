"""What an audit finds, on a consumer that is real and tables that are in memory: nothing, or what was changed."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metering.rows import RowKey, applied_attribute, batch_claim_key, event_claim_key, total_key, window_key
from metering.settings import Settings
from operations.audit import AuditReport
from operations.audit_compare import SHOWN_MAX
from operations.audit_report import report_lines
from tests.builders import CREATED_AT, NOW
from tests.unit.audit_world import TOTAL, WINDOW, EndlessWorld, World, envelope, event

SHARD = "shardId-000000000000"
YOUNG = NOW - timedelta(hours=1)
"""A stream made then has lost nothing to its retention."""
OLD = "2024-01-13T10:00:00Z"
OLD_WINDOW = window_key("tenant-123", "api_calls", datetime.fromisoformat(OLD), 60)
BAD = event("-1", event_id="bad")


@pytest.fixture
def world(settings: Settings) -> World:
    return World(settings, created_at=YOUNG)


def differences(report: AuditReport) -> list[str]:
    return [str(difference) for difference in (*report.rows.shown, *report.events.shown)]


def assert_nothing(report: AuditReport) -> None:
    assert differences(report) == []
    assert report.checked_all


def all_kinds(world: World, **when: str) -> None:
    """A duplicate of each kind, a conflict of each kind, rejected events, bare events, two shards: 29 in 7 events."""
    make = partial(event, **when)
    batch = envelope("b-1", make("2", event_id="b"), make("3"), BAD)
    world.put(make("1", event_id="a"), batch, make("4"))
    world.put(batch, make("1", event_id="a"), make("5", event_id="a"), make("4"), b"rubbish", shard=1)
    world.put(envelope("b-1", make("6")), envelope("b-2", make("7"), make("8")), envelope("b-2", make("7")))


class TestNoDifference:
    def test_nothing_at_all(self, world: World) -> None:
        assert_nothing(world.audit())

    @pytest.mark.parametrize("claim_events", [True, False])
    def test_each_way_in_which_an_event_can_end(self, world: World, claim_events: bool) -> None:  # noqa: FBT001
        world.claim_events = claim_events
        all_kinds(world)
        world.consume()
        report = world.audit()
        assert_nothing(report)
        for line in report.shards:
            progress = line.shard.progress
            assert progress is not None
            for name in ("records", "counted", "duplicates", "rejected"):
                assert getattr(line.shard, name) == getattr(progress, name)
        assert sum(line.shard.duplicates for line in report.shards) == (3 if claim_events else 2)
        assert report.checked.exactly == len(world.tables.rows)

    @pytest.mark.parametrize("first", [True, False])
    def test_events_that_were_counted_while_the_ledger_was_set_otherwise(self, world: World, first: bool) -> None:  # noqa: FBT001
        mixed = envelope("b-1", event("1", event_id="a"), event("2"))
        world.claim_events = first
        world.put(mixed, envelope("b-2", event("3", event_id="b")))
        world.consume()
        world.claim_events = not first
        world.put(envelope("b-3", event("1", event_id="a")), envelope("b-4", event("4", event_id="c")), event("9"))
        world.consume()
        assert world.tables.rows[TOTAL].events == 6, "the other setting does not see that it has come before"
        for claim_events in (True, False):
            world.claim_events = claim_events
            assert_nothing(world.audit())

    @pytest.mark.parametrize("crash_after", range(14))
    def test_rows_that_were_written_beyond_the_progress_row(self, world: World, crash_after: int) -> None:
        all_kinds(world)
        world.consume(batch=2)
        all_kinds(world)
        world.put(event("1", tenant_id="new"), event("1", metric="new"))
        world.consume(crash_after=crash_after)
        assert differences(world.audit()) == []
        world.consume()
        assert_nothing(world.audit())


kinds = st.one_of(
    st.tuples(st.just("id"), st.integers(0, 3), st.integers(1, 2)),
    st.tuples(st.just("batch"), st.integers(0, 2), st.integers(1, 2)),
    st.tuples(st.just("bare"), st.integers(0, 1), st.integers(1, 2)),
    st.tuples(st.just("bad"), st.integers(0, 1), st.just(0)),
)


def record_of(kind: str, number: int, value: int) -> bytes | dict[str, Any]:
    match kind:
        case "id":
            return event(str(value), event_id=str(number), tenant_id="t")
        case "batch":
            return envelope(f"b-{number}", event(str(value)), event("0.1", event_id=f"of-{number}"))
        case "bare":
            return event(str(value), metric=f"m-{number}")
        case _:
            return BAD if number else b"rubbish"


class TestAnyHistory:
    @given(
        first=st.lists(st.tuples(kinds, st.integers(0, 1)), max_size=8),
        second=st.lists(st.tuples(kinds, st.integers(0, 1)), max_size=8),
        batch=st.integers(1, 4),
        crashes=st.lists(st.integers(0, 12), max_size=3),
        data=st.data(),
    )
    def test_what_the_consumer_did_is_no_difference_and_any_row_that_is_changed_is_one(
        self, first: list[Any], second: list[Any], batch: int, crashes: list[int], data: st.DataObject
    ) -> None:
        world = World(Settings.from_environment({}), created_at=YOUNG)
        for part in (first, second):
            for kind, shard in part:
                world.put(record_of(*kind), shard=shard)
            for crash_after in crashes:
                world.consume(batch=batch, crash_after=crash_after)
                assert differences(world.audit()) == []
            if part is first:
                world.consume(batch=batch)
        if not world.tables.rows:
            return
        key = data.draw(st.sampled_from(sorted(world.tables.rows)))
        row = world.tables.rows[key]
        world.change(key, **data.draw(st.sampled_from([{"usage": row.usage + 1}, {"events": row.events - 1}])))
        assert any(f"{key.pk} {key.sk}" in line for line in differences(world.audit()))


class TestRows:
    @pytest.fixture(autouse=True)
    def _counted(self, world: World) -> None:
        all_kinds(world)
        world.consume()

    @pytest.mark.parametrize("key", [TOTAL, WINDOW])
    @pytest.mark.parametrize(
        ("values", "words"),
        [
            ({"usage": Decimal(30)}, "usage: expected 29, found 30"),
            ({"usage": Decimal("28.999999999")}, "usage: expected 29, found 28.999999999"),
            ({"events": 8}, "events: expected 7, found 8"),
        ],
    )
    def test_a_row_that_is_off(self, world: World, key: RowKey, values: dict[str, Any], words: str) -> None:
        world.change(key, **values)
        assert differences(world.audit()) == [f"{key.pk} {key.sk}: {words}"]

    @pytest.mark.parametrize("key", [TOTAL, WINDOW])
    def test_a_row_that_is_not_there(self, world: World, key: RowKey) -> None:
        del world.tables.rows[key]
        assert differences(world.audit()) == [f"{key.pk} {key.sk}: row: expected usage 29, events 7, found none"]

    @pytest.mark.parametrize("key", [total_key("t", "m"), window_key("tenant-123", "api_calls", YOUNG, 60)])
    def test_a_row_that_no_event_explains(self, world: World, key: RowKey) -> None:
        world.change(key, usage=Decimal(1))
        assert differences(world.audit()) == [f"{key.pk} {key.sk}: row: expected none, found usage 1, events 0"]

    def test_a_duplicate_that_was_counted(self, world: World) -> None:
        for key in (TOTAL, WINDOW):
            row = world.tables.rows[key]
            world.change(key, usage=row.usage + 1, events=row.events + 1)
        found = differences(world.audit())
        assert len(found) == 4
        assert f"{TOTAL.pk} {TOTAL.sk}: events: expected 7, found 8" in found

    def test_a_batch_that_was_lost_between_two_others(self, world: World) -> None:
        world.put(event("100"), event("200"))
        records = world.records[SHARD]
        world.apply(SHARD, records[-1:])
        found = differences(world.audit())
        assert f"{TOTAL.pk} {TOTAL.sk}: usage: expected 329, found 229" in found
        assert f"{SHARD}: records: expected 8, found 7" in found

    def test_a_position_behind_what_the_row_must_hold(self, world: World) -> None:
        attribute = applied_attribute(YOUNG, SHARD)
        applied = world.tables.rows[TOTAL].applied
        world.change(TOTAL, applied=applied | {attribute: "0011"})
        [found] = differences(world.audit())
        assert found.startswith(f"{TOTAL.pk} {TOTAL.sk}: position of {SHARD}")

    def test_a_position_beyond_the_last_record(self, world: World) -> None:
        """The row would drop what comes next."""
        attribute = applied_attribute(YOUNG, SHARD)
        world.change(TOTAL, applied=world.tables.rows[TOTAL].applied | {attribute: "003999"})
        [found] = differences(world.audit())
        assert found.startswith(f"{TOTAL.pk} {TOTAL.sk}: position of {SHARD}")
        assert found.endswith("found 999")

    def test_all_rows_lost_are_counted_and_the_first_are_shown(self, world: World) -> None:
        for number in range(SHOWN_MAX):
            world.put(event(tenant_id=f"t-{number:03d}"))
        world.consume()
        world.tables.rows.clear()
        report = world.audit()
        assert report.differences == 2 * SHOWN_MAX + 2
        assert len(report.rows.shown) == SHOWN_MAX
        lines = list(report_lines(report))
        assert lines[-2:] == [f"and {SHOWN_MAX + 2} more", f"{2 * SHOWN_MAX + 2} difference(s)"]
        assert sum("found none" in line for line in lines) == SHOWN_MAX


class TestShards:
    @pytest.fixture(autouse=True)
    def _counted(self, world: World) -> None:
        all_kinds(world)
        world.consume()

    @pytest.mark.parametrize("name", ["records", "events", "counted", "duplicates", "rejected"])
    @pytest.mark.parametrize("by", [1, -1])
    def test_a_number_that_is_off(self, world: World, name: str, by: int) -> None:
        found = getattr(world.tables.progress("usage-events")[0], name)
        world.change_progress(**{name: found + by})
        assert f"{SHARD}: {name}: expected {found}, found {found + by}" in differences(world.audit())

    def test_events_that_ended_in_no_way(self, world: World) -> None:
        world.change_progress(events=10, counted=4, duplicates=3, rejected=2)
        expected = "9 (counted 4 + duplicates 3 + rejected 2)"
        assert f"{SHARD}: events: expected {expected}, found 10" in differences(world.audit())

    def test_a_progress_row_that_is_not_there(self, world: World) -> None:
        del world.tables.shards["usage-events", SHARD]
        [found] = differences(world.audit())
        assert found.startswith(f"{SHARD}: progress row: expected at least ")

    def test_a_position_beyond_the_last_record(self, world: World) -> None:
        world.change_progress(position="003999")
        assert f"{SHARD}: position: expected 7, found 999" not in differences(world.audit())
        assert any(f"{SHARD}: position" in line and "found 999" in line for line in differences(world.audit()))


class TestClaimsAndRejected:
    @pytest.fixture(autouse=True)
    def _counted(self, world: World) -> None:
        all_kinds(world)
        world.consume()

    def test_rejected_events_without_a_row_or_with_another_reason(self, world: World) -> None:
        first, second, *_ = sorted(world.tables.rejected)
        del world.tables.rejected[first]
        world.tables.rejected[second] = replace(world.tables.rejected[second], reason="other")
        found = differences(world.audit())
        assert len(found) == 2
        assert found[0].startswith(f"{first.pk} {first.sk}: rejected row: expected ")
        assert found[0].endswith("found none")
        assert found[1].endswith("found other")

    @pytest.mark.parametrize("key", [event_claim_key("tenant-123", "b"), batch_claim_key("b-2")])
    def test_a_claim_that_is_gone_before_its_time(self, world: World, key: str) -> None:
        del world.tables.ledger.claims[key]
        found = differences(world.audit())
        assert found
        assert all(line.startswith(f"{key}: claim: expected one, for the event at ") for line in found)

    def test_a_claim_that_somebody_else_holds_now(self, world: World) -> None:
        """By the ledger the event is a duplicate then, and by the rows it was counted."""
        claims, key = world.tables.ledger.claims, event_claim_key("tenant-123", "a")
        claims[key] = replace(claims[key], holder=replace(claims[key].holder, owner="elsewhere"))
        assert f"{TOTAL.pk} {TOTAL.sk}: usage: expected 28, found 29" in differences(world.audit())


class TestWhatCanNotBeChecked:
    """The stream is older than its retention."""

    @pytest.fixture
    def world(self, settings: Settings) -> World:
        world = World(settings, created_at=CREATED_AT)
        world.now = NOW - timedelta(days=2)
        all_kinds(world, timestamp=OLD)
        world.consume()
        world.trim(before=world.now + timedelta(seconds=1))
        world.now = NOW
        return world

    def test_records_past_retention_are_said_and_are_no_difference(self, world: World) -> None:
        world.put(event("1", timestamp=OLD))
        world.consume()
        report = world.audit()
        assert differences(report) == []
        assert not report.checked_all
        assert [line.gone for line in report.shards] == [6, 5]
        assert "not checked: 11 record(s) past retention" in list(report_lines(report))
        assert (report.checked.exactly, report.checked.at_least) == (0, 2)

    def test_a_row_holds_no_less_than_was_read(self, world: World) -> None:
        world.put(event("30", timestamp=OLD))
        world.consume()
        world.change(OLD_WINDOW, usage=Decimal(29))
        assert f"{OLD_WINDOW.pk} {OLD_WINDOW.sk}: usage: expected at least 30, found 29" in differences(world.audit())

    def test_a_total_that_is_not_the_sum_of_its_windows(self, world: World) -> None:
        world.change(TOTAL, usage=Decimal(30))
        assert differences(world.audit()) == [
            f"{TOTAL.pk} {TOTAL.sk}: total: expected usage 29, events 7 in its windows, found usage 30, events 7"
        ]

    @pytest.mark.parametrize("crash_after", range(5))
    def test_a_total_is_the_sum_of_its_windows_while_they_are_written(self, world: World, crash_after: int) -> None:
        world.put(event("1", timestamp=OLD), event("2"), event("3", timestamp=OLD))
        world.consume(crash_after=crash_after)
        assert differences(world.audit()) == []

    def test_windows_that_are_late_enough_are_checked_exactly(self, world: World) -> None:
        late = NOW - timedelta(minutes=5)
        key = window_key("tenant-123", "api_calls", late, 60)
        world.now = NOW + timedelta(hours=1)
        assert self._found_off(world, key, late) == f"{key.pk} {key.sk}: usage: expected 1, found 2"

    def test_windows_whose_events_may_be_past_retention_are_not(self, world: World) -> None:
        early = NOW - timedelta(hours=24)
        key = window_key("tenant-123", "api_calls", early, 60)
        assert self._found_off(world, key, early) is None

    @staticmethod
    def _found_off(world: World, key: RowKey, occurred_at: datetime) -> str | None:
        """The difference of a window and its total that hold 1 too much."""
        world.put(event("1", timestamp=occurred_at.isoformat()))
        world.consume()
        for each in (key, TOTAL):
            world.change(each, usage=world.tables.rows[each].usage + 1)
        found = differences(world.audit())
        assert len(found) <= 1
        return found[0] if found else None

    def test_since_reads_less_and_says_so(self, world: World) -> None:
        world.now = NOW - timedelta(hours=3)
        world.put(event("1", timestamp=world.now.isoformat()))
        world.consume()
        world.now = NOW
        world.put(event("2", timestamp=NOW.isoformat()))
        world.consume()
        report = world.audit(since=NOW - timedelta(hours=1))
        assert differences(report) == []
        assert "not checked: 12 record(s) before --since or past retention" in list(report_lines(report))
        late = window_key("tenant-123", "api_calls", NOW, 60)
        world.change(late, usage=Decimal(3))
        assert differences(world.audit(since=NOW - timedelta(hours=1))) != []

    def test_shards_that_are_not_listed_any_more_are_said(self, settings: Settings) -> None:
        world = World(settings, created_at=CREATED_AT, now=NOW - timedelta(days=2))
        world.put(event("1", timestamp=OLD))
        world.consume()
        world.now = NOW
        world.put(event("2", metric="other", timestamp=OLD), shard=1)
        world.consume()
        del world.records[SHARD]
        report = world.audit()
        assert differences(report) == []
        assert (report.checked.exactly, report.checked.at_least) == (2, 2)
        assert [shard.shard_id for shard in report.unlisted] == [SHARD]
        assert any(line.endswith(f"past retention altogether: {SHARD}") for line in report_lines(report))
        world.change_progress(events=7)
        assert [line.partition(":")[0] for line in differences(world.audit())] == [SHARD]

    def test_the_stream_of_the_same_name_that_was_deleted_can_not_be_read(self, world: World) -> None:
        world.created_at = NOW - timedelta(hours=2)
        for shard_id in world.records:
            world.open(shard_id)
        world.put(event("1", timestamp=OLD), event("2"))
        world.consume()
        report = world.audit()
        assert differences(report) == []
        assert (report.checked.exactly, report.checked.at_least) == (1, 2)
        world.change(OLD_WINDOW, usage=Decimal(0))
        assert differences(world.audit()) != []

    def test_rows_that_another_stream_counts_into_are_never_exact(self, world: World) -> None:
        world.created_at = NOW - timedelta(hours=2)
        for shard_id in world.records:
            world.open(shard_id)
        world.put(event("2", timestamp=NOW.isoformat()))
        world.consume()
        other = {applied_attribute(CREATED_AT, SHARD): "0011"}
        for key in (WINDOW, TOTAL):
            row = world.tables.rows[key]
            world.change(key, usage=row.usage + 5, events=row.events + 1, applied=row.applied | other)
        world.other_streams = True
        assert differences(world.audit()) == []
        world.other_streams = False
        assert differences(world.audit()) != []


class TestExpiredClaims:
    @pytest.fixture
    def world(self, settings: Settings) -> World:
        """Its claims expire long before its records: a retention of a year, say."""
        world = World(replace(settings, ledger_ttl_days=1), created_at=YOUNG)
        world.put(event("1", event_id="a"), event("2", event_id="b"), event("1", event_id="a"))
        world.consume()
        world.now = NOW + timedelta(days=1, minutes=1)
        world.created_at = YOUNG
        return world

    def audit(self, world: World, monkeypatch: pytest.MonkeyPatch) -> AuditReport:
        monkeypatch.setattr(world, "retention", lambda: timedelta(days=365))
        return world.audit()

    def test_events_whose_claims_have_expired_may_have_counted_or_not(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        world.tables.ledger.claims.clear()
        report = self.audit(world, monkeypatch)
        assert differences(report) == []
        assert report.unknown == 3
        assert report.checked.within == 2
        for usage, words in (("5", "expected 0 to 4, found 5"), ("4", "in its windows")):
            world.change(TOTAL, usage=Decimal(usage))
            [found] = differences(self.audit(world, monkeypatch))
            assert words in found

    def test_a_claim_that_was_made_anew_says_nothing_of_the_event_before(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        world.tables.ledger.claims.clear()
        world.put(event("1", event_id="a"))
        world.consume()
        report = self.audit(world, monkeypatch)
        assert differences(report) == []
        assert report.unknown == 3

    def test_a_claim_that_is_old_and_still_there_decides(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        world.put(event("1", event_id="a"))
        world.consume()
        assert_nothing(self.audit(world, monkeypatch))

    def test_rejected_rows_may_have_expired(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        world.now = NOW
        world.put(b"rubbish")
        world.consume()
        world.tables.rejected.clear()
        assert len(differences(self.audit(world, monkeypatch))) == 1
        world.now = NOW + timedelta(days=1)
        report = self.audit(world, monkeypatch)
        assert differences(report) == []
        assert report.expired == 1
        assert "not checked: the rows of 1 rejected event(s), which may have expired" in list(report_lines(report))


def test_an_error_of_one_shard_ends_the_audit(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    all_kinds(world)
    world.consume()

    def held(_: object) -> dict[str, Any]:
        raise ZeroDivisionError

    monkeypatch.setattr(world, "held", held)
    with pytest.raises(ZeroDivisionError):
        world.audit()


def test_memory_does_not_grow_with_events(settings: Settings) -> None:
    def peak_bytes(records: int) -> int:
        world = EndlessWorld(settings, records=records)
        tracemalloc.start()
        try:
            report = world.audit()
            assert_nothing(report)
            assert report.shards[0].shard.counted == records * EndlessWorld.EVENTS_OF_RECORD
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak_bytes(10)  # what is made once and kept: caches, compiled expressions
    assert peak_bytes(80) < 1.2 * peak_bytes(20)


def test_the_report_of_nothing_wrong_says_what_was_read_and_counted(world: World) -> None:
    all_kinds(world)
    world.consume()
    assert list(report_lines(world.audit())) == [
        "stream usage-events, made 2024-01-15T09:30:00.000Z, read from its oldest record on",
        "shard                 records  events  counted  duplicates  rejected  not readable",
        "shardId-000000000000        6       9        6           0         3             0",
        "shardId-000000000001        5       7        1           3         3             0",
        "rows: 2 checked exactly, 0 between bounds, 0 for no less than was read",
        "no difference",
    ]
