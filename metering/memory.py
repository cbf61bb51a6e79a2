"""In-memory twins of the adapters: the same contracts, held to them by the same tests, for tests that need no service.

Not thread-safe, except that a put to the stream may come from another thread than the reads of a test. Over 300 lines,
so that a row and a claim are written and read in one place, as in the adapters.
"""

from __future__ import annotations

import hashlib
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from metering.aggregation import (
    EXACT,
    RecordOutcome,
    RowWrite,
    counted_by_hour,
    hours_just_past,
    outcomes_beyond,
)
from metering.alerts import Alert, Crossing, Message
from metering.claims import Claim, EventContent, Holder, RepeatsWrite
from metering.errors import StoreUnavailableError
from metering.memory_alerts import MemoryAlerts
from metering.memory_voids import void_in_memory
from metering.memory_windows import MemoryRow, MemoryWindows
from metering.meters import Aggregation
from metering.partitions import explicit_hash_key
from metering.places import StreamPlace, place_of_row
from metering.ports import (
    ClaimedEvent,
    Held,
    NotHeld,
    OutgoingRecord,
    RejectedEvent,
    Shard,
    ShardProgress,
    ShardRef,
    StreamDescription,
    TenantPage,
    Total,
)
from metering.positions import BEGINNING
from metering.readings import KeptReading, Reading
from metering.rejected import RejectedRow
from metering.rows import (
    METRIC_PREFIX,
    RowKey,
    applied_attribute,
    claim_owner,
    rejected_key,
    seen_attribute,
    tenant_pk,
)
from metering.voids import Void, VoidOutcome

HASH_KEYS = 2**128
RAW_BYTES_MAX = 256 * 1024


class MemoryTables(MemoryWindows, MemoryAlerts):
    """CounterStore, BillingStore and AlertStore on dictionaries. ledger: of the same tables."""

    def __init__(self) -> None:
        self.rows: dict[RowKey, MemoryRow] = {}
        self.readings: dict[RowKey, dict[Aggregation, Reading]] = {}
        self.directory: dict[str, datetime] = {}
        self.rejected: dict[RowKey, RejectedEvent] = {}
        self.shards: dict[tuple[str, str], ShardProgress] = {}
        self.ledger = MemoryLedger()
        self.rejected_rows: dict[StreamPlace, RejectedRow] = {}
        self.leases: dict[str, str] = {}
        self.alert_rows: dict[RowKey, Alert] = {}
        self.open_alerts: dict[str, Crossing] = {}
        self.outbox: dict[str, Message] = {}

    def apply(self, shard: ShardRef, write: RowWrite, *, now: datetime) -> bool:
        row = self.rows.setdefault(write.key, MemoryRow())
        attribute = applied_attribute(shard.stream_created_at, shard.shard_id)
        rest = write.beyond(row.applied.get(attribute, BEGINNING))
        if rest is None:
            return False
        row.usage = EXACT.add(row.usage, rest.usage)
        row.events += rest.events
        row.last_updated = now
        row.applied[attribute] = rest.last
        if rest.reading is not None:
            aggregation = rest.reading.aggregation
            row.covered[aggregation] = row.covered.get(aggregation, 0) + rest.events
        return True

    def keep_reading(self, key: RowKey, reading: Reading) -> bool:
        kept = self.readings.setdefault(key, {})
        before = kept.get(reading.aggregation)
        if before is not None and not reading.exceeds(before):
            return False
        kept[reading.aggregation] = reading
        return True

    def reject(self, shard: ShardRef, rejected: RejectedEvent, *, now: datetime) -> None:
        self.rejected.setdefault(rejected_key(shard.shard_id, rejected.position, rejected.index), rejected)
        place = StreamPlace(shard.shard_id, rejected.position, rejected.index)
        self.rejected_rows.setdefault(place, _rejected_row(shard, place, rejected, now))

    def register_tenant(self, tenant_id: str, *, now: datetime) -> None:
        self.directory.setdefault(tenant_id, now)

    def open_shard(self, shard: ShardRef, *, complete_until: datetime | None, now: datetime) -> None:
        key = (shard.stream, shard.shard_id)
        before = self.shards.get(key)
        if before is None or before.stream_created_at < shard.stream_created_at:
            self.shards[key] = ShardProgress(
                shard_id=shard.shard_id,
                stream_created_at=shard.stream_created_at,
                position=BEGINNING,
                records=0,
                events=0,
                counted=0,
                duplicates=0,
                rejected=0,
                newest_arrival_at=None,
                complete_until=complete_until,
                heartbeat_at=None,
                closed=False,
            )
        elif before.stream_created_at == shard.stream_created_at:
            last_past = hours_just_past(now)[-1]
            hours = {hour: count for hour, count in before.counted_by_hour.items() if hour > last_past}
            self.shards[key] = replace(before, counted_by_hour=hours)

    def record_progress(
        self,
        shard: ShardRef,
        outcomes: Sequence[RecordOutcome],
        *,
        complete_until: datetime | None,
        now: datetime,
    ) -> None:
        key = (shard.stream, shard.shard_id)
        before = self.shards.get(key)
        if before is None or before.stream_created_at != shard.stream_created_at:
            raise StoreUnavailableError(f"shard {shard.shard_id} has no progress row of this stream's incarnation")
        rest = outcomes_beyond(outcomes, before.position)
        known = (moment for moment in (before.complete_until, complete_until) if moment is not None)
        past = hours_just_past(now)
        hours = Counter({hour: count for hour, count in before.counted_by_hour.items() if hour not in past})
        hours.update(counted_by_hour(rest, now=now))
        after = replace(before, heartbeat_at=now, complete_until=max(known, default=None), counted_by_hour=dict(hours))
        if rest:
            after = replace(
                after,
                position=rest[-1].position,
                newest_arrival_at=max(outcome.arrived_at for outcome in rest),
                records=before.records + len(rest),
                events=before.events + sum(outcome.events for outcome in rest),
                counted=before.counted + sum(outcome.counted for outcome in rest),
                duplicates=before.duplicates + sum(outcome.duplicates for outcome in rest),
                rejected=before.rejected + sum(outcome.rejected for outcome in rest),
            )
        self.shards[key] = after

    def close_shard(self, shard: ShardRef, *, now: datetime) -> None:
        key = (shard.stream, shard.shard_id)
        before = self.shards.get(key)
        if before is not None and before.stream_created_at == shard.stream_created_at:
            self.shards[key] = replace(before, closed=True)

    def tenants(self, *, limit: int, after: str | None) -> TenantPage:
        # DynamoDB sorts by UTF-8 bytes.
        ids = sorted((t for t in self.directory if after is None or t.encode() > after.encode()), key=str.encode)
        return TenantPage(tuple(ids[:limit]), ids[limit - 1] if len(ids) > limit else None)

    def totals(self, tenant_id: str) -> list[Total]:
        keys = [k for k in self.rows if k.pk == tenant_pk(tenant_id) and k.sk.startswith(METRIC_PREFIX)]
        return [
            _total(tenant_id, key.sk.removeprefix(METRIC_PREFIX), self.rows[key], self.kept_readings(key))
            for key in sorted(keys, key=lambda key: key.sk.encode())
        ]

    def total(self, tenant_id: str, metric: str) -> Total | None:
        key = RowKey(tenant_pk(tenant_id), METRIC_PREFIX + metric)
        row = self.rows.get(key)
        return _total(tenant_id, metric, row, self.kept_readings(key)) if row else None

    def progress(self, stream: str) -> list[ShardProgress]:
        shards = [progress for (name, _), progress in sorted(self.shards.items()) if name == stream]
        newest = max((shard.stream_created_at for shard in shards), default=None)
        return [shard for shard in shards if shard.stream_created_at == newest]

    def check(self) -> None:
        return

    def claimed(self, key: str) -> ClaimedEvent | None:
        claim = self.ledger.claims.get(key)
        if claim is None:
            return None
        return ClaimedEvent(
            owner=claim.holder.owner,
            content=claim.holder.content if isinstance(claim.holder.content, EventContent) else None,
            counted_at=claim.counted_at,
            duplicates=claim.duplicates,
            conflicts=claim.conflicts,
            last_repeat_at=claim.last_repeat_at,
            voided_at=claim.voided_at,
            voided_by=claim.voided_by,
            void_reason=claim.void_reason,
            window=claim.window,
        )

    def void(self, void: Void, *, now: datetime) -> VoidOutcome:
        return void_in_memory(self, void, now=now)

    def rejections(self, key: str, *, limit: int) -> list[RejectedRow]:
        keys = sorted((row for row, event in self.rejected.items() if event.claim_key == key), reverse=True)
        rows = [self.rejected_rows[place_of_row(row)] for row in keys[:limit]]
        return sorted(rows, key=lambda row: (row.rejected_at, row.place.row_key))

    def newest_rejections(self, tenant_id: str, *, limit: int) -> list[RejectedRow]:
        keys = (row for row, event in self.rejected.items() if event.tenant_id == tenant_id)
        newest_first = sorted(keys, key=lambda row: (self.rejected[row].arrived_at, row), reverse=True)
        return [self.rejected_rows[place_of_row(row)] for row in newest_first[:limit]]

    def rejection(self, place: StreamPlace) -> RejectedRow | None:
        return self.rejected_rows.get(place)


@dataclass
class MemoryClaim:
    """A claim in the ledger. seen: the last place noted, by the attribute of a shard."""

    holder: Holder
    counted_at: datetime
    duplicates: int = 0
    conflicts: int = 0
    last_repeat_at: datetime | None = None
    voided_at: datetime | None = None
    voided_by: str | None = None
    void_reason: str | None = None
    voided_key: str | None = None
    window: str | None = None
    seen: dict[str, str] = field(default_factory=dict)


class MemoryLedger:
    """Ledger on a dictionary."""

    def __init__(self) -> None:
        self.claims: dict[str, MemoryClaim] = {}

    def claim(self, shard: ShardRef, claims: Sequence[Claim], *, now: datetime) -> dict[str, Holder]:
        for claim in claims:
            owner = claim_owner(shard.stream_created_at, shard.shard_id, claim.place)
            self.claims.setdefault(claim.key, MemoryClaim(Holder(owner, claim.content), now, window=claim.window))
        return {claim.key: self.claims[claim.key].holder for claim in claims}

    def note_repeats(self, shard: ShardRef, write: RepeatsWrite) -> None:
        claim = self.claims.get(write.key)
        if claim is None:
            return
        seen = seen_attribute(shard.stream_created_at, shard.shard_id)
        rest = write.beyond(claim.seen.get(seen, ""))
        if rest is None:
            return
        conflicts = sum(repeat.conflict for repeat in rest.repeats)
        claim.conflicts += conflicts
        claim.duplicates += len(rest.repeats) - conflicts
        times = (repeat.arrived_at for repeat in rest.repeats)
        claim.last_repeat_at = max(times) if claim.last_repeat_at is None else max(claim.last_repeat_at, *times)
        claim.seen[seen] = rest.last


@dataclass(frozen=True, slots=True)
class MemoryRecord:
    """A record that the stream holds."""

    shard_id: str
    sequence_number: str
    data: bytes
    arrived_at: datetime


class MemoryStream:
    """EventSink and StreamDirectory on a list. failures: errors and codes that the next calls meet, in order."""

    def __init__(self, *, shards: int = 2, partitions: int = 64, created_at: datetime | None = None) -> None:
        self.records: list[MemoryRecord] = []
        self.failures: list[Exception | list[str | None]] = []
        self._partitions = partitions
        self._shards = shards
        self._created_at = created_at or datetime(2026, 1, 1, tzinfo=UTC)
        self._lock = threading.Lock()

    def put(self, records: Sequence[OutgoingRecord]) -> list[Held | NotHeld]:
        """See EventSink. A list in `failures` holds an error code, or None, for each record of a call."""
        with self._lock:
            failure = self.failures.pop(0) if self.failures else [None] * len(records)
            if isinstance(failure, Exception):
                raise failure
            return [
                NotHeld(code) if code else self._append(record) for record, code in zip(records, failure, strict=True)
            ]

    def check(self) -> None:
        return

    def describe(self) -> StreamDescription:
        return StreamDescription("usage-events", self._created_at, "ACTIVE")

    def shards(self) -> list[Shard]:
        bounds = [-(-n * HASH_KEYS // self._shards) for n in range(self._shards + 1)]  # rounded up, as _append divides
        return [
            Shard(f"shardId-{n:012d}", (), True, str(bounds[n]), str(bounds[n + 1] - 1)) for n in range(self._shards)
        ]

    def _append(self, record: OutgoingRecord) -> Held:
        hash_key = int(explicit_hash_key(record.partition, self._partitions))
        shard_id = f"shardId-{hash_key * self._shards // HASH_KEYS:012d}"
        sequence_number = str(49_000_000_000_000_000_000_000 + len(self.records))
        self.records.append(MemoryRecord(shard_id, sequence_number, record.data, datetime.now(UTC)))
        return Held(shard_id, sequence_number)


def _total(tenant_id: str, metric: str, row: MemoryRow, readings: tuple[KeptReading, ...]) -> Total:
    return Total(tenant_id, metric, row.usage, row.events, row.last_updated, readings)


def _rejected_row(shard: ShardRef, place: StreamPlace, rejected: RejectedEvent, now: datetime) -> RejectedRow:
    return RejectedRow(
        place=place,
        reason=rejected.reason,
        detail=rejected.detail,
        raw=rejected.raw[:RAW_BYTES_MAX],
        raw_bytes=len(rejected.raw),
        raw_sha256=hashlib.sha256(rejected.raw).hexdigest(),
        arrived_at=rejected.arrived_at,
        rejected_at=now,
        stream=shard.stream,
        stream_created_at=shard.stream_created_at,
    )
