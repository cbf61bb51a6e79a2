"""The load: known events through two collectors, with duplicates, conflicts and malformed records among them."""

from __future__ import annotations

import heapq
import itertools
import json
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from types import TracebackType
from typing import Self

import requests

from metering.events import time_text
from tests.e2e.truth import METRICS, VALUES, _time
from tests.torture.known import Content, Known, KnownEvent, Refusal
from tests.torture.stream import HASH_KEYS, Place, Stream

THREADS = 12
TENANTS = 12
WITHOUT_ID = 0.10
DUPLICATES = 0.05
MALFORMED = 0.01
CONFLICTS = 0.01
REPEAT_WITHIN_S = 20.0
ANSWER_S = 20.0
HELD_S = 180.0
"""A collector that does not take an event for this long, with retries, fails the run."""
MINUTE_MAX = 45
"""Events without a timestamp are sent up to this minute only, so that all their copies arrive in the same hour."""
BEHIND_MAX_S = 5.0
"""A sender that was held up makes good for this much at most: no burst that the machine can't carry."""


class Load:
    """Sends until the end of the block; everything that was begun is brought to its end there.

    urls: of the collectors. claimed: whether the ledger holds an event's id, so that a conflict has a known winner.
    """

    def __init__(
        self,
        urls: Sequence[str],
        stream: Stream,
        known: Known,
        *,
        seed: int,
        events_s: float,
        claimed: Callable[[KnownEvent], bool],
    ) -> None:
        self._urls = urls
        self._stream = stream
        self._known = known
        self._seed = seed
        self._interval_s = THREADS / events_s
        self._claimed = claimed
        self._stop = threading.Event()
        self._given_up = threading.Event()
        self._numbers = itertools.count()
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._due_lock = threading.Lock()
        self._threads = [threading.Thread(target=self._post_events, args=(number,)) for number in range(THREADS)]
        self._threads += [threading.Thread(target=self._send_due, args=(number,)) for number in range(2)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if error is not None:
            self._given_up.set()
        for thread in self._threads:
            thread.join()

    def post_until_held(
        self, event: KnownEvent, urls: Sequence[str], choose: random.Random, session: requests.Session
    ) -> None:
        """Post an event with an id, again and again by any of `urls`, until one says that the stream holds it."""
        deadline = time.monotonic() + HELD_S
        body = json.dumps(event.fields).encode()
        while time.monotonic() < deadline and not self._given_up.is_set():
            status = self._post(session, choose.choice(urls), body)
            if status == 202:
                self._known.was_accepted(event)
                return
            if status not in {None, 429, 500, 502, 503, 504}:
                self._known.failed(f"{status} for {event}")
                return
            time.sleep(0.1 + choose.random() * 0.5)
        self._known.failed(f"not accepted in {HELD_S:.0f} s: {event}")

    def put(self, event: KnownEvent, hash_key: int) -> Place:
        """Put a known event on the stream, past the collectors."""
        place = self._stream.put(_envelope(f"straight-{next(self._numbers)}", [event]), hash_key)
        self._known.was_accepted(event)
        return place

    def _post(self, session: requests.Session, url: str, body: bytes) -> int | None:
        self._known.posted()
        headers = {"Content-Type": "application/json"}
        try:
            return session.post(f"{url}/v1/usage", data=body, headers=headers, timeout=ANSWER_S).status_code
        except requests.RequestException:
            return None  # the collector's worker was killed, or has not answered: it may have put the event or not

    # ── Through the collectors ───────────────────────────────────────────────────────────────────────────────────────

    def _post_events(self, number: int) -> None:
        choose = random.Random(f"{self._seed} {number}")  # noqa: S311 - the same load for the same seed
        due_at = time.monotonic() + choose.random() * self._interval_s
        with requests.Session() as session:
            while not self._stop.wait(max(0.0, due_at - time.monotonic())):
                due_at = max(due_at, time.monotonic() - BEHIND_MAX_S) + self._interval_s
                try:
                    self._post_one(choose, session)
                except Exception as error:  # noqa: BLE001 - a load that ends early would prove nothing
                    self._known.failed(repr(error))

    def _post_one(self, choose: random.Random, session: requests.Session) -> None:
        if choose.random() < WITHOUT_ID:
            event = self._event(choose, with_id=False)
            self._known.will_send(event)
            if self._post(session, choose.choice(self._urls), json.dumps(event.fields).encode()) == 202:
                self._known.was_accepted(event)
            return
        event = self._event(choose, with_id=True)
        self._known.will_send(event)
        self.post_until_held(event, self._urls, choose, session)
        if choose.random() < DUPLICATES:
            self._later(choose, lambda: self._repeat(event, choose))
        if choose.random() < CONFLICTS:
            self._later(choose, lambda: self._conflict(event, choose))
        if choose.random() < MALFORMED:
            self._later(choose, lambda: self._malformed(choose))
        if choose.random() < MALFORMED:
            self._later(choose, lambda: self._batch_twice(choose))

    def _event(self, choose: random.Random, *, with_id: bool) -> KnownEvent:
        number = next(self._numbers)
        moment, timestamp = _time(choose)
        while timestamp is None and moment.minute >= MINUTE_MAX:
            moment, timestamp = _time(choose)
        # Two tenants use each id: there it means two events.
        tenant = f"{'torture' if with_id else 'torture-no-id'}-{2 * choose.randrange(TENANTS // 2) + number % 2}"
        value = Decimal(choose.choice(VALUES)) if with_id else Decimal(number) + Decimal("0.5")
        return KnownEvent(
            tenant,
            f"event-{number // 2}" if with_id else None,
            Content(choose.choice(METRICS), value, timestamp),
            moment.astimezone(UTC).strftime("%Y-%m-%dT%H"),
        )

    # ── Later, by other ways ─────────────────────────────────────────────────────────────────────────────────────────

    def _later(self, choose: random.Random, send: Callable[[], None]) -> None:
        with self._due_lock:
            heapq.heappush(self._due, (time.monotonic() + choose.random() * REPEAT_WITHIN_S, next(self._numbers), send))

    def _send_due(self, number: int) -> None:
        while True:
            stopping = self._stop.is_set()
            last = not any(thread.is_alive() for thread in self._threads[:THREADS])  # nothing more becomes due
            with self._due_lock:
                ready = self._due and (stopping or self._due[0][0] <= time.monotonic())
                send = heapq.heappop(self._due)[2] if ready else None
            if send is None:
                if stopping and last:
                    return
                time.sleep(0.02)
                continue
            if self._given_up.is_set():
                continue
            try:
                send()
            except Exception as error:  # noqa: BLE001 - as above
                self._known.failed(repr(error))

    def _repeat(self, event: KnownEvent, choose: random.Random) -> None:
        """The same event again: by any collector, or straight on any shard."""
        self._known.will_repeat()
        if choose.random() < 0.5:
            with requests.Session() as session:
                self.post_until_held(event, self._urls, choose, session)
        else:
            self.put(event, choose.randrange(HASH_KEYS))

    def _conflict(self, event: KnownEvent, choose: random.Random) -> None:
        """Another event with the id of one that was counted."""
        if not self._claimed(event):
            return
        other = replace(event, content=event.content._replace(value=event.content.value + 1))
        self._known.will_conflict(other)
        self._stream.put(json.dumps(_received(other)).encode(), choose.randrange(HASH_KEYS))

    def _malformed(self, choose: random.Random) -> None:
        number = next(self._numbers)
        kind = choose.choice(["garbage", "not UTF-8", "cut off", "no envelope", "one bad event"])
        refusals = [Refusal(0, "malformed_record")]
        match kind:
            case "garbage":
                data = choose.randbytes(40) + str(number).encode()
            case "not UTF-8":
                data = b'{"batch_id": "\xff\xfe %d"}' % number
            case "cut off":
                data = b'{"batch_id": "cut-%d", "events": [{"tenant_id": "to' % number
            case "no envelope":
                data = json.dumps({"batch_id": f"none-{number}", "events": []}).encode()
            case _:
                good = [self._event(choose, with_id=True) for _ in range(2)]
                for event in good:
                    self._known.will_send(event)
                    self._known.was_accepted(event)
                bad = good[0].fields | {"value": "-1", "event_id": f"bad-{number}"}
                data = _envelope(f"bad-{number}", good, bad=bad)
                refusals = [Refusal(1, "negative_value")]
        self._known.will_put_malformed(data, refusals)
        self._stream.put(data, choose.randrange(HASH_KEYS))

    def _batch_twice(self, choose: random.Random) -> None:
        """An envelope of events without ids, and again on any shard, as a producer's retry would; or one bare event."""
        events = [self._event(choose, with_id=False) for _ in range(2)]
        if choose.random() < 0.2:
            [event, _] = events
            data = json.dumps(_received(event)).encode()
            times, events = 1, [event]
        else:
            data = _envelope(f"twice-{next(self._numbers)}", events)
            times = 2
        for event in events:
            self._known.will_send(event)
        for _ in range(times):
            self._stream.put(data, choose.randrange(HASH_KEYS))
        for event in events:
            self._known.was_accepted(event)


def _received(event: KnownEvent) -> dict[str, str]:
    return event.fields | {"received_at": time_text(datetime.now(UTC))}


def _envelope(batch_id: str, events: Sequence[KnownEvent], *, bad: dict[str, str] | None = None) -> bytes:
    """An envelope of events; `bad` stands second."""
    entries = [_received(event) for event in events]
    if bad is not None:
        entries.insert(1, bad)
    return json.dumps({"batch_id": batch_id, "events": entries}).encode()
