"""What the OpenAPI 3.1 documents of both services share, and how they are served.

Where it sits: collector/openapi.py and billing/openapi.py build their service's document with it. Limits come from the
code that keeps them; what can't (patterns, codes, paths) is written out here, and tests hold it to the code.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from flask import Flask, Response

from metering.api_keys import Scope
from metering.events import (
    EVENT_ID_LENGTH_MAX,
    FUTURE_TOLERANCE,
    NAME_LENGTH_MAX,
    RECEIPT_PREFIX,
    SOURCE_LENGTH_MAX,
    VALUE_FRACTION_DIGITS_MAX,
    VALUE_INTEGER_DIGITS_MAX,
    encode_json,
)
from metering.web import PROBLEM_TYPE
from metering.web_keys import OPEN_PATHS

Part = dict[str, Any]
"""A part of a document: what encode_json takes."""

VERSION = "1"
"""Of the API: the 1 of /v1. What it holds may grow without another one."""

# ── The fields of an event ───────────────────────────────────────────────────────────────────────────────────────────

_PRINTABLE = r"[\p{L}\p{M}\p{N}\p{P}\p{S} ]"

NAME: Part = {
    "type": "string",
    "minLength": 1,
    "maxLength": NAME_LENGTH_MAX,
    "pattern": r"^[\p{L}\p{Nd}._:@-]+$",
    "description": "Letters and digits of any script, and `. _ - : @`.",
}
EVENT_ID: Part = {
    "type": "string",
    "minLength": 1,
    "maxLength": EVENT_ID_LENGTH_MAX,
    "pattern": rf"^(?!{RECEIPT_PREFIX}){_PRINTABLE}+$",
    "description": "The idempotency key, unique per tenant: an event that is sent again with it counts once. "
    f"Printable characters, not beginning with `{RECEIPT_PREFIX}`.",
}
SOURCE: Part = {
    "type": "string",
    "minLength": 1,
    "maxLength": SOURCE_LENGTH_MAX,
    "pattern": f"^{_PRINTABLE}+$",
    "description": "Where the event comes from; a part of the idempotency key, together with the id.",
}
VALUE: Part = {
    # No multipleOf: validators count in binary floats, in which 0.1 is no multiple of 0.000000001.
    "oneOf": [
        {"type": "number", "minimum": 0, "exclusiveMaximum": 10**VALUE_INTEGER_DIGITS_MAX},
        {
            "type": "string",
            "pattern": rf"^[0-9]{{1,{VALUE_INTEGER_DIGITS_MAX}}}(?:\.[0-9]{{1,{VALUE_FRACTION_DIGITS_MAX}}})?$",
        },
    ],
    "description": f"Not negative; at most {VALUE_INTEGER_DIGITS_MAX} digits before the point and "
    f"{VALUE_FRACTION_DIGITS_MAX} after it. Counted exactly, digit by digit. A string keeps what a client's own JSON "
    "encoder would write as a binary float.",
}
TIMESTAMP: Part = {
    "type": "string",
    "format": "date-time",
    "pattern": r"^(?!0000)[0-9]{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12][0-9]|3[01])[Tt](?:[01][0-9]|2[0-3]):[0-5][0-9]:"
    r"(?:[0-5][0-9]|60)(?:\.[0-9]{1,9})?(?:[Zz]|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])$",
    "description": "RFC 3339, with an offset. Absent: the time of receipt. "
    f"At most {FUTURE_TOLERANCE.seconds // 60} minutes ahead of the service's clock.",
}

# ── Answers ──────────────────────────────────────────────────────────────────────────────────────────────────────────

TIME: Part = {"type": "string", "format": "date-time", "description": "UTC, with milliseconds."}
COUNT: Part = {"type": "integer", "minimum": 0}
FIELD: Part = {"type": "string", "description": "The field at fault; absent when the event as a whole is."}

_RETRY_AFTER: Part = {
    "required": True,
    "description": "Seconds to wait before the next try.",
    "schema": {"type": "integer", "minimum": 1},
}
_HEADERS: Mapping[int, Part] = {
    401: {"WWW-Authenticate": {"required": True, "schema": {"const": "Bearer"}}},
    405: {"Allow": {"required": True, "schema": {"type": "string"}}},
    429: {"Retry-After": _RETRY_AFTER},
    503: {"Retry-After": _RETRY_AFTER},
}


def record(members: Mapping[str, Part], *, required: Collection[str] | None = None) -> Part:
    """Return the schema of an object. required: the members that are always there; None: all."""
    return {
        "type": "object",
        "required": list(members) if required is None else [name for name in members if name in required],
        "properties": dict(members),
    }


def nullable(schema: Part) -> Part:
    """Return `schema`, whose type is one name, with null allowed."""
    return {**schema, "type": [schema["type"], "null"]}


def problem_schema(
    status: int, codes: Collection[str], members: Mapping[str, Part] | None = None, *, always: bool = False
) -> Part:
    """Return the schema of a problem (RFC 9457) of `status`.

    codes: all that it may carry. members: those beside RFC 9457's own and `code`; always: they are never absent.
    """
    own: dict[str, Part] = {
        "type": {"const": "about:blank"},
        "title": {"type": "string"},
        "status": {"const": status},
        "code": {"enum": sorted(codes), "description": "Stable, for programs."},
        "detail": {"type": "string", "description": "For people; its words may change."},
    }
    members = members or {}
    return record({**own, **members}, required=[*own, *members] if always else list(own))


def problem_response(status: int, description: str, *schemas: Part) -> Part:
    """Return a response object of problems with the headers of its status. schemas: of which exactly one holds."""
    schema = schemas[0] if len(schemas) == 1 else {"oneOf": list(schemas)}
    response: Part = {"description": description, "content": {PROBLEM_TYPE: {"schema": schema}}}
    return response | ({"headers": _HEADERS[status]} if status in _HEADERS else {})


def json_response(description: str, schema: Part, **examples: Any) -> Part:
    """Return a response object of plain JSON. examples: values by their name."""
    content = {"schema": schema} | ({"examples": named(examples)} if examples else {})
    return {"description": description, "content": {"application/json": content}}


def named(values: Mapping[str, Any]) -> Part:
    """Return example objects of values by their name."""
    return {name: {"value": value} for name, value in values.items()}


def schema_ref(name: str) -> Part:
    return {"$ref": f"#/components/schemas/{name}"}


def response_ref(name: str) -> Part:
    return {"$ref": f"#/components/responses/{name}"}


def unavailable_codes(resource: str) -> frozenset[str]:
    """Return the codes of a 503. resource: what the service needs, `stream` or `table`."""
    return frozenset({"unavailable", f"{resource}_missing", "access_refused", "not_configured"})


# ── The document ─────────────────────────────────────────────────────────────────────────────────────────────────────

_ELSEWHERE = """

Errors are problem details (RFC 9457) with a stable `code`. Beside those of the operations there are 404 `not_found` for
an unknown path, 405 `method_not_allowed` for another method, and, for what is no HTTP that can be served, 400 or
another 4xx with `bad_request`, 408 `request_timeout` and 503 `unavailable`. HEAD is GET without the body."""
KEY_RESPONSES: Part = {
    "401": response_ref("Unauthorized"),
    "403": response_ref("Forbidden"),
    "429": response_ref("TooMany"),
}
"""Of each operation that needs a key, where keys are set."""


def document(
    *,
    title: str,
    description: str,
    paths: Mapping[str, Part],
    schemas: Mapping[str, Part],
    responses: Mapping[str, Part],
    resource: str,
    keys_required: bool,
) -> Part:
    """Return the OpenAPI 3.1 document of a service.

    paths, schemas, responses: its own, beside the shared ones. resource: see unavailable_codes. keys_required: whether
    API keys are set.
    """
    keys: list[Part] = [{"bearer": []}, {"apiKey": []}]
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": VERSION, "description": description + _ELSEWHERE},
        "security": keys if keys_required else [{}, *keys],
        "paths": {**paths, **_shared_paths()},
        "components": {
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "description": "An API key. Needed where keys are set."},
                "apiKey": {"type": "apiKey", "in": "header", "name": "X-Api-Key", "description": "The same key."},
            },
            "schemas": dict(schemas),
            "responses": {**_shared_responses(resource), **responses},
        },
    }


def add_openapi(app: Flask, description: Part) -> None:
    """Serve a document at /openapi.json, which needs no key."""
    body = encode_json(description) + b"\n"

    @app.get("/openapi.json")
    def openapi() -> Response:
        return Response(body, content_type="application/json")


def _shared_paths() -> Part:
    ready = {
        "200": json_response("What the service needs can be reached.", record({"status": {"const": "ready"}})),
        "503": response_ref("NotReady"),
    }
    alive = {"200": json_response("The process is alive.", record({"status": {"const": "alive"}}))}
    metrics = {
        "200": {"description": "Prometheus's text format.", "content": {"text/plain": {"schema": {"type": "string"}}}}
    }
    itself = {"200": json_response("This document.", {"type": "object"})}
    operations = {
        "/healthz": ("isAlive", "Whether the process is alive", alive),
        "/readyz": ("isReady", "Whether requests can be served", ready),
        "/metrics": ("getMetrics", "What was asked and answered, in Prometheus form", metrics),
        "/openapi.json": ("getDescription", "This document", itself),
    }
    return {
        path: {
            "get": {
                "operationId": operation_id,
                "summary": summary,
                **({"security": []} if path in OPEN_PATHS else {}),
                "responses": {**responses, "500": response_ref("InternalError")},
            }
        }
        for path, (operation_id, summary, responses) in operations.items()
    }


def _shared_responses(resource: str) -> Part:
    of_keys: dict[str, Part] = {"scope": {"enum": list(Scope)}, "field": {"const": "tenant_id"}}
    not_ready = problem_schema(503, unavailable_codes(resource))
    return {
        "Unauthorized": problem_response(401, "No API key, or an unknown one.", problem_schema(401, {"unauthorized"})),
        "Forbidden": problem_response(
            403,
            "The API key lacks the scope, or may not do this for this tenant.",
            problem_schema(403, {"forbidden_scope", "forbidden_tenant"}, of_keys),
        ),
        "TooMany": problem_response(429, "Too many requests with this API key.", problem_schema(429, {"rate_limited"})),
        "NotReady": problem_response(503, "What the service needs can't be reached or used.", not_ready),
        "InternalError": problem_response(500, "An unexpected error.", problem_schema(500, {"internal_error"})),
        "NotFound": problem_response(404, "No such path.", problem_schema(404, {"not_found"})),
        "MethodNotAllowed": problem_response(405, "Another method.", problem_schema(405, {"method_not_allowed"})),
    }
