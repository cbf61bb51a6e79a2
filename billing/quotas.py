"""GET /v1/tenants/{t}/quota/{m}: may the tenant use more of a metric now? Answered by one read.

    progress, at most PROGRESS_AGE_S old ─► the rows of the period, one Query ─► limit, used, remaining

Progress before rows, as everywhere (billing.app says why); but all who ask within PROGRESS_AGE_S share it, so that a
service that is asked often reads the rows and nothing else. as_of is up to that much earlier than it could be, and
true.
"""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING

from flask import Response, request

from billing.answers import answer, exact_number, freshness_members
from billing.parameters import query_parameters
from billing.ranges import local_text
from metering.aggregation import EXACT
from metering.events import parse_name
from metering.local_time import zone_named
from metering.web import ProblemError
from metering.windows import summed

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from flask import Flask

    from billing.alerts import Alerts
    from billing.as_of import AsOf
    from billing.meters import Measures
    from metering.ports import BillingReader

PROGRESS_AGE_S = 5.0

_NOTHING = Decimal(0)


def add_quotas(
    app: Flask,
    reader: BillingReader,
    alerts: Alerts,
    as_of: AsOf,
    measures: Measures,
    *,
    now: Callable[[], datetime],
) -> None:
    """Add the check of quotas to `app`. alerts: with the quotas; now: the clock, aware UTC."""
    zone = zone_named(alerts.timezone)

    @app.get("/v1/tenants/<tenant_id>/quota/<metric>")
    def quota(tenant_id: str, metric: str) -> Response:
        query_parameters(request.args)
        tenant_id, metric = parse_name(tenant_id, "tenant_id"), parse_name(metric, "metric")
        found = alerts.quota(tenant_id, metric)
        if found is None:
            raise ProblemError(404, "quota_not_found", f"no quota of {metric} is set for tenant {tenant_id}")
        span = alerts.period_of(found.period, now())
        known = as_of.recent(PROGRESS_AGE_S)
        rows = list(reader.windows(tenant_id, metric, start=span.start, end=span.end, at_once=True))
        used = measures.usage(metric, list(summed([span], rows)))
        if used is None:
            raise measures.incomplete(metric, freshness_members(known), rows)
        members = {
            "limit": exact_number(found.limit),
            "used": exact_number(used),
            "remaining": exact_number(max(_NOTHING, EXACT.subtract(found.limit, used))),
            "exceeded": used > found.limit,
            **measures.members(metric),
            "period": found.period.value,
            "start": local_text(span.start, zone),
            "end": local_text(span.end, zone),
            "timezone": alerts.timezone,
        }
        return answer({"tenant_id": tenant_id, "metric": metric, **members}, known)
