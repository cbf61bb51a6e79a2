"""The export in billing's OpenAPI document."""

from __future__ import annotations

from billing.export_forms import EXPORT_COLUMNS, JSON_LINES
from billing.forms import FIGURES_FORMS, Form
from billing.openapi_invoices import MONTH
from billing.openapi_meters import METER_MEMBERS
from billing.openapi_parts import (
    AS_OF,
    FIGURES_REFUSED,
    USAGE,
    WINDOW_MINUTES,
    form_parameter,
    not_acceptable_response,
    operation,
    query,
    waiting_parameter,
)
from billing.openapi_usage import LOCAL_TIME, MOMENT, ZONE
from billing.plans import PERIODS_ALLOWED
from metering.openapi import (
    COUNT,
    NAME,
    TIME,
    Part,
    nullable,
    problem_response,
    problem_schema,
    record,
    unavailable_codes,
)

EXPORT_PATH = "/v1/export"

_DESCRIPTION = """Takes `period`, or `from` and `to`. A row for each tenant and metric that has ever had an event, those
without usage in the period too, in order of tenants and then metrics; with an API key for some tenants, those of them.

The last line is no row: `#sha256=<hex>,rows=<n>` in CSV, `{"sha256":"<hex>","rows":n}` in JSON, the SHA-256 of all
bytes before it. The answer is streamed: when a reading fails midway it is broken off, and lacks that line.
`metering export check FILE` tells."""
_UNKNOWN = "null: not known, since it was counted before the metric had its aggregation, or in rows that a border cuts."
_ROW: Part = {"tenant_id": NAME, "metric": NAME, "usage": nullable(USAGE), "events": nullable(COUNT)}


def export_operation() -> Part:
    """Return the operation at EXPORT_PATH."""
    columns = f"columns: {', '.join(EXPORT_COLUMNS)}"
    headers: Part = {
        "As-Of": {"description": "as_of, read before the figures; absent for null.", "schema": TIME},
        "Lag-Ms": {"description": "lag_ms; absent for null.", "schema": COUNT},
        "Period-From": {"description": "Where the period begins.", "required": True, "schema": LOCAL_TIME},
        "Period-To": {"description": "Where it ends; not in it.", "required": True, "schema": LOCAL_TIME},
    }
    found: Part = {
        "description": "The rows, and the last line.",
        "headers": headers,
        "content": {
            JSON_LINES: {"schema": {"type": "string", "description": "A line is an ExportRow, the last ExportEnd."}},
            Form.CSV.media_type: {"schema": {"type": "string", "description": f"RFC 4180; {columns}."}},
        },
    }
    return operation(
        "exportUsage",
        "Usage of a period for all tenants",
        _DESCRIPTION,
        [
            query("period", {"type": "string", "pattern": MONTH, "description": f"{PERIODS_ALLOWED}."})
            | {"example": "2024-01"},
            query("from", {**MOMENT, "description": "In the period; needs `to`."}),
            query("to", {**MOMENT, "description": "Not in it; needs `from`."}),
            query("timezone", {**ZONE, "default": "UTC"}),
            form_parameter(FIGURES_FORMS),
            waiting_parameter(),
        ],
        found,
        bad_request=FIGURES_REFUSED
        | {
            "invalid_period",
            "invalid_range",
            "invalid_timezone",
            "time_out_of_range",
            "timezone_needs_smaller_windows",
            "unaligned_time",
        },
        bad_request_members={"window_minutes": WINDOW_MINUTES},
        others={"406": not_acceptable_response(), "503": _unavailable()},
    )


def export_schemas() -> dict[str, Part]:
    """Return the schemas of the lines."""
    digits: Part = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
    return {
        "ExportRow": {**record({**_ROW, **METER_MEMBERS}, required=[*_ROW]), "description": _UNKNOWN},
        "ExportEnd": record({"sha256": digits, "rows": COUNT}),
    }


def _unavailable() -> Part:
    waited = problem_schema(503, {"as_of_not_reached", "too_many_waiting"}, AS_OF)
    others = problem_schema(503, unavailable_codes("table") | {"too_many_exports"})
    why = "What the service needs can't be reached or used, min_as_of is not reached yet, or there are exports enough."
    return problem_response(503, why, others, waited)
