"""The rows of an export as lines: CSV (RFC 4180), or JSON objects, one a line. Figures are exact. Pure."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from decimal import Decimal
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from billing.answers import exact_number
from billing.forms import Form
from metering.events import decimal_text

if TYPE_CHECKING:
    from billing.meters import Measures

JSON_LINES = "application/x-ndjson"
EXPORT_COLUMNS = ("tenant_id", "metric", "usage", "events")


class ExportRow(NamedTuple):
    """What a tenant used of a metric. usage, events: None when it is not known."""

    tenant_id: str
    metric: str
    usage: Decimal | None
    events: int | None


def header(form: Form, measures: Measures) -> bytes:
    """Return what stands before the rows: the line of names of CSV."""
    return _csv([EXPORT_COLUMNS + measures.columns]) if form is Form.CSV else b""


def encoded(rows: Iterable[ExportRow], form: Form, measures: Measures) -> bytes:
    """Return the lines of `rows`; what is not known is an empty cell, or null."""
    if form is Form.CSV:
        return _csv(_cells(row, measures) for row in rows)
    return b"".join(_object(row, measures) for row in rows)


def _csv(lines: Iterable[tuple[str | int, ...]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(lines)
    return text.getvalue().encode()


def _cells(row: ExportRow, measures: Measures) -> tuple[str | int, ...]:
    usage = "" if row.usage is None else decimal_text(row.usage)
    events = "" if row.events is None else row.events
    return (row.tenant_id, row.metric, usage, events, *measures.cells(row.metric))


def _object(row: ExportRow, measures: Measures) -> bytes:
    members = {
        "tenant_id": row.tenant_id,
        "metric": row.metric,
        "usage": None if row.usage is None else exact_number(row.usage),
        **measures.members(row.metric),
        "events": row.events,
    }
    return msgspec.json.encode(members) + b"\n"
