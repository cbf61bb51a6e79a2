"""GET /tenants/{t}: a month of a tenant, how it came about by day, and what it costs, as a page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from typing import TYPE_CHECKING

from flask import Response, request

from billing.answers import freshness_members
from billing.charts import Bar, bar_chart
from billing.freshness import freshness
from billing.invoice_forms import share_words, slice_words
from billing.invoices import Invoices
from billing.page_parts import grouped, page
from billing.parameters import period_asked, query_parameters
from billing.plans import YEAR_MAX, YEAR_MIN, Period, period_at
from metering import local_time
from metering.errors import InvalidRangeError
from metering.events import parse_name
from metering.local_time import first_moment, local, zone_named
from metering.web import ProblemError
from metering.windows import refuse_zone_unaligned, usage_of

if TYPE_CHECKING:
    from zoneinfo import ZoneInfo

    from flask import Flask
    from markupsafe import Markup

    from billing.freshness import Freshness
    from billing.invoicing import Invoice
    from billing.meters import Measures
    from metering.ports import BillingReader, Total
    from metering.settings import Settings

REJECTED_SHOWN_MAX = 20


@dataclass(frozen=True, slots=True)
class Day:
    """A local day: what the chart shows, and the table beside it exactly."""

    day: date
    usage: Decimal
    events: int


@dataclass(frozen=True, slots=True)
class Month:
    """One metric in a month. days: those of it, in order; none when usage is not known, and `why_none` says why."""

    metric: str
    usage: Decimal | None
    events: int
    days: Sequence[Day] = ()
    why_none: str | None = None

    @property
    def chart(self) -> Markup | None:
        """None when there is nothing to draw."""
        bars = [Bar(str(each.day.day), f"{each.day}: {grouped(each.usage)}", each.usage) for each in self.days]
        drawn = any(bar.value for bar in bars)
        return bar_chart(bars, title_id="month-chart", label_every=5) if drawn else None


@dataclass(frozen=True, slots=True)
class Preview:
    """What the month costs. invoice: None when there is none, and `why_none` says why."""

    invoice: Invoice | None
    complete: bool = False
    why_none: str | None = None


def add_tenant_page(
    app: Flask,
    reader: BillingReader,
    settings: Settings,
    invoices: Invoices,
    measures: Measures,
    *,
    now: Callable[[], datetime],
) -> None:
    """Add the page to `app`; arguments as of billing.pages.add_pages."""
    zone_default = "UTC" if invoices.plans is None else invoices.plans.timezone

    @app.get("/tenants/<tenant_id>")
    def tenant_page(tenant_id: str) -> Response:
        parameters = query_parameters(request.args, "period", "metric", "timezone")
        tenant_id = parse_name(tenant_id, "tenant_id")
        moment = now()
        zone = zone_named(parameters.get("timezone", zone_default))
        period = period_asked(parameters, default=str(period_at(moment, zone.key)))
        spans = _day_spans(period, zone)
        refuse_zone_unaligned(spans, zone.key, window_minutes=settings.window_minutes)
        shards = reader.progress(settings.stream)  # before the reads below
        known = freshness(shards, now=moment)
        totals = reader.totals(tenant_id)
        rejected = reader.newest_rejections(tenant_id, limit=REJECTED_SHOWN_MAX)
        if not (totals or rejected or (invoices.plans and tenant_id in invoices.plans.tenants)):
            raise _not_on_page("tenant_not_found", f"no event of tenant {tenant_id} has been counted", known)
        metric = _asked_metric(parameters, tenant_id, totals, known)
        return page(
            "tenant.html",
            title=f"{tenant_id}, {period}",
            tenant_id=tenant_id,
            period=period,
            neighbours=_neighbours(period),
            zone=zone.key,
            known=known,
            totals=[(total, measures.usage(total.metric, [total])) for total in totals],
            units={total.metric: measures.members(total.metric).get("unit") for total in totals},
            month=_month(reader, measures, (tenant_id, metric), spans, zone) if metric else None,
            preview=_preview(invoices, tenant_id, period, known),
            words=slice_words,
            share=share_words,
            rejected=rejected,
        )


def _day_spans(period: Period, zone: ZoneInfo) -> list[local_time.Span]:
    start, end = first_moment(period.first_day, zone), first_moment(period.next_first_day, zone)
    return list(local_time.spans(start, end, local_time.Period.DAY, zone))


def _asked_metric(
    parameters: Mapping[str, str], tenant_id: str, totals: Sequence[Total], known: Freshness
) -> str | None:
    """Return the metric that is asked for, else the first; None for a tenant without events."""
    metrics = [total.metric for total in totals]
    if "metric" not in parameters:
        return metrics[0] if metrics else None
    metric = parse_name(parameters["metric"], "metric")
    if metric not in metrics:
        detail = f"no event of tenant {tenant_id} and metric {metric} has been counted"
        raise _not_on_page("metric_not_found", detail, known)
    return metric


def _not_on_page(code: str, detail: str, known: Freshness) -> ProblemError:
    return ProblemError(404, code, detail, **freshness_members(known))


def _month(
    reader: BillingReader,
    measures: Measures,
    counter: tuple[str, str],
    spans: Sequence[local_time.Span],
    zone: ZoneInfo,
) -> Month:
    tenant_id, metric = counter
    found = usage_of(reader, tenant_id, metric, spans)
    usage, events = measures.usage(metric, found), sum(window.events for window in found)
    if usage is None:
        return Month(metric, None, events, why_none=measures.incomplete(metric, {}).detail)
    usage_by_day = measures.usage_by_window(metric)
    days = [Day(local(window.start, zone).date(), usage_by_day(window), window.events) for window in found]
    return Month(metric, usage, events, days)


def _preview(invoices: Invoices, tenant_id: str, period: Period, known: Freshness) -> Preview:
    try:
        invoice, complete = invoices.made(tenant_id, period, known)
    except (ProblemError, InvalidRangeError) as error:  # the rest of the page is as good without it
        return Preview(None, why_none=error.detail)
    return Preview(invoice, complete)


def _neighbours(period: Period) -> tuple[Period | None, Period | None]:
    """Return the months before and after that there can be."""
    before = Period(period.year - (period.month == 1), (period.month - 2) % 12 + 1)
    after = Period(period.next_first_day.year, period.next_first_day.month)
    return before if before.year >= YEAR_MIN else None, after if after.year <= YEAR_MAX else None
