"""The collector's OpenAPI 3.1 document: every form that POST /v1/usage takes, and every answer that it gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from collector.bodies import BODY_BYTES_MAX, LINE_BYTES_MAX
from metering.cloudevents import EXTENSIONS
from metering.openapi import (
    COUNT,
    EVENT_ID,
    FIELD,
    KEY_RESPONSES,
    NAME,
    SOURCE,
    TIMESTAMP,
    VALUE,
    Part,
    document,
    json_response,
    named,
    nullable,
    problem_response,
    problem_schema,
    record,
    response_ref,
    schema_ref,
    unavailable_codes,
)
from metering.outgoing import BATCH_EVENTS_MAX
from metering.settings import Settings

RULE_CODES = frozenset(
    {
        "invalid_data", "invalid_event", "invalid_event_id", "invalid_metric", "invalid_source", "invalid_specversion",
        "invalid_tenant_id", "invalid_timestamp", "invalid_value", "missing_field", "negative_value",
        "timestamp_in_future", "timestamp_too_old", "unknown_field", "unknown_metric",
    }
)  # fmt: skip
"""Of the rules that an event may break."""
RESULT_CODES = RULE_CODES | {"forbidden_tenant", "malformed_json", "too_large"}
"""Of an event among several: what would refuse a request with one event refuses that event alone."""

EVENT = {"tenant_id": "tenant-123", "metric": "api_calls", "value": 10, "timestamp": "2024-01-15T10:00:00Z"}
CLOUD_EVENT = {
    "specversion": "1.0",
    "id": "req-8f2c",
    "source": "/gateway/eu-1",
    "type": "api_calls",
    "subject": "tenant-123",
    "time": "2024-01-15T10:00:00Z",
    "data": {"value": 10},
}
_SEVERAL = [EVENT | {"event_id": "req-8f2c"}, {"tenant_id": "tenant-123", "metric": "storage_gb", "value": "0.125"}]

_INTRODUCTION = """Takes usage events and puts them on the stream. An event that is answered 202 is held there.

Send an event that may have been held (no answer, or 503) again with the same `event_id`: it counts once."""
_USAGE = f"""The Content-Type says in which form:

- `application/json`: one event (object), or up to {BATCH_EVENTS_MAX} (array). With `Ce-…` headers, one CloudEvent in
  binary mode, whose body is its `data`.
- `application/x-ndjson`, or `application/ndjson`: one event a line of at most {LINE_BYTES_MAX} bytes, as many as the
  body's limit allows. Its schema is that of the array of all lines. Events are taken while the body arrives.
- `application/cloudevents+json`, `application/cloudevents-batch+json`: one CloudEvent 1.0, or up to {BATCH_EVENTS_MAX}.

A body has at most {BODY_BYTES_MAX} bytes; one in gzip, before and after it is inflated.

One event is answered as itself. Of several, each has a result, in their order, and one that is refused costs no other.
With API keys, an event of a tenant that the key may not write for is 403, and among several a rejected one."""
_LATE = "Accepted before the body broke off or turned out too long; of `application/x-ndjson` alone."


def openapi_document(settings: Settings) -> Part:
    """Return the document of a collector with these settings."""
    return document(
        title="Usage collector",
        description=_INTRODUCTION,
        paths={"/v1/usage": {"post": _post_usage()}},
        schemas=_schemas(),
        responses=_responses(),
        resource="stream",
        keys_required=settings.api_keys_file is not None,
    )


def _post_usage() -> Part:
    receipt = "kinesis:shardId-000000000001:49655555555555555555555555555555555555555555555555555555:0"
    held = {"index": 0, "status": "accepted", "event_id": "req-8f2c"}
    refused = {"index": 1, "status": "rejected", "code": "negative_value", "detail": "value must not be negative"}
    return {
        "operationId": "sendUsage",
        "summary": "Send usage events",
        "description": _USAGE,
        "parameters": _headers(),
        "requestBody": {"required": True, "content": _bodies()},
        "responses": {
            "202": json_response(
                "The stream holds all of them.",
                {"oneOf": [schema_ref("Accepted"), schema_ref("Results")]},
                one_event={"status": "accepted", "event_id": "req-8f2c"},
                without_event_id={"status": "accepted", "event_id": receipt},
                several={"accepted": 1, "rejected": 0, "results": [held]},
            ),
            "207": json_response(
                "The stream holds some of several; each of the others breaks a rule.",
                schema_ref("Results"),
                several={"accepted": 1, "rejected": 1, "results": [held, refused]},
            ),
            **KEY_RESPONSES,
            **{str(status): response_ref(name) for status, name in _OWN_RESPONSES.items()},
            "500": response_ref("InternalError"),
        },
    }


_OWN_RESPONSES = {
    400: "BadRequest",
    413: "TooLarge",
    415: "UnsupportedMediaType",
    422: "RuleBroken",
    503: "Unavailable",
}


def _headers() -> Sequence[Part]:
    attributes = (
        ("Ce-Specversion", {"const": "1.0"}, "1.0", "the version"),
        ("Ce-Id", {"type": "string", "minLength": 1}, "req-8f2c", "the event_id"),
        ("Ce-Source", {"type": "string", "minLength": 1}, "/gateway/eu-1", "a part of the idempotency key"),
        ("Ce-Type", {"type": "string", "minLength": 1}, "api_calls", "the metric"),
        ("Ce-Subject", {"type": "string", "minLength": 1}, "tenant-123", "the tenant_id"),
        ("Ce-Time", TIMESTAMP, "2024-01-15T10:00:00Z", "the timestamp"),
    )
    coding = {
        "name": "Content-Encoding",
        "in": "header",
        "description": "How the body is coded.",
        "schema": {"enum": ["gzip", "x-gzip", "identity", ""]},
    }
    return [coding] + [
        {
            "name": name,
            "in": "header",
            "description": f"Of a CloudEvent in binary mode, which needs all but Ce-Time: {meaning}. Percent-encoded "
            "as CloudEvents' HTTP binding says; decoded, it keeps the rule of CloudEvent.",
            "schema": schema,
            "examples": {"cloud_event_in_binary_mode": {"value": example}},
        }
        for name, schema, example, meaning in attributes
    ]


def _bodies() -> Part:
    def content(schema: Part, **examples: Any) -> Part:
        return {"schema": schema, "examples": named(examples)}

    events: Part = {"type": "array", "minItems": 1, "items": schema_ref("Event")}
    cloud_events: Part = {
        "type": "array", "minItems": 1, "maxItems": BATCH_EVENTS_MAX, "items": schema_ref("CloudEvent")
    }  # fmt: skip
    json = {"oneOf": [schema_ref("Event"), {**events, "maxItems": BATCH_EVENTS_MAX}, schema_ref("CloudEventData")]}
    data = CLOUD_EVENT["data"]
    return {
        "application/json": content(json, one_event=EVENT, several=_SEVERAL, cloud_event_in_binary_mode=data),
        "application/x-ndjson": content(events, several=_SEVERAL),
        "application/ndjson": content(events, several=_SEVERAL),
        "application/cloudevents+json": content(schema_ref("CloudEvent"), cloud_event=CLOUD_EVENT),
        "application/cloudevents-batch+json": content(cloud_events, cloud_events=[CLOUD_EVENT]),
    }


def _schemas() -> Part:
    event = record(
        {"tenant_id": NAME, "metric": NAME, "value": VALUE, "timestamp": TIMESTAMP, "event_id": EVENT_ID},
        required={"tenant_id", "metric", "value"},
    )
    data = record({"value": VALUE})
    ignored = {"description": "May be there; means nothing here, and is not looked at."}
    attributes: Part = {
        "specversion": {"const": "1.0"},
        "id": EVENT_ID,
        "source": SOURCE,
        "type": {**NAME, "description": f"The metric. {NAME['description']}"},
        "subject": {**NAME, "description": f"The tenant_id. {NAME['description']}"},
        "time": nullable(TIMESTAMP),
        "datacontenttype": nullable(
            {
                "type": "string",
                "pattern": r"^(?:application|text)/(?:[A-Za-z0-9.+-]*\+)?json(?:;[ -~]*)?$",
                "description": "JSON, or absent.",
            }
        ),
        "data": schema_ref("CloudEventData"),
        "dataschema": ignored,
    }
    required = {"specversion", "id", "source", "type", "subject", "data"}
    cloud_event = record(attributes | dict.fromkeys(sorted(EXTENSIONS), ignored), required=required)
    return {
        "Event": {**event, "additionalProperties": False},
        "CloudEvent": {
            **cloud_event,
            "additionalProperties": False,
            "description": "A CloudEvent 1.0 in the JSON event format.",
        },
        "CloudEventData": {
            **data,
            "additionalProperties": False,
            "description": "Of a CloudEvent: what is no attribute of it.",
        },
        "Accepted": record({"status": {"const": "accepted"}, "event_id": _ID}),
        "Results": record(_counts()),
        "Result": {"oneOf": [schema_ref(name) for name in ("AcceptedEvent", "RejectedEvent", "UnavailableEvent")]},
        "AcceptedEvent": _result("accepted", event_id=_ID),
        "RejectedEvent": _result(
            "rejected", code={"enum": sorted(RESULT_CODES)}, detail={"type": "string", "description": "For people."}
        ),
        "UnavailableEvent": _result("unavailable", held=_HELD),
    }


_ID: Part = {
    "type": "string",
    "description": "The client's own; else a receipt, `kinesis:<shard>:<sequence number>:<index>`, "
    "by which billing tells what became of the event.",
}
_HELD: Part = {
    "enum": ["no", "unknown"],
    "description": "Whether the stream may hold the event all the same. Send it again, with the same event_id.",
}


def _result(status: str, **members: Part) -> Part:
    line = {**COUNT, "minimum": 1, "description": "Of application/x-ndjson: the line, from 1."}
    own = {"index": COUNT, "status": {"const": status}}
    return record({**own, "line": line, **members}, required=[*own, *members])


def _counts(accepted: Part = COUNT) -> Part:
    """Return the members of an answer to several events."""
    return {"accepted": accepted, "rejected": COUNT, "results": {"type": "array", "items": schema_ref("Result")}}


def _responses() -> Part:
    lines_read = {**COUNT, "description": "Of application/x-ndjson: each line up to this one is blank or has a result."}
    broken_off = {name: {**part, "description": _LATE} for name, part in _counts().items()} | {"lines_read": lines_read}
    one = problem_schema(422, RULE_CODES, {"field": FIELD})
    none_of_several = problem_schema(422, {"no_event_accepted"}, _counts({"const": 0}), always=True)
    unavailable = problem_schema(
        503, unavailable_codes("stream"), {"held": _HELD, **_counts(), "lines_read": lines_read}
    )
    return {
        "BadRequest": problem_response(
            400,
            "Not strict JSON in UTF-8, or a body that can't be read to its end.",
            problem_schema(400, {"malformed_json", "bad_request"}, broken_off),
        ),
        "TooLarge": problem_response(
            413,
            "The body is too long, or holds too many events.",
            problem_schema(413, {"too_large"}, broken_off),
        ),
        "UnsupportedMediaType": problem_response(
            415,
            "Another Content-Type or Content-Encoding.",
            problem_schema(415, {"unsupported_media_type"}, broken_off),
        ),
        "RuleBroken": problem_response(
            422, "The event breaks a rule, or each of several does. Nothing was taken.", one, none_of_several
        ),
        "TooMany": problem_response(
            429,
            "Too many events wait for the stream, or too many requests came with this API key. Nothing was taken.",
            problem_schema(429, {"too_many_pending", "rate_limited"}),
        ),
        "Unavailable": problem_response(
            503,
            "The stream does not hold the event, or may not: `held`. Of several, the results say so of each.",
            unavailable,
        ),
    }
