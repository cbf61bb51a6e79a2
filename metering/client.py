"""A client for programs that report usage: submit an event and go on; it is posted in the background.

    with MeteringClient("http://127.0.0.1:8080", api_key=key) as client:
        client.submit("tenant-123", "api_calls", 1)

Nothing is dropped in silence. An event that was submitted ends as exactly one of: accepted (the stream holds it),
rejected (the collector refused it), unsent (not known to be held when `retry_s` was over). The latter two are handed
to on_rejected and on_failed, or else raised by the next flush or close, with the events in the exception.

    submit ─► buffer (buffer_events_max) ─► one thread: batches ─► BatchSender ─► accepted
                                                                             └──► a callback, or kept for flush

SIGKILL, os._exit and SIGTERM without a handler take along what is in the buffer: a program that must not lose it writes
its events to a file, and sends that with `metering send`. Over 300 lines, so that one class holds what its lock guards.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from types import TracebackType
from typing import Self

import msgspec

from metering.deliveries import (
    BufferFullError,
    Counts,
    FlushTimeoutError,
    Undelivered,
    UndeliveredEventsError,
    keyed_event,
)
from metering.events import encode_json
from metering.outgoing import BATCH_EVENTS_MAX
from metering.sending import ANSWER_WAIT_S_MAX, RETRY_S, Accepted, BatchSender, KeyedEvent, Outcome, Rejected, Unsent

EXIT_WAIT_S = 30.0

_log = logging.getLogger(__name__)


class MeteringClient:
    """Reports usage to one collector, from any number of threads.

    url, api_key, retry_s, answer_wait_s: see BatchSender.
    batch_events_max: in one post, 1 to 1000. buffer_events_max: how many events are held, those that flush is to raise
    included. linger_s: how long the first event of a batch waits for others.
    on_rejected, on_failed: called for each event that was refused, or is unsent, by the background thread or by close.
    A callback that raises counts as none. It may submit, which does not wait there, but not flush or close.
    exit_wait_s: at the end of the program the client is closed, within so long; what is not accepted is logged.
    After os.fork the child's client is empty: the parent has the events from before. Children of multiprocessing may
    end without atexit: close the client there.
    Raises SetupError when `url` or `api_key` can't be used.
    """

    def __init__(
        self,
        url: str,
        api_key: str | None = None,
        *,
        batch_events_max: int = 500,
        buffer_events_max: int = 10_000,
        linger_s: float = 0.2,
        retry_s: float = RETRY_S,
        answer_wait_s: float = ANSWER_WAIT_S_MAX,
        exit_wait_s: float = EXIT_WAIT_S,
        on_rejected: Callable[[Undelivered], object] | None = None,
        on_failed: Callable[[Undelivered], object] | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        if not (1 <= batch_events_max <= BATCH_EVENTS_MAX and buffer_events_max >= 1):
            raise ValueError(f"batch_events_max must be 1 to {BATCH_EVENTS_MAX}, buffer_events_max 1 or more")
        self._connect: Callable[[], BatchSender] = lambda: BatchSender(
            url, api_key=api_key, retry_s=retry_s, answer_wait_s=answer_wait_s
        )
        self._batch_events_max = batch_events_max
        self._buffer_events_max = buffer_events_max
        self._linger_s = linger_s
        self._exit_wait_s = exit_wait_s
        self._on_rejected = on_rejected
        self._on_failed = on_failed
        self._clock = clock
        self._closed = False
        self._begin_empty()
        atexit.register(self._close_at_exit)
        _clients.add(self)

    def _begin_empty(self) -> None:
        self._sender = self._connect()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._waiting: deque[KeyedEvent] = deque()
        self._in_flight: list[KeyedEvent] = []
        self._undelivered: list[Undelivered] = []
        self._counts = Counts()
        self._awaited = 0  # how many of the submitted events some flush waits for: no lingering with them
        self._abandoned = threading.Event()

    @property
    def counts(self) -> Counts:
        """What became of the events so far."""
        return self._counts

    def submit(
        self,
        tenant_id: str,
        metric: str,
        value: int | Decimal | str,
        timestamp: datetime | str | None = None,
        event_id: str | None = None,
        *,
        block: bool = True,
        timeout_s: float | None = None,
    ) -> str:
        """Take an event to be sent, and return its event_id.

        value: exact; a float is refused. timestamp: an aware time, or RFC 3339 text.
        event_id: the caller's idempotency key; None for a new one. Without a timestamp, an event with a new id counts
        for the time of this call, however long it waits to be sent. One with the caller's id counts for the time at
        which the collector receives it, as the API has it: so it is the same event when it is submitted again.
        block: wait for room in the buffer, `timeout_s` at most (None: as long as it takes).
        Raises InvalidEventError (rules about time are the collector's) and BufferFullError: the event was not taken.
        """
        event = keyed_event(tenant_id, metric, value, timestamp, event_id, now=self._clock())
        with self._changed:
            self._wait_for_room(timeout_s, block=block and threading.current_thread() is not self._thread)
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="metering-client", daemon=True)
                thread.start()
                self._thread = thread
            self._waiting.append(event)
            self._counts = self._counts.with_submitted()
            self._changed.notify_all()
        return str(event.event_id)

    def flush(self, timeout_s: float | None = None) -> None:
        """Return once every event that was submitted before is accepted, or was taken by a callback.

        timeout_s: None for as long as it takes, which `retry_s` bounds for each batch.
        Raises FlushTimeoutError when it takes longer, and UndeliveredEventsError, once, for what no callback took.
        """
        self._refuse_own_thread()
        with self._changed:
            target = self._counts.submitted
            self._awaited = max(self._awaited, target)
            self._changed.notify_all()
            if not self._changed.wait_for(lambda: self._counts.settled >= target, timeout_s):
                raise FlushTimeoutError(f"{target - self._counts.settled} event(s) have no outcome yet")
            undelivered = self._take_undelivered()
        if undelivered:
            raise UndeliveredEventsError(undelivered)

    def close(self, timeout_s: float | None = None) -> None:
        """Take no more events, and flush; what has no outcome after `timeout_s` is unsent.

        Raises UndeliveredEventsError as flush does. When Ctrl-C breaks in, the end of the program goes on with it.
        """
        self._refuse_own_thread()
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        try:
            self.flush(timeout_s)
        except FlushTimeoutError as error:
            self._abandon(Unsent(f"the client was closed: {error}"))
        finally:
            if self._counts.settled == self._counts.submitted and not self._undelivered:
                atexit.unregister(self._close_at_exit)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _wait_for_room(self, timeout_s: float | None, *, block: bool) -> None:
        def held() -> int:
            return self._counts.submitted - self._counts.settled + len(self._undelivered)

        def is_worth_no_more_waiting() -> bool:
            return self._closed or held() < self._buffer_events_max or self._counts.settled == self._counts.submitted

        if block:
            self._changed.wait_for(is_worth_no_more_waiting, timeout_s)
        if self._closed:
            raise RuntimeError("the client is closed")
        if held() >= self._buffer_events_max:
            kept = (
                f", {len(self._undelivered)} of them not accepted: flush hands these over" if self._undelivered else ""
            )
            raise BufferFullError(f"the buffer holds {held()} events{kept}")

    def _refuse_own_thread(self) -> None:
        if threading.current_thread() is self._thread:
            raise RuntimeError("a callback can't wait for the thread that calls it")

    def _take_undelivered(self) -> list[Undelivered]:
        undelivered, self._undelivered = self._undelivered, []
        self._changed.notify_all()
        return undelivered

    # ── The background thread ────────────────────────────────────────────────────────────────────────────────────────

    def _run(self) -> None:
        while batch := self._next_batch():
            try:
                outcomes = self._sender.send(batch)
            except Exception as error:  # noqa: BLE001 - whatever is wrong with us, the events are not to be lost by it
                _log.exception("a batch could not be sent")
                outcomes = [Unsent(f"{type(error).__name__}: {error}")] * len(batch)
            self._settle(outcomes)
        self._sender.close()

    def _next_batch(self) -> list[KeyedEvent]:
        """Return the next events to be sent, in the order in which they were submitted; none when it is over."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            self._changed.wait_for(
                lambda: (
                    len(self._waiting) >= self._batch_events_max or self._closed or self._counts.settled < self._awaited
                ),
                self._linger_s,
            )
            count = min(len(self._waiting), self._batch_events_max)
            self._in_flight = [self._waiting.popleft() for _ in range(count)]
            return self._in_flight

    def _settle(self, outcomes: Sequence[Outcome]) -> None:
        with self._changed:
            if self._abandoned.is_set():
                return  # close has handed them over
            events, self._in_flight = self._in_flight, []
        kept = self._reported(events, outcomes)
        with self._changed:
            # Counted behind the callbacks: when flush returns, they have returned.
            self._counts = self._counts.with_outcomes(outcomes)
            if self._abandoned.is_set():
                _log_lost(kept)  # close came in between and has raised already
            else:
                self._undelivered += kept
            self._changed.notify_all()

    def _abandon(self, outcome: Unsent) -> None:
        with self._changed:
            self._abandoned.set()
            events = [*self._in_flight, *self._waiting]
            self._in_flight = []
            self._waiting.clear()
            self._counts = self._counts.with_outcomes([outcome] * len(events))
            undelivered = self._take_undelivered()
        undelivered += self._reported(events, [outcome] * len(events))
        if undelivered:
            raise UndeliveredEventsError(undelivered)

    def _reported(self, events: Sequence[KeyedEvent], outcomes: Sequence[Outcome]) -> list[Undelivered]:
        """Hand what is not accepted to the callbacks, and return what they did not take."""
        kept = []
        for event, outcome in zip(events, outcomes, strict=True):
            if isinstance(outcome, Accepted):
                continue
            undelivered = Undelivered(msgspec.json.decode(event.encoded, type=dict[str, str]), outcome)
            callback = self._on_rejected if isinstance(outcome, Rejected) else self._on_failed
            try:
                if callback is not None:
                    callback(undelivered)
                    continue
            except BaseException:  # noqa: BLE001 - a sys.exit in a callback would end this thread, and lose the rest
                _log.exception("a callback failed; flush will raise its event")
            kept.append(undelivered)
        return kept

    def _close_at_exit(self) -> None:
        try:
            self.close(self._exit_wait_s)
        except UndeliveredEventsError as error:
            _log_lost(error.events)


def _log_lost(events: Sequence[Undelivered]) -> None:
    """Write events that nobody can be handed any more, as `metering send` reads them."""
    for event in events:
        _log.critical("not accepted, and the client is closed: %s (%s)", encode_json(event.fields).decode(), event)


def _begin_empty_in_child() -> None:
    for client in list(_clients):
        client._begin_empty()  # noqa: SLF001 - a part of the class that has to stand outside of it


_clients: weakref.WeakSet[MeteringClient] = weakref.WeakSet()
os.register_at_fork(after_in_child=_begin_empty_in_child)
