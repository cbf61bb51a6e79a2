"""`min_as_of`: an answer that waits until it includes all that the stream held at a certain time.

    GET …?min_as_of=2024-02-01T00:05:00Z ──► progress ──► as_of is that late ────────────► figures
                                                │ not yet                       ▲
                                                └► progress, again and again ───┘ within MIN_AS_OF_WAIT_MS, or 503

Those who wait read the progress once for all of them, and only so many may: each holds a thread of the service. It is
read before the figures, as for every answer (billing.app says why).
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta

from billing.answers import freshness_members, time_member
from billing.freshness import Freshness, freshness
from billing.ranges import instant_of
from metering.errors import StoreUnavailableError
from metering.ports import ShardProgress, UsageReader
from metering.web import ProblemError

WAITERS_MAX = 8
"""Requests that may wait at once: half of the threads that serve requests."""
POLL_S = 0.1
"""How long each of them waits before it looks again."""
SHARED_S = POLL_S / 2
"""For how long what one of them has read does for the others."""


class AsOf:
    """Says how current the figures are that are read next. Thread-safe.

    stream: whose progress decides. wait_ms: MIN_AS_OF_WAIT_MS. now: the clock, aware UTC; clock, pause: how long a wait
    has lasted, in seconds, and how it goes by.
    """

    def __init__(
        self,
        reader: UsageReader,
        stream: str,
        *,
        wait_ms: int,
        now: Callable[[], datetime],
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._reader = reader
        self._stream = stream
        self._wait_s = wait_ms / 1000
        self._now = now
        self._clock = clock
        self._pause = pause
        self._slots = threading.BoundedSemaphore(WAITERS_MAX)
        self._reading = threading.Lock()
        self._read_at_s = -math.inf
        self._failures = 0
        self._shards: Sequence[ShardProgress] = ()

    def read(self, parameters: Mapping[str, str]) -> Freshness:
        """Return how current the figures are that are read from now on, after waiting for `min_as_of` if it is given.

        Raises InvalidRangeError `invalid_time`, ProblemError 400 `min_as_of_in_future` for what no wait can bring, and
        503 `as_of_not_reached` and `too_many_waiting`; as the reader does.
        """
        text = parameters.get("min_as_of")
        wanted = None if text is None else instant_of(text, "min_as_of")
        if wanted is not None and wanted > self._now() + timedelta(seconds=self._wait_s):
            detail = f"min_as_of must not be later than now and {self._wait_s:g} s, which is how long an answer waits"
            raise ProblemError(400, "min_as_of_in_future", detail, parameter="min_as_of")
        known = self._freshness(self._reader.progress(self._stream))
        if wanted is None or _reached(known, wanted):
            return known
        with self._slot(known):
            return self._waited(wanted, known)

    def recent(self, age_s: float) -> Freshness:
        """Return how current the figures are at least that are read from now on, by what was read `age_s` ago at most.

        An older as_of is as true as a newer one: what was complete stays so. It spares a read in front of the figures
        to all but one of those who ask within that time. Raises as the reader does. A read that was slow or failed
        was so for all who waited for it: nobody waits for more than two.
        """
        asked_s, failures = self._clock(), self._failures
        with self._reading:
            begun_s = self._clock()
            if begun_s - self._read_at_s >= age_s and self._read_at_s < asked_s:
                if self._failures != failures:
                    raise StoreUnavailableError("the progress of the stream could not be read just now")
                self._shards, self._read_at_s = self._read_progress(), begun_s
            shards = self._shards
        return self._freshness(shards)

    def _read_progress(self) -> Sequence[ShardProgress]:
        try:
            return self._reader.progress(self._stream)
        except StoreUnavailableError:
            self._failures += 1
            raise

    def _waited(self, wanted: datetime, known: Freshness) -> Freshness:
        until_s = self._clock() + self._wait_s
        while (left_s := until_s - self._clock()) > 0:
            self._pause(min(POLL_S, left_s))
            shards = self._shared_progress(left_s)
            if shards is not None and _reached(known := self._freshness(shards), wanted):
                return known
        detail = f"not all events are in yet that the stream held at {time_member(wanted)}; try again"
        raise ProblemError(503, "as_of_not_reached", detail, **freshness_members(known))

    def _shared_progress(self, left_s: float) -> Sequence[ShardProgress] | None:
        """Return the progress as it was read within SHARED_S, by whichever of those who wait.

        None when another's read has not ended within `left_s`.
        """
        if not self._reading.acquire(timeout=left_s):
            return None
        try:
            if self._clock() - self._read_at_s >= SHARED_S:
                self._shards = self._read_progress()
                self._read_at_s = self._clock()
            return self._shards
        finally:
            self._reading.release()

    @contextmanager
    def _slot(self, known: Freshness) -> Iterator[None]:
        if not self._slots.acquire(blocking=False):
            detail = f"{WAITERS_MAX} requests wait for a later as_of already; try again"
            raise ProblemError(503, "too_many_waiting", detail, **freshness_members(known))
        try:
            yield
        finally:
            self._slots.release()

    def _freshness(self, shards: Sequence[ShardProgress]) -> Freshness:
        return freshness(shards, now=self._now())


def _reached(known: Freshness, wanted: datetime) -> bool:
    return known.as_of is not None and known.as_of >= wanted
