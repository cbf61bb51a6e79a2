"""Several consumers on one stream of four shards, under load: who holds what, and how one of them is lost."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from tests.e2e.parts import Parts, Worker
from tests.e2e.processes import until
from tests.e2e.tables import Tables
from tests.e2e.truth import Load, Truth, assert_counted_exactly

SHARDS = 4
SHARED_S = 120.0
"""Ten for JVMs to start; when one was first and has all leases, some wander to the others, once in 30 s."""
TAKEN_OVER_S = 60.0
EVENTS_S = 25.0


@dataclass
class Group:
    """The workers of one pipeline that run, its tables, and what was sent to it."""

    workers: dict[str, Worker]
    tables: Tables
    truth: Truth
    load: Load

    def shares(self) -> Counter[str]:
        """How many shards each worker holds."""
        return Counter(self.tables.owners().values())

    def share_all(self) -> bool:
        """Whether all shards are held and read, and each worker has one at least."""
        return self.shares().keys() == self.workers.keys() and self.all_read_by_the_rest()

    def leader(self) -> Worker:
        until(lambda: self.tables.leader() in self.workers, lambda: f"one of {[*self.workers]} leads")
        return self.workers[self.tables.leader() or ""]

    def others(self) -> list[Worker]:
        """All but the leader."""
        leader = self.leader()
        return [worker for worker in self.workers.values() if worker != leader]

    def lose(self, worker: Worker) -> None:
        """kill -9 of all that belongs to a worker; it is never started again."""
        del self.workers[worker.worker_id]
        worker.signal_all(signal.SIGKILL)

    def await_all_read_by_the_rest(self) -> None:
        """Wait until the workers that are left hold and read all shards."""
        until(
            self.all_read_by_the_rest,
            lambda: f"{[*self.workers]} hold and read all shards: {self.tables.owners()}",
            timeout_s=TAKEN_OVER_S,
        )

    def all_read_by_the_rest(self) -> bool:
        """Whether the workers that are left hold all shards, and each shard is read by the one that holds it."""
        owners = self.tables.owners()
        return (
            len(owners) == SHARDS
            and set(owners.values()) <= self.workers.keys()
            and all(shard in self.workers[owner].reads() for shard, owner in owners.items())
        )


@contextmanager
def sharing(parts: Parts, name: str, *, workers: int, kcl_properties: str | None = None) -> Iterator[Group]:
    """Run workers on a stream of four shards, under load; give them once each of them reads a shard.

    At the end of the block all rows are compared with what was sent. kcl_properties: in place of the local stack's.
    """
    pipeline = parts.named(name)
    pipeline.environment["KINESIS_SHARDS"] = str(SHARDS)
    if kcl_properties is not None:
        pipeline.environment["KCL_PROPERTIES"] = kcl_properties
    pipeline.set_up()
    truth = Truth()
    with pipeline.tables() as tables, pipeline.collector() as url, ExitStack() as running:
        started = [running.enter_context(pipeline.worker(f"{name}-{number}")) for number in range(workers)]
        with Load(url, truth, name=name, events_s=EVENTS_S) as load:
            group = Group({worker.worker_id: worker for worker in started}, tables, truth, load)
            until(group.share_all, lambda: f"each worker reads a shard: {tables.owners()}", timeout_s=SHARED_S)
            load.await_events(20)
            yield group
            load.await_events(20)
        assert_counted_exactly(tables, truth)
