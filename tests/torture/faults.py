"""The faults, one function for each kind: it injects, waits as a generator, and ends when the fault is over.

What comes after is the same for all: new records are put on every open shard and posted to every collector, and the
fault has been recovered from when all of them are in the rows and every part runs. See lanes.py.
"""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from functools import partial

import psutil

from tests.e2e.processes import LogFollower
from tests.torture.stream import Place
from tests.torture.world import SHARDS, WebService, Worker, World, send

BATCH_WAIT_S = 2.0
RESHARDS_MAX = 4
OPEN_SHARDS_MAX = SHARDS + 2
STALE_S = 25.0
"""How long a zombie waits for its successor to take its shards, at most."""


@dataclass
class Scene:
    """What a fault needs. put_everywhere: puts one known event on every open shard and says where they are."""

    world: World
    choose: random.Random
    put_everywhere: Callable[[], list[Place]]
    splits: int = 0
    merges: int = 0


Steps = Generator[None, None, bool]
"""Yields while the fault is on; returns whether anything was hit."""
Fault = Callable[[Scene], Steps]


def kill_jvm(scene: Scene) -> Steps:
    worker = yield from _worker_in_a_batch(scene)
    daemon = worker.daemon()
    return daemon is not None and send(daemon, signal.SIGKILL)


def kill_child(scene: Scene) -> Steps:
    _, child = yield from _child(scene)
    return send(child, signal.SIGKILL)


def kill_supervisor(scene: Scene) -> Steps:
    worker = yield from _worker_in_a_batch(scene)
    supervisor = worker.supervisor()
    return supervisor is not None and send(supervisor, signal.SIGKILL)


def sigterm_worker(scene: Scene) -> Steps:
    worker = yield from _worker_in_a_batch(scene)
    supervisor = worker.supervisor()
    return supervisor is not None and send(supervisor, signal.SIGTERM)


def stop_child(scene: Scene) -> Steps:
    """SIGSTOP of a child, for longer than the failover time; its daemon keeps the lease meanwhile."""
    _, child = yield from _child(scene)
    return (yield from _stopped([child], seconds=scene.choose.uniform(4.0, 8.0)))


def zombie_child(scene: Scene) -> Steps:
    """A child is stopped within a batch, its worker killed and replaced; it wakes when its successors have gone on."""
    worker, child = yield from _child(scene)
    send(child, signal.SIGSTOP)
    try:
        if supervisor := worker.supervisor():
            send(supervisor, signal.SIGKILL)
        places = scene.put_everywhere()
        yield from _while(lambda: not scene.world.stream.applied(places), STALE_S)
    finally:
        woken = send(child, signal.SIGCONT)
    return woken


def stop_worker(scene: Scene) -> Steps:
    """A worker freezes as a whole for longer than the failover time, then goes on where it was."""
    worker = yield from _worker_in_a_batch(scene)
    return (yield from _stopped(worker.processes(), seconds=scene.choose.uniform(10.0, 14.0)))


def split(scene: Scene) -> Steps:
    scene.splits += 1
    scene.world.stream.split(scene.choose)
    yield from _while(lambda: not scene.world.stream.active(), STALE_S)
    return True


def merge(scene: Scene) -> Steps:
    scene.merges += 1
    scene.world.stream.merge(scene.choose)
    yield from _while(lambda: not scene.world.stream.active(), STALE_S)
    return True


def kill_collector_worker(scene: Scene) -> Steps:
    return (yield from _kill_worker_of(scene.choose.choice(scene.world.collectors), scene))


def kill_billing_worker(scene: Scene) -> Steps:
    return (yield from _kill_worker_of(scene.world.billing, scene))


def wire(service: str, kind: str, scene: Scene) -> Steps:
    """Let the proxy play a fault for 1 to 3 seconds."""

    def hits() -> int:
        return int(scene.world.proxy.state()["hits"].get(f"{service}_{kind}", 0))

    before, seconds = hits(), scene.choose.uniform(1.0, 3.0)
    scene.world.proxy.play(service, kind, rate=scene.choose.uniform(0.2, 0.8), seconds=seconds)
    yield from _while(lambda: True, seconds)
    return hits() > before


PROCESS_FAULTS: dict[str, Fault] = {
    "kill_jvm": kill_jvm,
    "kill_child": kill_child,
    "kill_supervisor": kill_supervisor,
    "sigterm_worker": sigterm_worker,
    "stop_child": stop_child,
    "zombie_child": zombie_child,
    "stop_worker": stop_worker,
}
SHARD_FAULTS: dict[str, Fault] = {"split": split, "merge": merge}

WIRE_FAULTS: dict[str, Fault] = {
    f"{service}_{kind}": partial(wire, service, kind)
    for service in ("dynamodb", "kinesis")
    for kind in ("throttled", "500", "reset", "answer_lost", "late")
} | {
    "kcl_reset": partial(wire, "kcl", "reset"),
    "kill_collector_worker": kill_collector_worker,
    "kill_billing_worker": kill_billing_worker,
}


def possible(kind: str, scene: Scene) -> bool:
    """Splits and merges are bounded, and leave at least SHARDS open shards."""
    if kind == "split":
        return scene.splits < RESHARDS_MAX and len(scene.world.stream.open_shards()) < OPEN_SHARDS_MAX
    if kind == "merge":
        return scene.merges < RESHARDS_MAX and len(scene.world.stream.open_shards()) > SHARDS
    return True


def _kill_worker_of(service: WebService, scene: Scene) -> Steps:
    yield from _while(lambda: not service.workers(), STALE_S)
    workers = service.workers()
    return bool(workers) and send(scene.choose.choice(workers), signal.SIGKILL)


def _child(scene: Scene) -> Generator[None, None, tuple[Worker, psutil.Process]]:
    """Choose a child in the middle of a batch."""
    yield from _while(lambda: not scene.world.children(), STALE_S)
    worker = scene.choose.choice([worker for worker, _ in scene.world.children()])
    yield from _batch_under_way(scene, worker)
    children = worker.record_processors()
    return (worker, scene.choose.choice(children)) if children else scene.choose.choice(scene.world.children())


def _worker_in_a_batch(scene: Scene) -> Generator[None, None, Worker]:
    """Choose a worker; return it in the middle of a batch, when it has any shard."""
    worker = scene.choose.choice(scene.world.workers)
    yield from _while(lambda: worker.daemon() is None, STALE_S)
    yield from _batch_under_way(scene, worker)
    return worker


def _batch_under_way(scene: Scene, worker: Worker) -> Iterator[None]:
    """Wait until a child of the worker has received a batch, and a moment more."""
    log = LogFollower(worker.log)
    yield from _while(lambda: not log.saw("Received "), BATCH_WAIT_S)
    time.sleep(scene.choose.uniform(0.0, 0.03))


def _stopped(processes: list[psutil.Process], *, seconds: float) -> Steps:
    """Stop processes and let them go on; return whether any was there to go on."""
    try:
        for process in processes:
            send(process, signal.SIGSTOP)
        yield from _while(lambda: True, seconds)
    finally:
        woken = [send(process, signal.SIGCONT) for process in processes]
    return any(woken)


def _while(condition: Callable[[], bool], seconds_max: float) -> Iterator[None]:
    deadline = time.monotonic() + seconds_max
    while condition() and time.monotonic() < deadline:
        yield
