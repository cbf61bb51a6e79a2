"""Billing's OpenAPI document: alerts and quotas."""

from __future__ import annotations

from billing.alert_forms import TYPE_PREFIX
from billing.openapi_meters import METER_MEMBERS, incomplete_response
from billing.openapi_parts import AS_OF, CURSOR, EXAMPLE_AS_OF, NEXT_CURSOR, USAGE, operation, path, query
from billing.openapi_usage import LOCAL_TIME, ZONE
from billing.parameters import PAGE_LIMIT_DEFAULT, PAGE_LIMIT_MAX
from metering.alerts import Delivery, Kind
from metering.local_time import Period
from metering.openapi import (
    NAME,
    TIME,
    Part,
    json_response,
    nullable,
    problem_response,
    problem_schema,
    record,
    schema_ref,
)

_PERIOD: Part = {
    "period": {"enum": [Period.DAY.value, Period.MONTH.value]},
    "start": LOCAL_TIME,
    "end": {**LOCAL_TIME, "description": "Not in it."},
    "timezone": ZONE,
}
_DELIVERY: Part = {
    "enum": [*(each.value for each in Delivery), None],
    "description": "Of the message to the webhook; failed: given up. null: none, or not yet.",
}
_EXAMPLE = {
    "id": "alert_4f0c2a9b7d1e4c53a6f8092b1d7e3c41", "name": "calls-high", "metric": "api_calls", "period": "month",
    "start": "2024-01-01T00:00:00+01:00", "end": "2024-02-01T00:00:00+01:00", "timezone": "Europe/Berlin",
    "threshold": 8000, "usage": 8012, "crossed_at": "2024-01-15T10:00:02.350Z",
    "crossed_as_of": "2024-01-15T10:00:02.000Z", "state": "open", "resolved_at": None, "delivery": "posted",
    "posted_at": "2024-01-15T10:00:02.480Z", "resolution_delivery": None, "resolution_posted_at": None,
}  # fmt: skip
_EXAMPLE_QUOTA = {
    "tenant_id": "tenant-123", "metric": "api_calls", "limit": 10000, "used": 10, "remaining": 9990, "exceeded": False,
    "period": "month", "start": "2024-01-01T00:00:00+01:00", "end": "2024-02-01T00:00:00+01:00",
    "timezone": "Europe/Berlin",
}  # fmt: skip


def alert_paths() -> Part:
    """Return the operations."""
    return {
        "/v1/tenants/{tenant_id}/alerts": {"get": _alerts()},
        "/v1/tenants/{tenant_id}/quota/{metric}": {"get": _quota()},
    }


def alert_schemas() -> Part:
    """Return the schemas that the operations refer to."""
    alert: Part = {
        "id": {"type": "string", "pattern": "^alert_[0-9a-f]{32}$", "description": "The same in its messages."},
        "name": {**NAME, "description": "As the file of alerts has it."},
        "metric": NAME,
        **_PERIOD,
        "threshold": USAGE,
        "usage": {**USAGE, "description": "In the period, when it was seen that it had reached the threshold."},
        "crossed_at": {**TIME, "description": "When that was seen."},
        "crossed_as_of": {**nullable(TIME), "description": "The as_of then."},
        "state": {"enum": ["open", "resolved"]},
        "resolved_at": {**nullable(TIME), "description": "Its period is over."},
        "delivery": _DELIVERY,
        "posted_at": nullable(TIME),
        "resolution_delivery": _DELIVERY,
        "resolution_posted_at": nullable(TIME),
    }
    return {"Alert": record(alert)}


def _alerts() -> Part:
    parameters = [
        path("tenant_id", NAME, "tenant-123"),
        query("limit", {"type": "integer", "minimum": 1, "maximum": PAGE_LIMIT_MAX, "default": PAGE_LIMIT_DEFAULT}),
        query("cursor", CURSOR),
    ]
    page: Part = {
        "tenant_id": NAME,
        "alerts": {"type": "array", "maxItems": PAGE_LIMIT_MAX, "items": schema_ref("Alert")},
        "next_cursor": NEXT_CURSOR,
    }
    example = {"tenant_id": "tenant-123", "alerts": [_EXAMPLE], "next_cursor": None, **EXAMPLE_AS_OF}
    kinds = " and ".join(f"`{TYPE_PREFIX}{kind}`" for kind in Kind)
    return operation(
        "listAlerts",
        "A tenant's alerts, a page at a time",
        "A threshold that usage has reached in a day or month, once for each. Those whose period ends last come first, "
        f"so the open ones do. The webhook gets {kinds}, signed by the Standard Webhooks specification, each at least "
        "once, always with the same webhook-id.",
        parameters,
        json_response("A page.", record({**page, **AS_OF}), alerts=example),
        bad_request={"unknown_parameter", "repeated_parameter", "invalid_limit", "invalid_cursor"},
        rules={"invalid_tenant_id"},
        not_found="tenant_not_found",
    )


def _quota() -> Part:
    members: Part = {
        "tenant_id": NAME,
        "metric": NAME,
        "limit": USAGE,
        "used": {**USAGE, "description": "In the period that it is now."},
        "remaining": {**USAGE, "description": "0 when it is exceeded."},
        "exceeded": {"type": "boolean", "description": "More than the limit is used."},
        **_PERIOD,
    }
    found = json_response(
        "How much of it is used.",
        record({**members, **METER_MEMBERS, **AS_OF}, required=[*members, *AS_OF]),
        quota={**_EXAMPLE_QUOTA, **EXAMPLE_AS_OF},
    )
    return operation(
        "getQuota",
        "May the tenant use more?",
        "Usage in the current day or month beside the limit that ALERTS_FILE sets, for the tenant or for all. A tenant "
        "without usage has used 0. as_of is up to 5 s older than in other answers. Nothing is refused here or in the "
        "collector: what the answer is used for is yours.",
        [path("tenant_id", NAME, "tenant-123"), path("metric", NAME, "api_calls")],
        found,
        bad_request={"unknown_parameter", "repeated_parameter", "range_cuts_rows"},
        rules={"invalid_tenant_id", "invalid_metric"},
        others={"404": _no_quota(), "409": incomplete_response()},
    )


def _no_quota() -> Part:
    nowhere = problem_schema(404, {"not_found"})
    return problem_response(404, "No quota is set, or no such path.", nowhere, problem_schema(404, {"quota_not_found"}))
