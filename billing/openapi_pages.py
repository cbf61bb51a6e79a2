"""Billing's OpenAPI document: the pages, and what they load."""

from __future__ import annotations

from typing import Any

from billing.openapi_invoices import MONTH
from billing.openapi_parts import AS_OF, CURSOR, WINDOW_MINUTES, operation, path, query
from billing.plans import PERIODS_ALLOWED
from metering.openapi import NAME, Part, problem_response, problem_schema, response_ref

STATIC_FILES = {"icon.svg": "image/svg+xml", "pages.css": "text/css"}
_PAGE: Part = {"description": "A page.", "content": {"text/html": {"schema": {"type": "string"}}}}
_LOCATION: Part = {"Location": {"required": True, "schema": {"type": "string"}}}
_PARAMETERS = {"unknown_parameter", "repeated_parameter"}
_ZONES = {"invalid_timezone", "timezone_needs_smaller_windows", "time_out_of_range", "range_cuts_rows"}


def page_paths() -> Part:
    """Return the operations."""
    return {
        "/": {"get": _home()},
        "/tenants/{tenant_id}": {"get": _tenant()},
        "/static/{filename}": {"get": _static_file()},
    }


def _home() -> Part:
    found: Part = {"303": {"description": "To the page of the tenant that `tenant` names.", "headers": _LOCATION}}
    broken = problem_schema(422, {"invalid_tenant_id"}, {"field": {"type": "string"}})
    found["422"] = problem_response(422, "No tenant can have this id.", broken)
    return operation(
        "getTenantsPage",
        "The tenants, and how the pipeline is doing, as a page",
        "An error is a page too for an Accept that prefers text/html.",
        [query("tenant", NAME), query("cursor", CURSOR)],
        _PAGE,
        bad_request=_PARAMETERS | {"invalid_cursor"},
        others=found,
    )


def _tenant() -> Part:
    month: Part = {
        "type": "string",
        "pattern": MONTH,
        "description": f"{PERIODS_ALLOWED}; by default the one that it is.",
    }
    zone: Part = {"type": "string", "description": "An IANA name; by default that of the price plans, or UTC."}
    nowhere = problem_schema(404, {"not_found"})
    never_seen = problem_schema(404, {"tenant_not_found", "metric_not_found"}, AS_OF, always=True)
    others: dict[str, Any] = {"404": problem_response(404, "Never seen, or no such path.", nowhere, never_seen)}
    return operation(
        "getTenantPage",
        "A month of a tenant, as a page",
        "An error is a page too for an Accept that prefers text/html.",
        [path("tenant_id", NAME, "tenant-123"), query("period", month), query("metric", NAME), query("timezone", zone)],
        _PAGE,
        bad_request=_PARAMETERS | _ZONES | {"invalid_period"},
        bad_request_members={"window_minutes": WINDOW_MINUTES},
        rules={"invalid_tenant_id", "invalid_metric"},
        others=others,
    )


def _static_file() -> Part:
    """Needs no key: a browser that loads it has none."""
    text: Part = {"schema": {"type": "string"}}
    return {
        "operationId": "getStaticFile",
        "summary": "What the pages load",
        "security": [],
        "parameters": [
            {
                "name": "filename",
                "in": "path",
                "required": True,
                "schema": {"enum": sorted(STATIC_FILES)},
                "example": "pages.css",
            }
        ],
        "responses": {
            "200": {"description": "The file.", "content": dict.fromkeys(sorted(STATIC_FILES.values()), text)},
            "404": response_ref("NotFound"),
            "500": response_ref("InternalError"),
        },
    }
