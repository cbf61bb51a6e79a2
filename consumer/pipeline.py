"""One batch of one shard, from raw records to rows. The order of the steps is what makes the count right.

    decode ─► rejected rows ─► claims ─► aggregate ─► apply rows ─► progress row ─► (checkpoint, by the caller)
       │            │             │                       │              │
       pure         idempotent    put if absent,          │              says what is in; trimmed by its position
                    put           owned by a place        conditional ADD, trimmed by each row's own position
                                  on the stream

Of a metric whose meter is max or latest, each row is written twice, in this order (metering/readings.py):

    keep the reading ─► add to the row, and count as covered what is added
    greatest one stays   trimmed by the row's own position

The reading is that of the whole batch, whatever the row will let through of it. After a crash between the two, the row
keeps a reading of an event that it has not counted yet, and the replay counts it. The other way round the event would
be counted as covered, and a replay by a worker with another METERS_FILE would never bring its reading.

A step begins when the one before it is done for the whole batch, and a batch begins when the one before it is done:
no two writes for one row and shard are ever under way at once. Every step can be repeated. A crash anywhere makes the
KCL deliver the batch again, perhaps with other borders, and the rows drop what they hold already. If the checkpoint
came before the rows, a crash between the two would lose events for good.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

from consumer.claiming import SettledRecord, Settlement, first_claims, settle, wishes_of
from consumer.decoding import DecodedRecord, ReceivedRecord, decode
from consumer.observing import batch_readings
from metering.aggregation import RowWrite, row_writes
from metering.claims import Claim, Holder, RepeatsWrite
from metering.events import decimal_text
from metering.meters import NO_METERS, Meters
from metering.ports import CLAIMS_MAX, CounterStore, Ledger, RejectedEvent, ShardRef

EVENTS_LOGGED_MAX = 10
"""A batch with more events than this is logged event by event at DEBUG only."""
KNOWN_TENANTS_MAX = 100_000
"""Tenants that a process remembers having entered in the directory; beyond it, it starts to forget."""

_log = logging.getLogger(__name__)

Retry = Callable[[Callable[[], object]], None]
"""Runs an idempotent call until it succeeds or its retries run out; raises the last ServiceUnavailableError then."""


class ShardPipeline:
    """Applies the batches of one shard, one after the other.

    claim_events: whether each event's id is claimed (LEDGER). retry: see Retry. clock: returns the time now, aware UTC.
    meters: how metrics are aggregated. writers: threads that write different rows at once. claimers: threads that make
    different claims at once.
    """

    def __init__(
        self,
        store: CounterStore,
        ledger: Ledger,
        shard: ShardRef,
        *,
        window_minutes: int,
        age_days_max: int | None,
        claim_events: bool,
        retry: Retry,
        clock: Callable[[], datetime],
        meters: Meters = NO_METERS,
        writers: int = 8,
        claimers: int = 4,
    ) -> None:
        self._store = store
        self._ledger = ledger
        self._shard = shard
        self._claim_events = claim_events
        self._window_minutes = window_minutes
        self._age_days_max = age_days_max
        self._retry = retry
        self._clock = clock
        self._meters = meters
        self._known_tenants: dict[str, None] = {}
        self._pool = ThreadPoolExecutor(writers, thread_name_prefix="row-writer")
        # A call holds 25 claims: four at a time are as many as one Python process can encode, and more would only
        # queue up in a slow store until they time out.
        self._claimers = ThreadPoolExecutor(claimers, thread_name_prefix="claimer")

    def apply(self, records: Sequence[ReceivedRecord], complete_until: datetime | None) -> None:
        """Take one batch, in the order of the shard, through all steps up to the progress row.

        complete_until: goes into the progress row, see CounterStore.record_progress.
        Raises what the store raises when the retries have run out; everything done till then may be done again.
        """
        decoded = list(decode(records, age_days_max=self._age_days_max))
        self._log_events(decoded)
        self._reject(rejected for record in decoded for rejected in record.rejected)
        settlement = self._claim(decoded)
        settled = settlement.records
        # A conflict that is noted on its claim has its rejected row already.
        self._reject(rejected for record in settled for rejected in record.rejected)
        for _ in self._pool.map(self._note_repeats, settlement.repeats):
            pass
        writes = row_writes(
            ((record.decoded.position, placed.event) for record in settled for placed in record.counted),
            window_minutes=self._window_minutes,
            readings=batch_readings(self._shard, settled, self._meters, window_minutes=self._window_minutes),
        )
        self._apply(writes)
        self._progress(settled, complete_until)

    def heartbeat(self, complete_until: datetime | None) -> None:
        """Note that the shard is being read though nothing came."""
        self._progress([], complete_until)

    def _reject(self, rejected: Iterable[RejectedEvent]) -> None:
        for each in rejected:
            self._retry(lambda r=each: self._store.reject(self._shard, r, now=self._clock()))  # type: ignore[misc]
            _log.warning(
                "Rejected an event: %s: %s",
                each.reason,
                each.detail,
                extra={"shard": self._shard.shard_id, "position": each.position, "index": each.index},
            )

    def _claim(self, decoded: Sequence[DecodedRecord]) -> Settlement:
        """Claim the batch's events; a replay finds its own claims."""
        wishes = [
            wish
            for record in decoded
            for wish in wishes_of(record, claim_events=self._claim_events, window_minutes=self._window_minutes)
        ]
        claims = first_claims(wishes)
        chunks = [claims[n : n + CLAIMS_MAX] for n in range(0, len(claims), CLAIMS_MAX)]
        holders: dict[str, Holder] = {}
        for found in self._claimers.map(self._claim_chunk, chunks):
            holders |= found
        return settle(self._shard, decoded, wishes, holders)

    def _claim_chunk(self, claims: Sequence[Claim]) -> dict[str, Holder]:
        holders: dict[str, Holder] = {}
        self._retry(lambda: holders.update(self._ledger.claim(self._shard, claims, now=self._clock())))
        return holders

    def _note_repeats(self, write: RepeatsWrite) -> None:
        self._retry(lambda: self._ledger.note_repeats(self._shard, write))

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
        reading = write.reading
        if reading is not None:
            self._retry(lambda: self._store.keep_reading(write.key, reading))
        added = False

        def apply() -> None:
            nonlocal added
            added = self._store.apply(self._shard, write, now=self._clock())

        self._retry(apply)
        return added

    def _register_tenant(self, tenant_id: str) -> str:
        self._retry(lambda: self._store.register_tenant(tenant_id, now=self._clock()))
        return tenant_id

    def _progress(self, settled: Sequence[SettledRecord], complete_until: datetime | None) -> None:
        outcomes = [record.outcome for record in settled]
        self._retry(
            lambda: self._store.record_progress(self._shard, outcomes, complete_until=complete_until, now=self._clock())
        )

    def _log_events(self, decoded: Sequence[DecodedRecord]) -> None:
        events = [placed.event for record in decoded for placed in record.events]
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
