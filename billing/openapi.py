"""Billing's OpenAPI 3.1 document."""

from __future__ import annotations

from billing.openapi_alerts import alert_paths, alert_schemas
from billing.openapi_events import event_paths, event_schemas
from billing.openapi_export import EXPORT_PATH, export_operation, export_schemas
from billing.openapi_invoices import INVOICE_PATH, invoice_operation, invoice_schemas
from billing.openapi_meters import meters_paths
from billing.openapi_pages import page_paths
from billing.openapi_parts import AS_OF, CURSOR, EXAMPLE_AS_OF, NEXT_CURSOR, operation, query
from billing.openapi_status import status_paths, status_schemas
from billing.openapi_usage import usage_paths, usage_schemas
from billing.parameters import PAGE_LIMIT_DEFAULT, PAGE_LIMIT_MAX, cursor_after
from metering.openapi import (
    NAME,
    Part,
    document,
    json_response,
    record,
)
from metering.settings import Settings

_INTRODUCTION = """Reads totals and usage by window, says how current they are, and takes single events out again.

`as_of`: all events that the stream held at that time are in; null while nothing is known. `lag_ms`: how long ago that
is. Numbers are exact, digit by digit: read them as decimals. A query parameter that is not known, or stands twice, is
refused; an empty one counts as not given. Answers carry `Cache-Control: no-store`."""


def openapi_document(settings: Settings) -> Part:
    """Return the document of billing with these settings."""
    return document(
        title="Usage billing",
        description=_INTRODUCTION,
        paths={
            "/v1/tenants": {"get": _tenants()},
            **usage_paths(),
            **meters_paths(),
            **status_paths(),
            **event_paths(),
            **alert_paths(),
            INVOICE_PATH: {"get": invoice_operation()},
            **page_paths(),
            EXPORT_PATH: {"get": export_operation()},
        },
        schemas={
            **usage_schemas(),
            **status_schemas(),
            **event_schemas(),
            **invoice_schemas(),
            **alert_schemas(),
            **export_schemas(),
        },
        responses={},
        resource="table",
        keys_required=settings.api_keys_file is not None,
    )


def _tenants() -> Part:
    parameters = [
        query("limit", {"type": "integer", "minimum": 1, "maximum": PAGE_LIMIT_MAX, "default": PAGE_LIMIT_DEFAULT}),
        query("cursor", CURSOR),
    ]
    page: dict[str, Part] = {
        "tenants": {"type": "array", "maxItems": PAGE_LIMIT_MAX, "items": record({"tenant_id": NAME})},
        "next_cursor": NEXT_CURSOR,
    }
    example = {"tenants": [{"tenant_id": "tenant-123"}], "next_cursor": cursor_after("tenant-123"), **EXAMPLE_AS_OF}
    return operation(
        "listTenants",
        "Tenants, a page at a time",
        "Those that have had an event; with an API key for some tenants, those of them.",
        parameters,
        json_response("A page.", record({**page, **AS_OF}), tenants=example),
        bad_request={"unknown_parameter", "repeated_parameter", "invalid_limit", "invalid_cursor"},
    )
