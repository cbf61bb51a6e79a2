"""`metering audit`: recomputes from the stream what the tables must hold, and says what differs. Writes nothing.

    progress rows ─► all other rows ─► shards ─► records of each shard, up to the last position that any row holds
                                                   │ decode ─► who holds the claims? ─► add up (audit_tally)
                                                   └─► is each rejected event kept?
                                                 ─► compare (audit_compare)

In this order it may run while the pipeline does. It shares with the consumer what an event, a key and a claim are, and
nothing of how batches are settled, aggregated and written.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta

from consumer.decoding import DecodedRecord, decode
from metering.kinesis import KinesisStreamDirectory
from metering.meters_file import meters_of
from metering.ports import Shard, ShardProgress, ShardRef, StreamDescription
from metering.rows import RowKey
from metering.settings import Settings
from operations.audit_claims import AuditedEvent, ClaimJudge, EndedRecord, HeldClaim
from operations.audit_compare import Checked, Comparison, Differences, History
from operations.audit_stream import AuditedStream, Page
from operations.audit_tables import AuditedTables, patiently
from operations.audit_tally import Amount, AuditedShard, Tally

SHARDS_AT_ONCE = 16
EXPIRY_RESOLUTION = timedelta(seconds=1)
"""expires_at is in whole seconds, rounded down."""

Advance = Callable[[int], None]
"""Is told how many more records have been read; from one thread at a time."""


@dataclass(frozen=True, slots=True)
class ShardLine:
    """A shard as it was recomputed. gone: records in the rows that can't be read again."""

    shard: AuditedShard
    gone: int


@dataclass(frozen=True, slots=True)
class AuditReport:
    """What an audit found.

    expired: rejected events whose rows may have expired, so that their absence says nothing.
    voided: what the totals say was taken out of them, where anything was.
    """

    stream: StreamDescription
    since: datetime | None
    shards: list[ShardLine]
    unlisted: list[ShardProgress]
    checked: Checked
    expired: int
    rows: Differences
    events: Differences
    voided: list[tuple[RowKey, Amount]]

    @property
    def differences(self) -> int:
        return self.rows.count + self.events.count

    @property
    def unknown(self) -> int:
        """Events of which nobody can say any more whether they were counted."""
        return sum(line.shard.unknown for line in self.shards)

    @property
    def checked_all(self) -> bool:
        """Whether nothing was left that could not be checked exactly."""
        gone = sum(line.gone for line in self.shards) + sum(shard.records for shard in self.unlisted)
        return not (
            gone
            or self.unknown
            or self.expired
            or self.checked.within
            or self.checked.at_least
            or self.checked.uncovered
        )


class Audit:
    """One audit of one stream. Raises as StreamDirectory and UsageReader do when a service stays away.

    It raises InvalidSettingError for a METERS_FILE that can't be used.
    """

    def __init__(
        self,
        settings: Settings,
        directory: KinesisStreamDirectory,
        stream: AuditedStream,
        tables: AuditedTables,
        *,
        clock: Callable[[], datetime],
    ) -> None:
        self._settings = settings
        self._meters = meters_of(settings)
        self._directory = directory
        self._stream = stream
        self._tables = tables
        self._clock = clock
        self._ttl = timedelta(days=settings.ledger_ttl_days) - EXPIRY_RESOLUTION
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._events = Differences()
        self._expired = 0

    def run(self, *, since: datetime | None, start: Callable[[int], Advance]) -> AuditReport:
        """Audit what arrived at `since` or later, None for all that the stream holds.

        start: is told how many records there are at most, and returns what is told how many were read.
        """
        description = patiently(self._directory.describe)
        retention = patiently(self._stream.retention)
        snapshot = self._tables.snapshot(description.created_at)
        listed = {shard.shard_id: shard for shard in patiently(self._directory.shards)}
        progress = {shard.shard_id: shard for shard in snapshot.progress}
        audited = {
            shard_id: AuditedShard(
                ShardRef(self._settings.stream, description.created_at, shard_id), progress.get(shard_id)
            )
            for shard_id in listed
        }
        tally = Tally(snapshot.rows, audited, window_minutes=self._settings.window_minutes, meters=self._meters)
        advance = start(sum(shard.records for shard_id, shard in progress.items() if shard_id in listed))
        self._read_all(tally, [listed[shard_id] for shard_id in audited], since, advance)
        for key in tally.unsettled():
            tally.rows[key].voided_now = self._tables.voided_now(key)
        readable_from = self._clock() - retention
        history = History(
            description.created_at, max(readable_from, since or readable_from), shared=snapshot.other_streams
        )
        unlisted = [shard for shard_id, shard in progress.items() if shard_id not in listed]
        comparison = Comparison(tally, history, unlisted, self._meters)
        comparison.compare()
        return AuditReport(
            description,
            since,
            [ShardLine(shard, comparison.gone(shard)) for shard in audited.values()],
            unlisted,
            comparison.checked,
            self._expired,
            comparison.differences,
            self._events,
            tally.voided_totals(),
        )

    def _read_all(self, tally: Tally, shards: Sequence[Shard], since: datetime | None, advance: Advance) -> None:
        """Read the shards, several at once; the first error ends all."""

        def read(shard: Shard) -> None:
            try:
                self._read_shard(tally, shard, since, advance)
            except BaseException:
                self._stopped.set()
                raise

        with ThreadPoolExecutor(SHARDS_AT_ONCE, thread_name_prefix="audit") as pool:
            try:
                for _ in pool.map(read, shards):
                    pass
            finally:
                self._stopped.set()  # Ctrl-C comes here: the pool waits for its threads

    def _read_shard(self, tally: Tally, listed: Shard, since: datetime | None, advance: Advance) -> None:
        shard = tally.shards[listed.shard_id]
        if not shard.limit:
            return
        judge = ClaimJudge(shard.shard, claim_events=self._settings.ledger, ttl=self._ttl, voids=tally.voids)
        for page in self._stream.pages(listed, since=since, until=shard.limit):
            ended = self._ended(judge, page)
            with self._lock:
                if self._stopped.is_set():
                    return
                for record in ended:
                    tally.add(shard, record)
                advance(page.records)

    def _ended(self, judge: ClaimJudge, page: Page) -> list[EndedRecord]:
        """Return how the events of a page ended."""
        records: list[tuple[DecodedRecord, list[AuditedEvent]]] = [
            (record, judge.claimed(record))
            for record in decode(page.received, age_days_max=self._settings.event_age_days_max)
        ]
        keys = _keys(records)
        held: dict[str, HeldClaim] = self._tables.held(keys)
        records = [(record, judge.reconsidered(record, claimed, held)) for record, claimed in records]
        held |= self._tables.held(_keys(records) - keys)
        now = self._clock()
        ended = [judge.end(record, claimed, held, now=now) for record, claimed in records]
        self._check_events(ended)
        return ended

    def _check_events(self, ended: Sequence[EndedRecord]) -> None:
        """Check that each rejected event is kept, and that each counted one has its claim."""
        reasons = self._tables.rejected_reasons(key for record in ended for key, _ in record.rejected)
        now = self._clock()
        with self._lock:
            for record in ended:
                for key, reason in record.rejected:
                    found = reasons.get(key)
                    if found is None and record.arrived_at + self._ttl <= now:
                        self._expired += 1
                    elif found != reason:
                        self._events.add(f"{key.pk} {key.sk}", "rejected row", reason, found or "none")
                for event in record.unclaimed:
                    claim = event.claims[0]
                    self._events.add(claim.key, "claim", f"one, for the event at {claim.place}", "none")


def _keys(records: Sequence[tuple[DecodedRecord, list[AuditedEvent]]]) -> set[str]:
    return {claim.key for _, claimed in records for event in claimed for claim in event.claims}
