"""Workers that stop before each call of a store, so that somebody else decides whose call is next and how it ends.

    scheduler ── turn ──► worker: does one call, runs on to its next one ── baton ──► scheduler

One thread runs at any time, so a world depends on the scheduler's choices alone. What runs in a worker is the real
record processor with the real pipeline; its daemon, its stores' wire and its thread pool are played here.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from enum import Enum
from functools import partial
from random import Random
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from amazon_kclpy.kcl import CheckpointError

from metering.claims import Claim, Holder
from metering.errors import ServiceUnavailableError, StoreUnavailableError
from metering.meters import Aggregation, Meter, Meters
from metering.ports import ShardRef
from metering.settings import Settings
from tests.builders import shard as shard_ref
from tests.model.stream import Record, StreamShard

if TYPE_CHECKING:
    from tests.model.world import World

ATTEMPTS_MAX = 3
"""After as many failed attempts the retries of a call have run out."""
SETTINGS = Settings.from_environment({})
METERS = Meters({"calls": Meter("calls", Aggregation.LATEST), "seats": Meter("seats", Aggregation.MAX)})
"""How the stream's metrics are aggregated, but for jobs, which are summed; the sums are kept in every row."""

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class Fate(Enum):
    """How a call ends."""

    DONE = "done"
    FAILED = "not done, and the caller knows"
    ANSWER_LOST = "done, and the caller takes it for failed"
    LATE = "taken for failed, and done at any later time"
    DIES_BEFORE = "the caller dies before it"
    DIES_AFTER = "done, and the caller dies"
    DIES_LATE = "the caller dies, and the call is done at any later time"


DEADLY = frozenset({Fate.DIES_BEFORE, Fate.DIES_AFTER, Fate.DIES_LATE})


class Pause(Enum):
    """What a worker waits for."""

    CALL = "call"
    CHECKPOINT = "checkpoint"
    DELIVERY = "delivery"


class Killed(BaseException):
    """The worker's process is gone; nothing that it does from here on has an effect."""


def retry(call: Callable[[], object]) -> None:
    """See consumer.pipeline.Retry; without waits."""
    for attempt in range(ATTEMPTS_MAX):
        try:
            call()
        except ServiceUnavailableError:
            if attempt == ATTEMPTS_MAX - 1:
                raise
        else:
            return


def closed_gate() -> threading.Lock:
    """Return what a thread waits at until another opens it: a bare lock, for a world passes it hundreds of times."""
    gate = threading.Lock()
    gate.acquire()
    return gate


class Pool:
    """Plays the pipeline's writers: calls that may be under way at once are done in any order."""

    def __init__(self, random: Random) -> None:
        self._random = random

    def map(self, function: Callable[[Item], Answer], items: Iterable[Item]) -> Iterator[Answer]:
        items = list(items)
        answers: dict[int, Answer] = {}
        order = self._random.sample(range(len(items)), len(items))
        for done, index in enumerate(order, start=1):
            try:
                answers[index] = function(items[index])
            except ServiceUnavailableError:
                # Its retries have run out while others are still under way: some of those are done.
                for other in order[done : self._random.randint(done, len(order))]:
                    function(items[other])
                raise
        return iter([answers[index] for index in range(len(items))])


class Wire:
    """The way to a store: every call waits for its turn, and may be lost, late or the caller's last."""

    def __init__(self, worker: Worker, store: object) -> None:
        self._worker = worker
        self._store = store

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return partial(self._worker.call, name, getattr(self._store, name))


class LedgerWire(Wire):
    """Claims of one call are made one by one: DynamoDB gives a batch of statements no more."""

    def claim(self, shard: ShardRef, claims: Sequence[Claim], *, now: datetime) -> dict[str, Holder]:
        holders: dict[str, Holder] = {}
        for claim in claims:
            holders |= self.__getattr__("claim")(shard, [claim], now=now)
        return holders


class Worker:
    """A process that reads one shard from its checkpoint on, on a thread of its own, until it ends or is killed."""

    def __init__(self, world: World, name: str, shard: StreamShard, begin: int, *, seed: int, meters: Meters) -> None:
        self.name = name
        self.shard = shard
        self.alive = True
        self.frozen = False
        self.outage: list[Fate] = []
        self.pause = Pause.CALL
        self.about = ""
        self.error: BaseException | None = None
        self.at_end = False
        self.delivered = begin
        self._begin = begin
        self._meters = meters
        self._world = world
        self._pool = Pool(Random(seed))  # noqa: S311 - an order of calls
        self._reply: Any = None
        self._refused = False
        self._turn = closed_gate()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Run to the first pause."""
        self._thread.start()
        self._world.baton.acquire()

    def step(self, reply: object) -> None:
        """Let the worker go on from its pause, with `reply`, to its next one or to its end."""
        self._reply = reply
        self._turn.release()
        self._world.baton.acquire()
        if not self.alive:
            self._thread.join()

    def kill(self) -> None:
        while self.alive:
            self.step(Fate.DIES_BEFORE)

    def call(self, name: str, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Do a call of a store as its fate will have it."""
        if self._refused:
            raise AssertionError(f"{name} is called by a worker whose checkpoint was refused")
        action = partial(self._world.perform, name, method, *args, **kwargs)
        fate = self._wait(Pause.CALL, f"{name} {args[1:]}")
        if fate in {Fate.LATE, Fate.DIES_LATE}:
            self._world.late.append(action)
        answer = action() if fate in {Fate.DONE, Fate.ANSWER_LOST, Fate.DIES_AFTER} else None
        if fate in DEADLY:
            self._die()
        if fate is not Fate.DONE:
            raise StoreUnavailableError(fate.value)
        return answer

    def checkpoint(self, sequence_number: str | None = None, sub_sequence_number: int | None = None) -> None:
        """Play the KCL's checkpointer, which refuses a worker that has lost the lease."""
        numbers = [str(record.number) for record in self.shard.records[: self.delivered]]
        applied = self.delivered if sequence_number is None else numbers.index(sequence_number) + 1
        fate = self._wait(Pause.CHECKPOINT, f"at {applied}")
        if fate is Fate.DIES_BEFORE:
            self._die()
        lease = self._world.leases[self.shard.number]
        if lease.owner is not self:
            self._refused = True
            raise CheckpointError("ShutdownException")
        lease.checkpoint = applied
        lease.finished = self.at_end
        if fate is Fate.DIES_AFTER:
            self._die()

    def _run(self) -> None:
        try:
            self._serve()
        except Killed:
            pass
        except BaseException as error:  # noqa: BLE001 - the scheduler raises it
            self.error = error
        finally:
            self.alive = False
            self._world.baton.release()

    def _serve(self) -> None:
        world = self._world
        processor = world.parts.processor(
            Wire(self, world.tables),
            LedgerWire(self, world.ledger),
            world.directory,
            replace(SETTINGS, ledger=world.claim_events),
            meters=self._meters,
            clock=world.clock,
            exit_process=self._exit_process,
        )
        processor.initialize(SimpleNamespace(shard_id=shard_ref(self.shard.number).shard_id, sequence_number=None))
        processor._pipeline._pool = processor._pipeline._claimers = self._pool
        while self.delivered < len(self.shard.records):
            size = self._wait(Pause.DELIVERY, f"from {self.delivered}")
            if size is None:
                processor.shutdown_requested(SimpleNamespace(checkpointer=self))
                return
            processor.process_records(self._delivery(size))
            if self._refused:
                processor.process_records(self._delivery(size))  # was on its way already
                processor.lease_lost(SimpleNamespace())
                return
        self.at_end = True
        if world.directory.ends(self.shard):
            processor.shard_ended(SimpleNamespace(checkpointer=self))
        else:  # nothing more comes
            processor.shutdown_requested(SimpleNamespace(checkpointer=self))

    def _delivery(self, size: int) -> SimpleNamespace:
        batch = self.shard.records[self.delivered : self.delivered + size]
        self.delivered += len(batch)
        return SimpleNamespace(
            records=[_message(record) for record in batch], millis_behind_latest=0, checkpointer=self
        )

    def _wait(self, pause: Pause, about: str) -> Any:
        if not self.alive:
            raise Killed
        self.pause, self.about = pause, about
        self._world.baton.release()
        self._turn.acquire()
        if self._reply is Fate.DIES_BEFORE:
            self._die()
        return self._reply

    def _die(self) -> NoReturn:
        self.alive = False
        raise Killed

    def _exit_process(self, _: int) -> NoReturn:
        """Play os._exit; what the product did not expect is a finding, no crash."""
        error = sys.exc_info()[1]
        if not isinstance(error, (Killed, ServiceUnavailableError)):
            self.error = error
        self._die()


def _message(record: Record) -> SimpleNamespace:
    received = record.received()
    return SimpleNamespace(
        sequence_number=received.sequence_number,
        binary_data=received.data,
        timestamp_millis=int(received.arrived_at.timestamp() * 1000),
        sub_sequence_number=received.sub_sequence_number,
    )
