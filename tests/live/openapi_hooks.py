"""What schemathesis must be told of the services: lines of JSON, and which valid requests they refuse with reason."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator
from decimal import Decimal
from typing import Any
from urllib.parse import unquote

import schemathesis
from schemathesis.core.failures import AcceptedNegativeData, ServerError
from schemathesis.openapi.checks import AllowHeaderMismatch, RejectedPositiveData, UnsupportedMethodResponse

from metering.events import RECEIPT_PREFIX, VALUE_FRACTION_DIGITS_MAX

NO_SCHEMA_SAYS_IT = {
    # the clock decides, and who made it
    "timestamp_in_future",
    "min_as_of_in_future",
    "as_of_not_reached",
    "invalid_cursor",
    # and the calendar, the zones, and each parameter of a range for the others
    "invalid_time",
    "invalid_timezone",
    "invalid_range",
    "missing_window",
    "time_out_of_range",
    "timezone_needs_smaller_windows",
    "unaligned_time",
}
ANY_TEXT = {"Ce-Id", "Ce-Source"}
"""Headers that nothing of a wrong type can be sent in: `{}` is an id."""

OF_CHARACTERS = {
    "invalid_tenant_id",
    "invalid_metric",
    "invalid_event_id",
    "invalid_source",
    "invalid_by",
    "invalid_reason",
}
"""It sends characters that Unicode has not assigned, or only in a version after Python's."""


@schemathesis.serializer("application/x-ndjson", "application/ndjson")
def lines(_context: Any, value: Any) -> bytes:
    if isinstance(value, list):
        return b"\n".join(json.dumps(element).encode() for element in value)
    return json.dumps(value, indent=1).encode()  # not one value a line


@schemathesis.hook
def filter_failure(_context: Any, failure: Any, case: Any, response: Any) -> bool:
    """Return whether a failure is one."""
    if isinstance(failure, AllowHeaderMismatch | UnsupportedMethodResponse) and case.path.endswith("/void"):
        return False  # GET is allowed there, too: of an event whose id ends so
    if isinstance(failure, RejectedPositiveData):
        answer = response.json()
        codes = {answer.get("code"), *(result.get("code") for result in answer.get("results", ()))}
        allowed = NO_SCHEMA_SAYS_IT | {None, "no_event_accepted"}
        if any(_decimal_places(number) > VALUE_FRACTION_DIGITS_MAX for number in _floats(case.body)):
            allowed.add("invalid_value")  # see VALUE in metering/openapi.py
        if any(unicodedata.category(each) == "Cn" for each in _text(case)):
            allowed |= OF_CHARACTERS
        if "source" in (case.query or {}) and RECEIPT_PREFIX in unquote(case.formatted_path):
            allowed.add("unknown_parameter")
        return not codes <= allowed
    if isinstance(failure, ServerError):
        return response.json().get("code") not in NO_SCHEMA_SAYS_IT
    if isinstance(failure, AcceptedNegativeData):
        data = case.meta.phase.data
        changed = {change.parameter for change in getattr(data, "mutations", ())} or {data.parameter}
        return not changed <= ANY_TEXT
    return True


def _text(case: Any) -> str:
    return unquote(case.formatted_path) + json.dumps(case.body, ensure_ascii=False, default=str)


def _decimal_places(number: float) -> int:
    return -int(Decimal(repr(number)).normalize().as_tuple().exponent)


def _floats(value: object) -> Iterator[float]:
    if isinstance(value, float):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _floats(inner)
