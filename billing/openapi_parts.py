"""What the operations of billing's OpenAPI document are put together from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from billing.forms import Form
from metering.openapi import (
    COUNT,
    FIELD,
    KEY_RESPONSES,
    TIME,
    TIMESTAMP,
    Part,
    nullable,
    problem_response,
    problem_schema,
    response_ref,
    unavailable_codes,
)
from metering.rows import WINDOW_MINUTES_ALLOWED

AS_OF: Part = {"as_of": nullable(TIME), "lag_ms": nullable(COUNT)}
USAGE: Part = {"type": "number", "minimum": 0}
EXAMPLE_AS_OF: Part = {"as_of": "2024-01-15T10:00:02.000Z", "lag_ms": 350}
CURSOR: Part = {"type": "string", "pattern": "^[A-Za-z0-9_-]+$", "description": "A next_cursor, unchanged."}
NEXT_CURSOR: Part = {
    "type": ["string", "null"],
    "description": "Of the page after this one; null: there is none.",
}
FIGURES_REFUSED = frozenset(
    {"unknown_parameter", "repeated_parameter", "invalid_format", "invalid_time", "min_as_of_in_future"}
)
"""Codes of 400 of any operation that takes `format` and `min_as_of`."""
WINDOW_MINUTES: Part = {
    "enum": sorted(WINDOW_MINUTES_ALLOWED),
    "description": "The USAGE_WINDOW_MINUTES that would do, for what is counted from then on; absent: none would.",
}


def query(name: str, schema: Part) -> Part:
    return {"name": name, "in": "query", "allowEmptyValue": True, "schema": schema}


def path(name: str, schema: Part, example: str) -> Part:
    return {"name": name, "in": "path", "required": True, "schema": schema, "example": example}


def form_parameter(forms: Sequence[Form]) -> Part:
    """Return the query parameter `format`."""
    return query("format", {"enum": list(forms), "description": "Goes before Accept."})


def not_acceptable_response() -> Part:
    """Return the 406 of an operation that takes `format`."""
    return problem_response(406, "The Accept allows no form that there is.", problem_schema(406, {"not_acceptable"}))


def waiting_parameter() -> Part:
    """Return the query parameter `min_as_of`."""
    wait = (
        "Wait until as_of is at least this, at most MIN_AS_OF_WAIT_MS; then 503 `as_of_not_reached`, with the as_of "
        "reached, or 503 `too_many_waiting` at once. For figures that must hold all that was accepted before it."
    )
    return query("min_as_of", {"type": "string", "pattern": TIMESTAMP["pattern"], "description": wait})


def waiting_response() -> Part:
    """Return the 503 of an operation that takes `min_as_of`."""
    waited = problem_schema(503, {"as_of_not_reached", "too_many_waiting"}, AS_OF)
    away = problem_schema(503, unavailable_codes("table"))
    return problem_response(
        503, "What the service needs can't be reached or used, or min_as_of is not reached yet.", away, waited
    )


def operation(
    operation_id: str,
    summary: str,
    description: str,
    parameters: list[Part],
    found: Part,
    *,
    bad_request: frozenset[str] | set[str] = frozenset({"unknown_parameter", "repeated_parameter"}),
    bad_request_members: Part | None = None,
    rules: frozenset[str] | set[str] = frozenset(),
    not_found: str | None = None,
    others: Part | None = None,
) -> Part:
    """Return an operation.

    bad_request, rules: codes of 400 and 422; bad_request_members: what a 400 may carry beside `parameter`. not_found:
    that of what was never seen. others: responses by their status, in place of the usual ones.
    """
    parameter: dict[str, Part] = {"parameter": {"type": "string", "description": "The parameter at fault."}}
    responses: dict[str, Any] = {
        "200": found,
        "400": problem_response(
            400,
            "A query parameter is wrong.",
            problem_schema(400, bad_request, parameter | (bad_request_members or {})),
        ),
        **KEY_RESPONSES,
    }
    if any(part["in"] == "path" for part in parameters):
        nowhere = problem_schema(404, {"not_found"})
        never_seen = [problem_schema(404, {not_found}, AS_OF, always=True)] if not_found else []
        responses["404"] = problem_response(404, "Never seen, or no such path.", nowhere, *never_seen)
    if rules:
        broken = problem_schema(422, rules, {"field": FIELD})
        responses["422"] = problem_response(422, "No event can have this id.", broken)
    return {
        "operationId": operation_id,
        "summary": summary,
        "description": description,
        "parameters": parameters,
        "responses": {
            **responses,
            "500": response_ref("InternalError"),
            "503": response_ref("NotReady"),
            **(others or {}),
        },
    }
