"""The billing service: reads totals and says how current they are. The last step of the flow; writes nothing but voids.

Each answer reads the shards' progress first and the totals second. The order carries the promise of as_of,
that all events which the stream held at that time are in. An event of 09:59:30, and both orders:

    consumer            applies the event ─► progress: complete until 10:00
    wrong:   total ─────────────────────────────────────────────────────────► progress
             without the event                                                10:00, and the event is missing
    right:   progress ──────────────────────────────────────────────────────► total
             09:59: promises nothing of the event                             with the event

The consumer writes rows before progress and all reads are strongly consistent: a total that is read after the
progress holds at least what the progress speaks of.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from flask import Flask, Response

from billing.alert_list import add_alert_list
from billing.alerts_file import alerts_of
from billing.as_of import AsOf
from billing.events import add_events
from billing.export import add_export
from billing.invoices import Invoices, add_invoices
from billing.meters import Measures, add_meters
from billing.openapi import openapi_document
from billing.page_parts import add_page_parts
from billing.pages import add_pages
from billing.plans_file import PLANS_FILE
from billing.quotas import add_quotas
from billing.status import add_status
from billing.tenants import add_tenants
from billing.usage import add_usage
from billing.voiding import VOID_ENDPOINT, add_voiding
from metering.api_keys import Scope
from metering.meters_file import meters_of
from metering.metrics import add_metrics
from metering.openapi import add_openapi
from metering.web import add_health, add_problems
from metering.web_keys import add_api_keys

if TYPE_CHECKING:
    from collections.abc import Callable

    from metering.ports import BillingStore
    from metering.settings import Settings


def _utc_now() -> datetime:
    return datetime.now(UTC)


def create_app(reader: BillingStore, settings: Settings, *, now: Callable[[], datetime] = _utc_now) -> Flask:
    """Return the WSGI application that reads through `reader`, and voids through it.

    settings: `stream` names the stream whose progress decides as_of; `api_keys_file` who may read, for which tenants: a
    path's `<tenant_id>` is checked before its view runs. now: the clock, aware UTC.
    Raises InvalidSettingError for an API_KEYS_FILE, METERS_FILE, PLANS_FILE or ALERTS_FILE that can't be used.
    """
    app = Flask("billing", static_folder=None)
    app.url_map.merge_slashes = False  # an empty tenant is not found; it does not redirect to another path
    add_metrics(app, service="billing")
    add_problems(app)
    add_page_parts(app)
    add_api_keys(app, settings, scope=Scope.READ, endpoint_scopes={VOID_ENDPOINT: Scope.VOID})
    add_health(app, reader.check)
    add_openapi(app, openapi_document(settings))
    add_events(app, reader, settings.stream, now)
    add_status(app, reader, settings.stream, now)
    as_of = AsOf(reader, settings.stream, wait_ms=settings.min_as_of_wait_ms, now=now)
    meters = meters_of(settings) if settings.meters_file else None
    measures = Measures(meters)
    add_meters(app, meters)
    add_tenants(app, reader, as_of)
    add_usage(app, reader, as_of, measures, window_minutes=settings.window_minutes, now=now)
    plans = PLANS_FILE.read(settings.plans_file) if settings.plans_file else None
    invoices = Invoices(reader, plans, measures, window_minutes=settings.window_minutes)
    add_invoices(app, invoices, as_of)
    add_pages(app, reader, settings, invoices, measures, now=now)
    add_export(app, reader, as_of, measures, window_minutes=settings.window_minutes)
    add_alert_list(app, reader, as_of)
    add_quotas(app, reader, alerts_of(settings, now=now()), as_of, measures, now=now)
    add_voiding(app, reader, settings.stream, now)

    @app.after_request
    def _no_store(response: Response) -> Response:
        response.headers["Cache-Control"] = "no-store"
        return response

    return app
