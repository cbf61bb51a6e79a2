"""What a rejected row stands for, corrected: events that keep the rules, each with an id. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from hashlib import blake2b

from metering.envelopes import BATCH_ID_LENGTH_MAX, decode_record
from metering.errors import InvalidEventError, InvalidRecordError
from metering.events import Event, decode_json, parse_stream_event, time_text
from metering.places import StreamPlace
from metering.rejected import RejectedRow


@dataclass(frozen=True, slots=True)
class Correction:
    """What is changed before a rejected event is put again.

    fields: values by name; an empty one takes the field away. event: stands in for what the record held.
    as_new: under an id derived from the row, whatever id the event had.
    """

    fields: Mapping[str, str]
    event: bytes | None = None
    as_new: bool = False

    @property
    def empty(self) -> bool:
        return not self.fields and self.event is None and not self.as_new


def events_to_replay(
    row: RejectedRow, correction: Correction, *, now: datetime, age_days_max: int | None
) -> list[Event]:
    """Return the events that a row stands for, corrected, each with an id.

    The time rules are held against `now` (aware UTC) where an event has a timestamp: what lay in the future once may be
    past by now. Where it has none it keeps the time at which it was received first, so it counts in its own time.
    Raises InvalidEventError with the code of the first rule broken.
    """
    if correction.event is None and row.raw_is_cut:
        detail = f"only {len(row.raw)} of {row.raw_bytes} bytes were kept: give the event with --event"
        raise InvalidEventError("raw_cut", detail)
    if row.reason == "batch_id_conflict" and not correction.as_new:
        raise InvalidEventError(
            row.reason,
            "a batch of this id was counted with other content: --as-new counts this event in addition to it",
            "batch_id",
        )
    raws, envelope = _raw_events(row.raw if correction.event is None else correction.event, now)
    if envelope and correction.fields:
        raise InvalidEventError(
            "invalid_event", "--set corrects a single event; give the corrected record with --event"
        )
    events = []
    for number, raw in enumerate(raws):
        derived = derived_id(row.place, number if len(raws) > 1 else None)
        fields = _corrected(raw, correction, row, derived)
        events.append(parse_stream_event(fields, arrived_at=now, age_days_max=age_days_max))
    return events


def derived_id(place: StreamPlace, number: int | None = None) -> str:
    """Return the id for what a row stands for: of its batch, and of its event when that has none of its own.

    number: of the event, when the row stands for several. Always the same for the same row.
    """
    name = f"replay:{place.shard_id}:{place.sequence_number}:{place.index}" + ("" if number is None else f":{number}")
    # Kinesis's own numbers have 56 digits; the limit is for those that have not.
    return name if len(name) <= BATCH_ID_LENGTH_MAX else f"replay:{blake2b(name.encode(), digest_size=32).hexdigest()}"


def _raw_events(data: bytes, now: datetime) -> tuple[list[object], bool]:
    """Return the events of a record as they were written, and whether they stand in an envelope."""
    raw = decode_json(data)
    if not isinstance(raw, dict) or not {"events", "batch_id"} & raw.keys():
        return [raw], False
    try:
        decode_record(data, arrived_at=now)
    except InvalidRecordError as error:
        raise InvalidEventError(error.code, error.detail) from error
    return list(raw["events"]), True


def _corrected(raw: object, correction: Correction, row: RejectedRow, derived: str) -> object:
    if not isinstance(raw, dict):
        if correction.fields:
            raise InvalidEventError("invalid_event", "there are no fields to correct: give the event with --event")
        return raw
    fields = {**raw, **correction.fields}
    fields = {name: value for name, value in fields.items() if correction.fields.get(name) != ""}
    if correction.as_new or "event_id" not in fields:
        fields["event_id"] = derived
    if "timestamp" in fields:
        # The new record's arrival stands in for it, so that each run puts the same bytes.
        fields.pop("received_at", None)
    else:
        fields.setdefault("received_at", time_text(row.arrived_at))
    return fields
