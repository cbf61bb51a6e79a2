"""What billing's OpenAPI document says of single events."""

from __future__ import annotations

from billing.event_status import Status
from billing.events import REJECTIONS_MAX
from billing.openapi_parts import AS_OF, EXAMPLE_AS_OF, USAGE, operation, path, query
from metering.events import RECEIPT_PREFIX
from metering.openapi import (
    COUNT,
    EVENT_ID,
    NAME,
    SOURCE,
    TIME,
    Part,
    json_response,
    nullable,
    problem_response,
    problem_schema,
    record,
    schema_ref,
)
from metering.positions import DIGITS_MAX
from metering.voids import TEXT_LENGTH_MAX

_RECEIPT: Part = {
    "type": "string",
    "pattern": rf"^{RECEIPT_PREFIX}[A-Za-z0-9_.-]{{1,128}}:(?:0|[1-9][0-9]{{0,{DIGITS_MAX - 1}}})"
    r":(?:0|[1-9][0-9]{0,4})$",
    "description": "A receipt: what the collector answered for an event without one.",
}
_EXAMPLE_EVENT = {
    "metric": "api_calls", "value": 10, "timestamp": "2024-01-15T10:00:00Z",
    "counted_at": "2024-01-15T10:00:01.250Z", "shard": "shardId-000000000001",
    "position": "49655555555555555555555555555555555555555555555555555555", "index": 0,
    "duplicates": 1, "conflicts": 0, "last_repeat_at": "2024-01-15T10:00:01.900Z",
    "voided_at": None, "voided_by": None, "void_reason": None,
}  # fmt: skip
_EXAMPLE_IDENTITY = {"tenant_id": "tenant-123", "event_id": "req-8f2c"}
_EXAMPLE_REST = {"rejections": [], "more_rejections": False, **EXAMPLE_AS_OF}


def event_paths() -> dict[str, Part]:
    """Return the paths of single events, and their operations."""
    return {
        "/v1/tenants/{tenant_id}/events/{event_id}": {"get": _event()},
        "/v1/tenants/{tenant_id}/events/{event_id}/void": {"post": _void()},
    }


def _event_parameters(example: str) -> list[Part]:
    event_id = {"oneOf": [{**EVENT_ID, "description": "The client's own."}, _RECEIPT]}
    return [
        path("tenant_id", NAME, "tenant-123"),
        path("event_id", event_id, example),
        query("source", {**SOURCE, "description": "Of a CloudEvent: its source. Not with a receipt."}),
    ]


def _event() -> Part:
    identity, rest = _EXAMPLE_IDENTITY, _EXAMPLE_REST
    return operation(
        "getEvent",
        "What has become of an event",
        "`counted`, `voided` (taken out again), `rejected`, `pending` (the stream holds it, and it is not counted yet) "
        "or `unknown`. Of a receipt, its place on the stream tells.",
        _event_parameters("req-8f2c"),
        json_response(
            "Where it stands.",
            schema_ref("EventStatus"),
            counted={**identity, "status": "counted", **_EXAMPLE_EVENT, **rest},
            unknown={**identity, "status": "unknown", **rest},
        ),
        rules={"invalid_tenant_id", "invalid_event_id", "invalid_source"},
    )


def _void() -> Part:
    text = {"type": "string", "minLength": 1, "maxLength": TEXT_LENGTH_MAX, "pattern": SOURCE["pattern"]}
    request = record({"by": {**text, "description": "Who voids it."}, "reason": {**text, "description": "Why."}})
    asked = {"by": "ana@example.com", "reason": "sent by a test run"}
    noted = {"voided_at": "2024-01-16T08:00:00.000Z", "voided_by": asked["by"], "void_reason": asked["reason"]}
    voided = {**_EXAMPLE_IDENTITY, "status": "voided", **_EXAMPLE_EVENT, **noted, **_EXAMPLE_REST}
    void = operation(
        "voidEvent",
        "Take a counted event out again",
        "Once, out of its total and its window, whatever is sent again: an event that is voided already stays so, and "
        "the answer is the record of the first time. The id stays taken: the same event, sent again, is a duplicate. "
        "An API key needs the scope `void`.",
        _event_parameters("req-8f2c"),
        json_response("It is voided.", schema_ref("EventStatus"), voided=voided),
        bad_request={"unknown_parameter", "repeated_parameter", "malformed_json", "bad_request"},
        rules={
            "invalid_tenant_id", "invalid_event_id", "invalid_source",
            "invalid_void", "unknown_field", "missing_field", "invalid_by", "invalid_reason",
        },
        not_found="event_not_found",
    )  # fmt: skip
    conflict = problem_response(
        409,
        "It can't be voided: rejected and never counted, or a receipt, or its claim or rows do not tell enough; or it "
        "is not counted yet (`event_pending`), and Retry-After says when to ask again.",
        problem_schema(409, {"event_rejected", "event_pending", "not_voidable"}, AS_OF),
    )
    conflict["headers"] = {"Retry-After": {"schema": {"type": "integer", "minimum": 1}}}
    return {
        **void,
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {**request, "additionalProperties": False},
                    "examples": {"test": {"value": asked}},
                }
            },
        },
        "responses": {
            **void["responses"],
            "409": conflict,
            "413": problem_response(413, "The body is too long.", problem_schema(413, {"too_large"})),
            "415": problem_response(415, "The body is no JSON.", problem_schema(415, {"unsupported_media_type"})),
        },
    }


def event_schemas() -> Part:
    """Return the schemas that these operations refer to."""
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
        "voided_by": {"type": ["string", "null"]},
        "void_reason": {"type": ["string", "null"]},
    }
    rejections: dict[str, Part] = {
        "rejections": {"type": "array", "maxItems": REJECTIONS_MAX, "items": schema_ref("Rejection")},
        "more_rejections": {"type": "boolean"},
    }
    status = record({**always, **known, **rejections, **AS_OF}, required=[*always, *rejections, *AS_OF])
    return {
        "EventStatus": {**status, "description": "What is not known of the event is absent."},
        "Rejection": record(rejection),
    }
