"""Billing's OpenAPI document: the list of meters, and what meters add to answers with usage."""

from __future__ import annotations

from billing.openapi_parts import AS_OF, operation
from metering.meters import Aggregation
from metering.openapi import NAME, TIME, Part, json_response, nullable, problem_response, problem_schema, record

_UNIT: Part = nullable({"type": "string", "minLength": 1, "maxLength": 32})
_AGGREGATION: Part = {"enum": [each.value for each in Aggregation]}

METER_MEMBERS: Part = {
    "unit": {**_UNIT, "description": "Of the usage; only with METERS_FILE."},
    "aggregation": {**_AGGREGATION, "description": "What `usage` is of the values; only with METERS_FILE."},
}
"""What answers with usage have besides, when METERS_FILE is set."""


def meters_paths() -> Part:
    """Return the operations."""
    meter: Part = {
        "metric": NAME,
        "unit": _UNIT,
        "description": nullable({"type": "string", "minLength": 1, "maxLength": 500}),
        "aggregation": _AGGREGATION,
    }
    example = {"metric": "seats", "unit": "seat", "description": "Seats in use", "aggregation": "max"}
    listed = record({"meters": {"type": "array", "items": record(meter)}})
    found = json_response("The meters.", listed, meters={"meters": [example]})
    description = "Those of METERS_FILE, in its order; none without it. A metric that has none is summed."
    return {"/v1/meters": {"get": operation("listMeters", "How metrics are measured", description, [], found)}}


def incomplete_response() -> Part:
    """Return the 409 of usage that is not known."""
    start: Part = {"complete_from": {**TIME, "description": "From where on usage is known; only of a range."}}
    return problem_response(
        409,
        "Some events were counted before the metric had its aggregation: nobody knows it of all of them.",
        problem_schema(409, {"aggregation_incomplete"}, {**start, **AS_OF}),
    )
