"""GET /v1/tenants/{t}/alerts: the thresholds that a tenant's usage has crossed, and what became of the messages.

They are recorded by `metering alerts run` (billing.alerting), whatever ALERTS_FILE says today.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from flask import Response, request

from billing.alert_forms import alert_members
from billing.answers import answer, freshness_members
from billing.parameters import cursor_of, cursor_text, page_limit, query_parameters
from metering.events import parse_name
from metering.web import ProblemError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flask import Flask

    from billing.as_of import AsOf
    from metering.ports import BillingReader

_CURSOR_PREFIX = "alerts after:"
_TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"
_PLACE = re.compile(rf"{_TIME}#[^#]{{1,128}}#{_TIME}#[0-9.]{{1,32}}\Z", re.ASCII)


def add_alert_list(app: Flask, reader: BillingReader, as_of: AsOf) -> None:
    """Add the list of a tenant's alerts to `app`."""

    @app.get("/v1/tenants/<tenant_id>/alerts")
    def alerts(tenant_id: str) -> Response:
        parameters = query_parameters(request.args, "limit", "cursor")
        tenant_id = parse_name(tenant_id, "tenant_id")
        limit, after = page_limit(parameters), _place(parameters)
        known = as_of.read({})  # before the reads below: see billing.app
        page = reader.alerts(tenant_id, limit=limit, after=after)
        if not page.alerts and not reader.totals(tenant_id):
            # Not an empty list: a mistyped tenant must not read as one that is within all limits.
            detail = f"no event of tenant {tenant_id} has been counted"
            raise ProblemError(404, "tenant_not_found", detail, **freshness_members(known))
        members = {
            "tenant_id": tenant_id,
            "alerts": [alert_members(alert) for alert in page.alerts],
            "next_cursor": None if page.cursor is None else cursor_of(_CURSOR_PREFIX, page.cursor),
        }
        return answer(members, known)


def _place(parameters: Mapping[str, str]) -> str | None:
    place = cursor_text(parameters, _CURSOR_PREFIX)
    if place is not None and not _PLACE.match(place):
        detail = "cursor must be a next_cursor of this endpoint, unchanged"
        raise ProblemError(400, "invalid_cursor", detail, parameter="cursor")
    return place
