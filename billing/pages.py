"""The pages: `/`, the tenants and how the pipeline is doing, and `/tenants/{t}`, one tenant's month.

They say what the API says, from the same reads in the same order: the progress first (billing.app says why). Nothing on
them runs in the browser. To a key for some tenants, `/` shows those and nothing of what all together do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING

from flask import Response, request, url_for

from billing.charts import Bar, bar_chart
from billing.freshness import freshness
from billing.page_parts import grouped, page
from billing.parameters import PAGE_LIMIT_DEFAULT, cursor_after, page_start, query_parameters
from billing.tenant_page import add_tenant_page
from billing.tenants import visible_tenants
from metering.aggregation import HOURS_KEPT, hour_of
from metering.events import parse_name
from metering.web_keys import key_tenants

if TYPE_CHECKING:
    from flask import Flask
    from markupsafe import Markup

    from billing.invoices import Invoices
    from billing.meters import Measures
    from metering.ports import BillingReader, ShardProgress
    from metering.settings import Settings

_HOUR = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Hour:
    """start: aware UTC. counted: events that arrived within the hour and were counted."""

    start: datetime
    counted: int


@dataclass(frozen=True, slots=True)
class ShardLine:
    """A shard as the page lists it. owner: the worker that has it, None for none; lag_ms: as in /v1/status."""

    progress: ShardProgress
    owner: str | None
    lag_ms: int | None


@dataclass(frozen=True, slots=True)
class Whole:
    """What all tenants together do: hours, oldest first, the last one just begun; and shards."""

    hours: Sequence[Hour]
    shards: Sequence[ShardLine]

    @property
    def counted(self) -> int:
        return sum(hour.counted for hour in self.hours)

    @property
    def chart(self) -> Markup | None:
        """None when there is nothing to draw."""
        named = [(f"{hour.start:%Y-%m-%d %H}:00 UTC: {grouped(hour.counted)}", hour) for hour in self.hours]
        bars = [Bar(f"{hour.start:%H}:00", title, Decimal(hour.counted)) for title, hour in named]
        return bar_chart(bars, title_id="hours-chart", label_every=4) if self.counted else None


def add_pages(
    app: Flask,
    reader: BillingReader,
    settings: Settings,
    invoices: Invoices,
    measures: Measures,
    *,
    now: Callable[[], datetime],
) -> None:
    """Add the pages to `app`. settings: the stream whose progress decides, USAGE_WINDOW_MINUTES; now: aware UTC."""
    add_tenant_page(app, reader, settings, invoices, measures, now=now)

    @app.get("/")
    def home() -> Response:
        parameters = query_parameters(request.args, "tenant", "cursor")
        after = page_start(parameters)
        if "tenant" in parameters:
            tenant_id = parse_name(parameters["tenant"].strip(), "tenant_id")
            return Response(status=303, headers={"Location": url_for("tenant_page", tenant_id=tenant_id)})
        shards = reader.progress(settings.stream)  # before the read below
        moment = now()
        found = visible_tenants(reader, limit=PAGE_LIMIT_DEFAULT, after=after)
        return page(
            "tenants.html",
            title="Usage",
            tenants=found.tenant_ids,
            after=after,
            next_cursor=None if found.cursor is None else cursor_after(found.cursor),
            known=freshness(shards, now=moment),
            whole=_whole(reader, shards, moment) if key_tenants() is None else None,
        )


def _whole(reader: BillingReader, shards: Sequence[ShardProgress], now: datetime) -> Whole:
    owners = reader.lease_owners([shard.shard_id for shard in shards])
    hours = [hour_of(now) - back * _HOUR for back in reversed(range(HOURS_KEPT))]
    return Whole(
        [Hour(hour, sum(shard.counted_by_hour.get(hour, 0) for shard in shards)) for hour in hours],
        [
            ShardLine(shard, owners.get(shard.shard_id), freshness([shard], now=now).lag_ms)
            for shard in sorted(shards, key=lambda shard: (shard.closed, shard.shard_id))
        ],
    )
