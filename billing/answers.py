"""JSON answers whose numbers are exact: a Decimal becomes a JSON number, digit by digit, never a float.

msgspec writes the members; each Decimal goes in as raw JSON, in plain notation: readers that know no
exponents (spreadsheets, shells) understand it as well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from flask import Response

from metering.events import decimal_text, time_text

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime
    from decimal import Decimal

    from billing.freshness import Freshness


def answer(members: Mapping[str, Any], fresh: Freshness) -> Response:
    """Return a 200 with `members` as a JSON object, and with as_of and lag_ms at its end."""
    body = msgspec.json.encode({**members, **freshness_members(fresh)})
    return Response(body + b"\n", content_type="application/json")


def exact_number(value: Decimal) -> msgspec.Raw:
    """Return a finite Decimal as a JSON number of exactly its value: `10`, `0.3`."""
    return msgspec.Raw(decimal_text(value).encode())


def time_member(moment: datetime | None) -> str | None:
    """Return a time as ISO 8601 in UTC with milliseconds, cut off and never rounded up; None gives None."""
    return None if moment is None else time_text(moment)


def freshness_members(fresh: Freshness) -> dict[str, str | int | None]:
    """Return as_of and lag_ms as they stand in every answer."""
    return {"as_of": time_member(fresh.as_of), "lag_ms": fresh.lag_ms}
