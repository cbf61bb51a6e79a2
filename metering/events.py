"""The usage event and every rule it must keep.

Where it sits: the collector parses requests with it, the consumer parses what the stream holds with the same rules.
Pure: no I/O, no clock; `now` is handed in. Over 300 lines, so that every rule stands in one place.

Numbers are never floats. JSON numbers stay text until the rules have looked at them, so `1e999999999` costs nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import NoReturn

from metering.errors import InvalidEventError

NAME_LENGTH_MAX = 128
EVENT_ID_LENGTH_MAX = 128
SOURCE_LENGTH_MAX = 1024
VALUE_INTEGER_DIGITS_MAX = 15
VALUE_FRACTION_DIGITS_MAX = 9
FUTURE_TOLERANCE = timedelta(minutes=5)
RECEIPT_PREFIX = "kinesis:"
NESTING_MAX = 32
"""Deepest JSON that is read; an event needs 1, a CloudEvent 2, a batch one more."""

EVENT_FIELDS = frozenset({"tenant_id", "metric", "value", "timestamp", "event_id"})
"""What a client may send."""
STREAM_FIELDS = EVENT_FIELDS | {"received_at", "source"}
"""What an event on the stream may hold."""

_NUMBER = re.compile(r"(-?)([0-9]+)(?:\.([0-9]+))?(?:[eE]([+-]?[0-9]+))?\Z", re.ASCII)
_ASCII_NAME = re.compile(r"[0-9A-Za-z._:@-]{1,128}\Z")
_NAME_PUNCTUATION = frozenset("._-:@")
_TIMESTAMP = re.compile(
    r"(\d{4}-\d{2}-\d{2})[Tt]((?:[01]\d|2[0-3]):\d{2}):(\d{2})(?:\.(\d{1,9}))?"
    r"(?:[Zz]|([+-])(\d{2}):(\d{2}))\Z",
    re.ASCII,
)


class JsonNumber(str):
    """A JSON number as it was written."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Event:
    """One usage event that keeps every rule.

    tenant_id, metric: 1 to 128 letters, digits and `. _ - : @`.
    value: finite, >= 0, at most 15 digits before the point and 9 after it.
    timestamp: RFC 3339 text as the client sent it, or None when it sent none.
    event_id: the client's idempotency key, or None.
    received_at: when the collector took it (aware UTC), or None for an event put on the stream by another producer.
    occurred_at: the time it counts for (aware UTC): timestamp, else received_at, else the record's arrival.
    source: a CloudEvent's source, which is part of its identity: 1 to 1024 printable characters; needs an event_id.
    """

    tenant_id: str
    metric: str
    value: Decimal
    timestamp: str | None
    event_id: str | None
    received_at: datetime | None
    occurred_at: datetime
    source: str | None = None


def decode_json(body: bytes) -> object:
    """Decode strict JSON (RFC 8259, UTF-8): numbers become JsonNumber, nothing becomes a float.

    Raises InvalidEventError `malformed_json` for anything that is not JSON, a byte order mark, invalid UTF-8,
    a key that stands twice in one object, NaN and Infinity, and nesting deeper than NESTING_MAX.
    """
    try:
        text = body.decode("utf-8")
        _refuse_deep_nesting(text)
        value = _DECODER.decode(text)
    except UnicodeDecodeError as error:
        raise InvalidEventError("malformed_json", f"the body is not UTF-8 at byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise InvalidEventError(
            "malformed_json", f"the body is not JSON: {error.msg} (line {error.lineno}, column {error.colno})"
        ) from error
    return value


def encode_json(value: object) -> bytes:
    """Encode compact UTF-8 JSON; Decimals and JsonNumbers must have been made strings by the caller."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def parse_event(raw: object, *, now: datetime, age_days_max: int | None = None) -> Event:
    """Return the event that a client sent, as decoded by decode_json.

    now: the time of receipt (aware UTC); it becomes received_at, and occurred_at when no timestamp was sent.
    age_days_max: EVENT_MAX_AGE_DAYS, or None for no limit.
    Raises InvalidEventError with the code of the first rule broken, in the order of the fields in the API.
    """
    fields = _fields(raw, EVENT_FIELDS)
    received_at = to_milliseconds(now)
    return _event(fields, received_at=received_at, now=received_at, age_days_max=age_days_max)


def parse_sourced_event(raw: object, *, now: datetime, age_days_max: int | None = None) -> Event:
    """Return the event of a client that says its source, as a CloudEvent does; otherwise as parse_event."""
    fields = _fields(raw, EVENT_FIELDS | {"source"})
    received_at = to_milliseconds(now)
    return _event(fields, received_at=received_at, now=received_at, age_days_max=age_days_max)


def parse_stream_event(raw: object, *, arrived_at: datetime, age_days_max: int | None = None) -> Event:
    """Return the event that a record holds.

    arrived_at: when Kinesis took the record (aware UTC). Time rules are held against received_at, or arrived_at
    where there is none, so that the same record always gives the same answer, whenever it is read.
    Raises InvalidEventError as parse_event does.
    """
    fields = _fields(raw, STREAM_FIELDS)
    received_at: datetime | None = None
    if "received_at" in fields:
        received_at = parse_timestamp(fields["received_at"], field="received_at")
    return _event(fields, received_at=received_at, now=received_at or arrived_at, age_days_max=age_days_max)


def parse_identity(raw: object) -> tuple[str, str, str | None] | None:
    """Return tenant_id, event_id and source of what may be no valid event otherwise; None when it has no event_id.

    Raises InvalidEventError when one of the three breaks its rule.
    """
    if not isinstance(raw, dict):
        return None
    event_id = _event_id(raw)
    source = _source(raw, event_id)
    return None if event_id is None else (parse_name(raw.get("tenant_id"), "tenant_id"), event_id, source)


def stream_form(event: Event) -> dict[str, str]:
    """Return the event as it stands on the stream; parse_stream_event gives the same event back."""
    form = {"tenant_id": event.tenant_id, "metric": event.metric, "value": decimal_text(event.value)}
    if event.timestamp is not None:
        form["timestamp"] = event.timestamp
    if event.event_id is not None:
        form["event_id"] = event.event_id
    if event.source is not None:
        form["source"] = event.source
    if event.received_at is not None:
        form["received_at"] = time_text(event.received_at)
    return form


def decimal_text(value: Decimal) -> str:
    """Return a Decimal in plain notation, without exponent, trailing zeros or a negative zero: `10`, `0.5`."""
    text = f"{value:f}"
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return "0" if text in {"-0", ""} else text


def time_text(moment: datetime) -> str:
    """Return an aware time as ISO 8601 in UTC with milliseconds: `2024-01-15T10:00:00.000Z`."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def to_milliseconds(moment: datetime) -> datetime:
    """Return `moment` cut to whole milliseconds: what time_text keeps of it."""
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000)


def parse_timestamp(raw: object, *, field: str = "timestamp") -> datetime:
    """Return the moment (aware UTC) of an RFC 3339 date-time with an offset.

    A fraction has 9 digits at most; what is finer than a microsecond is cut off.
    Second 60 (a leap second) counts as the last microsecond before it.
    Raises InvalidEventError `invalid_timestamp`.
    """
    match = _TIMESTAMP.match(raw) if isinstance(raw, str) and not isinstance(raw, JsonNumber) else None
    if match is None:
        raise InvalidEventError(
            "invalid_timestamp", f"{field} must be RFC 3339 with an offset, as 2024-01-15T10:00:00Z", field
        )
    date, hour_minute, second, fraction, sign, offset_hours, offset_minutes = match.groups()
    leap = second == "60"
    micro = "999999" if leap else (fraction or "0")[:6].ljust(6, "0")
    try:
        local = datetime.fromisoformat(f"{date}T{hour_minute}:{'59' if leap else second}.{micro}+00:00")
        if sign is None:
            return local
        if int(offset_hours) > 23 or int(offset_minutes) > 59:
            raise ValueError("offset out of range")
        offset = timedelta(hours=int(offset_hours), minutes=int(offset_minutes))
        return local - offset if sign == "+" else local + offset
    except (ValueError, OverflowError) as error:
        raise InvalidEventError("invalid_timestamp", f"{field} is not a date and time that exists", field) from error


def parse_name(raw: object, field: str) -> str:
    """Return a tenant id or metric that keeps the rule; `field`, tenant_id or metric, is for the error.

    Raises InvalidEventError `invalid_tenant_id` or `invalid_metric`.
    """
    if isinstance(raw, str) and not isinstance(raw, JsonNumber):
        if _ASCII_NAME.match(raw):
            return raw
        if 1 <= len(raw) <= NAME_LENGTH_MAX and all(
            c.isalpha() or c.isdecimal() or c in _NAME_PUNCTUATION for c in raw
        ):
            return raw
    raise InvalidEventError(
        f"invalid_{field}", f"{field} must be 1 to 128 letters, digits and . _ - : @, nothing else", field
    )


def _event(
    fields: Mapping[str, object], *, received_at: datetime | None, now: datetime, age_days_max: int | None
) -> Event:
    tenant_id = parse_name(_required(fields, "tenant_id"), "tenant_id")
    metric = parse_name(_required(fields, "metric"), "metric")
    value = _value(fields)
    timestamp: str | None = None
    occurred_at = now
    if "timestamp" in fields:
        occurred_at = parse_timestamp(fields["timestamp"])
        timestamp = str(fields["timestamp"])
        if occurred_at > now + FUTURE_TOLERANCE:
            raise InvalidEventError(
                "timestamp_in_future", "timestamp is more than 5 minutes ahead of this server's clock", "timestamp"
            )
        if age_days_max is not None and occurred_at < now - timedelta(days=age_days_max):
            raise InvalidEventError("timestamp_too_old", f"timestamp is more than {age_days_max} days ago", "timestamp")
    event_id = _event_id(fields)
    return Event(
        tenant_id=tenant_id,
        metric=metric,
        value=value,
        timestamp=timestamp,
        event_id=event_id,
        received_at=received_at,
        occurred_at=occurred_at,
        source=_source(fields, event_id),
    )


def _fields(raw: object, allowed: frozenset[str]) -> Mapping[str, object]:
    if not isinstance(raw, dict):
        raise InvalidEventError("invalid_event", "an event is a JSON object")
    for name in raw:
        if name not in allowed:
            raise InvalidEventError("unknown_field", f"there is no field {name[:64]!r} in an event", name[:64])
    return raw


def _value(fields: Mapping[str, object]) -> Decimal:
    raw = _required(fields, "value")
    match = _NUMBER.match(raw) if isinstance(raw, str) else None
    if match is None:
        raise InvalidEventError("invalid_value", "value must be a finite JSON number or a decimal string", "value")
    sign, integer, fraction, exponent = match.groups()
    digits = (integer + (fraction or "")).lstrip("0")
    if not digits:
        return Decimal(0)
    if sign:
        raise InvalidEventError("negative_value", "value must not be negative", "value")
    # Only a short exponent can bring a body's worth of digits back into range; a long one is refused unread.
    if exponent is not None and len(exponent) > 8:
        _refuse_range()
    significant = digits.rstrip("0")
    shift = int(exponent or 0) - len(fraction or "") + len(digits) - len(significant)
    if shift < -VALUE_FRACTION_DIGITS_MAX or len(significant) + shift > VALUE_INTEGER_DIGITS_MAX:
        _refuse_range()
    return Decimal(significant).scaleb(shift)


def _refuse_range() -> NoReturn:
    raise InvalidEventError(
        "invalid_value", "value may have at most 15 digits before the point and 9 after it", "value"
    )


def _event_id(fields: Mapping[str, object]) -> str | None:
    if "event_id" not in fields:
        return None
    value = fields["event_id"]
    if (
        not isinstance(value, str)
        or isinstance(value, JsonNumber)
        or not 1 <= len(value) <= EVENT_ID_LENGTH_MAX
        or not value.isprintable()
        or value.startswith(RECEIPT_PREFIX)
    ):
        raise InvalidEventError(
            "invalid_event_id",
            "event_id must be 1 to 128 printable characters and not begin with 'kinesis:'",
            "event_id",
        )
    return value


def _source(fields: Mapping[str, object], event_id: str | None) -> str | None:
    if "source" not in fields:
        return None
    value = fields["source"]
    if (
        not isinstance(value, str)
        or isinstance(value, JsonNumber)
        or not 1 <= len(value) <= SOURCE_LENGTH_MAX
        or not value.isprintable()
    ):
        raise InvalidEventError(
            "invalid_source", f"source must be 1 to {SOURCE_LENGTH_MAX} printable characters", "source"
        )
    if event_id is None:
        raise InvalidEventError("missing_field", "an event with a source needs an event_id", "event_id")
    return value


def _required(fields: Mapping[str, object], field: str) -> object:
    value = fields.get(field)
    if value is None:
        raise InvalidEventError("missing_field", f"{field} is required", field)
    return value


def _refuse_deep_nesting(text: str) -> None:
    # The decoder recurses per level. Brackets inside strings make this count too high, never too low, so a text
    # below the limit is safe and only a suspicious one is walked.
    if text.count("[") + text.count("{") <= NESTING_MAX:
        return
    depth = 0
    for token in _STRUCTURE.finditer(text):
        first = token[0][0]
        if first in "[{":
            depth += 1
            if depth > NESTING_MAX:
                raise InvalidEventError("malformed_json", f"the body is nested deeper than {NESTING_MAX} levels")
        elif first in "]}":
            depth -= 1


def _pairs(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        name = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise InvalidEventError("malformed_json", f"the key {name[:64]!r} stands twice in one object")
    return result


def _refuse_constant(name: str) -> NoReturn:
    raise InvalidEventError("malformed_json", f"{name} is not JSON")


# Possessive: a string of 5 MB would otherwise cost 600 MB of places to go back to.
_STRUCTURE = re.compile(r'"(?:[^"\\]++|\\.)*+"?|[\[\]{}]', re.DOTALL)
_DECODER = json.JSONDecoder(
    object_pairs_hook=_pairs, parse_float=JsonNumber, parse_int=JsonNumber, parse_constant=_refuse_constant
)
