"""What one Kinesis record holds: an envelope of events with one batch_id, or a bare event.

    {"batch_id": "…", "events": [event, …]}

Where it sits: the collector encodes, the consumer decodes. Pure.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import msgspec

from metering.errors import InvalidEventError, InvalidRecordError
from metering.events import (
    Event,
    JsonNumber,
    decode_json,
    encode_json,
    parse_identity,
    parse_name,
    parse_stream_event,
    stream_form,
)
from metering.rows import event_claim_key

ENVELOPE_BYTES_TARGET = 24 * 1024
"""An envelope is closed before it grows over this: one PUT payload unit is 25 KB (Kinesis pricing)."""
RECORD_BYTES_MAX = 1024 * 1024
"""Largest record that is put: 1 MiB, partition key included (Kinesis quotas, PutRecords)."""
BATCH_ID_LENGTH_MAX = 128

_FRAME_BYTES = len(b'{"batch_id":"","events":[]}')


@dataclass(frozen=True, slots=True)
class InvalidEntry:
    """An element of an envelope that is not a valid event. raw: its JSON, re-encoded.

    tenant_id: when it keeps the rules. claim_key: of the ledger, when its event_id and source keep them, too.
    """

    code: str
    detail: str
    raw: bytes
    tenant_id: str | None = None
    claim_key: str | None = None


@dataclass(frozen=True, slots=True)
class Envelope:
    """A decoded record. batch_id is None for a bare event; entries keep the order of the record, 1 or more."""

    batch_id: str | None
    entries: tuple[Event | InvalidEntry, ...]


def encode_event(event: Event) -> bytes:
    """Return one event as it stands in an envelope: 7 KiB at most, with a source of 1024 letters of 4 bytes."""
    return encode_json(stream_form(event))


def encode_envelope(batch_id: str, encoded_events: Sequence[bytes]) -> bytes:
    """Return the data of a record that holds `encoded_events`, each made by encode_event."""
    return b'{"batch_id":%b,"events":[%b]}' % (msgspec.json.encode(batch_id), b",".join(encoded_events))


def envelope_bytes(batch_id: str, encoded_bytes: int, events: int) -> int:
    """Return the size of the envelope of `events` events that take `encoded_bytes` bytes together."""
    return _FRAME_BYTES + len(batch_id) + encoded_bytes + max(0, events - 1)


def decode_record(data: bytes, *, arrived_at: datetime, age_days_max: int | None = None) -> Envelope:
    """Decode a record's data.

    arrived_at: the record's approximate arrival time (aware UTC).
    A bad event inside a good envelope becomes an InvalidEntry and costs no other event.
    Raises InvalidRecordError when there is neither an envelope nor a JSON object that could be a bare event.
    """
    try:
        raw = decode_json(data)
    except InvalidEventError as error:
        raise InvalidRecordError(error.detail) from error
    if not isinstance(raw, dict):
        raise InvalidRecordError("the record is not a JSON object")
    if "events" not in raw and "batch_id" not in raw:
        return Envelope(None, (_entry(raw, data, arrived_at, age_days_max),))
    batch_id, events = raw.get("batch_id"), raw.get("events")
    if (
        raw.keys() != {"batch_id", "events"}
        or not isinstance(batch_id, str)
        or isinstance(batch_id, JsonNumber)
        or not 1 <= len(batch_id) <= BATCH_ID_LENGTH_MAX
        or not batch_id.isprintable()
    ):
        raise InvalidRecordError("an envelope holds a batch_id of 1 to 128 printable characters, events, nothing else")
    if not isinstance(events, list) or not events:
        raise InvalidRecordError("an envelope's events are a list of one or more")
    return Envelope(batch_id, tuple(_entry(event, None, arrived_at, age_days_max) for event in events))


def _entry(raw: object, data: bytes | None, arrived_at: datetime, age_days_max: int | None) -> Event | InvalidEntry:
    try:
        return parse_stream_event(raw, arrived_at=arrived_at, age_days_max=age_days_max)
    except InvalidEventError as error:
        raw_json = data if data is not None else _raw_json(raw)
        return InvalidEntry(error.code, error.detail, raw_json, _tenant_id(raw), _claim_key(raw))


def _tenant_id(raw: object) -> str | None:
    try:
        return parse_name(raw.get("tenant_id"), "tenant_id") if isinstance(raw, dict) else None
    except InvalidEventError:
        return None


def _claim_key(raw: object) -> str | None:
    try:
        identity = parse_identity(raw)
    except InvalidEventError:
        return None
    return None if identity is None else event_claim_key(*identity)


def _raw_json(value: object) -> bytes:
    """Encode what decode_json gave, numbers as they were written; text may hold lone surrogates, so all is escaped."""
    match value:
        case JsonNumber():
            return value.encode()
        case dict():
            return b"{" + b",".join(_raw_json(str(k)) + b":" + _raw_json(v) for k, v in value.items()) + b"}"
        case list():
            return b"[" + b",".join(map(_raw_json, value)) + b"]"
        case _:
            return json.dumps(value).encode()
