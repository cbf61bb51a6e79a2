"""Group commit: concurrent requests share PutRecords calls and records.

One thread of its own per process puts; one call is out at a time. While it is out, events gather for the next one, so
calls grow with the load by themselves, and the linger matters only when there is little of it.

What is put again, and when it is given up:

    refused entries of a call     put again alone; wait = random() * min(1 s, 0.05 s * 2**(attempts - 1))
    a call that failed as whole   all its batches are put again under their ids (the answer may have been lost), and
                                  nothing else goes before that; the same formula over failed calls in a row
    COLLECTOR_DEADLINE_MS after   the batch is given up, at once when the next try would come later than that
      its oldest event's submit
    a missing stream, no access   given up at once: another try would not mend it
"""

from __future__ import annotations

import logging
import math
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence

from collector.lanes import Batch, GivenUp, Lanes, Piece
from collector.metrics import CALL_FAILED, CollectorMetrics
from collector.outcomes import EventNotHeldError, TooManyPendingError
from collector.submissions import Submission
from metering.errors import SetupError, StreamUnavailableError
from metering.outgoing import OutgoingEvent
from metering.ports import EventSink, Held, NotHeld, OutgoingRecord
from metering.settings import Settings

RETRY_WAIT_S_BASE = 0.05
RETRY_WAIT_S_MAX = 1.0
PENDING_SHOWN_EVERY_S = 0.1
"""The gauge is written no more often, and whenever nothing is pending: it costs more than taking an event."""
EVENTS_SHOWN_MAX = 10
"""A call with more events than this is logged at DEBUG: the log of a busy collector stays readable."""

_log = logging.getLogger(__name__)


class GroupCommitter:
    """Puts submitted events on the stream and ends each in its submission, exactly once.

    Its thread starts with the first submit, so that an app which was built before a fork works after it.

    An exception that `sink` was not expected to raise fails the events of that call and no others, since a batch's
    state is its own: the thread goes on. An exception anywhere else means that this class is wrong about its own
    state: every event that it held is failed, later submits are refused, and `on_crash` is called; the worker process
    should end itself there and be replaced. Either way no request is left waiting, and none is told "accepted".
    """

    def __init__(
        self,
        sink: EventSink,
        settings: Settings,
        *,
        metrics: CollectorMetrics,
        on_crash: Callable[[], None] = lambda: None,
        uniform: Callable[[], float] = random.random,
    ) -> None:
        """Keep `sink` (called by one thread only); uniform: the jitter, from 0 up to 1."""
        self._sink = sink
        self._metrics = metrics
        self._stream = settings.stream
        self._pending_max = settings.pending_events_max
        self._on_crash = on_crash
        self._uniform = uniform
        # One lock guards what follows; the committer's thread never waits for the stream, nor resolves, under it.
        self._changed = threading.Condition(threading.Lock())
        self._lanes = Lanes(linger_s=settings.linger_ms / 1000, deadline_s=settings.put_deadline_ms / 1000)
        self._pending = 0
        self._pending_shown_at = -math.inf
        self._wakes_at = -math.inf
        self._thread: threading.Thread | None = None
        self._closed_because: str | None = None
        # Only the committer's thread uses this one.
        self._calls_failed = 0

    def submit(self, events: Sequence[OutgoingEvent]) -> Submission:
        """Take events, 1 or more, all or none, and return their submission; never waits for the stream.

        Each ends held, or with EventNotHeldError, a SetupError, or what the sink raised unexpectedly.
        Raises TooManyPendingError, and EventNotHeldError when closed; no event has been taken then. As long as none is
        pending, any number is taken, so that a large batch is not refused for ever.
        """
        submission = Submission(events)
        by_partition: dict[int, list[int]] = {}
        for index, event in enumerate(events):
            by_partition.setdefault(event.partition, []).append(index)
        with self._changed:
            if self._closed_because is not None:
                raise EventNotHeldError(self._closed_because, maybe_held=False)
            if self._pending and self._pending + len(events) > self._pending_max:
                raise TooManyPendingError(f"{self._pending} events are waiting for the stream")
            self._start()
            now = time.monotonic()
            self._add_pending(len(events), now)
            due_at = min(
                self._lanes.add(partition, Piece(submission, indexes, now))
                for partition, indexes in by_partition.items()
            )
            if due_at < self._wakes_at:
                self._changed.notify()
        return submission

    @property
    def pending(self) -> int:
        """How many submitted events have no outcome yet."""
        with self._changed:
            return self._pending

    def check(self) -> None:
        """Return when events are taken; raises EventNotHeldError after close or a crash."""
        with self._changed:
            if self._closed_because is not None:
                raise EventNotHeldError(self._closed_because, maybe_held=False)

    def close(self, timeout_s: float) -> bool:
        """Take no more events, put what waits without linger, and return whether all was done within `timeout_s`.

        What is not done by then goes on in the thread, for as long as the process lives and the deadline allows.
        """
        with self._changed:
            if self._closed_because is None:
                self._closed_because = "the collector is stopping"
            thread = self._thread
            self._changed.notify()
        if thread is not None:
            thread.join(timeout_s)
        return thread is None or not thread.is_alive()

    def _add_pending(self, events: int, now: float) -> None:
        """Count events in or, less than 0, out; only under the lock."""
        self._pending += events
        if now >= self._pending_shown_at + PENDING_SHOWN_EVERY_S or not self._pending:
            self._pending_shown_at = now
            self._metrics.pending(self._pending)

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="group-committer", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        try:
            while self._wait_until_due():
                now = time.monotonic()
                with self._changed:
                    given_up = self._lanes.expire(now)
                    batches = self._lanes.take(now)
                    self._add_pending(-sum(late.events for late in given_up), now)
                for late in given_up:
                    self._give_up(late, "the stream did not take it in time")
                if batches:
                    self._put(batches)
        except BaseException as error:  # noqa: BLE001 - whatever it is, no request may be left waiting for it
            self._crash(error)

    def _wait_until_due(self) -> bool:
        """Return True when something is to be put or given up, False when closed and nothing is left."""
        with self._changed:
            while True:
                closing = self._closed_because is not None
                if closing and not self._lanes:
                    return False
                due_at = self._lanes.due_at(linger=not closing)
                wait_s = due_at - time.monotonic()
                if wait_s <= 0:
                    return True
                self._wakes_at = due_at
                self._changed.wait(None if due_at == math.inf else wait_s)
                self._wakes_at = -math.inf

    def _put(self, batches: Sequence[Batch]) -> None:
        began_s = time.monotonic()
        try:
            try:
                answers = self._sink.put([OutgoingRecord(batch.partition, batch.data) for batch in batches])
            finally:
                self._metrics.put_records(
                    records=len(batches),
                    events=sum(batch.events for batch in batches),
                    data_bytes=sum(batch.size for batch in batches),
                    seconds=time.monotonic() - began_s,
                )
            if len(answers) != len(batches):
                raise RuntimeError(f"the sink gave {len(answers)} answers for {len(batches)} records")
        except StreamUnavailableError as error:
            self._put_all_again(batches, error)
        except SetupError as error:
            _log.error("%s", error)
            self._leave(batches)
            _fail(batches, error)
        except Exception as error:  # noqa: BLE001 - handed to whoever waits for these events
            _log.exception("unexpected error from PutRecords; its %d record(s) are given up", len(batches))
            self._leave(batches)
            _fail(batches, error)
        else:
            self._calls_failed = 0
            self._settle(batches, answers)

    def _settle(self, batches: Sequence[Batch], answers: Sequence[Held | NotHeld]) -> None:
        held: list[tuple[Batch, Held]] = []
        refused: list[tuple[Batch, NotHeld]] = []
        for batch, answer in zip(batches, answers, strict=True):
            if isinstance(answer, Held):
                held.append((batch, answer))
            else:
                refused.append((batch, answer))
        if held:
            events = sum(batch.events for batch, _ in held)
            level = logging.INFO if events <= EVENTS_SHOWN_MAX else logging.DEBUG
            _log.log(level, "Published %d event(s) to Kinesis: stream=%s, records=%d", events, self._stream, len(held))
            self._leave([batch for batch, _ in held])
            for batch, place in held:
                first = 0
                for piece in batch.pieces:
                    piece.submission.end(piece.indexes, place, first)
                    first += len(piece.indexes)
        if refused:
            codes = Counter(answer.code for _, answer in refused)
            for code, records in codes.items():
                self._metrics.put_retried(code, records)
            reasons = ", ".join(sorted(codes))
            for batch, _ in refused:
                batch.attempts += 1
            self._put_again(
                [(batch, self._retry_wait_s(batch.attempts)) for batch, _ in refused],
                f"{len(refused)} of {len(batches)} record(s) refused: {reasons}",
            )

    def _put_all_again(self, batches: Sequence[Batch], error: StreamUnavailableError) -> None:
        self._calls_failed += 1
        self._metrics.put_retried(CALL_FAILED, len(batches))
        wait_s = self._retry_wait_s(self._calls_failed)
        for batch in batches:
            batch.maybe_held = True
        with self._changed:
            self._lanes.hold_back(time.monotonic() + wait_s)
        self._put_again([(batch, wait_s) for batch in batches], f"the call failed: {error}")

    def _put_again(self, waits: Sequence[tuple[Batch, float]], reason: str) -> None:
        """Schedule batches to be put again, each after its wait in seconds; give up those that it would be late for."""
        now = time.monotonic()
        late = [batch for batch, wait_s in waits if now + wait_s >= batch.expires_at]
        again = [(batch, wait_s) for batch, wait_s in waits if now + wait_s < batch.expires_at]
        with self._changed:
            for batch, wait_s in again:
                self._lanes.put_again(batch, now + wait_s)
        if again:
            _log.warning(
                "PutRecords, %s; %d record(s) are put again in %.3f s",
                reason,
                len(again),
                min(wait_s for _, wait_s in again),
            )
        self._leave(late)
        for batch in late:
            self._give_up(GivenUp(batch.pieces, batch.maybe_held), reason)

    def _retry_wait_s(self, attempts: int) -> float:
        return self._uniform() * min(RETRY_WAIT_S_MAX, RETRY_WAIT_S_BASE * 2.0 ** min(attempts - 1, 30))

    def _leave(self, batches: Sequence[Batch]) -> None:
        with self._changed:
            for batch in batches:
                self._lanes.leave(batch)
            self._add_pending(-sum(batch.events for batch in batches), time.monotonic())

    def _give_up(self, given_up: GivenUp, reason: str) -> None:
        _log.warning("%d event(s) are given up: %s", given_up.events, reason)
        detail = (
            "the stream's answer was lost, so it may hold the event or not; send it again with the same event_id"
            if given_up.maybe_held
            else "the stream did not take the event; send it again"
        )
        _end(given_up.pieces, EventNotHeldError(detail, maybe_held=given_up.maybe_held))

    def _crash(self, error: BaseException) -> None:
        _log.critical("the committer's thread failed; this process takes no more events", exc_info=error)
        with self._changed:
            self._closed_because = "the collector failed and is being replaced"
            pieces = self._lanes.leave_all()
            self._add_pending(-self._pending, time.monotonic())
        _end(pieces, EventNotHeldError("the collector failed; the stream may hold the event or not", maybe_held=True))
        self._on_crash()


def _fail(batches: Sequence[Batch], error: Exception) -> None:
    for batch in batches:
        _end(batch.pieces, error)


def _end(pieces: Sequence[Piece], error: Exception) -> None:
    for piece in pieces:
        piece.submission.end(piece.indexes, error)
