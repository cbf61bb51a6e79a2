"""Alerts and quotas: which usage is watched, over which periods, and which thresholds it has reached. Pure.

Where it sits: alerts_file reads ALERTS_FILE into these; alerting looks at the usage, quotas answers from the limits.

A period is a day or a month on the file's clock. Around its end two are watched, and more while as_of is further
behind; this is for how long:

    as_of                  ───────────────── end of n ──────── end + LATE ───────►
    n is looked at         ════════════════════╪══════════════════╪═╡ until one look was done with such an as_of
    n + 1 is looked at                         ╞══════════════════╪════════════════
    alerts of n                        open    │ resolved

as_of passes the end only when all events are in that the stream held then. What clients send later, within LATE, is
looked at too, and an alert that it raises is resolved at once. What comes even later is billed, and raises none. A
runner that has just been started has done no such look yet: it looks at the period before, whatever as_of is, and at
all that as_of has not left behind. Only those in between are never looked at, where nobody did for longer than a
period.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal

from metering.alerts import WatchedPeriod
from metering.local_time import Period, Span, ceiling, floor, spans, zone_named
from metering.windows import refuse_zone_unaligned

LATE = timedelta(hours=1)
"""For how long after its end a period is still looked at, by as_of."""
_MOMENT = timedelta(microseconds=1)
STREAM_KEEPS_MAX = timedelta(days=365)
"""How long Kinesis holds a record at most: an as_of further back than that lets nothing come in any more."""
_CHECKED_AHEAD = timedelta(days=400)
"""Both changes of the clock of a year lie in it."""


@dataclass(frozen=True, slots=True)
class AlertRule:
    """An alert of the file. tenants: whom it watches, in their order; None: all. thresholds: above 0, rising."""

    name: str
    tenants: tuple[str, ...] | None
    metric: str
    period: Period
    thresholds: tuple[Decimal, ...]


@dataclass(frozen=True, slots=True)
class Quota:
    """How much of a metric a tenant may use in a period."""

    metric: str
    period: Period
    limit: Decimal


@dataclass(frozen=True, slots=True)
class Alerts:
    """All that ALERTS_FILE says. own_quotas: by tenant and metric; default_quotas: by metric, for all other tenants."""

    timezone: str = "UTC"
    rules: tuple[AlertRule, ...] = ()
    own_quotas: Mapping[tuple[str, str], Quota] | None = None
    default_quotas: Mapping[str, Quota] | None = None

    def quota(self, tenant_id: str, metric: str) -> Quota | None:
        """Return the tenant's own quota, else that of all, else None."""
        own = (self.own_quotas or {}).get((tenant_id, metric))
        return own or (self.default_quotas or {}).get(metric)

    def period_of(self, period: Period, moment: datetime) -> Span:
        """Return the day or month that holds `moment` (aware UTC) on the file's clock."""
        zone = zone_named(self.timezone)
        return Span(floor(moment, period, zone), ceiling(moment, period, zone))


NO_ALERTS = Alerts()
"""Without ALERTS_FILE: nothing is watched, nothing is limited."""


def watched_spans(
    alerts: Alerts, rule: AlertRule, *, now: datetime, as_of: datetime | None, looked_as_of: datetime | None
) -> list[Span]:
    """Return the periods of a rule that are to be looked at, oldest first: those that are not over, and this one.

    now: aware UTC. as_of: of this look, None when it is not known. looked_as_of: the last one that a whole look had,
    None when there was none.
    """
    found = [alerts.period_of(rule.period, now)]
    if looked_as_of is None:
        found.append(_before(alerts, rule, found[-1]))
    reached = as_of if looked_as_of is None else looked_as_of
    if reached is not None:
        over = max(reached - LATE, now - STREAM_KEEPS_MAX)
        while (before := _before(alerts, rule, found[-1])).end > over:
            found.append(before)
    return found[::-1]


def _before(alerts: Alerts, rule: AlertRule, span: Span) -> Span:
    return alerts.period_of(rule.period, span.start - _MOMENT)


def watched(alerts: Alerts, rule: AlertRule, tenant_id: str, span: Span) -> WatchedPeriod:
    """Return what is looked at of one tenant."""
    return WatchedPeriod(tenant_id, rule.name, rule.metric, rule.period, alerts.timezone, span.start, span.end)


def newly_crossed(thresholds: Sequence[Decimal], usage: Decimal, recorded: Collection[Decimal]) -> list[Decimal]:
    """Return the thresholds that usage has reached, rising, without those that are recorded."""
    return [threshold for threshold in thresholds if usage >= threshold and threshold not in recorded]


def refuse_alerts_unaligned(alerts: Alerts, *, window_minutes: int, now: datetime) -> None:
    """Raise InvalidRangeError `timezone_needs_smaller_windows` when rows of usage can't tell the zone's days apart.

    window_minutes: USAGE_WINDOW_MINUTES. The days are those from the month before `now` (aware UTC) on, over a year: a
    zone's offset may be another in summer.
    """
    zone = zone_named(alerts.timezone)
    start = alerts.period_of(Period.MONTH, alerts.period_of(Period.MONTH, now).start - _MOMENT).start
    days = list(spans(start, now + _CHECKED_AHEAD, Period.DAY, zone))[:-1]  # the last one is cut off
    refuse_zone_unaligned(days, alerts.timezone, window_minutes=window_minutes, parameter=None)
