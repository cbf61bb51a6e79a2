"""From raw records to events, each with its place: the first step of a batch. Pure.

The same record decodes to the same result whenever it is read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby

from metering.envelopes import InvalidEntry, decode_record
from metering.errors import InvalidRecordError
from metering.events import Event
from metering.ports import RejectedEvent
from metering.positions import position_of


@dataclass(frozen=True, slots=True)
class ReceivedRecord:
    """A record as the KCL delivers it. arrived_at: approximate arrival, aware UTC.

    sub_sequence_number: its place among those with the same sequence number, which the KPL had aggregated.
    """

    sequence_number: str
    data: bytes
    arrived_at: datetime
    sub_sequence_number: int = 0


@dataclass(frozen=True, slots=True)
class PlacedEvent:
    """A valid event at its place in a record.

    part: which of the record's envelopes holds it; 0 but for the KPL's aggregation. batch_id: None for a bare event.
    """

    index: int
    event: Event
    part: int
    batch_id: str | None


@dataclass(frozen=True, slots=True)
class DecodedRecord:
    """What one sequence number holds: valid events, and what is rejected."""

    position: str
    arrived_at: datetime
    events: tuple[PlacedEvent, ...]
    rejected: tuple[RejectedEvent, ...]


def in_parts(records: Iterable[ReceivedRecord], *, bytes_max: int) -> Iterator[list[ReceivedRecord]]:
    """Cut a delivery into parts of up to `bytes_max` bytes of data, or of one sequence number where that holds more.

    What has one sequence number stays together, for its index runs through it.
    """
    part: list[ReceivedRecord] = []
    bytes_ = 0
    for _, same in groupby(records, key=lambda record: record.sequence_number):
        together = list(same)
        size = sum(len(record.data) for record in together)
        if part and bytes_ + size > bytes_max:
            yield part
            part, bytes_ = [], 0
        part += together
        bytes_ += size
    if part:
        yield part


def decode(records: Iterable[ReceivedRecord], *, age_days_max: int | None) -> Iterator[DecodedRecord]:
    """Decode a batch, one result for each sequence number.

    A record that the KPL had aggregated comes as several with one sequence number: they are one record here, and the
    index runs on through them.
    """
    for sequence_number, same in groupby(records, key=lambda record: record.sequence_number):
        parts = list(same)
        position = position_of(sequence_number)
        events: list[PlacedEvent] = []
        rejected: list[RejectedEvent] = []
        index = 0
        for number, part in enumerate(parts):
            arrived_at = part.arrived_at
            try:
                envelope = decode_record(part.data, arrived_at=arrived_at, age_days_max=age_days_max)
            except InvalidRecordError as error:
                rejected.append(RejectedEvent(position, index, error.code, error.detail, part.data, arrived_at))
                index += 1
                continue
            for entry in envelope.entries:
                if isinstance(entry, InvalidEntry):
                    rejected.append(
                        RejectedEvent(
                            position,
                            index,
                            entry.code,
                            entry.detail,
                            entry.raw,
                            arrived_at,
                            entry.tenant_id,
                            entry.claim_key,
                        )
                    )
                else:
                    events.append(PlacedEvent(index, entry, number, envelope.batch_id))
                index += 1
        yield DecodedRecord(position, parts[-1].arrived_at, tuple(events), tuple(rejected))
