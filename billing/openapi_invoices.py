"""Invoices in billing's OpenAPI document."""

from __future__ import annotations

from billing.forms import Form
from billing.invoice_forms import CSV_COLUMNS
from billing.invoices import INVOICE_FORMS
from billing.openapi_meters import incomplete_response
from billing.openapi_parts import (
    AS_OF,
    FIGURES_REFUSED,
    USAGE,
    WINDOW_MINUTES,
    form_parameter,
    not_acceptable_response,
    operation,
    path,
    waiting_parameter,
    waiting_response,
)
from billing.plans import PERIODS_ALLOWED
from metering.openapi import (
    NAME,
    Part,
    json_response,
    nullable,
    problem_response,
    problem_schema,
    record,
    schema_ref,
)

_DESCRIPTION = """By the price plans of PLANS_FILE. `complete` is false while the period is not over or not all of its
events are in: then it is a preview. `format` decides before Accept."""
INVOICE_PATH = "/v1/tenants/{tenant_id}/invoice"

MONTH = r"^(?:19[7-9][0-9]|[2-8][0-9]{3}|9[0-8][0-9]{2}|99[0-8][0-9]|999[0-8])-(?:0[1-9]|1[0-2])$"
_AMOUNT: Part = {
    "type": "string",
    "pattern": r"^[0-9]+(?:\.[0-9]+)?$",
    "description": "In the currency, with the digits of its minor unit.",
}
_EXACT: Part = {"type": "string", "pattern": r"^[0-9]+(?:\.[0-9]+)?$", "description": "In the currency, unrounded."}
_DAY: Part = {"type": "string", "format": "date"}
_SHARE = (
    "Only of a metric that is aggregated as max or latest, when the plan changes within the period: by which share of "
    "the period's days the tiers count."
)
_WHEN: dict[str, Part] = {
    "plan": {**NAME, "description": "Only when the plan changes within the period: the plan of these days."},
    "from": {**_DAY, "description": "Only when the plan changes within the period: the first of these days."},
    "to": {**_DAY, "description": "Only when the plan changes within the period: the day after the last of them."},
}
_EXAMPLE = {
    "tenant_id": "tenant-123", "period": "2024-01", "timezone": "UTC", "currency": "EUR", "plan": "standard",
    "lines": [
        {
            "metric": "api_calls", "model": "graduated", "usage": 12345, "billed": 11345, "amount": "106.72",
            "tiers": [
                {"up_to": 10000, "quantity": 10000, "unit_price": "0.01", "flat_price": "0", "amount": "100"},
                {"up_to": None, "quantity": 1345, "unit_price": "0.005", "flat_price": "0", "amount": "6.725"},
            ],
        }
    ],
    "flat_fee": "49.00", "minimum_adjustment": "0.00", "total": "155.72",
    "unpriced": [{"metric": "fax", "usage": 7}],
    "complete": True, "as_of": "2024-02-01T00:00:02.000Z", "lag_ms": 350,
}  # fmt: skip


def invoice_operation() -> Part:
    """Return the operation at INVOICE_PATH."""
    text: Part = {"schema": {"type": "string"}}
    found = json_response("The invoice.", schema_ref("Invoice"), invoice=_EXAMPLE)
    found["content"] |= {form.media_type: text for form in INVOICE_FORMS if form is not Form.JSON}
    nowhere = problem_schema(404, {"not_found", "no_price_plans"})
    never_seen = problem_schema(404, {"tenant_not_found"}, AS_OF, always=True)
    period: Part = {
        "name": "period",
        "in": "query",
        "required": True,
        "description": f"In the time zone of the price plans: {PERIODS_ALLOWED}.",
        "schema": {"type": "string", "pattern": MONTH},
        "example": "2024-01",
    }
    return operation(
        "getInvoice",
        "What a tenant owes for a month",
        f"{_DESCRIPTION} CSV has the columns {', '.join(CSV_COLUMNS)}.",
        [path("tenant_id", NAME, "tenant-123"), period, form_parameter(INVOICE_FORMS), waiting_parameter()],
        found,
        bad_request=FIGURES_REFUSED | {"invalid_period", "timezone_needs_smaller_windows", "range_cuts_rows"},
        bad_request_members={"window_minutes": WINDOW_MINUTES},
        rules={"invalid_tenant_id"},
        others={
            "409": incomplete_response(),
            "404": problem_response(404, "Never seen, no such path, or no price plans.", nowhere, never_seen),
            "406": not_acceptable_response(),
            "503": waiting_response(),
        },
    )


def invoice_schemas() -> dict[str, Part]:
    """Return the schemas that invoice_operation refers to."""
    tier: dict[str, Part] = {
        "up_to": nullable({**USAGE, "description": "The end of the tier, inclusive; null: it has none."}),
        "quantity": {**USAGE, "description": "Billed units at this price; of a package price, packages."},
        "unit_price": _EXACT,
        "flat_price": _EXACT,
        "amount": {**_EXACT, "description": "quantity x unit_price + flat_price, unrounded."},
    }
    days = {"days": {"type": "integer", "minimum": 1}, "of": {"type": "integer", "minimum": 2}}
    share = {**record(days), "description": _SHARE}
    line: dict[str, Part] = {
        "metric": NAME,
        "model": {"enum": ["per_unit", "graduated", "volume", "package"]},
        "usage": USAGE,
        "billed": {**USAGE, "description": "Usage less what is free."},
        "amount": {**_AMOUNT, "description": "The tiers' amounts together, or their share; rounded half even."},
        "tiers": {"type": "array", "items": record(tier), "description": "Empty: nothing is billed."},
    }
    unpriced: dict[str, Part] = {"metric": NAME, "usage": USAGE}
    part: dict[str, Part] = {
        "plan": NAME,
        "from": _DAY,
        "to": _DAY,
        "days": {"type": "integer", "minimum": 1},
        "flat_fee": _AMOUNT,
        "minimum": _AMOUNT,
    }
    invoice: dict[str, Part] = {
        "tenant_id": NAME,
        "period": {"type": "string", "pattern": "^[0-9]{4}-[0-9]{2}$"},
        "timezone": {"type": "string"},
        "currency": {"type": "string", "pattern": "^[A-Z]{3}$"},
        "plan": {**NAME, "description": "The plan of the period's last day."},
        "lines": {"type": "array", "items": record({**line, **_WHEN, "share": share}, required=line)},
        "flat_fee": _AMOUNT,
        "minimum_adjustment": {**_AMOUNT, "description": "What lines and flat fee lack of the minimum."},
        "total": {**_AMOUNT, "description": "Lines, flat fee and adjustment together."},
        "unpriced": {
            "type": "array",
            "items": record({**unpriced, **_WHEN}, required=unpriced),
            "description": "Usage that the plan has no price for: in no amount.",
        },
        "complete": {
            "type": "boolean",
            "description": "Whether all events of the period are in: as_of is past its end.",
        },
        **AS_OF,
    }
    changed: dict[str, Part] = {
        "parts": {
            "type": "array",
            "minItems": 2,
            "items": record(part),
            "description": "Only when the plan changes within the period: its shares of flat fee and minimum.",
        }
    }
    return {"Invoice": record({**invoice, **changed}, required=invoice)}
