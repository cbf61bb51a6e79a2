"""In-memory twins of the adapters: the same contracts, held to them by the same tests, for tests that need no service.

Not thread-safe, except that a put to the stream may come from another thread than the reads of a test.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from metering.aggregation import EXACT, RecordOutcome, RowWrite, outcomes_beyond
from metering.claims import Claim, EventContent, Holder, RepeatsWrite
from metering.errors import StoreUnavailableError
from metering.memory_windows import MemoryRow, MemoryWindows
from metering.partitions import explicit_hash_key
from metering.places import StreamPlace
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

HASH_KEYS = 2**128
RAW_BYTES_MAX = 256 * 1024


class MemoryTables(MemoryWindows):
    """CounterStore and BillingReader on dictionaries. ledger: of the same tables."""

    def __init__(self) -> None:
        self.rows: dict[RowKey, MemoryRow] = {}
        self.directory: dict[str, datetime] = {}
        self.rejected: dict[RowKey, RejectedEvent] = {}
        self.shards: dict[tuple[str, str], ShardProgress] = {}
        self.ledger = MemoryLedger()
        self.rejected_rows: dict[StreamPlace, RejectedRow] = {}
        self.leases: dict[str, str] = {}

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
        after = replace(before, heartbeat_at=now, complete_until=max(known, default=None))
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
            _total(tenant_id, key.sk.removeprefix(METRIC_PREFIX), self.rows[key])
            for key in sorted(keys, key=lambda key: key.sk.encode())
        ]

    def total(self, tenant_id: str, metric: str) -> Total | None:
        row = self.rows.get(RowKey(tenant_pk(tenant_id), METRIC_PREFIX + metric))
        return _total(tenant_id, metric, row) if row else None

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
        )

    def rejections(self, key: str, *, limit: int) -> list[RejectedRow]:
        keys = sorted((row for row, event in self.rejected.items() if event.claim_key == key), reverse=True)
        places = {place.row_key: place for place in self.rejected_rows}
        rows = [self.rejected_rows[places[row]] for row in keys[:limit]]
        return sorted(rows, key=lambda row: (row.rejected_at, row.place.row_key))

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
    seen: dict[str, str] = field(default_factory=dict)


class MemoryLedger:
    """Ledger on a dictionary."""

    def __init__(self) -> None:
        self.claims: dict[str, MemoryClaim] = {}

    def claim(self, shard: ShardRef, claims: Sequence[Claim], *, now: datetime) -> dict[str, Holder]:
        for claim in claims:
            owner = claim_owner(shard.stream_created_at, shard.shard_id, claim.place)
            self.claims.setdefault(claim.key, MemoryClaim(Holder(owner, claim.content), now))
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


def _total(tenant_id: str, metric: str, row: MemoryRow) -> Total:
    return Total(tenant_id, metric, row.usage, row.events, row.last_updated)


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
