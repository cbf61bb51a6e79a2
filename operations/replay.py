"""Puts what was rejected back on the stream, once, however often it is asked to.

    rejected row ─► correction ─► rules, ledger ─► begin: what is put is noted on the row ─► put ─► mark as replayed
                                  refused: said             │                                 │
                                                            └── a crash from here on: run it again. The same events
                                                                are put under the same ids: duplicates, no second count

Every event that is put has an id: its own, or one that is derived from the row's place. Ids alone would not be enough:
after a crash between put and mark, a second run with another correction (another tenant, another id) would count as
well. So the row remembers what was begun, and only that can be finished.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from hashlib import sha256

import stamina

from metering.aws import dynamodb_client, kinesis_client
from metering.claims import EventContent
from metering.dynamodb_events import DynamoEventReader
from metering.envelopes import encode_envelope, encode_event
from metering.errors import InvalidEventError, StreamUnavailableError
from metering.events import Event, decode_json, encode_json, parse_stream_event, stream_form, time_text
from metering.kinesis import PUT_RECORDS_MAX, KinesisEventSink
from metering.partitions import partition_of
from metering.places import StreamPlace
from metering.ports import EventReader, EventSink, NotHeld, OutgoingRecord, RejectedStore
from metering.rejected import RejectedRow
from metering.rows import event_claim_key
from metering.settings import Settings
from operations.correction import Correction, derived_id, events_to_replay
from operations.rejected import printable, row_of

REMEMBERED_BYTES_MAX = 100 * 1024
"""Events that take more than this are remembered by their digest: an item holds 400 KB, of which raw may take 256."""
PUT_ATTEMPTS_MAX = 5
PUT_WAIT_S_MAX = 5.0

_DIGEST = b"sha256:"


class Outcome(Enum):
    """How a replay ended that was not refused."""

    REPLAYED = "replayed"
    FINISHED = "replayed, as it had been begun before"
    ALREADY = "was replayed already"
    WOULD = "would be replayed"


@dataclass(frozen=True, slots=True)
class Replayed:
    """The outcome, and the events: those that were put, now or before, or would be."""

    outcome: Outcome
    event_ids: tuple[str, ...]


class Replayer:
    """Replays rows one after the other. clock: returns the time now, aware UTC."""

    def __init__(
        self,
        store: RejectedStore,
        ledger: EventReader,
        sink: EventSink,
        *,
        stream: str,
        partitions: int,
        age_days_max: int | None,
        clock: Callable[[], datetime],
    ) -> None:
        self._store = store
        self._ledger = ledger
        self._sink = sink
        self._stream = stream
        self._partitions = partitions
        self._age_days_max = age_days_max
        self._clock = clock

    def replay(self, row: RejectedRow, correction: Correction, *, dry_run: bool = False) -> Replayed:
        """Put the row's events back on the stream and mark it; nothing is put when one of them is refused.

        Raises InvalidEventError with the code of what is wrong, and what the ports raise. After an error of the
        stream's or of the store's, run it again: what was begun is finished then.
        """
        if row.replayed_at is not None:
            return Replayed(Outcome.ALREADY, row.replayed_as)
        if row.stream != self._stream:
            raise InvalidEventError("other_stream", f"the row is of the stream {row.stream}, not of {self._stream}")
        now = self._clock()
        events = self._events(row, correction, now)
        self._refuse_conflicts(events)
        event_ids = tuple(str(event.event_id) for event in events)
        if dry_run:
            return Replayed(Outcome.WOULD, event_ids)
        self._sink.check()  # before anything is noted: a stream that is not there has nothing of it
        remembered = _remembered(events)
        noted = self._store.begin_replay(row.place, remembered, now=now)
        if noted is None:
            raise InvalidEventError("not_found", "the row has expired")
        if noted != remembered:
            raise InvalidEventError("replay_begun", "another replay of this row has begun just now; look at it again")
        self._put(row.place, events)
        if not self._store.mark_replayed(row.place, event_ids, now=self._clock()):
            return Replayed(Outcome.ALREADY, event_ids)
        return Replayed(Outcome.REPLAYED if row.replay_events is None else Outcome.FINISHED, event_ids)

    def _events(self, row: RejectedRow, correction: Correction, now: datetime) -> list[Event]:
        begun = row.replay_events
        if begun is not None and correction.empty and not begun.startswith(_DIGEST):
            return _recalled(begun, now)
        events = events_to_replay(row, correction, now=now, age_days_max=self._age_days_max)
        if begun not in {None, _remembered(events)}:
            at = time_text(row.replay_begun_at or now)
            raise InvalidEventError(
                "replay_begun",
                f"a replay as something else was begun at {at} and may have been counted;"
                " without a correction it is finished as it was begun",
            )
        return events

    def _refuse_conflicts(self, events: Sequence[Event]) -> None:
        """Refuse an event whose id the ledger holds with other content: it would be rejected again."""
        for event in events:
            claimed = self._ledger.claimed(event_claim_key(event.tenant_id, str(event.event_id), event.source))
            if claimed is None or claimed.content == EventContent(event.metric, event.value, event.timestamp):
                continue
            if claimed.content is None:
                raise InvalidEventError(
                    "ledger_row_unreadable", "the ledger's row of this id holds no claim that can be read", "event_id"
                )
            raise InvalidEventError(
                "event_id_conflict",
                "the id is held by an event with other content: --as-new counts this one under an id of its own, or"
                " correct it until it equals the other",
                "event_id",
            )

    def _put(self, place: StreamPlace, events: Sequence[Event]) -> None:
        records = [
            OutgoingRecord(
                partition_of(event.tenant_id, event.metric, self._partitions),
                encode_envelope(derived_id(place, number if len(events) > 1 else None), [encode_event(event)]),
            )
            for number, event in enumerate(events)
        ]
        for start in range(0, len(records), PUT_RECORDS_MAX):
            waiting = records[start : start + PUT_RECORDS_MAX]
            for attempt in stamina.retry_context(
                on=StreamUnavailableError, attempts=PUT_ATTEMPTS_MAX, timeout=None, wait_max=PUT_WAIT_S_MAX
            ):
                with attempt:
                    answers = self._sink.put(waiting)
                    refused = [(r, a) for r, a in zip(waiting, answers, strict=True) if isinstance(a, NotHeld)]
                    if refused:
                        waiting = [record for record, _ in refused]
                        raise StreamUnavailableError(
                            f"the stream refused {len(refused)} event(s): {refused[0][1].code}"
                        )


def replayer(settings: Settings, store: RejectedStore) -> Replayer:
    """Return what replays the rows of `store` onto the settings' stream."""
    return Replayer(
        store,
        DynamoEventReader(
            dynamodb_client(settings),
            table=settings.table,
            ledger_table=settings.ledger_table,
            rejected_table=settings.rejected_table,
        ),
        KinesisEventSink(kinesis_client(settings), settings.stream, settings.partitions),
        stream=settings.stream,
        partitions=settings.partitions,
        age_days_max=settings.event_age_days_max,
        clock=lambda: datetime.now(UTC),
    )


def replay_all(
    replays: Replayer,
    store: RejectedStore,
    places: Sequence[StreamPlace],
    correction: Correction,
    *,
    dry_run: bool,
    say: Callable[[str], object],
) -> bool:
    """Replay one row after the other and say a line of each; return whether none was refused.

    Raises what the ports raise: a service that is away stops it, and running it again goes on from there.
    """
    refused = 0
    for place in places:
        try:
            replayed = replays.replay(row_of(store, place), correction, dry_run=dry_run)
        except InvalidEventError as error:
            refused += 1
            say(f"{place.name}: refused: {printable(str(error))}")
        else:
            say(f"{place.name}: {replayed.outcome.value}: {', '.join(map(printable, replayed.event_ids))}")
    if len(places) != 1:
        say(f"{len(places)} row(s), {refused} refused")
    return not refused


def _remembered(events: Sequence[Event]) -> bytes:
    encoded = encode_json([stream_form(event) for event in events])
    return encoded if len(encoded) <= REMEMBERED_BYTES_MAX else _DIGEST + sha256(encoded).hexdigest().encode()


def _recalled(remembered: bytes, now: datetime) -> list[Event]:
    forms = decode_json(remembered)
    if not isinstance(forms, list):
        raise InvalidEventError("replay_begun", "what the row says of a replay that was begun can't be read")
    return [parse_stream_event(form, arrived_at=now) for form in forms]
