"""Billing's OpenAPI 3.1 document."""

from __future__ import annotations

from billing.event_status import Status
from billing.events import REJECTIONS_MAX
from billing.openapi_invoices import (
    INVOICE_PATH,
    STYLESHEET_PATH,
    invoice_operation,
    invoice_schemas,
    stylesheet_operation,
)
from billing.openapi_parts import AS_OF, CURSOR, EXAMPLE_AS_OF, NEXT_CURSOR, USAGE, operation, path, query
from billing.openapi_status import status_paths, status_schemas
from billing.openapi_usage import usage_paths, usage_schemas
from billing.parameters import PAGE_LIMIT_DEFAULT, PAGE_LIMIT_MAX, cursor_after
from metering.events import RECEIPT_PREFIX
from metering.openapi import (
    COUNT,
    EVENT_ID,
    NAME,
    SOURCE,
    TIME,
    Part,
    document,
    json_response,
    nullable,
    record,
    schema_ref,
)
from metering.positions import DIGITS_MAX
from metering.settings import Settings

_INTRODUCTION = """Reads totals and usage by window, and says how current they are.

`as_of`: all events that the stream held at that time are in; null while nothing is known. `lag_ms`: how long ago that
is. Numbers are exact, digit by digit: read them as decimals. A query parameter that is not known, or stands twice, is
refused; an empty one counts as not given. Answers carry `Cache-Control: no-store`."""

_RECEIPT: Part = {
    "type": "string",
    "pattern": rf"^{RECEIPT_PREFIX}[A-Za-z0-9_.-]{{1,128}}:(?:0|[1-9][0-9]{{0,{DIGITS_MAX - 1}}})"
    r":(?:0|[1-9][0-9]{0,4})$",
    "description": "A receipt: what the collector answered for an event without one.",
}


def openapi_document(settings: Settings) -> Part:
    """Return the document of billing with these settings."""
    return document(
        title="Usage billing",
        description=_INTRODUCTION,
        paths={
            "/v1/tenants": {"get": _tenants()},
            **usage_paths(),
            **status_paths(),
            "/v1/tenants/{tenant_id}/events/{event_id}": {"get": _event()},
            INVOICE_PATH: {"get": invoice_operation()},
            STYLESHEET_PATH: {"get": stylesheet_operation()},
        },
        schemas={**_schemas(), **invoice_schemas()},
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


def _event() -> Part:
    event_id = {"oneOf": [{**EVENT_ID, "description": "The client's own."}, _RECEIPT]}
    known = {
        "metric": "api_calls", "value": 10, "timestamp": "2024-01-15T10:00:00Z",
        "counted_at": "2024-01-15T10:00:01.250Z", "shard": "shardId-000000000001",
        "position": "49655555555555555555555555555555555555555555555555555555", "index": 0,
        "duplicates": 1, "conflicts": 0, "last_repeat_at": "2024-01-15T10:00:01.900Z", "voided_at": None,
    }  # fmt: skip
    identity = {"tenant_id": "tenant-123", "event_id": "req-8f2c"}
    rest = {"rejections": [], "more_rejections": False, **EXAMPLE_AS_OF}
    return operation(
        "getEvent",
        "What has become of an event",
        "`counted`, `voided` (taken out again), `rejected`, `pending` (the stream holds it, and it is not counted yet) "
        "or `unknown`. Of a receipt, its place on the stream tells.",
        [
            path("tenant_id", NAME, "tenant-123"),
            path("event_id", event_id, "req-8f2c"),
            query("source", {**SOURCE, "description": "Of a CloudEvent: its source. Not with a receipt."}),
        ],
        json_response(
            "Where it stands.",
            schema_ref("EventStatus"),
            counted={**identity, "status": "counted", **known, **rest},
            unknown={**identity, "status": "unknown", **rest},
        ),
        rules={"invalid_tenant_id", "invalid_event_id", "invalid_source"},
    )


def _schemas() -> Part:
    place = {
        "shard": {"type": "string"},
        "position": {"type": "string", "pattern": "^[0-9]+$", "description": "The sequence number of its record."},
        "index": {**COUNT, "description": "Within its record."},
    }
    rejection = {
        "reason": {"type": "string", "description": "A stable code, as the collector's, or `event_id_conflict`."},
        "detail": {"type": "string"},
        "rejected_at": TIME,
        **place,
        "replayed_at": nullable(TIME),
        "replayed_as": {"type": "array", "items": {"type": "string"}, "description": "The ids that a replay gave."},
    }
    always: Part = {
        "tenant_id": NAME,
        "event_id": {"type": "string"},
        "status": {"enum": [status.value for status in Status]},
    }
    known = {
        "source": SOURCE,
        "metric": nullable(NAME),
        "value": nullable(USAGE),
        "timestamp": {"type": ["string", "null"], "description": "As sent; null: it was sent without one."},
        "counted_at": nullable(TIME),
        **place,
        "duplicates": {**COUNT, "description": "How often it came again, and was not counted."},
        "conflicts": {**COUNT, "description": "How often its id came with other content."},
        "last_repeat_at": nullable(TIME),
        "voided_at": nullable(TIME),
    }
    rejections: dict[str, Part] = {
        "rejections": {"type": "array", "maxItems": REJECTIONS_MAX, "items": schema_ref("Rejection")},
        "more_rejections": {"type": "boolean"},
    }
    status = record({**always, **known, **rejections, **AS_OF}, required=[*always, *rejections, *AS_OF])
    return {
        **usage_schemas(),
        **status_schemas(),
        "EventStatus": {**status, "description": "What is not known of the event is absent."},
        "Rejection": record(rejection),
    }
