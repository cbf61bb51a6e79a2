"""GET /v1/tenants/{t}/invoice?period=2024-01: what a tenant owes for a month, as JSON, CSV or a page to print.

The progress is read first and the usage second, see billing.app for why. An invoice of a month that is not over, or
whose last events are not in yet, is a preview: `complete` is false until as_of has passed the period's end.

Metrics are read side by side, on threads of invoices alone: each may wait for the parts of its range, which have other
threads (billing.wsgi), and nothing waits for itself.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from flask import Response, request

from billing.answers import answer, freshness_members
from billing.forms import Form, asked_form
from billing.in_order import in_order
from billing.invoice_forms import invoice_csv, invoice_members, share_words, slice_words
from billing.invoicing import make_invoice, needed_usage
from billing.meters import usage_in_range
from billing.page_parts import page
from billing.parameters import period_asked, query_parameters
from billing.plans import Period, parts
from metering.events import parse_name
from metering.local_time import Span
from metering.web import ProblemError
from metering.windows import refuse_zone_unaligned

if TYPE_CHECKING:
    from decimal import Decimal

    from flask import Flask

    from billing.as_of import AsOf
    from billing.freshness import Freshness
    from billing.invoicing import Invoice
    from billing.meters import Measures
    from billing.plans import Part, Plans
    from metering.ports import BillingReader

INVOICE_FORMS = tuple(Form)
INVOICE_THREADS = 4
"""For the metrics that are read side by side, of all invoices together; each holds one connection to DynamoDB."""


class Invoices:
    """Makes invoices of what `reader` has, by the plans of PLANS_FILE. plans: None without it.

    window_minutes: USAGE_WINDOW_MINUTES.
    """

    def __init__(self, reader: BillingReader, plans: Plans | None, measures: Measures, *, window_minutes: int) -> None:
        self._reader = reader
        self.plans = plans
        self._measures = measures
        self._window_minutes = window_minutes
        self._executor = ThreadPoolExecutor(INVOICE_THREADS, "invoice")

    def refuse(self, tenant_id: str, period: Period) -> Plans:
        """Return the plans when they and the windows can make this invoice; raise before anything is read otherwise.

        Raises ProblemError 404 `no_price_plans`, and InvalidRangeError where a local midnight lies within a window,
        whose usage is one sum.
        """
        if self.plans is None:
            raise ProblemError(404, "no_price_plans", "there are no price plans: PLANS_FILE names the file of them")
        spans = [Span(part.start, part.end) for part in parts(self.plans, tenant_id, period)]
        refuse_zone_unaligned(spans, self.plans.timezone, window_minutes=self._window_minutes, parameter=None)
        return self.plans

    def made(self, tenant_id: str, period: Period, known: Freshness) -> tuple[Invoice, bool]:
        """Return the invoice of a month, and whether all of the month's events are in. known: as_of, read before.

        Raises as `refuse` does, ProblemError 404 `tenant_not_found` and 409 `aggregation_incomplete`, and as the
        reader does.
        """
        plans = self.refuse(tenant_id, period)
        metrics = [total.metric for total in self._reader.totals(tenant_id)]
        if not metrics and tenant_id not in plans.tenants:
            detail = f"no event of tenant {tenant_id} has been counted, and PLANS_FILE does not name it"
            raise ProblemError(404, "tenant_not_found", detail, **freshness_members(known))

        def read(needed: tuple[str, Part]) -> Decimal:
            metric, part = needed
            counter, span = (tenant_id, metric), Span(part.start, part.end)
            return usage_in_range(self._reader, self._measures, known, counter, span)

        needed = needed_usage(parts(plans, tenant_id, period), metrics)
        usage = dict(zip(needed, in_order(self._executor, read, needed, ahead_max=INVOICE_THREADS), strict=True))
        made = make_invoice(
            plans,
            tenant_id,
            period,
            metrics=metrics,
            usage_of=lambda metric, part: usage[metric, part],
            is_level=self._measures.is_level,
        )
        return made, known.as_of is not None and known.as_of >= made.fees[-1].part.end


def add_invoices(app: Flask, invoices: Invoices, as_of: AsOf) -> None:
    """Add invoices to `app`; without plans each is a 404 that says so."""

    @app.get("/v1/tenants/<tenant_id>/invoice")
    def invoice(tenant_id: str) -> Response:
        parameters = query_parameters(request.args, "period", "format", "min_as_of")
        tenant_id = parse_name(tenant_id, "tenant_id")
        form = asked_form(parameters, INVOICE_FORMS)
        period = period_asked(parameters)
        invoices.refuse(tenant_id, period)
        known = as_of.read(parameters)  # before the reads below
        made, complete = invoices.made(tenant_id, period, known)
        response = _answer(made, known, form, complete=complete)
        response.headers["Vary"] = "Accept"
        return response


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
    return page(
        "invoice.html",
        title=f"Invoice {invoice.period}, {invoice.tenant_id}",
        invoice=invoice,
        complete=complete,
        as_of=current["as_of"],
        words=slice_words,
        share=share_words,
    )
