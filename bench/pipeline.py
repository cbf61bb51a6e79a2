"""The pipeline as a person meets it: how soon it is ready, how soon it recovers, how soon a total shows an event.

All on the embedded local stack. The emulators and the load share the machine with what is measured, so look at the
machine line first, and at nothing here as a limit of the pipeline on AWS.
"""

from __future__ import annotations

import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import requests

from tests.e2e.processes import LogFollower, until
from tests.e2e.stack import Stack, kill

BOOTS = 5
KILLS = 5
LOAD_EVENTS_S = 50
LOAD_S = 30
POLL_S = 0.01
EVENT = {"tenant_id": "bench", "metric": "api_calls", "value": 1}


@dataclass(frozen=True)
class Figure:
    """One line of the report: what was measured, the figures of its runs in `unit`, and what is aimed at."""

    what: str
    runs: list[float]
    unit: str
    target: str

    def line(self) -> str:
        ordered = sorted(self.runs)
        spread = f"{self.unit}, {len(ordered)} runs, {ordered[0]:.2f} to {ordered[-1]:.2f}"
        return f"{self.what:<58} median {statistics.median(ordered):8.2f} {spread} (target {self.target})"


def readiness() -> Iterator[Figure]:
    """From the start of `metering up`, everything installed, until it prints the total and says that it is ready."""
    first, again = [], []
    for _ in range(BOOTS):
        with _stack(start=False) as stack:
            first.append(_timed_start(stack))
            stack.stop()
            again.append(_timed_start(stack))
    yield Figure("ready, first boot (no data yet)", first, "s", "<= 20 s")
    yield Figure("ready, restart (data kept)", again, "s", "<= 8 s")


def recovery() -> Iterator[Figure]:
    """From kill -9 of the JVM, under load, until a batch is applied again; and until every shard's is."""
    any_shard, all_shards = [], []
    with _stack() as stack, _posting(stack.collector_url, events_s=LOAD_EVENTS_S):
        for _ in range(KILLS):
            stack.await_batch()
            (daemon,) = stack.daemons()
            log = LogFollower(stack.log("aggregator"))
            killed_at = time.monotonic()
            kill(daemon)
            until(lambda log=log: log.saw("Received "), "records flow again", timeout_s=120)  # type: ignore[misc]
            any_shard.append(time.monotonic() - killed_at)
            with stack.tables() as tables:
                before = {shard.shard_id: shard.records for shard in tables.progress().values()}
                until(
                    lambda t=tables, b=before: all(s.records > b[s.shard_id] for s in t.progress().values()),  # type: ignore[misc]
                    "every shard goes on",
                    timeout_s=120,
                )
            all_shards.append(time.monotonic() - killed_at)
            time.sleep(2)  # let it run: a second kill in the middle of a start would measure something else
    yield Figure("kill -9 of the JVM until records flow again", any_shard, "s", "<= 8 s")
    yield Figure("kill -9 of the JVM until all shards flow again", all_shards, "s", "none")


def latency() -> Iterator[Figure]:
    """From the start of a POST until billing's total includes it, one probe at a time, beside a steady load."""
    seen = []
    with _stack() as stack, _posting(stack.collector_url, events_s=LOAD_EVENTS_S), requests.Session() as session:
        url = f"{stack.billing_url}/v1/tenants/probe/usage/api_calls"
        deadline = time.monotonic() + LOAD_S
        count = 0
        while time.monotonic() < deadline:
            posted_at = time.monotonic()
            body = {**EVENT, "tenant_id": "probe"}
            session.post(f"{stack.collector_url}/v1/usage", json=body, timeout=30).raise_for_status()
            count += 1
            while _events(session, url) < count:
                time.sleep(POLL_S)
            seen.append((time.monotonic() - posted_at) * 1000)
    ordered = sorted(seen)
    yield Figure(f"POST to total visible at {LOAD_EVENTS_S} events/s, p50", seen, "ms", "p50 <= 300 ms")
    p99 = ordered[min(len(ordered) - 1, round(0.99 * len(ordered)))]
    yield Figure(f"POST to total visible at {LOAD_EVENTS_S} events/s, p99", [p99], "ms", "p99 <= 1000 ms")


def _events(session: requests.Session, url: str) -> int:
    answer = session.get(url, timeout=30)
    return int(answer.json()["events"]) if answer.ok else 0


def _timed_start(stack: Stack) -> float:
    begun_at = time.monotonic()
    stack.start()
    return time.monotonic() - begun_at


@contextmanager
def _stack(*, start: bool = True) -> Iterator[Stack]:
    with tempfile.TemporaryDirectory(prefix="metering-bench-") as folder:
        stack = Stack(Path(folder))
        try:
            if start:
                stack.start()
            yield stack
        finally:
            stack.close()


@contextmanager
def _posting(url: str, *, events_s: int, threads: int = 5) -> Iterator[None]:
    """Post events of many tenants at a steady rate until the end of the block."""
    over = threading.Event()

    def post(number: int) -> None:
        due_at = time.monotonic() + number / events_s
        sent = 0
        with requests.Session() as session:
            while not over.wait(max(0.0, due_at - time.monotonic())):
                due_at += threads / events_s
                sent += 1
                body = {**EVENT, "tenant_id": f"bench-{number}-{sent % 20}"}
                session.post(f"{url}/v1/usage", json=body, timeout=30)

    posters = [threading.Thread(target=post, args=(number,)) for number in range(threads)]
    for poster in posters:
        poster.start()
    try:
        yield
    finally:
        over.set()
        for poster in posters:
            poster.join()
