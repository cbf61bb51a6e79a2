"""How long the shards of a worker that is gone wait for another: of a leader, of any other, and of one that stops."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.pipeline import Figure
from tests.e2e.parts import Parts, Worker, emulators
from tests.e2e.processes import until
from tests.e2e.workers import Group, sharing

RUNS = 3
READ_S = 180.0
SHIPPED = "metricsLevel=NONE"
"""properties/consumer.properties as on AWS, but without CloudWatch."""


def takeover() -> Iterator[Figure]:
    """Two workers, four shards, under load: from kill -9 (or SIGTERM) of one until the other reads all shards."""
    with tempfile.TemporaryDirectory(prefix="metering-bench-") as folder, emulators(Path(folder)) as urls:
        parts = Parts(Path(folder), *urls)
        yield _figure(parts, "lost leader, until another worker reads all shards", Group.leader, Group.lose)
        yield _figure(parts, "the same with the properties for AWS", Group.leader, Group.lose, SHIPPED)
        yield _figure(parts, "lost worker that does not lead", _other, Group.lose)
        yield _figure(parts, "worker that stops and does not lead", _other, _stop)
        yield _figure(parts, "leader that stops", Group.leader, _stop)


def _figure(
    parts: Parts,
    what: str,
    choose: Callable[[Group], Worker],
    end: Callable[[Group, Worker], None],
    kcl_properties: str | None = None,
) -> Figure:
    runs = []
    for number in range(RUNS):
        name = f"{''.join(word[0] for word in what.split())}-{number}"
        with sharing(parts, name, workers=2, kcl_properties=kcl_properties) as group:
            worker = choose(group)
            begun_at = time.monotonic()
            end(group, worker)
            until(group.all_read_by_the_rest, "the other worker reads all shards", timeout_s=READ_S)
            runs.append(time.monotonic() - begun_at)
    return Figure(what, runs, "s", "<= 60 s")


def _other(group: Group) -> Worker:
    return group.others()[0]


def _stop(group: Group, worker: Worker) -> None:
    del group.workers[worker.worker_id]
    worker.supervisor.stop()
