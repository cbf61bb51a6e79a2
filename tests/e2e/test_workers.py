"""What becomes of the shards of a worker that is gone, by whatever way it went, and of one that comes back."""

from __future__ import annotations

import signal

from tests.e2e.parts import Parts
from tests.e2e.processes import LogFollower, json_lines, until
from tests.e2e.workers import SHARED_S, TAKEN_OVER_S, sharing

WATCHER_SAID = "its lock was deleted, another worker takes over"
COMPLETED = "A shard's handover stood still; it was completed"


def test_shards_of_a_worker_that_stops_and_of_a_leader_that_is_lost_are_read_by_the_others(parts: Parts) -> None:
    with sharing(parts, "gone", workers=3) as group:
        stopped = group.others()[0]
        del group.workers[stopped.worker_id]
        code, _ = stopped.supervisor.stop()
        assert code == 0
        group.await_all_read_by_the_rest()

        lost = group.leader()
        group.lose(lost)
        group.await_all_read_by_the_rest()
        [left] = group.workers.values()
        assert group.tables.leader() == left.worker_id
        said = [line for line in json_lines(left.supervisor.log) if WATCHER_SAID in line["message"]]
        assert [line["leader"] for line in said] == [lost.worker_id]


def test_a_leader_that_was_only_paused_does_no_harm_when_it_wakes_and_reads_on_until_it_is_lost(parts: Parts) -> None:
    with sharing(parts, "paused", workers=2) as group:
        paused = group.leader()
        del group.workers[paused.worker_id]
        paused.signal_all(signal.SIGSTOP)
        group.await_all_read_by_the_rest()
        [other] = group.workers.values()
        log = LogFollower(other.supervisor.log)

        paused.signal_all(signal.SIGCONT)
        group.workers[paused.worker_id] = paused
        until(group.share_all, lambda: f"it reads a shard again: {group.tables.owners()}", timeout_s=SHARED_S)
        group.load.await_events(20)
        assert group.tables.leader() == other.worker_id
        assert not log.saw(WATCHER_SAID)
        assert WATCHER_SAID not in paused.supervisor.text()

        group.lose(paused)
        group.await_all_read_by_the_rest()
        assert not log.saw(WATCHER_SAID)


def test_a_handover_that_stands_still_is_completed_and_the_shard_is_read_again(parts: Parts) -> None:
    with sharing(parts, "handover", workers=2) as group:
        leader, [other] = group.leader(), group.others()
        shard = next(shard for shard, owner in group.tables.owners().items() if owner == other.worker_id)

        # As a new owner leaves it that was started again in the middle (docs/decisions/0011-stuck-handoff.md): the
        # lease has two owners, its counter moves, so that it never runs out, and nobody reads the shard.
        group.tables.begin_handover(shard, from_worker=leader.worker_id, to_worker=other.worker_id)

        def not_read() -> bool:
            group.tables.renew_handover(shard)
            return shard not in other.reads() | leader.reads()

        def completed() -> bool:
            return not group.tables.renew_handover(shard)

        until(not_read, f"nobody reads {shard}: {other.worker_id} has lost it")
        until(completed, f"the handover of {shard} is completed", timeout_s=TAKEN_OVER_S)
        group.await_all_read_by_the_rest()
        said = [
            (line["shard"], line["from"], line["to"])
            for worker in (leader, other)
            for line in json_lines(worker.supervisor.log)
            if line["message"] == COMPLETED
        ]
        assert said == [(shard, leader.worker_id, other.worker_id)]
