"""The billing service: reads totals and says how current they are. The last step of the flow; writes nothing.

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

from flask import Flask, Response, request

from billing.answers import answer
from billing.as_of import AsOf
from billing.events import add_events
from billing.invoices import add_invoices
from billing.openapi import openapi_document
from billing.parameters import cursor_after, page_limit, page_start, query_parameters
from billing.status import add_status
from billing.usage import add_usage
from metering.api_keys import Scope
from metering.metrics import add_metrics
from metering.openapi import add_openapi
from metering.ports import TenantPage
from metering.web import add_health, add_problems
from metering.web_keys import add_api_keys, key_tenants

if TYPE_CHECKING:
    from collections.abc import Callable
    from collections.abc import Set as AbstractSet

    from metering.ports import BillingReader
    from metering.settings import Settings


def _utc_now() -> datetime:
    return datetime.now(UTC)


def create_app(reader: BillingReader, settings: Settings, *, now: Callable[[], datetime] = _utc_now) -> Flask:
    """Return the WSGI application that reads through `reader`.

    settings: `stream` names the stream whose progress decides as_of; `api_keys_file` who may read, for which tenants: a
    path's `<tenant_id>` is checked before its view runs. now: the clock, aware UTC.
    Raises InvalidSettingError for a key file that can't be used.
    """
    app = Flask("billing", static_folder=None)
    app.url_map.merge_slashes = False  # an empty tenant is not found; it does not redirect to another path
    add_metrics(app, service="billing")
    add_problems(app)
    add_api_keys(app, settings, scope=Scope.READ)
    add_health(app, reader.check)
    add_openapi(app, openapi_document(settings))
    add_events(app, reader, settings.stream, now)
    add_status(app, reader, settings.stream, now)
    as_of = AsOf(reader, settings.stream, wait_ms=settings.min_as_of_wait_ms, now=now)
    add_usage(app, reader, as_of, window_minutes=settings.window_minutes, now=now)
    add_invoices(app, reader, settings, as_of)

    @app.after_request
    def _no_store(response: Response) -> Response:
        response.headers["Cache-Control"] = "no-store"
        return response

    @app.get("/v1/tenants")
    def tenants() -> Response:
        parameters = query_parameters(request.args, "limit", "cursor")
        limit, after = page_limit(parameters), page_start(parameters)
        known = as_of.read({})  # before the read below: see the top
        own = key_tenants()
        page = reader.tenants(limit=limit, after=after) if own is None else _own_page(reader, own, limit, after)
        return answer(
            {
                "tenants": [{"tenant_id": tenant_id} for tenant_id in page.tenant_ids],
                "next_cursor": None if page.cursor is None else cursor_after(page.cursor),
            },
            known,
        )

    return app


def _own_page(reader: BillingReader, own: AbstractSet[str], limit: int, after: str | None) -> TenantPage:
    """Return the page of the directory that would hold no tenants but those of `own`.

    They are looked up one by one: reading the directory to its end would cost what all the others have in it.
    A tenant that has a total is in the directory, since the consumer enters it there first.
    """
    found: list[str] = []
    for tenant_id in sorted(own):  # by code point: the same order as DynamoDB's, of UTF-8 bytes
        if len(found) > limit:
            break
        if (after is None or tenant_id > after) and reader.totals(tenant_id):
            found.append(tenant_id)
    return TenantPage(tuple(found[:limit]), found[limit - 1] if len(found) > limit else None)
