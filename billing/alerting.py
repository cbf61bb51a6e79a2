"""Looks at usage, records what crossed a threshold, resolves what is over, and posts what is to be told.

One round, and what a crash at any place in it leaves to the next one, here or in another process:

    progress ─► usage ─► record ─► resolve ─► note the attempt ─► post ─► note that it is posted, or when it is due
             │        │         │          │                   │       └ posted again, under the same id
             │        │         │          │                   └ posted when the attempt is over
             │        │         │          └ the message is in the outbox, with the alert
             │        │         └ resolved by the next round
             └────────┴ looked at again

A counter whose total is what it was is not looked at again, once it is sure that its windows hold all that the total
does: as_of has passed the time at which this total was first read. Most counters cost one small read so.

Progress first, as everywhere (billing.app says why): the usage of a period that as_of has passed is then all of it, and
only such a period is resolved. Any number of runners may do this side by side: the store records and resolves once, and
what two of them post has one id.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal

from billing.alert_forms import alert_message
from billing.alerts import AlertRule, Alerts, newly_crossed, watched, watched_spans
from billing.freshness import freshness
from billing.webhook import ATTEMPT_S, Outcome, Poster
from metering.alerts import Crossing, Kind, Message, WatchedPeriod
from metering.errors import InvalidRangeError, ServiceUnavailableError
from metering.events import decimal_text, to_milliseconds
from metering.metered import metered_usage
from metering.meters import Meters
from metering.ports import AlertStore, BillingReader, Total
from metering.windows import usage_in

TENANTS_EACH = 1_000
RESOLVED_ROUND_MAX = 1_000
POSTS_ROUND_MAX = 1_000
POSTING_ROUND_S = 20.0
"""No post is begun later than this after a round's first: a slow receiver keeps nobody from looking at usage."""
FAILURES_ROUND_MAX = 3
"""Posts in a row: the receiver is away then, and the rest waits for the next round."""

ATTEMPT = timedelta(seconds=ATTEMPT_S)

SKEW = timedelta(minutes=1)
"""By how much the clocks of this process and of the consumers may differ."""
SEEN_MAX = 100_000
"""Counters and periods that are remembered; what is beyond is looked at each time."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Seen:
    """A total, when it was first read, and whether its windows were read when they held all of it."""

    total: Total
    at: datetime
    settled: bool = False


@dataclass(frozen=True, slots=True)
class Retries:
    """When a message is posted again: wait = (0.5 to 1) * min(wait_max_s, wait_first_s * 2**(attempts - 1)).

    give_up_s: after how long it is not, once it was tried; three days, as the Standard Webhooks specification suggests.
    """

    wait_first_s: float = 5.0
    wait_max_s: float = 3600.0
    give_up_s: float = 3 * 86400.0

    def wait(self, attempts: int, uniform: float) -> timedelta:
        """Return how long to wait after so many attempts (1 or more). uniform: 0 to 1, random."""
        longest = min(self.wait_max_s, self.wait_first_s * 2 ** min(attempts - 1, 30))
        return timedelta(seconds=longest * (0.5 + uniform / 2))


class AlertRunner:
    """Does the rounds. Not thread-safe; any number of them may run beside each other.

    poster: None when alerts are recorded alone. now: the clock, aware UTC. goes_on: asked between two steps whether to
    go on, and so a sign of life. clock: seconds, for how long posting takes; uniform: 0 to 1, random.
    """

    def __init__(
        self,
        reader: BillingReader,
        store: AlertStore,
        alerts: Alerts,
        meters: Meters,
        stream: str,
        *,
        poster: Poster | None,
        now: Callable[[], datetime],
        goes_on: Callable[[], bool] = lambda: True,
        retries: Retries = Retries(),
        clock: Callable[[], float] = time.monotonic,
        uniform: Callable[[], float] = random.random,
    ) -> None:
        self._reader = reader
        self._store = store
        self._alerts = alerts
        self._meters = meters
        self._stream = stream
        self._poster = poster
        self._clock_now = now
        self._goes_on = goes_on
        self._retries = retries
        self._clock = clock
        self._uniform = uniform
        self._looked_as_of: datetime | None = None
        self._complained: dict[WatchedPeriod, str] = {}
        self._seen: dict[WatchedPeriod, _Seen] = {}

    def round(self) -> bool:
        """Look, resolve and post once; False when a service was away, so that not all of it was done.

        Raises MissingResourceError and AccessRefusedError.
        """
        done = True
        for step in (self._look, self._post):
            try:
                step()
            except ServiceUnavailableError as error:
                _log.warning("Alerts wait for the next round: %s", error)
                done = False
        return done

    def _now(self) -> datetime:
        return to_milliseconds(self._clock_now())  # what is kept of a time

    # ── Usage ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _look(self) -> None:
        now = self._now()
        as_of = freshness(self._reader.progress(self._stream), now=now).as_of  # before the usage: see the top
        complaints, self._complained = self._complained, {}
        seen, self._seen = self._seen, {}
        for rule in self._alerts.rules:
            spans = watched_spans(self._alerts, rule, now=now, as_of=as_of, looked_as_of=self._looked_as_of)
            for tenant_id in self._tenants(rule):
                for span in spans:
                    if not self._goes_on():
                        return
                    period = watched(self._alerts, rule, tenant_id, span)
                    self._look_once(period, rule.thresholds, as_of, seen.get(period), complaints)
        if as_of is not None:
            self._looked_as_of = as_of
            self._resolve(as_of)

    def _tenants(self, rule: AlertRule) -> Iterator[str]:
        """Yield those whom a rule watches: named in it, or in the directory."""
        if rule.tenants is not None:
            yield from rule.tenants
            return
        after: str | None = None
        while True:
            page = self._reader.tenants(limit=TENANTS_EACH, after=after)
            yield from page.tenant_ids
            after = page.cursor
            if after is None:
                return

    def _look_once(
        self,
        period: WatchedPeriod,
        thresholds: tuple[Decimal, ...],
        as_of: datetime | None,
        before: _Seen | None,
        complaints: dict[WatchedPeriod, str],
    ) -> None:
        """Look at a counter unless nothing can have come to it, see the top."""
        total = self._reader.total(period.tenant_id, period.metric)
        if total is None:
            return
        seen = before if before is not None and before.total == total else _Seen(total, self._now())
        if not seen.settled:
            self._look_at(period, thresholds, as_of, complaints)
            sure = as_of is not None and as_of >= seen.at + SKEW and period not in self._complained
            seen = replace(seen, settled=sure)
        if len(self._seen) < SEEN_MAX:
            self._seen[period] = seen

    def _look_at(
        self,
        period: WatchedPeriod,
        thresholds: tuple[Decimal, ...],
        as_of: datetime | None,
        complaints: dict[WatchedPeriod, str],
    ) -> None:
        usage = self._usage(period, complaints)
        if usage is None or usage < thresholds[0]:
            return
        for threshold in newly_crossed(thresholds, usage, self._store.recorded(period)):
            now = self._now()
            crossing = Crossing(period, threshold, usage, now, as_of)
            if self._store.record(crossing, self._message(crossing, Kind.CROSSED, now)):
                _log.info(
                    "Alert %s crossed: tenant=%s, metric=%s, threshold=%s, usage=%s",
                    period.name,
                    period.tenant_id,
                    period.metric,
                    decimal_text(threshold),
                    decimal_text(usage),
                    extra={"alert_id": crossing.alert_id},
                )

    def _usage(self, period: WatchedPeriod, complaints: dict[WatchedPeriod, str]) -> Decimal | None:
        """Return the usage by the metric's meter, None when it is not known, which is said once for each period."""
        aggregation = self._meters.for_metric(period.metric).aggregation
        try:
            window = usage_in(self._reader, period.tenant_id, period.metric, period.start, period.end)
            usage = metered_usage(aggregation, [window])
            complaint = f"some of it was counted before the metric was aggregated as {aggregation}"
        except InvalidRangeError as error:  # a row from before USAGE_WINDOW_MINUTES was made smaller
            usage, complaint = None, error.detail
        if usage is None:
            self._complained[period] = complaint
            if complaints.get(period) != complaint:
                _log.warning(
                    "Usage is not known, and no alert decided: name=%s, tenant=%s, metric=%s: %s",
                    period.name,
                    period.tenant_id,
                    period.metric,
                    complaint,
                )
        return usage

    def _resolve(self, as_of: datetime) -> None:
        for crossing in self._store.open_until(as_of, limit=RESOLVED_ROUND_MAX):
            if not self._goes_on():
                return
            now = self._now()
            if self._store.resolve(crossing, self._message(crossing, Kind.RESOLVED, now), now=now):
                period = crossing.watched
                _log.info("Alert %s resolved: tenant=%s, metric=%s", period.name, period.tenant_id, period.metric)

    def _message(self, crossing: Crossing, kind: Kind, now: datetime) -> Message | None:
        return None if self._poster is None else alert_message(crossing, kind, now=now)

    # ── The outbox ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _post(self) -> None:
        if self._poster is None:
            return
        until_s = self._clock() + POSTING_ROUND_S
        failures = 0
        for message in self._store.due_messages(self._now(), limit=POSTS_ROUND_MAX):
            if not self._goes_on() or self._clock() >= until_s or failures >= FAILURES_ROUND_MAX:
                return
            failures = 0 if self._post_one(self._poster, message) else failures + 1

    def _post_one(self, poster: Poster, message: Message) -> bool:
        """Post a message unless it is too old or another runner's; False when the receiver did not take it."""
        now = self._now()
        if message.attempts and now - message.made_at >= timedelta(seconds=self._retries.give_up_s):
            self._give_up(message)
            return True
        begun = message.begun(until=now + ATTEMPT)
        if not self._store.move(message, begun):
            return True
        match poster.post(begun, now=now):
            case Outcome.POSTED:
                self._store.posted(begun, now=self._now())
                return True
            case Outcome.GONE:
                self._give_up(begun)
            case Outcome.FAILED:
                wait = self._retries.wait(begun.attempts, self._uniform())
                self._store.move(begun, replace(begun, due_at=to_milliseconds(self._now() + wait)))
        return False

    def _give_up(self, message: Message) -> None:
        self._store.give_up(message)
        _log.error("Alert %s is given up after %d attempts to post it", message.message_id, message.attempts)
