"""The figures: totals, and usage in a range of time or by window.

Each view reads the progress first and the figures second; billing.app says why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from flask import request

from billing.answers import answer, exact_number, freshness_members, time_member
from billing.forms import Form, asked_form, csv_answer
from billing.parameters import page_limit, query_parameters
from billing.ranges import (
    PAGE_PARAMETERS,
    RANGE_PARAMETERS,
    WINDOWS_DEFAULT,
    WINDOWS_MAX,
    AskedRange,
    Page,
    asked_range,
    first_page,
    local_text,
    page_after,
    resolved,
)
from metering.aggregation import EXACT
from metering.events import decimal_text, parse_name
from metering.web import ProblemError
from metering.windows import usage_of

if TYPE_CHECKING:
    from flask import Flask, Response

    from billing.as_of import AsOf
    from billing.freshness import Freshness
    from metering.ports import BillingReader, Total
    from metering.windows import UsageWindow

FIGURES_PARAMETERS = ("format", "min_as_of")
TOTAL_COLUMNS = ("tenant_id", "metric", "usage", "events", "last_updated")
WINDOW_COLUMNS = ("tenant_id", "metric", "start", "end", "usage", "events")


def add_usage(
    app: Flask, reader: BillingReader, as_of: AsOf, *, window_minutes: int, now: Callable[[], datetime]
) -> None:
    """Add the figures to `app`. window_minutes: USAGE_WINDOW_MINUTES; now: the clock, aware UTC."""

    @app.get("/v1/tenants/<tenant_id>/usage")
    def totals(tenant_id: str) -> Response:
        parameters = query_parameters(request.args, *FIGURES_PARAMETERS)
        form = asked_form(parameters)
        tenant_id = parse_name(tenant_id, "tenant_id")
        known = as_of.read(parameters)
        found = reader.totals(tenant_id)
        if not found:
            # Not an empty list: a mistyped tenant must not read as one that owes nothing.
            raise _never_seen("tenant_not_found", f"no event of tenant {tenant_id} has been counted", known)
        if form is Form.CSV:
            return csv_answer(TOTAL_COLUMNS, map(_total_line, found), known)
        return answer({"tenant_id": tenant_id, "totals": [_total_members(total) for total in found]}, known)

    @app.get("/v1/tenants/<tenant_id>/usage/<metric>")
    def usage(tenant_id: str, metric: str) -> Response:
        parameters = query_parameters(request.args, *RANGE_PARAMETERS, *PAGE_PARAMETERS, *FIGURES_PARAMETERS)
        form = asked_form(parameters)
        tenant_id, metric = parse_name(tenant_id, "tenant_id"), parse_name(metric, "metric")
        asked = asked_range(parameters, tenant_id, metric, window_minutes=window_minutes)
        windows_max = page_limit(parameters, default=WINDOWS_DEFAULT, most=WINDOWS_MAX)
        known = as_of.read(parameters)
        if asked is None:
            total = _existing_total(reader, tenant_id, metric, known)
            if form is Form.CSV:
                return csv_answer(TOTAL_COLUMNS, [_total_line(total)], known)
            return answer({"tenant_id": tenant_id, **_total_members(total)}, known)
        if "cursor" in parameters:
            page = page_after(asked, parameters["cursor"], windows_max=windows_max, window_minutes=window_minutes)
        else:
            is_open = asked.start is None or asked.end is None
            whole = resolved(asked, reader.window_ends(tenant_id, metric) if is_open else None, now=now())
            page = first_page(asked, whole, windows_max=windows_max, window_minutes=window_minutes)
        found = usage_of(reader, tenant_id, metric, page.spans)
        if not any(window.events for window in found):
            _existing_total(reader, tenant_id, metric, known)  # a range without rows is zeros, an unknown counter not
        if form is Form.CSV:
            return csv_answer(
                WINDOW_COLUMNS, _window_lines(asked, page, found, tenant_id, metric), known, next_cursor=page.cursor
            )
        return answer({"tenant_id": tenant_id, "metric": metric, **_range_members(asked, page, found)}, known)


def _existing_total(reader: BillingReader, tenant_id: str, metric: str, known: Freshness) -> Total:
    found = reader.total(tenant_id, metric)
    if found is None:
        detail = f"no event of tenant {tenant_id} and metric {metric} has been counted"
        raise _never_seen("metric_not_found", detail, known)
    return found


def _never_seen(code: str, detail: str, known: Freshness) -> ProblemError:
    # As of when: who has just sent an event sees from it whether to ask again.
    return ProblemError(404, code, detail, **freshness_members(known))


def _total_members(total: Total) -> dict[str, Any]:
    return {
        "metric": total.metric,
        "usage": exact_number(total.usage),
        "events": total.events,
        "last_updated": time_member(total.last_updated),
    }


def _total_line(total: Total) -> tuple[str | int, ...]:
    updated = time_member(total.last_updated) or ""
    return (total.tenant_id, total.metric, decimal_text(total.usage), total.events, updated)


def _range_members(asked: AskedRange, page: Page, found: Sequence[UsageWindow]) -> dict[str, Any]:
    usage, events = _sum(found)
    members: dict[str, Any] = {
        "usage": exact_number(usage),
        "events": events,
        "from": local_text(page.whole.start, asked.zone),
        "to": local_text(page.whole.end, asked.zone),
        "timezone": asked.zone.key,
    }
    if asked.period is not None:
        members |= {
            "window": asked.period.value,
            "windows": list(_window_members(asked, found)),
            "next_cursor": page.cursor,
        }
    return members


def _window_members(asked: AskedRange, found: Sequence[UsageWindow]) -> Iterator[Mapping[str, Any]]:
    for (start, end), window in zip(_local_texts(asked, found), found, strict=True):
        yield {"start": start, "end": end, "usage": exact_number(window.usage), "events": window.events}


def _window_lines(
    asked: AskedRange, page: Page, found: Sequence[UsageWindow], tenant_id: str, metric: str
) -> Iterator[tuple[str | int, ...]]:
    if asked.period is None and not found:
        border = local_text(page.whole.start, asked.zone)
        yield (tenant_id, metric, border, border, "0", 0)
    for (start, end), window in zip(_local_texts(asked, found), found, strict=True):
        yield (tenant_id, metric, start, end, decimal_text(window.usage), window.events)


def _local_texts(asked: AskedRange, found: Sequence[UsageWindow]) -> Iterator[tuple[str, str]]:
    """Yield start and end of each window as text; where one ends the next begins."""
    if found:
        start = local_text(found[0].start, asked.zone)
        for window in found:
            end = local_text(window.end, asked.zone)
            yield start, end
            start = end


def _sum(found: Sequence[UsageWindow]) -> tuple[Decimal, int]:
    usage = Decimal(0)
    for window in found:
        usage = EXACT.add(usage, window.usage)
    return usage, sum(window.events for window in found)
