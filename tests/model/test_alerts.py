"""Two runners of alerts whose calls are interleaved, lost and cut off at random, over usage that grows meanwhile.

    scheduler ── turn, and how it ends ──► runner: does one call, runs on to its next one ── baton ──► scheduler

Whatever happens: each alert is recorded once and never changes, is resolved once its period is over, and each of its
two messages is posted at least once, always under one id and with one body.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from decimal import Decimal
from enum import Enum
from functools import partial
from random import Random
from typing import Any

import pytest

from billing.alerting import AlertRunner
from billing.webhook import Outcome
from metering.alerts import Alert, Delivery, Kind, Message
from metering.errors import StoreUnavailableError
from metering.memory import MemoryTables
from metering.rows import RowKey
from tests.builders import NOW
from tests.unit.alert_world import DAY, HOUR, AlertWorld

WORLDS = 150
STEPS = 120
TEXT = "alerts: [{name: high, metric: api_calls, period: day, thresholds: [10, 20, 30]}]"
TENANTS = ("t1", "t2")


class Fate(Enum):
    DONE = "done"
    FAILED = "not done, and the caller knows"
    ANSWER_LOST = "done, and the caller takes it for failed"
    DIES_BEFORE = "the caller dies before it"
    DIES_AFTER = "done, and the caller dies"


FATES = (Fate.DONE,) * 12 + tuple(Fate)


class Killed(BaseException):
    """The process is gone."""


class Wire:
    """The way to the tables or to the receiver: each call waits for its turn."""

    def __init__(self, process: Process, target: object) -> None:
        self._process = process
        self._target = target

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return partial(self._process.call, getattr(self._target, name))


class Process:
    """A runner on a thread of its own, which does rounds until it is killed."""

    def __init__(self, world: AlertWorld, make: Callable[..., AlertRunner]) -> None:
        self._turn, self._baton = threading.Semaphore(0), threading.Semaphore(0)
        self._fate = Fate.DONE
        self.alive = True
        self._world = world
        wire = Wire(self, world.tables)
        self._runner = make(reader=wire, store=wire, poster=Wire(self, world.receiver))
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._baton.acquire()

    def step(self, fate: Fate) -> None:
        """Let it do its next call, and run on to the one after."""
        self._fate = fate
        self._turn.release()
        self._baton.acquire()

    def end(self) -> None:
        if self.alive:
            self.step(Fate.DIES_BEFORE)
        self._thread.join()

    def call(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        self._baton.release()
        self._turn.acquire()
        fate = self._fate
        if fate is Fate.DIES_BEFORE:
            raise Killed
        if fate is Fate.FAILED:
            return self._failed(function)
        answer = function(*arguments, **named)
        if fate is Fate.DIES_AFTER:
            raise Killed
        return self._failed(function) if fate is Fate.ANSWER_LOST else answer

    @staticmethod
    def _failed(function: Callable[..., Any]) -> Any:
        if function.__name__ == "post":
            return Outcome.FAILED
        raise StoreUnavailableError("lost")

    def _run(self) -> None:
        with suppress(Killed):
            while True:
                self._runner.round()
        self.alive = False
        self._baton.release()


@dataclass
class Seen:
    """What was ever seen of the alerts, by their keys."""

    first: dict[RowKey, Alert] = field(default_factory=dict)
    resolved_at: dict[RowKey, Any] = field(default_factory=dict)

    def look(self, tables: MemoryTables) -> None:
        for key, alert in tables.alert_rows.items():
            assert alert.crossing == self.first.setdefault(key, alert).crossing
            if alert.resolved_at is not None:
                assert alert.resolved_at == self.resolved_at.setdefault(key, alert.resolved_at)
        assert set(self.first) <= set(tables.alert_rows)


def lived(seed: int, kind: type[AlertRunner] = AlertRunner) -> tuple[AlertWorld, Seen]:
    """Return a world in which all has happened, two runners ended, and a third one has come to rest."""
    random, world, seen = Random(seed), AlertWorld(TEXT), Seen()  # noqa: S311 - a world is its seed

    def make(**changed: Any) -> AlertRunner:
        return world.runner(kind=kind, **changed)

    processes = [Process(world, make) for _ in range(2)]
    for _ in range(STEPS):
        match random.randrange(12):
            case 0:
                world.use(str(random.randrange(12)), tenant_id=random.choice(TENANTS))
            case 1:
                world.go_to(world.now + timedelta(minutes=random.choice((1, 10, 200))))
            case _:
                place = random.randrange(2)
                processes[place].step(random.choice(FATES))
                if not processes[place].alive:
                    processes[place] = Process(world, make)
        seen.look(world.tables)
    for process in processes:
        process.end()
    last = make()
    for _ in range(4):  # what is late is looked at, all is resolved, and what failed is posted again
        last.round()
        world.go_to(max(world.now + HOUR, world.alerts.period_of(world.alerts.rules[0].period, world.now).end))
        seen.look(world.tables)
    return world, seen


def assert_told(world: AlertWorld, seen: Seen) -> None:
    posts: dict[str, list[Message]] = defaultdict(list)
    for message in world.receiver.posts:
        posts[message.message_id].append(message)
    assert all(len({message.body for message in same}) == 1 for same in posts.values())
    wanted = {alert.crossing.message_id(kind) for alert in seen.first.values() for kind in Kind}
    assert set(posts) == wanted
    assert world.tables.outbox == {}
    assert world.tables.open_alerts == {}
    for alert in world.tables.alert_rows.values():
        assert alert.resolved_at is not None
        assert alert.resolved_at >= alert.crossing.watched.end
        assert {notice.delivery for notice in (alert.crossed, alert.resolved) if notice} == {Delivery.POSTED}


def assert_all_recorded(world: AlertWorld) -> None:
    """Each threshold that the usage of a day has reached is recorded; the runners looked at every day."""
    for tenant_id in TENANTS:
        for days in range(-1, 8):
            span = world.alerts.period_of(world.alerts.rules[0].period, NOW + days * DAY)
            rows = world.tables.windows(tenant_id, "api_calls", start=span.start, end=span.end)
            usage = sum((row.usage for row in rows), Decimal(0))
            found = {a.crossing.threshold for a in world.found(tenant_id) if a.crossing.watched.start == span.start}
            assert found == {threshold for threshold in map(Decimal, (10, 20, 30)) if usage >= threshold}


@pytest.mark.parametrize("first", range(0, WORLDS, 50))
def test_whatever_is_lost_each_alert_is_recorded_once_and_told_at_least_once(first: int) -> None:
    recorded = repeated = 0
    for seed in range(first, first + 50):
        world, seen = lived(seed)
        try:
            assert_told(world, seen)
            assert_all_recorded(world)
        except AssertionError as error:
            raise AssertionError(f"world {seed}") from error
        recorded += len(seen.first)
        repeated += len(world.receiver.posts) - 2 * len(seen.first)
    assert recorded > 50  # the worlds are not empty
    assert repeated > 10  # and something goes wrong in them


class PostsFirst(AlertRunner):
    """Takes a message out of the outbox before it is posted: at most once."""

    def _post_one(self, poster: Any, message: Message) -> bool:
        self._store.posted(message, now=self._now())
        return bool(poster.post(message, now=self._now()) is Outcome.POSTED)


def test_a_runner_that_notes_before_it_posts_would_be_found() -> None:
    def is_found(seed: int) -> bool:
        try:
            assert_told(*lived(seed, PostsFirst))
        except AssertionError:
            return True
        return False

    assert any(is_found(seed) for seed in range(40))
