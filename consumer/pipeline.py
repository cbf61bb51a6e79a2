"""One batch of one shard, from raw records to rows. The order of the steps is what makes the count right.

    decode ─► rejected rows ─► claims ─► aggregate ─► apply rows ─► progress row ─► (checkpoint, by the caller)
       │            │                                     │              │
       pure         idempotent put                        │              says what is in; trimmed by its position
                                                          conditional ADD, trimmed by each row's own position

A step begins when the one before it is done for the whole batch, and a batch begins when the one before it is done:
no two writes for one row and shard are ever under way at once. Every step can be repeated. A crash anywhere makes the
KCL deliver the batch again, perhaps with other borders, and the rows drop what they hold already. If the checkpoint
came before the rows, a crash between the two would lose events for good.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby

from metering.aggregation import RecordOutcome, RowWrite, row_writes
from metering.envelopes import InvalidEntry, decode_record
from metering.errors import InvalidRecordError
from metering.events import Event, decimal_text
from metering.ports import CounterStore, RejectedEvent, ShardRef
from metering.positions import position_of

EVENTS_LOGGED_MAX = 10
"""A batch with more events than this is logged event by event at DEBUG only."""
KNOWN_TENANTS_MAX = 100_000
"""Tenants that a process remembers having entered in the directory; beyond it, it starts to forget."""

_log = logging.getLogger(__name__)

Retry = Callable[[Callable[[], object]], None]
"""Runs an idempotent call until it succeeds or its retries run out; raises the last ServiceUnavailableError then."""


@dataclass(frozen=True, slots=True)
class ReceivedRecord:
    """A record as the KCL delivers it. arrived_at: approximate arrival, aware UTC."""

    sequence_number: str
    data: bytes
    arrived_at: datetime


@dataclass(frozen=True, slots=True)
class DecodedRecord:
    """What one sequence number holds: valid events with their index, and what is rejected."""

    position: str
    arrived_at: datetime
    events: tuple[tuple[int, Event], ...]
    rejected: tuple[RejectedEvent, ...]


@dataclass(frozen=True, slots=True)
class ClaimedRecord:
    """A decoded record after the claims: which of its events count, and how many were there before."""

    decoded: DecodedRecord
    counted: tuple[Event, ...]
    duplicates: int


class ShardPipeline:
    """Applies the batches of one shard, one after the other.

    retry: see Retry. clock: returns the time now, aware UTC. writers: threads that write different rows at once.
    """

    def __init__(
        self,
        store: CounterStore,
        shard: ShardRef,
        *,
        window_minutes: int,
        age_days_max: int | None,
        retry: Retry,
        clock: Callable[[], datetime],
        writers: int = 8,
    ) -> None:
        self._store = store
        self._shard = shard
        self._window_minutes = window_minutes
        self._age_days_max = age_days_max
        self._retry = retry
        self._clock = clock
        self._known_tenants: dict[str, None] = {}
        self._pool = ThreadPoolExecutor(writers, thread_name_prefix="row-writer")

    def apply(self, records: Sequence[ReceivedRecord], complete_until: datetime | None) -> None:
        """Take one batch, in the order of the shard, through all steps up to the progress row.

        complete_until: goes into the progress row, see CounterStore.record_progress.
        Raises what the store raises when the retries have run out; everything done till then may be done again.
        """
        decoded = list(decode(records, age_days_max=self._age_days_max))
        self._log_events(decoded)
        self._reject(decoded)
        claimed = self._claim(decoded)
        writes = self._aggregate(claimed)
        self._apply(writes)
        self._progress(claimed, complete_until)

    def heartbeat(self, complete_until: datetime | None) -> None:
        """Note that the shard is being read though nothing came."""
        self._progress([], complete_until)

    def _reject(self, decoded: Iterable[DecodedRecord]) -> None:
        for record in decoded:
            for rejected in record.rejected:
                self._retry(lambda r=rejected: self._store.reject(self._shard, r, now=self._clock()))  # type: ignore[misc]
                _log.warning(
                    "Rejected an event: %s: %s",
                    rejected.reason,
                    rejected.detail,
                    extra={"shard": self._shard.shard_id, "position": rejected.position, "index": rejected.index},
                )

    def _claim(self, decoded: Iterable[DecodedRecord]) -> list[ClaimedRecord]:
        # The place of the ledger: until it is there, every valid event counts, and only replays are told apart.
        return [ClaimedRecord(record, tuple(event for _, event in record.events), 0) for record in decoded]

    def _aggregate(self, claimed: Iterable[ClaimedRecord]) -> list[RowWrite]:
        counted = ((record.decoded.position, event) for record in claimed for event in record.counted)
        return row_writes(counted, window_minutes=self._window_minutes)

    def _apply(self, writes: Sequence[RowWrite]) -> None:
        tenants = {write.key.pk.partition("#")[2] for write in writes} - self._known_tenants.keys()
        # Each loop below ends when all of its writes are done. When one fails for good the others may still be under
        # way: nothing is written after them, for the caller ends the process.
        for tenant_id in self._pool.map(self._register_tenant, sorted(tenants)):
            self._known_tenants[tenant_id] = None
        while len(self._known_tenants) > KNOWN_TENANTS_MAX:
            self._known_tenants.pop(next(iter(self._known_tenants)))
        for write, added in zip(writes, self._pool.map(self._apply_row, writes), strict=True):
            _log.log(
                logging.INFO if len(writes) <= 2 * EVENTS_LOGGED_MAX else logging.DEBUG,
                "Successfully updated DynamoDB: pk=%s, sk=%s",
                write.key.pk,
                write.key.sk,
                extra={"shard": self._shard.shard_id, "events": write.events, "replay": not added},
            )

    def _apply_row(self, write: RowWrite) -> bool:
        added = False

        def apply() -> None:
            nonlocal added
            added = self._store.apply(self._shard, write, now=self._clock())

        self._retry(apply)
        return added

    def _register_tenant(self, tenant_id: str) -> str:
        self._retry(lambda: self._store.register_tenant(tenant_id, now=self._clock()))
        return tenant_id

    def _progress(self, claimed: Sequence[ClaimedRecord], complete_until: datetime | None) -> None:
        outcomes = [
            RecordOutcome(
                position=record.decoded.position,
                arrived_at=record.decoded.arrived_at,
                counted=len(record.counted),
                duplicates=record.duplicates,
                rejected=len(record.decoded.rejected),
            )
            for record in claimed
        ]
        self._retry(
            lambda: self._store.record_progress(self._shard, outcomes, complete_until=complete_until, now=self._clock())
        )

    def _log_events(self, decoded: Sequence[DecodedRecord]) -> None:
        events = [event for record in decoded for _, event in record.events]
        level = logging.INFO if len(events) <= EVENTS_LOGGED_MAX else logging.DEBUG
        if not _log.isEnabledFor(level):
            return
        for event in events:
            _log.log(
                level,
                "Processing event: tenant=%s, metric=%s, value=%s",
                event.tenant_id,
                event.metric,
                decimal_text(event.value),
                extra={"shard": self._shard.shard_id, "event_id": event.event_id},
            )


def decode(records: Iterable[ReceivedRecord], *, age_days_max: int | None) -> Iterator[DecodedRecord]:
    """Decode a batch, one result for each sequence number.

    A record that the KPL had aggregated comes as several with one sequence number: they are one record here, and the
    index runs on through them. The same record decodes to the same result whenever it is read.
    """
    for sequence_number, same in groupby(records, key=lambda record: record.sequence_number):
        parts = list(same)
        position = position_of(sequence_number)
        events: list[tuple[int, Event]] = []
        rejected: list[RejectedEvent] = []
        index = 0
        for part in parts:
            arrived_at = part.arrived_at
            try:
                entries = decode_record(part.data, arrived_at=arrived_at, age_days_max=age_days_max).entries
            except InvalidRecordError as error:
                rejected.append(RejectedEvent(position, index, error.code, error.detail, part.data, arrived_at))
                index += 1
                continue
            for entry in entries:
                if isinstance(entry, InvalidEntry):
                    rejected.append(RejectedEvent(position, index, entry.code, entry.detail, entry.raw, arrived_at))
                else:
                    events.append((index, entry))
                index += 1
        yield DecodedRecord(position, parts[-1].arrived_at, tuple(events), tuple(rejected))
