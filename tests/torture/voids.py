"""Voids of random events over HTTP, beside the load and the faults. Each that was asked for is brought to its end."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from types import TracebackType
from typing import Self
from urllib.parse import quote

import requests

from tests.torture.known import Key, Known

THREADS = 2
VOIDS_S = 2.0
AGAIN = 0.2
"""The share of voids that are asked for again though they have been answered."""
ANSWER_S = 20.0
FINISHED_S_MAX = 120.0
PASSING = frozenset({None, 404, 409, 429, 500, 502, 503, 504})
"""Not claimed or not counted yet; a worker was killed; a service is away: ask again."""


class Voids:
    """Voids accepted events until the end of the block. url: of billing."""

    def __init__(self, url: str, known: Known, *, seed: int) -> None:
        self._url = url
        self._known = known
        self._seed = seed
        self._stop = threading.Event()
        self._open: set[Key] = set()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(THREADS)]
        self.answers: Counter[int | None] = Counter()
        """By status, None for none at all."""

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def finish(self) -> None:
        """Ask for what has not been answered 200, until it is: once all that was sent has been counted."""
        deadline = time.monotonic() + FINISHED_S_MAX
        with requests.Session() as session:
            while self._open and time.monotonic() < deadline:
                for key in sorted(self._open):
                    self._ask(session, key)
        for key in self._open:
            self._known.failed(f"not voided in {FINISHED_S_MAX:.0f} s: {key}")

    def _run(self, number: int) -> None:
        choose = random.Random(f"{self._seed} void {number}")  # noqa: S311 - the same voids for the same seed
        with requests.Session() as session:
            while not self._stop.wait(choose.random() * 2 * THREADS / VOIDS_S):
                try:
                    self._one(choose, session)
                except Exception as error:  # noqa: BLE001 - voids that end early would prove nothing
                    self._known.failed(repr(error))

    def _one(self, choose: random.Random, session: requests.Session) -> None:
        key = self._known.any_accepted(choose)
        if key is None:
            return
        self._known.will_void(key)
        with self._lock:
            self._open.add(key)
        for _ in range(5):  # one that is not counted yet, or meets a fault, is asked for a few times, then at the end
            if self._ask(session, key) or self._stop.wait(0.2):
                break
        if choose.random() < AGAIN:
            self._ask(session, key)

    def _ask(self, session: requests.Session, key: Key) -> bool:
        tenant_id, event_id = key
        url = f"{self._url}/v1/tenants/{tenant_id}/events/{quote(event_id, safe='')}/void"
        status: int | None = None
        try:
            answer = session.post(url, json={"by": "torture", "reason": "any"}, timeout=ANSWER_S)
            status = answer.status_code
        except requests.RequestException:
            pass  # billing's worker was killed, or has not answered: it may have voided the event or not
        with self._lock:
            self.answers[status] += 1
            if status == 200:
                self._open.discard(key)
        if status not in PASSING | {200}:
            self._known.failed(f"{status} for the void of {key}")
        return status == 200
