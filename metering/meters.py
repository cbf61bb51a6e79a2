"""Meters: for each metric a unit, a description, and how its events become one number. Pure.

Where it sits: METERS_FILE is read into Meters (meters_file.py); the collector may ask it which metrics there are, the
consumer and billing how a metric is aggregated. A metric without a meter is summed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Aggregation(StrEnum):
    """How the values of a metric's events within a time become its usage."""

    SUM = "sum"
    COUNT = "count"  # of the events, whatever their values
    MAX = "max"
    LATEST = "latest"  # the value of the event with the latest event time

    @property
    def keeps_reading(self) -> bool:
        """Whether rows keep a reading for it (metering.readings); sum and count are in every row anyway."""
        return self in {Aggregation.MAX, Aggregation.LATEST}


@dataclass(frozen=True, slots=True)
class Meter:
    """How one metric is measured. unit, description: for people; None when the file does not say."""

    metric: str
    aggregation: Aggregation = Aggregation.SUM
    unit: str | None = None
    description: str | None = None


@dataclass(frozen=True, slots=True)
class Meters:
    """The meters of a file, by their metrics, in its order."""

    by_metric: Mapping[str, Meter] = field(default_factory=dict)

    def for_metric(self, metric: str) -> Meter:
        """Return the meter of a metric; of one that the file does not name, a sum without a unit."""
        return self.by_metric.get(metric) or Meter(metric)


NO_METERS = Meters()
"""Without METERS_FILE: every metric is summed."""
