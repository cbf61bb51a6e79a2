"""One world: a stream, its leases, and workers whose calls are interleaved, lost, late and cut off at random.

    lease of a shard ──► one owner; a takeover makes another, and the old one a zombie that goes on writing
    shard read to its end, checkpointed ──► its children may begin; its zombies may still be alive

Every choice comes from one Random, so a seed, or hypothesis, is the whole world.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from random import Random
from typing import Any
from unittest.mock import patch

from billing.event_status import Status, status_of_claim
from consumer import pipeline, record_processor
from consumer.pipeline import ShardPipeline
from consumer.record_processor import UsageRecordProcessor
from metering.memory import MemoryLedger, MemoryStream, MemoryTables
from metering.meters import NO_METERS
from metering.places import place_of_owner
from metering.ports import Shard, ShardProgress
from metering.rows import BATCH_PREFIX, RowKey, applied_attribute
from metering.voids import Void, VoidOutcome, VoidRequest, counted_rows
from tests.builders import CREATED_AT, NOW, STREAM
from tests.builders import shard as shard_ref
from tests.model.stream import StreamShard, random_stream
from tests.model.truth import ClosedSeen, History, RowSeen, ShardSeen
from tests.model.workers import ATTEMPTS_MAX, DEADLY, METERS, Fate, Pause, Worker, closed_gate, retry

FAULTS_MAX = 16
OUTAGES = (0, 1, ATTEMPTS_MAX - 1, 2 * ATTEMPTS_MAX)
"""How many more calls of a worker fail alike after a failed one: the retries of none, one or two of them run out."""
DELIVERIES = (1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 0, None)
"""Records of a delivery. 0 is a heartbeat, None asks the worker to stop."""
STEPS_MAX = 20_000
"""A world that is not at its end by then has lost the way to it."""
CLAIMS_MAX = 2
"""So small that a batch needs several calls."""
FAULTS = (Fate.FAILED, Fate.FAILED, *(fate for fate in Fate if fate is not Fate.DONE))


@dataclass(frozen=True)
class Parts:
    """What a world is built of; the tests take one part away at a time."""

    tables: type[MemoryTables] = MemoryTables
    ledger: type[MemoryLedger] = MemoryLedger
    pipeline: type[ShardPipeline] = ShardPipeline
    processor: type[UsageRecordProcessor] = UsageRecordProcessor


@dataclass
class Lease:
    """checkpoint: how many records of the shard lie before it."""

    owner: Worker | None = None
    checkpoint: int = 0
    finished: bool = False


class Directory(MemoryStream):
    """The stream's own list of shards."""

    def __init__(self, stream: list[StreamShard]) -> None:
        super().__init__(created_at=CREATED_AT)
        self._stream = stream

    def shards(self) -> list[Shard]:
        names = [shard_ref(shard.number).shard_id for shard in self._stream]
        return [
            Shard(
                names[shard.number],
                tuple(names[parent] for parent in shard.parents),
                not self.ends(shard),
                "0",
                "1",
            )
            for shard in self._stream
        ]

    def ends(self, shard: StreamShard) -> bool:
        return any(shard.number in other.parents for other in self._stream)


@dataclass
class World:
    """Runs once. history: what the tables held in between. trace: what happened, for people."""

    random: Random
    parts: Parts = field(default_factory=Parts)

    def __post_init__(self) -> None:
        self.stream = random_stream(self.random)
        self.tables = self.parts.tables()
        self.ledger = self.tables.ledger = self.parts.ledger()
        self.asked: list[tuple[str, list[ShardProgress]]] = []
        self.directory = Directory(self.stream)
        self.leases = [Lease() for _ in self.stream]
        self.workers: list[Worker] = []
        self.late: list[Callable[[], Any]] = []
        self.history = History()
        self.trace: list[str] = []
        self.baton = closed_gate()
        self.claim_events = self.random.randrange(4) < 3
        self.meters_change = self.random.randrange(3) == 0
        self._faults = self.random.randrange(FAULTS_MAX)
        self._now = NOW

    def run(self) -> None:
        with ExitStack() as stack:
            stack.enter_context(patch.object(record_processor, "retry", retry))
            stack.enter_context(patch.object(record_processor, "ShardPipeline", self.parts.pipeline))
            stack.enter_context(patch.object(pipeline, "CLAIMS_MAX", CLAIMS_MAX))
            stack.callback(self._kill_all)
            for _ in range(STEPS_MAX):
                self._start_workers()
                if all(lease.finished for lease in self.leases):
                    break
                self._turn()
            else:
                raise AssertionError("the shards are never read to their ends")
            self._let_zombies_end()

    def clock(self) -> datetime:
        """Moves on with every look, so that heartbeats fall due."""
        self._now += timedelta(milliseconds=300)
        return self._now

    def perform(self, name: str, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Do a call of a store, one atomic step, and note what it left."""
        answer = method(*args, **kwargs)
        if name == "apply":
            self._see_row(args[1].key)
        elif name == "record_progress":
            shard = args[0]
            attribute = applied_attribute(shard.stream_created_at, shard.shard_id)
            applied = {key: row.applied.get(attribute, "") for key, row in self.tables.rows.items()}
            progress = self.tables.shards[shard.stream, shard.shard_id]
            seen = ShardSeen(shard.shard_id, progress.position, progress.complete_until, applied)
            self.history.shards.append(seen)
        elif name == "close_shard":
            opened = frozenset(shard_id for _, shard_id in self.tables.shards)
            self.history.closed.append(ClosedSeen(args[0].shard_id, opened))
        return answer

    def _see_row(self, key: RowKey) -> None:
        self.history.rows.append(RowSeen.of(key, self.tables.rows[key], self.tables.kept_readings(key)))

    # ── Billing ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _ask_for_void(self) -> None:
        """Ask for the void of an event; billing reads the progress now and goes on at any later time."""
        keys = sorted(key for key in self.ledger.claims if not key.startswith(BATCH_PREFIX))
        if keys:
            self.asked.append((self.random.choice(keys), self.tables.progress(STREAM)))

    def _go_on_with_void(self) -> None:
        """Read the claim and void it, at once or when the call arrives; an answer that is lost is asked for again."""
        key, shards = self.asked.pop(self.random.randrange(len(self.asked)))
        claimed = self.tables.claimed(key)
        owner = place_of_owner(claimed.owner) if claimed else None
        if claimed is None or owner is None or status_of_claim(claimed, owner, shards) is not Status.COUNTED:
            return
        if claimed.content is None or claimed.window is None:
            raise AssertionError(f"{key} can't be voided: {claimed}")
        rows = counted_rows(key.split("#")[1], claimed.content, claimed.window)
        void = Void(key, claimed.owner, rows, claimed.content.value, VoidRequest("model", "any"), None)
        action = partial(self._void, "void", None, void)
        how = self.random.choice(("done", "done", "answer lost", "late", "late and again"))
        self.trace.append(f"void {key}: {how}")
        if how in {"done", "answer lost"}:
            action()
        if how in {"late", "late and again"}:
            self.late.append(action)
        if how in {"answer lost", "late and again"}:
            self.asked.append((key, shards))

    def _void(self, _: str, __: None, void: Void) -> None:
        outcome = self.tables.void(void, now=self._now)
        if outcome is VoidOutcome.NOT_HELD:
            self.history.not_held.append(void.key)
        for key in void.rows if outcome is VoidOutcome.VOIDED else ():
            self._see_row(key)

    # ── Workers ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _start_workers(self) -> None:
        for shard, lease in zip(self.stream, self.leases, strict=True):
            if lease.owner is not None and not lease.owner.alive:
                lease.owner = None
            if lease.owner is None and not lease.finished and all(self.leases[p].finished for p in shard.parents):
                self._take(shard, lease)

    def _take(self, shard: StreamShard, lease: Lease) -> None:
        name = f"w{len(self.workers)}"
        meters = NO_METERS if self.meters_change and self.random.randrange(2) else METERS
        lease.owner = Worker(self, name, shard, lease.checkpoint, seed=self.random.randrange(1000), meters=meters)
        self.workers.append(lease.owner)
        self.trace.append(f"{name} takes shard {shard.number} from {lease.checkpoint} on")
        lease.owner.start()
        self._raise_error(lease.owner)

    def _turn(self) -> None:
        event = self.random.randrange(100)
        living = [worker for worker in self.workers if worker.alive]
        thawed = [worker for worker in living if not worker.frozen]
        if event >= 96 and self.late:
            self._arrive()
        elif event >= 90 and self._faults:
            self._take_over()
        elif event >= 88 and len(thawed) < len(living):
            self.random.choice([worker for worker in living if worker.frozen]).frozen = False
        elif event >= 84:
            self._ask_for_void()
        elif event >= 80 and self.asked:
            self._go_on_with_void()
        else:
            self._step(self.random.choice(thawed))

    def _step(self, worker: Worker) -> None:
        reply = self._reply(worker)
        self.trace.append(f"{worker.name} {worker.pause.value} {worker.about}: {reply}")
        worker.step(reply)
        self._raise_error(worker)

    def _reply(self, worker: Worker) -> object:
        if worker.pause is Pause.DELIVERY:
            return self.random.choice(DELIVERIES)
        if worker.pause is Pause.CALL and worker.outage:
            return worker.outage.pop()
        if not self._faults or self.random.randrange(100) < 92:
            return Fate.DONE
        self._faults -= 1
        if worker.pause is Pause.CHECKPOINT:
            return self.random.choice((Fate.DIES_BEFORE, Fate.DIES_AFTER))
        fate = self.random.choice(FAULTS)
        if fate not in DEADLY:
            worker.outage = [fate] * self.random.choice(OUTAGES)
        return fate

    def _take_over(self) -> None:
        """Give a shard to a new worker while the old one is still alive, and perhaps frozen for a while."""
        self._faults -= 1
        owned = [number for number, lease in enumerate(self.leases) if lease.owner is not None and not lease.finished]
        number = self.random.choice(owned)
        zombie = self.leases[number].owner
        if zombie is not None:
            zombie.frozen = self.random.randrange(4) > 0
        self._take(self.stream[number], self.leases[number])

    def _arrive(self) -> None:
        action = self.late.pop(self.random.randrange(len(self.late)))
        self.trace.append(f"arrives late: {action.args[0]} {action.args[2:]}")  # type: ignore[attr-defined]
        action()

    def _let_zombies_end(self) -> None:
        while zombies := [worker for worker in self.workers if worker.alive]:
            zombie = self.random.choice(zombies)
            if self.random.randrange(100) >= 98:
                self.trace.append(f"{zombie.name} is killed")
                zombie.kill()
            else:
                self._step(zombie)
        while self.late or self.asked:
            if self.late:
                self._arrive()
            else:
                self._go_on_with_void()

    def _kill_all(self) -> None:
        for worker in self.workers:
            worker.kill()

    def _raise_error(self, worker: Worker) -> None:
        if worker.error is not None:
            raise worker.error
