"""CloudEvents 1.0 as usage events: structured and batched (JSON event format) and binary (HTTP protocol binding).

    id → event_id    source → source    subject → tenant_id    type → metric    time → timestamp    data.value → value

`source` and id together are the idempotency key. Pure. Source: the CloudEvents 1.0.2 specification, its JSON event
format and its HTTP protocol binding.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any
from urllib.parse import unquote

from metering.errors import InvalidEventError
from metering.events import JsonNumber, parse_sourced_event
from metering.outgoing import OutgoingEvent, Rules, each, outgoing, require_meter

_FIELDS = {"subject": "tenant_id", "type": "metric", "time": "timestamp", "id": "event_id", "source": "source"}
_ATTRIBUTES = frozenset({"specversion", "datacontenttype", "dataschema", "data", *_FIELDS})
EXTENSIONS = frozenset(
    {"traceparent", "tracestate", "partitionkey", "sequence", "sequencetype", "sampledrate", "correlationid"}
)
"""Attributes that may stand in an event and mean nothing here: what documented extensions and SDKs add. Any other is
refused by its name, for a mistyped `tiem` must not move usage into another month."""

_HEADER = "ce-"
_JSON_MEDIA_TYPE = re.compile(r"\s*(?:application|text)/(?:[a-z0-9.+-]*\+)?json\s*(?:;.*)?", re.ASCII | re.IGNORECASE)


def cloud_event(raw: object, rules: Rules) -> OutgoingEvent:
    """Return the usage event of a CloudEvent in the JSON event format, as decoded by decode_json.

    Raises InvalidEventError: its field is the CloudEvent's attribute, its code that of the usage event's rule;
    `invalid_specversion` and `invalid_data` for what has no counterpart.
    """
    if not isinstance(raw, dict):
        raise InvalidEventError("invalid_event", "a CloudEvent is a JSON object")
    raw = {name: value for name, value in raw.items() if value is not None}  # null means absent (JSON format, 2.2)
    for name in raw:
        if name not in _ATTRIBUTES and name not in EXTENSIONS:
            raise InvalidEventError("unknown_field", f"there is no attribute {name[:64]!r} in a usage event", name[:64])
    _require_version(raw)
    for name in ("id", "source", "type", "subject"):
        if name not in raw:
            raise InvalidEventError("missing_field", f"{name} is required", name)
    fields = {field: raw[name] for name, field in _FIELDS.items() if name in raw}
    fields |= _value(raw)
    try:
        event = parse_sourced_event(fields, now=rules.now, age_days_max=rules.age_days_max)
        require_meter(event, rules)
    except InvalidEventError as error:
        raise _in_their_words(error) from error
    return outgoing(event, rules.partitions)


def cloud_events(elements: Iterable[object], rules: Rules) -> list[OutgoingEvent | InvalidEventError]:
    """Return the usage events of a batch of CloudEvents, each as itself or as the rule that it breaks."""
    return each(elements, cloud_event, rules)


def is_binary(environ: Iterable[str]) -> bool:
    """Return whether an HTTP request holds a CloudEvent in binary mode: its attributes are headers.

    environ: the names of the request's WSGI environment, which is cheaper to look through than its headers.
    """
    return "\nHTTP_CE_" in "\n" + "\n".join(environ)  # a quarter of the time of a look at each


def from_binary(headers: Iterable[tuple[str, str]], data: object) -> dict[str, Any]:
    """Return the CloudEvent of a request in binary mode, as cloud_event takes it.

    headers: as WSGI gives them, bytes as Latin-1. data: the body, decoded.
    Raises InvalidEventError `invalid_event` for an attribute that stands twice or is not UTF-8.
    """
    event: dict[str, Any] = {"data": data}
    for name, value in headers:
        attribute = name.lower().removeprefix(_HEADER)
        if not name.lower().startswith(_HEADER):
            continue
        if attribute in event:
            raise InvalidEventError("invalid_event", f"the header {name} stands twice", attribute[:64])
        event[attribute] = _header_text(value, attribute)
    return event


def _header_text(value: str, attribute: str) -> str:
    """Undo the binding's encoding (section 3.1.3.2): quotes around it, then percent-encoded UTF-8."""
    if len(value) >= 2 and value[0] == value[-1] == '"':
        value = re.sub(r"\\(.)", r"\1", value[1:-1])
    try:
        return unquote(value.encode("latin-1").decode("utf-8"), errors="strict")
    except UnicodeError as error:
        raise InvalidEventError("invalid_event", f"the attribute {attribute[:64]!r} is not UTF-8") from error


def _require_version(raw: dict[str, Any]) -> None:
    version = raw.get("specversion")
    if version is None:
        raise InvalidEventError("missing_field", "specversion is required", "specversion")
    if isinstance(version, JsonNumber) or version != "1.0":
        raise InvalidEventError("invalid_specversion", 'specversion must be "1.0"', "specversion")
    media_type = raw.get("datacontenttype", "application/json")
    if not isinstance(media_type, str) or not _JSON_MEDIA_TYPE.fullmatch(media_type):
        raise InvalidEventError("invalid_data", "datacontenttype must be JSON, or absent", "datacontenttype")


def _value(raw: dict[str, Any]) -> dict[str, object]:
    data = raw.get("data")
    if data is None:
        raise InvalidEventError("missing_field", "data is required", "data")
    if not isinstance(data, dict):
        raise InvalidEventError("invalid_data", "data must be a JSON object that holds value", "data")
    for name in data:
        if name != "value":
            raise InvalidEventError(
                "unknown_field", f"there is no field {name[:64]!r} in a usage event's data", f"data.{name[:64]}"
            )
    return data


def _in_their_words(error: InvalidEventError) -> InvalidEventError:
    """Return the same error with the CloudEvent's name of the field."""
    theirs = {field: name for name, field in _FIELDS.items()} | {"value": "data.value"}
    name = theirs.get(error.field or "", error.field)
    return InvalidEventError(error.code, f"{name}: {error.detail}" if name != error.field else error.detail, name)
