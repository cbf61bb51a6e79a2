"""Usage as meters say it, for all that answers with usage; and GET /v1/meters, the list of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from typing import TYPE_CHECKING

import msgspec
from flask import Response, request

from billing.answers import freshness_members, time_member
from billing.parameters import query_parameters
from metering.metered import is_complete, metered_usage
from metering.meters import Aggregation, Meter, Meters
from metering.web import ProblemError
from metering.windows import UsageWindow, usage_in

if TYPE_CHECKING:
    from flask import Flask

    from billing.freshness import Freshness
    from metering.local_time import Span
    from metering.metered import MeteredRow
    from metering.windows import WindowReader, WindowRow

UsageOf = Callable[[UsageWindow], Decimal]
METER_COLUMNS = ("unit", "aggregation")

_NOTHING = Decimal(0)


class Measures:
    """Says the usage of totals and windows by their metric's meter. meters: None without METERS_FILE."""

    def __init__(self, meters: Meters | None) -> None:
        self._meters = meters

    @property
    def columns(self) -> tuple[str, ...]:
        """What a CSV has beside its other columns."""
        return () if self._meters is None else METER_COLUMNS

    def usage(self, metric: str, rows: Iterable[MeteredRow]) -> Decimal | None:
        """Return the usage of rows together, None when it is not known: see metering.metered.metered_usage."""
        return metered_usage(self._aggregation(metric), rows)

    def usage_by_window(self, metric: str) -> UsageOf:
        """Return what gives the usage of one window of a range whose usage is known."""
        aggregation = self._aggregation(metric)
        if aggregation is Aggregation.SUM:  # a page has up to 10,000 of them
            return lambda window: window.usage
        return lambda window: metered_usage(aggregation, [window]) or _NOTHING

    def is_level(self, metric: str) -> bool:
        """Whether usage is that of one event, so that times do not add up."""
        return self._aggregation(metric).keeps_reading

    def members(self, metric: str) -> dict[str, str | None]:
        """Return what an answer says beside the usage: nothing without METERS_FILE."""
        if self._meters is None:
            return {}
        meter = self._meters.for_metric(metric)
        return {"unit": meter.unit, "aggregation": meter.aggregation.value}

    def cells(self, metric: str) -> tuple[str, ...]:
        """Return the cells of `columns`."""
        return tuple(said or "" for said in self.members(metric).values())

    def incomplete(self, metric: str, known: Mapping[str, object], windows: Iterable[WindowRow] = ()) -> ProblemError:
        """Return the 409 for usage that is not known. known: what it says besides. windows: those of the range.

        complete_from: from where on the usage of the range is known, absent without a range.
        """
        aggregation = self._aggregation(metric)
        ends = [window.end for window in windows if not is_complete(window, aggregation)]
        detail = f"some events were counted before {metric} was aggregated as {aggregation}: it is not known of all"
        if not ends:
            return ProblemError(409, "aggregation_incomplete", f"{detail}; ask for a later range", **known)
        after = time_member(max(ends))
        detail += f"; it is known of what happened from {after} on"
        return ProblemError(409, "aggregation_incomplete", detail, **known, complete_from=after)

    def _aggregation(self, metric: str) -> Aggregation:
        return Aggregation.SUM if self._meters is None else self._meters.for_metric(metric).aggregation


def usage_in_range(
    reader: WindowReader, measures: Measures, known: Freshness, counter: tuple[str, str], span: Span
) -> Decimal:
    """Return the usage of a counter within `span` by its metric's meter; 0 of one that was never seen.

    counter: tenant and metric. known: as_of, read before.
    Raises ProblemError 409 `aggregation_incomplete` for usage that is not known, and as metering.windows.usage_in does.
    """
    tenant_id, metric = counter
    found = measures.usage(metric, [usage_in(reader, tenant_id, metric, span.start, span.end)])
    if found is None:
        windows = reader.windows(tenant_id, metric, start=span.start, end=span.end)
        raise measures.incomplete(metric, freshness_members(known), windows)
    return found


def add_meters(app: Flask, meters: Meters | None) -> None:
    """Add the list of meters to `app`: empty without METERS_FILE. It is the same for all who may read."""
    listed = [] if meters is None else [meter_members(meter) for meter in meters.by_metric.values()]
    body = msgspec.json.encode({"meters": listed}) + b"\n"

    @app.get("/v1/meters")
    def list_meters() -> Response:
        query_parameters(request.args)
        return Response(body, content_type="application/json")


def meter_members(meter: Meter) -> dict[str, str | None]:
    """Return a meter as it is listed."""
    return {
        "metric": meter.metric,
        "unit": meter.unit,
        "description": meter.description,
        "aggregation": meter.aggregation.value,
    }
