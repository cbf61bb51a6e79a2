"""An invoice as JSON members, as rows of CSV, and in words for the printable page. Pure.

Amounts are strings with the digits of the minor unit, usage is a number, each digit by digit. What is only there when
the plan changes within the period (`parts`; `plan`, `from`, `to` and `share` of lines) is absent otherwise.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from decimal import Decimal
from io import StringIO
from typing import Any

import msgspec

from billing.invoicing import Invoice, Line
from billing.plans import Part
from billing.rating import Slice
from metering.events import decimal_text

CSV_COLUMNS = (
    *("tenant_id", "period", "timezone", "plan", "from", "to", "item", "metric", "model", "usage", "billed", "amount"),
    *("currency", "complete", "as_of", "lag_ms"),
)


def invoice_members(invoice: Invoice) -> dict[str, Any]:
    """Return the invoice as the members of a JSON object, without how current it is."""
    members: dict[str, Any] = {
        "tenant_id": invoice.tenant_id,
        "period": str(invoice.period),
        "timezone": invoice.timezone,
        "currency": invoice.currency,
        "plan": invoice.plan.name,
        "lines": [{**_line(line), **_when(invoice, line.part)} for line in invoice.lines],
        "flat_fee": str(invoice.flat_fee),
        "minimum_adjustment": str(invoice.minimum_adjustment),
        "total": str(invoice.total),
        "unpriced": [
            {"metric": each.metric, "usage": _number(each.usage), **_when(invoice, each.part)}
            for each in invoice.unpriced
        ],
    }
    if invoice.split:
        members["parts"] = [
            {
                **_when(invoice, fees.part),
                "days": fees.part.days,
                "flat_fee": str(fees.flat_fee),
                "minimum": str(fees.minimum),
            }
            for fees in invoice.fees
        ]
    return members


def invoice_csv(invoice: Invoice, known: Mapping[str, object]) -> str:
    """Return the invoice as CSV (RFC 4180): a row for each line, flat fee, adjustment, the total, and what is unpriced.

    The amounts of the items `metric`, `flat_fee` and `minimum_adjustment` add up to that of `total`.
    known: the last three columns, the same in all rows.
    """
    text = StringIO()
    rows = csv.DictWriter(text, CSV_COLUMNS, restval="")
    rows.writeheader()
    always = {
        "tenant_id": invoice.tenant_id,
        "period": str(invoice.period),
        "timezone": invoice.timezone,
        "currency": invoice.currency,
        **{name: _csv_text(value) for name, value in known.items()},
    }
    for row in _csv_rows(invoice):
        rows.writerow({**always, **row})
    return text.getvalue()


def slice_words(part: Slice) -> str:
    """Return how a slice comes to its amount: `9000 x 0.01`, `100 x 0.10 + 1.00`."""
    flat = f" + {part.flat_price:f}" if part.flat_price else ""
    return f"{decimal_text(part.quantity)} x {part.unit_price:f}{flat}"


def share_words(line: Line) -> str:
    """Return which share of its slices a level's line is: `16 of 31 days`; empty for all of them."""
    if line.share == 1:
        return ""
    share = _share(line)
    return f"{share['days']} of {share['of']} days"


def _share(line: Line) -> dict[str, int]:
    days = line.part.days
    return {"days": days, "of": int(days / line.share)}


def _line(line: Line) -> dict[str, Any]:
    return {
        "metric": line.metric,
        "model": line.model,
        "usage": _number(line.usage),
        "billed": _number(line.billed),
        "amount": str(line.amount),
        **({"share": _share(line)} if line.share != 1 else {}),
        "tiers": [
            {
                "up_to": None if part.up_to is None else _number(part.up_to),
                "quantity": _number(part.quantity),
                "unit_price": f"{part.unit_price:f}",
                "flat_price": f"{part.flat_price:f}",
                "amount": decimal_text(part.amount),
            }
            for part in line.slices
        ],
    }


def _csv_rows(invoice: Invoice) -> Iterator[dict[str, str]]:
    for line in invoice.lines:
        yield {
            **_days(line.part),
            "item": "metric",
            "metric": line.metric,
            "model": line.model,
            "usage": decimal_text(line.usage),
            "billed": decimal_text(line.billed),
            "amount": str(line.amount),
        }
    for fees in invoice.fees:
        yield {**_days(fees.part), "item": "flat_fee", "amount": str(fees.flat_fee)}
    whole = {
        "plan": invoice.plan.name,
        "from": str(invoice.period.first_day),
        "to": str(invoice.period.next_first_day),
    }
    yield {**whole, "item": "minimum_adjustment", "amount": str(invoice.minimum_adjustment)}
    yield {**whole, "item": "total", "amount": str(invoice.total)}
    for each in invoice.unpriced:
        usage = decimal_text(each.usage)
        yield {**_days(each.part), "item": "unpriced", "metric": each.metric, "usage": usage}


def _when(invoice: Invoice, part: Part) -> dict[str, str]:
    return _days(part) if invoice.split else {}


def _days(part: Part) -> dict[str, str]:
    """Return the plan and its days, [from, to)."""
    return {"plan": part.plan.name, "from": str(part.first_day), "to": str(part.end_day)}


def _number(value: Decimal) -> msgspec.Raw:
    return msgspec.Raw(decimal_text(value).encode())


def _csv_text(value: object) -> str:
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
