"""min_as_of: an answer that waits for the figures of a time, within bounds, with others or alone."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pytest

from billing.app import create_app
from billing.as_of import POLL_S, WAITERS_MAX, AsOf
from billing.freshness import Freshness
from billing.wsgi import THREADS
from metering.errors import InvalidRangeError, StoreUnavailableError
from metering.events import time_text
from metering.memory import MemoryTables
from metering.ports import ShardProgress
from metering.settings import Settings
from metering.web import ProblemError
from tests.builders import NOW, STREAM, count, event, outcome, shard
from tests.unit.plan_files import WHOLE

if TYPE_CHECKING:
    from flask.testing import FlaskClient

LATER = NOW - timedelta(seconds=1)
"""What is waited for; the tables know of ten seconds earlier at first."""
WANTED = {"min_as_of": time_text(LATER)}
PATHS = ("/v1/tenants/tenant-123/usage", "/v1/tenants/tenant-123/usage/api_calls")


class ProgressingTables(MemoryTables):
    """Tables whose consumer is at LATER, with one event more, from the read number `reached_at` of progress on."""

    def __init__(self, reached_at: int) -> None:
        super().__init__()
        self.reads = 0
        self.reached_at = reached_at
        count(self, event())
        self.register_tenant(event().tenant_id, now=NOW)
        self.open_shard(shard(), complete_until=LATER - timedelta(seconds=9), now=NOW)

    def progress(self, stream: str) -> list[ShardProgress]:
        self.reads += 1
        if self.reads == self.reached_at:
            count(self, event(), first=2)
            self.record_progress(shard(), [outcome(2)], complete_until=LATER, now=NOW)
        return super().progress(stream)


class Clock:
    """Seconds that pass by waiting alone."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def now_s(self) -> float:
        return self.seconds

    def pause(self, seconds: float) -> None:
        self.seconds += seconds


def as_of(tables: MemoryTables, *, wait_ms: int = 2000, clock: Clock | None = None) -> AsOf:
    clock = clock or Clock()
    return AsOf(tables, STREAM, wait_ms=wait_ms, now=lambda: NOW, clock=clock.now_s, pause=clock.pause)


def refusal(call: Callable[[], object]) -> ProblemError:
    with pytest.raises(ProblemError) as caught:
        call()
    return caught.value


def test_what_is_reached_is_answered_at_once_and_with_one_read() -> None:
    tables = ProgressingTables(reached_at=1)
    clock = Clock()
    assert as_of(tables, clock=clock).read(WANTED) == Freshness(LATER, 1000)
    assert (tables.reads, clock.seconds) == (1, 0)


def test_it_waits_until_as_of_is_that_late() -> None:
    tables = ProgressingTables(reached_at=6)
    clock = Clock()
    assert as_of(tables, clock=clock).read(WANTED).as_of == LATER
    assert tables.reads == 6
    assert clock.seconds == pytest.approx(5 * POLL_S)


def test_it_waits_no_longer_than_it_may_and_says_how_far_it_came() -> None:
    tables = ProgressingTables(reached_at=1000)
    clock = Clock()
    refused = refusal(lambda: as_of(tables, wait_ms=700, clock=clock).read(WANTED))
    assert (refused.status, refused.code) == (503, "as_of_not_reached")
    assert refused.members == {"as_of": time_text(LATER - timedelta(seconds=9)), "lag_ms": 10_000}
    assert clock.seconds == pytest.approx(0.7)


def test_a_stream_of_which_nothing_is_known_yet_is_waited_for_too() -> None:
    refused = refusal(lambda: as_of(MemoryTables(), wait_ms=300).read(WANTED))
    assert (refused.code, refused.members) == ("as_of_not_reached", {"as_of": None, "lag_ms": None})


def test_what_no_wait_can_bring_is_refused_at_once() -> None:
    tables = ProgressingTables(reached_at=1000)
    for wait_ms in (0, 2000):
        beyond = NOW + timedelta(milliseconds=wait_ms + 1)
        refused = refusal(lambda beyond=beyond, wait_ms=wait_ms: as_of(tables, wait_ms=wait_ms).read(  # type: ignore[misc]
            {"min_as_of": time_text(beyond)}))  # fmt: skip
        assert (refused.status, refused.code) == (400, "min_as_of_in_future")
    assert tables.reads == 0
    within = {"min_as_of": time_text(NOW + timedelta(seconds=2))}
    assert refusal(lambda: as_of(tables, wait_ms=2000).read(within)).code == "as_of_not_reached"
    assert refusal(lambda: as_of(tables, wait_ms=0).read({"min_as_of": time_text(NOW)})).code == "as_of_not_reached"


@pytest.mark.parametrize("text", ["now", "2024-01-15", "2024-01", "1705312800", "2024-01-15T10:00:00", "x" * 999])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(InvalidRangeError) as caught:
        as_of(MemoryTables()).read({"min_as_of": text})
    assert (caught.value.code, caught.value.parameter) == ("invalid_time", "min_as_of")
    assert len(caught.value.detail) < 150


def test_a_table_that_is_away_ends_the_wait_and_frees_its_place() -> None:
    class Away(ProgressingTables):
        def progress(self, stream: str) -> list[ShardProgress]:
            if self.reads == 2:
                raise StoreUnavailableError("away")
            return super().progress(stream)

    tables = Away(reached_at=1000)
    waits = as_of(tables)
    for _ in range(WAITERS_MAX + 1):
        tables.reads = 0
        with pytest.raises(StoreUnavailableError):
            waits.read(WANTED)


class Waiting:
    """Real threads that wait for the tables' consumer, which stands still until it is told to go on."""

    def __init__(self) -> None:
        self.tables = ProgressingTables(reached_at=-1)
        self.paused = threading.Semaphore(0)
        self.go_on = threading.Event()
        self.found: list[Freshness] = []
        self.clock = Clock()
        self.as_of = AsOf(
            self.tables, STREAM, wait_ms=60_000, now=lambda: NOW, clock=self.clock.now_s, pause=self._pause
        )
        self.threads = [threading.Thread(target=self._wait) for _ in range(WAITERS_MAX)]

    def _wait(self) -> None:
        self.found.append(self.as_of.read(WANTED))

    def _pause(self, _seconds: float) -> None:
        self.paused.release()
        assert self.go_on.wait(20)

    def __enter__(self) -> Self:
        for thread in self.threads:
            thread.start()
        for _ in self.threads:
            assert self.paused.acquire(timeout=20)
        return self

    def __exit__(self, *_: object) -> None:
        self.go_on.set()
        for thread in self.threads:
            thread.join(20)


def test_those_who_wait_read_the_progress_once_for_all_of_them() -> None:
    with Waiting() as waiting:
        waiting.clock.seconds = POLL_S
        waiting.tables.reads, waiting.tables.reached_at = 0, 1
    assert waiting.found == [Freshness(LATER, 1000)] * WAITERS_MAX
    assert waiting.tables.reads == 1


def test_more_than_so_many_do_not_wait_and_others_are_answered_meanwhile() -> None:
    with Waiting() as waiting:
        refused = refusal(lambda: waiting.as_of.read(WANTED))
        assert (refused.status, refused.code) == (503, "too_many_waiting")
        assert waiting.as_of.read({}).lag_ms == 10_000
        waiting.clock.seconds = POLL_S
        waiting.tables.reads, waiting.tables.reached_at = 0, 1
    assert len(waiting.found) == WAITERS_MAX
    assert waiting.as_of.read(WANTED).as_of == LATER  # the places are free again


def test_who_waits_leaves_threads_to_others() -> None:
    assert WAITERS_MAX * 2 <= THREADS


class SlowTables(ProgressingTables):
    """Tables whose progress takes ten seconds, and fails where it is `away`; no read ends before it may."""

    def __init__(self, clock: Clock, *, away: bool) -> None:
        super().__init__(reached_at=-1)
        self.begun, self.may_end = threading.Event(), threading.Event()
        self._clock, self._away = clock, away

    def progress(self, stream: str) -> list[ShardProgress]:
        found = super().progress(stream)
        self.begun.set()
        assert self.may_end.wait(20)
        self._clock.pause(10)
        if self._away:
            raise StoreUnavailableError("away")
        return found


@pytest.mark.parametrize(("away", "reads"), [(True, 1), (False, 2)])
def test_nobody_waits_for_more_than_two_reads_of_others(*, away: bool, reads: int) -> None:
    clock, asked = Clock(), threading.Semaphore(0)

    def now_s() -> float:
        asked.release()
        return clock.seconds

    def ask() -> None:
        with suppress(StoreUnavailableError):
            shared.recent(5)
        ended.append(clock.seconds)

    tables, ended = SlowTables(clock, away=away), list[float]()
    shared = AsOf(tables, STREAM, wait_ms=0, now=lambda: NOW, clock=now_s)
    threads = [threading.Thread(target=ask) for _ in range(8)]
    threads[0].start()
    assert tables.begun.wait(20)
    clock.seconds, asked = 1, threading.Semaphore(0)
    for thread in threads[1:]:
        thread.start()
    for _ in threads[1:]:
        assert asked.acquire(timeout=20)
    tables.may_end.set()
    for thread in threads:
        thread.join(20)
    assert (len(ended), tables.reads, clock.seconds) == (8, reads, 1 + reads * 10)
    with suppress(StoreUnavailableError):
        shared.recent(5)  # asked later: a read of its own
    assert tables.reads == reads + 1


def test_a_wait_that_anothers_read_outlasts_says_how_far_it_came_by_itself() -> None:
    class HalfSlow(SlowTables):
        def progress(self, stream: str) -> list[ShardProgress]:
            slow = threading.current_thread() is other
            return super().progress(stream) if slow else ProgressingTables.progress(self, stream)

    tables = HalfSlow(Clock(), away=False)
    shared = AsOf(tables, STREAM, wait_ms=20, now=lambda: NOW)
    other = threading.Thread(target=shared.recent, args=(5,))
    other.start()
    assert tables.begun.wait(20)
    refused = refusal(lambda: shared.read(WANTED))
    tables.may_end.set()
    other.join(20)
    assert (refused.code, refused.members["as_of"]) == ("as_of_not_reached", time_text(LATER - timedelta(seconds=9)))


# ── Over HTTP ────────────────────────────────────────────────────────────────────────────────────────────────────────


def client_of(tables: MemoryTables, wait_ms: int, now: datetime = NOW, **variables: str) -> FlaskClient:
    settings = Settings.from_environment({"MIN_AS_OF_WAIT_MS": str(wait_ms), **variables})
    return create_app(tables, settings, now=lambda: now).test_client()


@pytest.mark.parametrize(
    "path", [*(f"{path}?" for path in PATHS), f"{PATHS[1]}?from=2024-01-01&", f"{PATHS[1]}?window=day&"]
)
def test_the_figures_are_read_after_the_wait(path: str) -> None:
    tables = ProgressingTables(reached_at=2)
    answer: Any = client_of(tables, 5000).get(f"{path}min_as_of={time_text(LATER)}").json
    assert answer["as_of"] == time_text(LATER)
    assert "'events': 2" in str(answer)


@pytest.mark.parametrize("path", PATHS)
def test_a_wait_in_vain_is_a_503_to_try_again(path: str) -> None:
    answer = client_of(ProgressingTables(reached_at=99), 0).get(path, query_string=WANTED)
    assert (answer.status_code, answer.get_json()["code"]) == (503, "as_of_not_reached")
    assert answer.get_json()["as_of"] == time_text(LATER - timedelta(seconds=9))
    assert int(answer.headers["Retry-After"]) >= 1


@pytest.mark.parametrize("path", ["/v1/tenants/tenant-123/invoice", "/v1/export"])
def test_an_invoice_and_an_export_wait_as_well(tmp_path: Path, path: str) -> None:
    (plans := tmp_path / "plans.yaml").write_text(WHOLE, encoding="utf-8")

    def answer(reached_at: int, wait_ms: int) -> Any:
        client = client_of(ProgressingTables(reached_at), wait_ms, PLANS_FILE=str(plans))
        return client.get(path, query_string={"period": "2024-01", **WANTED})

    waited = answer(2, 5000)
    assert waited.status_code == 200
    assert (waited.headers.get("As-Of") or waited.json["as_of"]) == time_text(LATER)
    assert '"usage":20,' in waited.text
    in_vain = answer(99, 0)
    assert (in_vain.status_code, in_vain.get_json()["code"]) == (503, "as_of_not_reached")
