"""When the leader counts as lost, and when it does not."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import javaproperties
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer.handoff import Handoff, HandoffWatch, Lease
from consumer.launch import PROPERTIES_FOLDER
from consumer.leader_watcher import LeaderWatcher
from consumer.takeover import GAP_S_MAX, LOST_AFTER_S_MIN, LeaderSigns, LeaderWatch, lost_after_s
from metering.errors import SetupError, StoreUnavailableError
from metering.processes import wait_until
from operations.up import LOCAL_KCL_PROPERTIES

LOST_AFTER_S = 8.0
END_S = 10.0
LEADER = LeaderSigns("leader", "version-1", 1_700_000_000, frozenset({("shard-0", 5), ("shard-1", 7)}))


def renewed(signs: LeaderSigns) -> LeaderSigns:
    return replace(signs, lease_counters=frozenset((shard, counter + 1) for shard, counter in signs.lease_counters))


def watch(worker_id: str = "me") -> LeaderWatch:
    return LeaderWatch(worker_id, lost_after_s=LOST_AFTER_S)


def looks(watched: LeaderWatch, signs: LeaderSigns | None, from_s: float, to_s: float) -> float | None:
    """Look once a second; return when the leader was first said to be lost, None when it never was."""
    now_s = from_s
    while now_s <= to_s:
        if watched.look(signs, now_s):
            return now_s
        now_s += 1
    return None


def test_a_leader_of_which_nothing_moves_for_the_time_is_lost_once() -> None:
    watched = watch()
    assert looks(watched, LEADER, 100, 120) == 108
    assert looks(watched, LEADER, 109, 116) is None
    assert watched.look(LEADER, 117)


@pytest.mark.parametrize("first_s", [0.0, 3.0, 1e6])
def test_the_first_look_never_says_lost(first_s: float) -> None:
    assert not watch().look(LEADER, first_s)


@pytest.mark.parametrize(
    "moved",
    [
        replace(LEADER, version="version-2"),
        replace(LEADER, reported_at=1_700_000_001),
        replace(LEADER, reported_at=None),
        renewed(LEADER),
        replace(LEADER, lease_counters=frozenset({("shard-0", 5), ("shard-1", 8)})),
        replace(LEADER, lease_counters=frozenset({("shard-0", 5)})),
        replace(LEADER, lease_counters=frozenset()),
        replace(LEADER, worker_id="another"),
    ],
    ids=["lock", "report", "report gone", "leases", "one lease", "lease gone", "leases gone", "another leader"],
)
def test_whatever_moves_starts_the_time_again(moved: LeaderSigns) -> None:
    watched = watch()
    assert looks(watched, LEADER, 100, 107) is None
    assert looks(watched, moved, 107.5, 115) is None
    assert watched.look(moved, 115.5)


def test_a_leader_that_is_only_slow_is_not_lost() -> None:
    watched, signs = watch(), LEADER
    for start_s in range(0, 700, 7):
        assert looks(watched, signs, start_s, start_s + 6) is None
        signs = replace(signs, reported_at=(signs.reported_at or 0) + 7)


def test_a_leader_that_comes_back_at_the_last_moment_has_all_the_time_again() -> None:
    watched = watch()
    assert looks(watched, LEADER, 0, 7) is None
    assert looks(watched, renewed(LEADER), 8, 15) is None


def test_a_worker_never_calls_itself_lost() -> None:
    assert looks(watch("leader"), LEADER, 0, 200) is None


def test_without_a_leader_there_is_none_to_lose() -> None:
    watched = watch()
    assert looks(watched, None, 0, 50) is None
    assert looks(watched, LEADER, 51, 58) is None
    assert looks(watched, None, 59, 59) is None
    assert looks(watched, LEADER, 60, 67) is None


def test_a_watcher_that_slept_does_not_fire_on_waking() -> None:
    watched = watch()
    assert looks(watched, LEADER, 0, 5) is None
    woken_s = 5 + GAP_S_MAX + 0.1
    assert looks(watched, LEADER, woken_s, woken_s + 7) is None
    assert watched.look(LEADER, woken_s + 8)


def test_a_watcher_that_slept_often_and_long_never_fires() -> None:
    watched = watch()
    assert not any(watched.look(LEADER, number * (GAP_S_MAX + 0.1)) for number in range(100))


def test_a_failed_look_starts_the_time_again() -> None:
    watched = watch()
    assert looks(watched, LEADER, 0, 7) is None
    watched.forget()
    assert looks(watched, LEADER, 8, 15) is None
    assert watched.look(LEADER, 16)


@given(st.lists(st.tuples(st.floats(0.1, 10), st.sampled_from(["moved", "still", "failed", "none"])), max_size=60))
def test_lost_means_that_nothing_moved_in_close_looks_over_the_whole_time(steps: list[tuple[float, str]]) -> None:
    watched, signs, now_s = watch(), LEADER, 0.0
    still_since_s: float | None = None
    for gap_s, what in steps:
        now_s += gap_s
        if gap_s > GAP_S_MAX:
            still_since_s = None
        if what == "failed":
            watched.forget()
            still_since_s = None
            continue
        if what == "moved":
            signs = renewed(signs)
            still_since_s = None
        lost = watched.look(None if what == "none" else signs, now_s)
        if what == "none":
            still_since_s = None
        elif still_since_s is None:
            still_since_s = now_s
        if lost:
            assert still_since_s is not None
            assert now_s - still_since_s >= LOST_AFTER_S
            still_since_s = None


# ── The time ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_time_follows_the_properties() -> None:
    assert lost_after_s({"failoverTimeMillis": "1000", "workerMetricsReporterFreqInMillis": "1000"}) == LOST_AFTER_S_MIN
    assert lost_after_s({"failoverTimeMillis": "20000", "workerMetricsReporterFreqInMillis": "1000"}) == 22
    assert lost_after_s({"failoverTimeMillis": " 1000 ", "workerMetricsReporterFreqInMillis": "5000"}) == 16
    assert lost_after_s({}) == 91  # the KCL's own 30 s between two reports
    assert lost_after_s({"gracefulLeaseHandoffTimeoutMillis": "900000"}) == 91


def test_a_time_that_is_no_number_is_refused() -> None:
    with pytest.raises(SetupError, match="failoverTimeMillis='soon' can't be used"):
        lost_after_s({"failoverTimeMillis": "soon"})


@pytest.mark.parametrize("overrides", [{}, LOCAL_KCL_PROPERTIES], ids=["AWS", "local"])
def test_with_the_properties_that_are_shipped_a_lost_leader_is_replaced_within_60_s(overrides: dict[str, str]) -> None:
    # Worst case, step by step: docs/decisions/0008-lost-leader.md.
    template = (PROPERTIES_FOLDER / "consumer.properties").read_text(encoding="utf-8")
    properties = javaproperties.loads(template) | overrides
    failover_s = int(properties["failoverTimeMillis"]) / 1000
    assignment_s = int(properties["leaseAssignmentIntervalMillis"]) / 1000
    report_s = int(properties["workerMetricsReporterFreqInMillis"]) / 1000
    looks_s, answer_cached_s, first_record_s = 2.0, 30.0, 5.0
    takeover_s = looks_s + lost_after_s(properties) + answer_cached_s
    takeover_s += assignment_s + failover_s + assignment_s + assignment_s / 2 + first_record_s
    assert takeover_s <= 60
    # A lost worker counts as active for twice the time of a report: over before its leases can be assigned.
    assert 2 * report_s <= failover_s + 1


# ── The thread ───────────────────────────────────────────────────────────────────────────────────────────────────────


class Tables:
    """Answers each look with what `answers` holds at that time."""

    def __init__(self, answer: LeaderSigns | Exception | None, *, released: bool = True) -> None:
        self.answer = answer
        self.released = released
        self.looks = 0
        self.deleted: list[LeaderSigns] = []

    def leases(self) -> list[Lease]:
        return []

    def leader(self, leases: Iterable[Lease]) -> LeaderSigns | None:
        self.looks += 1
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def release(self, signs: LeaderSigns) -> bool:
        self.deleted.append(signs)
        return self.released

    def complete(self, handoff: Handoff) -> bool:
        raise AssertionError(f"no lease is handed over: {handoff}")


@pytest.fixture
def no_threads_left() -> Iterator[None]:
    yield
    assert "leader-watcher" not in {thread.name for thread in threading.enumerate()}


def watcher(tables: Tables, *, lost_after_s: float = 0.2) -> LeaderWatcher:
    return watcher_of(lambda: tables, lost_after_s)


def watcher_of(make_tables: Callable[[], Tables], lost_after_s: float) -> LeaderWatcher:
    leader = LeaderWatch("me", lost_after_s=lost_after_s)
    return LeaderWatcher(leader, HandoffWatch(stuck_after_s=END_S), make_tables, interval_s=0.01)


@pytest.mark.usefixtures("no_threads_left")
def test_the_lock_of_a_lost_leader_is_deleted_as_it_was_seen(caplog: pytest.LogCaptureFixture) -> None:
    tables = Tables(LEADER)
    with caplog.at_level(logging.INFO), watcher(tables):
        assert wait_until(lambda: bool(tables.deleted), timeout_s=END_S)
        tables.answer = None
    assert set(tables.deleted) == {LEADER}
    assert "The leader shows no sign of life; its lock was deleted, another worker takes over" in caplog.messages


@pytest.mark.usefixtures("no_threads_left")
def test_a_lock_that_changed_between_look_and_delete_is_left_and_the_watch_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tables = Tables(LEADER, released=False)
    with caplog.at_level(logging.INFO), watcher(tables):
        assert wait_until(lambda: len(tables.deleted) >= 2, timeout_s=END_S)
    assert "The leader showed no sign of life, but its lock has changed since" in caplog.messages
    assert not [message for message in caplog.messages if "deleted" in message]


@pytest.mark.usefixtures("no_threads_left")
@pytest.mark.parametrize("error", [StoreUnavailableError("away"), RuntimeError("a bug")])
def test_looks_that_fail_are_logged_once_and_the_watch_goes_on(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    tables = Tables(error)
    with watcher(tables):
        assert wait_until(lambda: tables.looks >= 20, timeout_s=END_S)
        assert not tables.deleted
        tables.answer = LEADER
        assert wait_until(lambda: bool(tables.deleted), timeout_s=END_S)
    assert [message for message in caplog.messages if "watched" in message] == [f"The leader can't be watched: {error}"]


@pytest.mark.usefixtures("no_threads_left")
def test_looks_of_which_every_other_one_fails_never_say_lost() -> None:
    class Flickering(Tables):
        def leader(self, leases: Iterable[Lease]) -> LeaderSigns | None:
            if super().leader(leases) and self.looks % 2:
                raise StoreUnavailableError("away")
            return LEADER

    tables = Flickering(LEADER)
    with watcher(tables, lost_after_s=0.001):
        assert wait_until(lambda: tables.looks >= 20, timeout_s=END_S)
    assert not tables.deleted


@pytest.mark.usefixtures("no_threads_left")
def test_tables_that_cannot_be_made_are_tried_again() -> None:
    tables, tries = Tables(LEADER), []

    def make() -> Tables:
        tries.append(1)
        if len(tries) < 3:
            raise StoreUnavailableError("away")
        return tables

    with watcher_of(make, 0.1):
        assert wait_until(lambda: bool(tables.deleted), timeout_s=END_S)
    assert len(tries) == 3


def test_a_look_that_hangs_does_not_hold_up_the_end() -> None:
    looking, hanging, done = threading.Event(), threading.Event(), threading.Event()

    class Hanging(Tables):
        def leader(self, leases: Iterable[Lease]) -> LeaderSigns | None:
            looking.set()
            hanging.wait(END_S * 6)
            return super().leader(leases)

    def run() -> None:
        with watcher(Hanging(LEADER)):
            assert looking.wait(END_S)
        done.set()

    threading.Thread(target=run, daemon=True).start()
    try:
        assert done.wait(END_S)
    finally:
        hanging.set()


def test_only_the_watcher_of_another_worker_deletes() -> None:
    tables = Tables(replace(LEADER, worker_id="me"))
    with watcher(tables, lost_after_s=0.0):
        assert wait_until(lambda: tables.looks >= 20, timeout_s=END_S)
    assert not tables.deleted
