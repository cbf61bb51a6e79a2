"""GET /v1/tenants/{t}/invoice?period=2024-01: what a tenant owes for a month, as JSON, CSV or a page to print.

The progress is read first and the usage second, see billing.app for why. An invoice of a month that is not over, or
whose last events are not in yet, is a preview: `complete` is false until as_of has passed the period's end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from flask import Blueprint, Response, render_template, request

from billing.answers import answer, freshness_members
from billing.forms import Form, asked_form
from billing.invoice_forms import invoice_csv, invoice_members, slice_words
from billing.invoicing import make_invoice
from billing.parameters import query_parameters
from billing.plans import PERIODS_ALLOWED, Period, parse_period, parts
from billing.plans_file import read_plans
from metering.events import decimal_text, parse_name
from metering.local_time import Span
from metering.web import ProblemError
from metering.windows import refuse_zone_unaligned, usage_in

if TYPE_CHECKING:
    from collections.abc import Mapping
    from decimal import Decimal

    from flask import Flask

    from billing.as_of import AsOf
    from billing.freshness import Freshness
    from billing.invoicing import Invoice
    from billing.plans import Part, Plans
    from metering.ports import BillingReader
    from metering.settings import Settings

INVOICE_FORMS = tuple(Form)

_PAGE_HEADERS = {
    # Nothing runs, and nothing but the stylesheet is loaded, whatever stands in a name.
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


def add_invoices(app: Flask, reader: BillingReader, settings: Settings, as_of: AsOf) -> None:
    """Add invoices to `app`, by the plans of PLANS_FILE; without it each is a 404 that says so.

    Raises InvalidSettingError for a file that can't be used.
    """
    plans = read_plans(settings.plans_file) if settings.plans_file else None
    pages = Blueprint("invoices", __name__, template_folder="templates", static_folder="static")

    @pages.get("/v1/tenants/<tenant_id>/invoice")
    def invoice(tenant_id: str) -> Response:
        parameters = query_parameters(request.args, "period", "format", "min_as_of")
        tenant_id = parse_name(tenant_id, "tenant_id")
        form = asked_form(parameters, INVOICE_FORMS)
        period = _period(parameters)
        if plans is None:
            raise ProblemError(404, "no_price_plans", "there are no price plans: PLANS_FILE names the file of them")
        _refuse_cut_windows(plans, parts(plans, tenant_id, period), settings.window_minutes)
        known = as_of.read(parameters)  # before the reads below
        metrics = [total.metric for total in reader.totals(tenant_id)]
        if not metrics and tenant_id not in plans.tenants:
            detail = f"no event of tenant {tenant_id} has been counted, and PLANS_FILE does not name it"
            raise ProblemError(404, "tenant_not_found", detail, **freshness_members(known))

        def usage_of(metric: str, part: Part) -> Decimal:
            return usage_in(reader, tenant_id, metric, part.start, part.end).usage

        made = make_invoice(plans, tenant_id, period, metrics=metrics, usage_of=usage_of)
        complete = known.as_of is not None and known.as_of >= made.fees[-1].part.end
        response = _answer(made, known, form, complete=complete)
        response.headers["Vary"] = "Accept"
        return response

    app.register_blueprint(pages)


def _period(parameters: Mapping[str, str]) -> Period:
    period = parse_period(parameters.get("period", ""))
    if period is None:
        raise ProblemError(400, "invalid_period", f"period must be {PERIODS_ALLOWED}", parameter="period")
    return period


def _refuse_cut_windows(plans: Plans, period_parts: tuple[Part, ...], window_minutes: int) -> None:
    """Raise InvalidRangeError where a local midnight lies within a window, whose usage is one sum."""
    spans = [Span(part.start, part.end) for part in period_parts]
    refuse_zone_unaligned(spans, plans.timezone, window_minutes=window_minutes, parameter=None)


def _answer(invoice: Invoice, known: Freshness, form: Form, *, complete: bool) -> Response:
    if form is Form.JSON:
        return answer({**invoice_members(invoice), "complete": complete}, known)
    current = freshness_members(known)
    if form is Form.CSV:
        content = invoice_csv(invoice, {"complete": complete, **current})
        name = f"invoice-{invoice.period}.csv"  # a tenant's name may be in any script, and a header may not
        return Response(
            content,
            content_type="text/csv; charset=utf-8",
            headers={"Content-Disposition": f'inline; filename="{name}"'},
        )
    page = render_template(
        "invoice.html",
        invoice=invoice,
        complete=complete,
        as_of=current["as_of"],
        number=decimal_text,
        words=slice_words,
    )
    return Response(page, content_type="text/html; charset=utf-8", headers=_PAGE_HEADERS)
