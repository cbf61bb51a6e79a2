"""When a handover counts as stuck, what the watcher then does, and how soon."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import replace

import javaproperties
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer.handoff import Handoff, HandoffWatch, Lease, handoff_stuck_after_s
from consumer.launch import PROPERTIES_FOLDER
from consumer.leader_watcher import LeaderWatcher
from consumer.takeover import GAP_S_MAX, LeaderSigns, LeaderWatch, lost_after_s
from metering.errors import SetupError, StoreUnavailableError
from metering.processes import wait_until
from operations.up import LOCAL_KCL_PROPERTIES

STUCK_AFTER_S = 40.0
END_S = 10.0
LEASE = Lease("shard-7", 5, owner="worker-1", checkpoint_owner="worker-0")
HANDOFF = Handoff("shard-7", from_worker="worker-0", to_worker="worker-1")
COMPLETED = "A shard's handover stood still; it was completed"


def watch() -> HandoffWatch:
    return HandoffWatch(stuck_after_s=STUCK_AFTER_S)


def looks(watched: HandoffWatch, leases: list[Lease], from_s: float, to_s: float) -> tuple[float, list[Handoff]] | None:
    """Look once a second; return when something was first said to stand still, and what; None when nothing was."""
    now_s = from_s
    while now_s <= to_s:
        if stuck := watched.look(leases, now_s):
            return now_s, stuck
        now_s += 1
    return None


def test_a_handover_that_stands_for_the_time_is_stuck() -> None:
    assert looks(watch(), [LEASE], 100, 200) == (140, [HANDOFF])


@pytest.mark.parametrize("first_s", [0.0, 3.0, 1e6])
def test_the_first_look_never_says_stuck(first_s: float) -> None:
    assert watch().look([LEASE], first_s) == []


def test_whether_the_counter_moves_does_not_matter() -> None:
    # One of the two owners renews the lease of a shard that nobody reads.
    watched = watch()
    for now_s in range(40):
        assert watched.look([replace(LEASE, counter=now_s)], now_s) == []
    assert watched.look([replace(LEASE, counter=40)], 40) == [HANDOFF]


@pytest.mark.parametrize(
    "lease",
    [replace(LEASE, checkpoint_owner=None), replace(LEASE, owner=None), Lease("shard-7", 5, None, None)],
    ids=["held", "no new owner", "free"],
)
def test_a_lease_that_is_not_handed_over_is_never_stuck(lease: Lease) -> None:
    assert looks(watch(), [lease], 0, 200) is None


@pytest.mark.parametrize(
    "moved_on",
    [[replace(LEASE, checkpoint_owner=None)], []],
    ids=["handed over", "lease gone"],
)
def test_a_handover_that_moves_on_at_the_last_moment_has_all_the_time_when_it_comes_again(
    moved_on: list[Lease],
) -> None:
    watched = watch()
    assert looks(watched, [LEASE], 0, 39) is None
    assert looks(watched, moved_on, 40, 40) is None
    assert looks(watched, [LEASE], 41, 200) == (81, [HANDOFF])


@pytest.mark.parametrize(
    "another",
    [
        replace(LEASE, owner="worker-2"),
        replace(LEASE, checkpoint_owner="worker-2"),
        replace(LEASE, owner="worker-0", checkpoint_owner="worker-1"),
        replace(LEASE, shard="shard-8"),
    ],
    ids=["another owner", "another checkpointOwner", "back again", "another shard"],
)
def test_another_handover_has_its_own_time(another: Lease) -> None:
    watched = watch()
    assert looks(watched, [LEASE], 0, 39) is None
    assert looks(watched, [another], 40, 200) == (80, [another.handoff])


def test_of_several_leases_each_has_its_own_time() -> None:
    watched = watch()
    second, held = replace(LEASE, shard="shard-10"), Lease("shard-1", 9, "worker-0", None)
    assert looks(watched, [held, LEASE], 0, 9) is None
    assert looks(watched, [held, second, LEASE], 10, 200) == (40, [HANDOFF])
    completed = replace(LEASE, checkpoint_owner=None)
    assert looks(watched, [held, second, completed], 41, 200) == (50, [second.handoff])


def test_all_that_are_stuck_are_said_at_once() -> None:
    leases = [replace(LEASE, shard=f"shard-{number}") for number in (7, 10, 13)]
    assert looks(watch(), leases, 0, 200) == (40, [lease.handoff for lease in leases])


def test_one_that_stands_still_is_said_until_it_is_gone() -> None:
    watched = watch()
    assert looks(watched, [LEASE], 0, 39) is None
    assert [watched.look([LEASE], now_s) for now_s in (40, 41)] == [[HANDOFF], [HANDOFF]]
    assert watched.look([replace(LEASE, checkpoint_owner=None)], 42) == []


def test_a_watcher_that_slept_does_not_say_stuck_on_waking() -> None:
    watched = watch()
    assert looks(watched, [LEASE], 0, 39) is None
    woken_s = 39 + GAP_S_MAX + 1
    assert looks(watched, [LEASE], woken_s, 200) == (woken_s + STUCK_AFTER_S, [HANDOFF])


def test_a_failed_look_starts_the_time_again() -> None:
    watched = watch()
    assert looks(watched, [LEASE], 0, 39) is None
    watched.forget()
    assert looks(watched, [LEASE], 40, 200) == (80, [HANDOFF])


@given(
    st.lists(st.tuples(st.floats(0.1, 6), st.sampled_from(["same", "same", "same", "other", "failed"])), max_size=99)
)
def test_stuck_means_seen_in_close_looks_over_the_whole_time(steps: list[tuple[float, str]]) -> None:
    watched, now_s = HandoffWatch(stuck_after_s=9), 0.0
    since_s: float | None = None
    for gap_s, what in steps:
        now_s += gap_s
        if gap_s > GAP_S_MAX or what != "same":
            since_s = None
        if what == "failed":
            watched.forget()
            continue
        stuck = watched.look([LEASE if what == "same" else replace(LEASE, owner="worker-2")], now_s)
        if what == "same":
            since_s = now_s if since_s is None else since_s
        if HANDOFF in stuck:
            assert since_s is not None
            assert now_s - since_s >= 9 - 1e-6


# ── The time ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_time_is_longer_than_the_kcls_own_timeout() -> None:
    assert handoff_stuck_after_s({}) == 40  # the KCL's own 30 s
    assert handoff_stuck_after_s({"gracefulLeaseHandoffTimeoutMillis": " 5000 "}) == 15


def test_a_timeout_that_is_no_number_is_refused() -> None:
    with pytest.raises(SetupError, match="gracefulLeaseHandoffTimeoutMillis='soon' can't be used"):
        handoff_stuck_after_s({"gracefulLeaseHandoffTimeoutMillis": "soon"})


@pytest.mark.parametrize("overrides", [{}, LOCAL_KCL_PROPERTIES], ids=["AWS", "local"])
def test_with_the_properties_that_are_shipped_a_stuck_shard_is_read_within_60_s(overrides: dict[str, str]) -> None:
    template = (PROPERTIES_FOLDER / "consumer.properties").read_text(encoding="utf-8")
    properties = javaproperties.loads(template) | overrides
    renewal_s = int(properties["failoverTimeMillis"]) / 1000 / 3
    assignment_s = int(properties["leaseAssignmentIntervalMillis"]) / 1000
    looks_s, first_record_s = 2.0, 5.0
    # The one that renews it loses it at its next renewal; the new owner finds it at its next look.
    standstill_s = looks_s + handoff_stuck_after_s(properties) + renewal_s + assignment_s / 2 + first_record_s
    assert standstill_s <= 60
    assert lost_after_s(properties) == 8  # the leader's time knows nothing of handovers


# ── The thread ───────────────────────────────────────────────────────────────────────────────────────────────────────


class Tables:
    """Leases that are handed over, and what the watcher does to them. completing: called before each write."""

    def __init__(self, *leases: Lease, completing: Callable[[], bool] = lambda: True) -> None:
        self.shown = list(leases)
        self.completing = completing
        self.looks = 0
        self.asked: list[Handoff] = []

    def leases(self) -> list[Lease]:
        self.looks += 1
        return list(self.shown)

    def leader(self, leases: Iterable[Lease]) -> LeaderSigns | None:
        return None

    def release(self, signs: LeaderSigns) -> bool:
        raise AssertionError(f"there is no leader: {signs}")

    def complete(self, handoff: Handoff) -> bool:
        self.asked.append(handoff)
        done = self.completing()
        self.shown = [
            replace(lease, checkpoint_owner=None) if lease.handoff == handoff else lease for lease in self.shown
        ]
        return done


def watcher(tables: Tables, *, stuck_after_s: float = 0.1) -> LeaderWatcher:
    leader, handoffs = LeaderWatch("worker-2", lost_after_s=END_S), HandoffWatch(stuck_after_s=stuck_after_s)
    return LeaderWatcher(leader, handoffs, lambda: tables, interval_s=0.01)


def some_looks_later(tables: Tables) -> bool:
    seen = tables.looks
    return wait_until(lambda: tables.looks >= seen + 10, timeout_s=END_S)


def completed(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.getMessage() == COMPLETED]


def test_each_stuck_handover_is_completed_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    second = replace(LEASE, shard="shard-10")
    tables = Tables(LEASE, Lease("shard-1", 9, "worker-0", None), second)
    with watcher(tables):
        assert wait_until(lambda: len(tables.asked) >= 2, timeout_s=END_S)
        assert some_looks_later(tables)
    assert tables.asked == [HANDOFF, second.handoff]
    said = [{key: vars(record)[key] for key in ("shard", "from", "to")} for record in completed(caplog)]
    assert said == [{"shard": shard, "from": "worker-0", "to": "worker-1"} for shard in ("shard-7", "shard-10")]
    assert {record.levelname for record in completed(caplog)} == {"WARNING"}


def test_a_handover_that_another_worker_completed_first_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    tables = Tables(LEASE, completing=lambda: False)
    with watcher(tables):
        assert wait_until(lambda: bool(tables.asked), timeout_s=END_S)
        assert some_looks_later(tables)
    assert completed(caplog) == []
    assert tables.asked == [HANDOFF]


def test_a_write_that_fails_is_tried_again_at_the_next_look(caplog: pytest.LogCaptureFixture) -> None:
    tables, looks_at_writes = Tables(LEASE), []

    def throttled_twice() -> bool:
        looks_at_writes.append(tables.looks)
        if len(tables.asked) <= 2:
            raise StoreUnavailableError("throttled")
        return True

    tables.completing = throttled_twice
    with watcher(tables):
        assert wait_until(lambda: bool(completed(caplog)), timeout_s=END_S)
    assert tables.asked == [HANDOFF] * 3
    first = looks_at_writes[0]
    assert looks_at_writes == [first, first + 1, first + 2]


def test_looks_of_which_every_other_one_fails_never_say_stuck() -> None:
    class Flickering(Tables):
        def leader(self, leases: Iterable[Lease]) -> LeaderSigns | None:
            if self.looks % 2:
                raise StoreUnavailableError("away")
            return None

    tables = Flickering(LEASE)
    with watcher(tables, stuck_after_s=0.001):
        assert wait_until(lambda: tables.looks >= 20, timeout_s=END_S)
    assert not tables.asked


def test_a_worker_completes_its_own_handovers_too() -> None:
    tables = Tables(replace(LEASE, checkpoint_owner="worker-2"), replace(LEASE, shard="shard-8", owner="worker-2"))
    with watcher(tables):
        assert wait_until(lambda: len(tables.asked) >= 2, timeout_s=END_S)
