"""Billing's OpenAPI document: totals, and usage in a range or by window."""

from __future__ import annotations

from billing.forms import FIGURES_FORMS, Form
from billing.openapi_meters import METER_MEMBERS, incomplete_response
from billing.openapi_parts import (
    AS_OF,
    CURSOR,
    EXAMPLE_AS_OF,
    FIGURES_REFUSED,
    NEXT_CURSOR,
    USAGE,
    WINDOW_MINUTES,
    form_parameter,
    not_acceptable_response,
    operation,
    path,
    query,
    waiting_parameter,
    waiting_response,
)
from billing.ranges import WINDOWS_DEFAULT, WINDOWS_MAX
from metering.local_time import Period
from metering.openapi import (
    COUNT,
    NAME,
    TIME,
    TIMESTAMP,
    Part,
    json_response,
    nullable,
    record,
    schema_ref,
)

_TOTAL: Part = {"metric": NAME, "usage": USAGE, "events": COUNT, "last_updated": TIME}
_UNKNOWN = "null: some events were counted before the metric had its aggregation."
LOCAL_TIME: Part = {"type": "string", "format": "date-time", "description": "In the offset of the time zone."}
ZONE: Part = {"type": "string", "pattern": "^[A-Za-z0-9_+/-]{1,64}$", "description": "An IANA name."}
MOMENT: Part = {
    "type": "string",
    "anyOf": [
        {"pattern": TIMESTAMP["pattern"]},
        {"pattern": "^(?!0000)[0-9]{4}-(?:0[1-9]|1[0-2])(?:-(?:0[1-9]|[12][0-9]|3[01]))?$"},
    ],
    "description": "RFC 3339 with an offset, or a local date or month, which stands for its first moment. It must "
    "be where a window of USAGE_WINDOW_MINUTES begins.",
}
_WINDOW: Part = {"enum": list(Period)}
_RANGE: Part = {
    "tenant_id": NAME,
    "metric": NAME,
    "usage": {**USAGE, "description": "Of what the answer covers: with windows, of this page."},
    "events": COUNT,
    "from": {**LOCAL_TIME, "description": "Where the whole range begins, all its pages together."},
    "to": {**LOCAL_TIME, "description": "Where it ends; not in it."},
    "timezone": ZONE,
}
_RANGE_REFUSED = frozenset(
    {
        "invalid_window",
        "invalid_timezone",
        "invalid_range",
        "invalid_limit",
        "invalid_cursor",
        "missing_window",
        "time_out_of_range",
        "unaligned_time",
        "timezone_needs_smaller_windows",
        "range_cuts_rows",
    }
)

_EXAMPLE = {"metric": "api_calls", "usage": 10, "events": 1, "last_updated": "2024-01-15T10:00:01.250Z"}
_EXAMPLE_RANGE = {
    "tenant_id": "tenant-123", "metric": "api_calls", "usage": 10, "events": 1,
    "from": "2024-01-15T00:00:00+01:00", "to": "2024-01-17T00:00:00+01:00", "timezone": "Europe/Berlin",
}  # fmt: skip
_EXAMPLE_WINDOWS = [
    {"start": "2024-01-15T00:00:00+01:00", "end": "2024-01-16T00:00:00+01:00", "usage": 10, "events": 1},
    {"start": "2024-01-16T00:00:00+01:00", "end": "2024-01-17T00:00:00+01:00", "usage": 0, "events": 0},
]


def usage_paths() -> Part:
    """Return the operations."""
    return {
        "/v1/tenants/{tenant_id}/usage": {"get": _totals()},
        "/v1/tenants/{tenant_id}/usage/{metric}": {"get": _usage()},
    }


def usage_schemas() -> Part:
    """Return the schemas that the operations refer to."""
    window = {"start": LOCAL_TIME, "end": LOCAL_TIME, "usage": USAGE, "events": COUNT}
    range_: Part = {**_RANGE, **METER_MEMBERS}
    windows: Part = {
        "window": _WINDOW,
        "windows": {"type": "array", "maxItems": WINDOWS_MAX, "items": record(window)},
        "next_cursor": NEXT_CURSOR,
    }
    return {
        "MetricTotal": record(
            {**_TOTAL, "usage": {**nullable(USAGE), "description": _UNKNOWN}, **METER_MEMBERS}, required=[*_TOTAL]
        ),
        "Total": record(
            {"tenant_id": NAME, **_TOTAL, **METER_MEMBERS, **AS_OF}, required=["tenant_id", *_TOTAL, *AS_OF]
        ),
        "UsageInRange": record({**range_, **AS_OF}, required=[*_RANGE, *AS_OF]),
        "UsageByWindow": {
            **record({**range_, **windows, **AS_OF}, required=[*_RANGE, *windows, *AS_OF]),
            "description": "Windows without gap or overlap, those without usage too; the first and the last are cut "
            "off where the range begins and ends.",
        },
    }


def figures_responses(found: Part, *columns: str) -> Part:
    """Return the responses of an operation that gives figures: 200 in both forms, 406, and the 503 of `min_as_of`.

    found: the 200 in JSON. columns: of the CSV.
    """
    csv: Part = {"schema": {"type": "string", "description": f"RFC 4180; columns: {', '.join(columns)}."}}
    headers: Part = {
        "As-Of": {"description": "With CSV: as_of; absent for null.", "schema": TIME},
        "Lag-Ms": {"description": "With CSV: lag_ms; absent for null.", "schema": COUNT},
    }
    return {
        "200": {**found, "headers": headers, "content": {**found["content"], Form.CSV.media_type: csv}},
        "406": not_acceptable_response(),
        "503": waiting_response(),
    }


def figures_parameters() -> list[Part]:
    """Return the query parameters of an operation that gives figures."""
    return [form_parameter(FIGURES_FORMS), waiting_parameter()]


def _totals() -> Part:
    totals = {"tenant_id": NAME, "totals": {"type": "array", "minItems": 1, "items": schema_ref("MetricTotal")}}
    example = {"tenant_id": "tenant-123", "totals": [_EXAMPLE], **EXAMPLE_AS_OF}
    found = json_response("The totals.", record({**totals, **AS_OF}), totals=example)
    return operation(
        "getTotals",
        "All totals of a tenant",
        "One for each metric that has had an event.",
        [path("tenant_id", NAME, "tenant-123"), *figures_parameters()],
        found,
        bad_request=FIGURES_REFUSED,
        rules={"invalid_tenant_id"},
        not_found="tenant_not_found",
        others=figures_responses(found, "tenant_id", "metric", "usage", "events", "last_updated"),
    )


def _usage() -> Part:
    found = json_response(
        "The total, or the usage in the range, or by window.",
        {"anyOf": [schema_ref("UsageByWindow"), schema_ref("UsageInRange"), schema_ref("Total")]},
        total={"tenant_id": "tenant-123", **_EXAMPLE, **EXAMPLE_AS_OF},
        range={**_EXAMPLE_RANGE, **EXAMPLE_AS_OF},
        windows={
            **_EXAMPLE_RANGE, "window": "day", "windows": _EXAMPLE_WINDOWS, "next_cursor": None, **EXAMPLE_AS_OF
        },
    )  # fmt: skip
    responses = figures_responses(found, "tenant_id", "metric", "start and end (without a range: last_updated)",
                                  "usage", "events")  # fmt: skip
    responses["409"] = incomplete_response()
    responses["200"]["headers"]["Next-Cursor"] = {
        "description": "With CSV: next_cursor; absent for null.",
        "schema": {"type": "string"},
    }
    return operation(
        "getUsage",
        "Usage of one metric: in all, in a range, or by window",
        "Without from, to, window and timezone: the total over all time. Without window: one sum. By event time, from "
        "`from` up to and without `to`. Hours, days and months are those of the zone's clock: a day has 23 or 25 hours "
        "when it changes. A range that is open begins with the window of the first event and ends with that of the "
        "last one or of now.",
        [
            path("tenant_id", NAME, "tenant-123"),
            path("metric", NAME, "api_calls"),
            *_range_parameters(),
            *figures_parameters(),
        ],
        found,
        bad_request=FIGURES_REFUSED | _RANGE_REFUSED,
        bad_request_members={"window_minutes": WINDOW_MINUTES},
        rules={"invalid_tenant_id", "invalid_metric"},
        not_found="metric_not_found",
        others=responses,
    )


def _range_parameters() -> list[Part]:
    size: Part = {"type": "integer", "minimum": 1, "maximum": WINDOWS_MAX, "default": WINDOWS_DEFAULT}
    return [
        query("from", MOMENT),
        query("to", {**MOMENT, "description": "The first time that is no longer in the range; otherwise as from."}),
        query("window", _WINDOW),
        query("timezone", {**ZONE, "default": "UTC"}),
        query("limit", {**size, "description": "Windows in a page."}),
        query("cursor", {**CURSOR, "description": "A next_cursor, unchanged, with the same parameters as before."}),
    ]
