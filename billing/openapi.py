"""Billing's OpenAPI 3.1 document."""

from __future__ import annotations

from typing import Any

from billing.event_status import Status
from billing.events import REJECTIONS_MAX
from billing.parameters import PAGE_LIMIT_DEFAULT, PAGE_LIMIT_MAX, cursor_after
from metering.events import RECEIPT_PREFIX
from metering.openapi import (
    COUNT,
    EVENT_ID,
    FIELD,
    KEY_RESPONSES,
    NAME,
    SOURCE,
    TIME,
    Part,
    document,
    json_response,
    nullable,
    problem_response,
    problem_schema,
    record,
    response_ref,
    schema_ref,
)
from metering.positions import DIGITS_MAX
from metering.settings import Settings

_INTRODUCTION = """Reads totals, and says how current they are.

`as_of`: all events that the stream held at that time are in; null while nothing is known. `lag_ms`: how long ago that
is. Numbers are exact, digit by digit: read them as decimals. A query parameter that is not known, or stands twice, is
refused; an empty one counts as not given. Answers carry `Cache-Control: no-store`."""

_AS_OF: Part = {"as_of": nullable(TIME), "lag_ms": nullable(COUNT)}
_USAGE: Part = {"type": "number", "minimum": 0}
_TOTAL: Part = {"metric": NAME, "usage": _USAGE, "events": COUNT, "last_updated": TIME}
_EXAMPLE = {"metric": "api_calls", "usage": 10, "events": 1, "last_updated": "2024-01-15T10:00:01.250Z"}
_EXAMPLE_AS_OF = {"as_of": "2024-01-15T10:00:02.000Z", "lag_ms": 350}


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
            "/v1/tenants/{tenant_id}/usage": {"get": _totals()},
            "/v1/tenants/{tenant_id}/usage/{metric}": {"get": _total()},
            "/v1/tenants/{tenant_id}/events/{event_id}": {"get": _event()},
        },
        schemas=_schemas(),
        responses={},
        resource="table",
        keys_required=settings.api_keys_file is not None,
    )


def _tenants() -> Part:
    parameters = [
        _query("limit", {"type": "integer", "minimum": 1, "maximum": PAGE_LIMIT_MAX, "default": PAGE_LIMIT_DEFAULT}),
        _query("cursor", {"type": "string", "pattern": "^[A-Za-z0-9_-]+$", "description": "A next_cursor, unchanged."}),
    ]
    page: dict[str, Part] = {
        "tenants": {"type": "array", "maxItems": PAGE_LIMIT_MAX, "items": record({"tenant_id": NAME})},
        "next_cursor": {
            "type": ["string", "null"],
            "description": "Of the page after this one; null: there is none.",
        },
    }
    example = {"tenants": [{"tenant_id": "tenant-123"}], "next_cursor": cursor_after("tenant-123"), **_EXAMPLE_AS_OF}
    return _operation(
        "listTenants",
        "Tenants, a page at a time",
        "Those that have had an event; with an API key for some tenants, those of them.",
        parameters,
        json_response("A page.", record({**page, **_AS_OF}), tenants=example),
        bad_request={"unknown_parameter", "repeated_parameter", "invalid_limit", "invalid_cursor"},
    )


def _totals() -> Part:
    totals = {"tenant_id": NAME, "totals": {"type": "array", "minItems": 1, "items": schema_ref("MetricTotal")}}
    example = {"tenant_id": "tenant-123", "totals": [_EXAMPLE], **_EXAMPLE_AS_OF}
    return _operation(
        "getTotals",
        "All totals of a tenant",
        "One for each metric that has had an event.",
        [_path("tenant_id", NAME, "tenant-123")],
        json_response("The totals.", record({**totals, **_AS_OF}), totals=example),
        rules={"invalid_tenant_id"},
        not_found="tenant_not_found",
    )


def _total() -> Part:
    example = {"tenant_id": "tenant-123", **_EXAMPLE, **_EXAMPLE_AS_OF}
    return _operation(
        "getTotal",
        "One total",
        "The usage of one metric of a tenant, over all time.",
        [_path("tenant_id", NAME, "tenant-123"), _path("metric", NAME, "api_calls")],
        json_response("The total.", record({"tenant_id": NAME, **_TOTAL, **_AS_OF}), total=example),
        rules={"invalid_tenant_id", "invalid_metric"},
        not_found="metric_not_found",
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
    rest = {"rejections": [], "more_rejections": False, **_EXAMPLE_AS_OF}
    return _operation(
        "getEvent",
        "What has become of an event",
        "`counted`, `voided` (taken out again), `rejected`, `pending` (the stream holds it, and it is not counted yet) "
        "or `unknown`. Of a receipt, its place on the stream tells.",
        [
            _path("tenant_id", NAME, "tenant-123"),
            _path("event_id", event_id, "req-8f2c"),
            _query("source", {**SOURCE, "description": "Of a CloudEvent: its source. Not with a receipt."}),
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
        "value": nullable(_USAGE),
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
    status = record({**always, **known, **rejections, **_AS_OF}, required=[*always, *rejections, *_AS_OF])
    return {
        "MetricTotal": record(_TOTAL),
        "EventStatus": {**status, "description": "What is not known of the event is absent."},
        "Rejection": record(rejection),
    }


def _query(name: str, schema: Part) -> Part:
    return {"name": name, "in": "query", "allowEmptyValue": True, "schema": schema}


def _path(name: str, schema: Part, example: str) -> Part:
    return {"name": name, "in": "path", "required": True, "schema": schema, "example": example}


def _operation(
    operation_id: str,
    summary: str,
    description: str,
    parameters: list[Part],
    found: Part,
    *,
    bad_request: frozenset[str] | set[str] = frozenset({"unknown_parameter", "repeated_parameter"}),
    rules: frozenset[str] | set[str] = frozenset(),
    not_found: str | None = None,
) -> Part:
    """Return an operation. bad_request, rules: codes of 400 and 422. not_found: that of what was never seen."""
    parameter = {"parameter": {"type": "string", "description": "The parameter at fault."}}
    responses: dict[str, Any] = {
        "200": found,
        "400": problem_response(400, "A query parameter is wrong.", problem_schema(400, bad_request, parameter)),
        **KEY_RESPONSES,
    }
    if any(part["in"] == "path" for part in parameters):
        nowhere = problem_schema(404, {"not_found"})
        never_seen = [problem_schema(404, {not_found}, _AS_OF, always=True)] if not_found else []
        responses["404"] = problem_response(404, "Never seen, or no such path.", nowhere, *never_seen)
    if rules:
        broken = problem_schema(422, rules, {"field": FIELD})
        responses["422"] = problem_response(422, "No event can have this id.", broken)
    return {
        "operationId": operation_id,
        "summary": summary,
        "description": description,
        "parameters": parameters,
        "responses": {**responses, "500": response_ref("InternalError"), "503": response_ref("NotReady")},
    }
