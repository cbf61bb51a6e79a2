"""Readings in DynamoDB: the update that keeps one in a row, and what a row keeps.

    SET max = :value, max_at = :at
    IF attribute_not_exists(max) OR max < :value OR (max = :value AND max_at < :at)

    SET latest = :value, latest_at = :at
    IF attribute_not_exists(latest_at) OR latest_at < :at

The greatest reading stays, whoever comes last and however often: no fence is needed. DynamoDB compares numbers as
numbers and text as UTF-8 bytes (API reference, condition expressions). max_events and latest_events, how many of the
row's events have been offered, go up in the fenced write (dynamodb.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from metering.events import decimal_text
from metering.meters import Aggregation
from metering.readings import KeptReading, Reading

_CONDITIONS = {
    Aggregation.MAX: "attribute_not_exists(#value) OR #value < :value OR (#value = :value AND #at < :at)",
    Aggregation.LATEST: "attribute_not_exists(#at) OR #at < :at",
}

_ATTRIBUTES = [(each, each.value, f"{each}_at", f"{each}_events") for each in _CONDITIONS]
USAGE_ATTRIBUTES = ("max", "max_events", "latest", "latest_at", "latest_events", "voided_events")
"""What usage is made of. max_at is not among them: it is as long as all else in a row of a year's 8,760, and no usage
depends on which of several equal values is the maximum."""


def keep_update(reading: Reading) -> dict[str, Any]:
    """Return update, condition, names and values, as update_unless_failed takes them."""
    return {
        "update": "SET #value = :value, #at = :at",
        "condition": _CONDITIONS[reading.aggregation],
        "names": {"#value": reading.aggregation.value, "#at": f"{reading.aggregation}_at"},
        "values": {":value": {"N": decimal_text(reading.value)}, ":at": {"S": reading.at}},
    }


def covered_attribute(aggregation: Aggregation) -> str:
    """Return the attribute that says how many of a row's events had been offered when they were counted."""
    return f"{aggregation}_events"


def kept_readings(item: Mapping[str, Any]) -> tuple[KeptReading, ...]:
    """Return what a total or a window keeps, as far as it was read; a maximum may come without its place.

    Made to be quick: a year has 8,760 hours.
    """
    kept: tuple[KeptReading, ...] = ()
    for aggregation, value_name, at_name, events_name in _ATTRIBUTES:
        value, at = item.get(value_name), item.get(at_name)
        if value is not None and "N" in value and (at is not None or aggregation is Aggregation.MAX):
            reading = Reading(aggregation, Decimal(value["N"]), at.get("S", "") if at else "")
            kept += (KeptReading(reading, _number(item, events_name) - _number(item, "voided_events")),)
    return kept


def _number(item: Mapping[str, Any], attribute: str) -> int:
    found = item.get(attribute)
    return int(found["N"]) if found else 0
