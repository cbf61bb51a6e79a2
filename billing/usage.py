"""The figures: totals, and usage in a range of time or by window.

Each view reads the progress first and the figures second; billing.app says why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
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
from metering.events import decimal_text, parse_name
from metering.web import ProblemError
from metering.windows import usage_of as usage_of_spans

if TYPE_CHECKING:
    from flask import Flask, Response

    from billing.as_of import AsOf
    from billing.freshness import Freshness
    from billing.meters import Measures, UsageOf
    from metering.ports import BillingReader, Total
    from metering.windows import UsageWindow

FIGURES_PARAMETERS = ("format", "min_as_of")
TOTAL_COLUMNS = ("tenant_id", "metric", "usage", "events", "last_updated")
WINDOW_COLUMNS = ("tenant_id", "metric", "start", "end", "usage", "events")


def add_usage(
    app: Flask,
    reader: BillingReader,
    as_of: AsOf,
    measures: Measures,
    *,
    window_minutes: int,
    now: Callable[[], datetime],
) -> None:
    """Add the figures to `app`. window_minutes: USAGE_WINDOW_MINUTES; now: the clock, aware UTC."""
    _add_totals(app, reader, as_of, measures)
    total_columns, window_columns = TOTAL_COLUMNS + measures.columns, WINDOW_COLUMNS + measures.columns

    @app.get("/v1/tenants/<tenant_id>/usage/<metric>")
    def usage(tenant_id: str, metric: str) -> Response:
        parameters = query_parameters(request.args, *RANGE_PARAMETERS, *PAGE_PARAMETERS, *FIGURES_PARAMETERS)
        form = asked_form(parameters)
        tenant_id, metric = parse_name(tenant_id, "tenant_id"), parse_name(metric, "metric")
        asked = asked_range(parameters, tenant_id, metric, window_minutes=window_minutes)
        windows_max = page_limit(parameters, default=WINDOWS_DEFAULT, most=WINDOWS_MAX)
        known = as_of.read(parameters)
        if asked is None:
            total = _known_total(reader, tenant_id, metric, measures, known)
            if form is Form.CSV:
                return csv_answer(total_columns, [_total_line(measures, total)], known)
            return answer({"tenant_id": tenant_id, **_total_members(measures, total)}, known)
        if "cursor" in parameters:
            page = page_after(asked, parameters["cursor"], windows_max=windows_max, window_minutes=window_minutes)
        else:
            whole = resolved(asked, reader.window_ends(tenant_id, metric) if asked.is_open else None, now=now())
            page = first_page(asked, whole, windows_max=windows_max, window_minutes=window_minutes)
        found = usage_of_spans(reader, tenant_id, metric, page.spans)
        usage = measures.usage(metric, found)
        if usage is None:
            # Up to the end of the range, not of the page: complete_from is said of the range.
            windows = reader.windows(tenant_id, metric, start=found[0].start, end=page.whole.end)
            raise measures.incomplete(metric, freshness_members(known), windows)
        if not any(window.events for window in found):
            _existing_total(reader, tenant_id, metric, known)  # a range without rows is zeros, an unknown counter not
        if form is Form.CSV:
            lines = _window_lines(asked, page, found, tenant_id, metric, measures=measures)
            return csv_answer(window_columns, lines, known, next_cursor=page.cursor)
        members = {"usage": exact_number(usage), **measures.members(metric)}
        members |= _range_members(asked, page, found, measures.usage_by_window(metric))
        return answer({"tenant_id": tenant_id, "metric": metric, **members}, known)


def _add_totals(app: Flask, reader: BillingReader, as_of: AsOf, measures: Measures) -> None:
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
            return csv_answer(
                TOTAL_COLUMNS + measures.columns, (_total_line(measures, total) for total in found), known
            )
        return answer({"tenant_id": tenant_id, "totals": [_total_members(measures, total) for total in found]}, known)


def _existing_total(reader: BillingReader, tenant_id: str, metric: str, known: Freshness) -> Total:
    found = reader.total(tenant_id, metric)
    if found is None:
        detail = f"no event of tenant {tenant_id} and metric {metric} has been counted"
        raise _never_seen("metric_not_found", detail, known)
    return found


def _known_total(reader: BillingReader, tenant_id: str, metric: str, measures: Measures, known: Freshness) -> Total:
    total = _existing_total(reader, tenant_id, metric, known)
    if measures.usage(metric, [total]) is None:
        raise measures.incomplete(metric, freshness_members(known))
    return total


def _never_seen(code: str, detail: str, known: Freshness) -> ProblemError:
    # As of when: who has just sent an event sees from it whether to ask again.
    return ProblemError(404, code, detail, **freshness_members(known))


def _total_members(measures: Measures, total: Total) -> dict[str, Any]:
    usage = measures.usage(total.metric, [total])
    return {
        "metric": total.metric,
        "usage": None if usage is None else exact_number(usage),
        **measures.members(total.metric),
        "events": total.events,
        "last_updated": time_member(total.last_updated),
    }


def _total_line(measures: Measures, total: Total) -> tuple[str | int, ...]:
    usage = measures.usage(total.metric, [total])
    text = "" if usage is None else decimal_text(usage)
    updated = time_member(total.last_updated) or ""
    return (total.tenant_id, total.metric, text, total.events, updated, *measures.cells(total.metric))


def _range_members(asked: AskedRange, page: Page, found: Sequence[UsageWindow], usage_of: UsageOf) -> dict[str, Any]:
    members: dict[str, Any] = {
        "events": sum(window.events for window in found),
        "from": local_text(page.whole.start, asked.zone),
        "to": local_text(page.whole.end, asked.zone),
        "timezone": asked.zone.key,
    }
    if asked.period is not None:
        members |= {
            "window": asked.period.value,
            "windows": list(_window_members(asked, found, usage_of)),
            "next_cursor": page.cursor,
        }
    return members


def _window_members(asked: AskedRange, found: Sequence[UsageWindow], usage_of: UsageOf) -> Iterator[Mapping[str, Any]]:
    for (start, end), window in zip(_local_texts(asked, found), found, strict=True):
        yield {"start": start, "end": end, "usage": exact_number(usage_of(window)), "events": window.events}


def _window_lines(
    asked: AskedRange, page: Page, found: Sequence[UsageWindow], tenant_id: str, metric: str, *, measures: Measures
) -> Iterator[tuple[str | int, ...]]:
    cells, usage_of = measures.cells(metric), measures.usage_by_window(metric)
    if asked.period is None and not found:
        border = local_text(page.whole.start, asked.zone)
        yield (tenant_id, metric, border, border, "0", 0, *cells)
    for (start, end), window in zip(_local_texts(asked, found), found, strict=True):
        yield (tenant_id, metric, start, end, decimal_text(usage_of(window)), window.events, *cells)


def _local_texts(asked: AskedRange, found: Sequence[UsageWindow]) -> Iterator[tuple[str, str]]:
    """Yield start and end of each window as text; where one ends the next begins."""
    if found:
        start = local_text(found[0].start, asked.zone)
        for window in found:
            end = local_text(window.end, asked.zone)
            yield start, end
            start = end
