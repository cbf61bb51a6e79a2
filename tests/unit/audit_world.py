"""A stream, its consumer and its tables in memory, and an audit of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from consumer.decoding import ReceivedRecord
from consumer.pipeline import ShardPipeline
from metering.claims import EventContent, Holder
from metering.memory import MemoryRow, MemoryTables
from metering.meters_file import meters_of
from metering.ports import Shard, ShardRef, StreamDescription
from metering.positions import position_of
from metering.rows import (
    RowKey,
    applied_attribute,
    claim_owner,
    event_claim_key,
    place,
    total_key,
    window_key,
)
from metering.settings import Settings
from metering.voids import Void, VoidOutcome, VoidRequest, counted_rows
from operations.audit import Audit, AuditReport
from operations.audit_claims import HeldClaim
from operations.audit_stream import Page
from operations.audit_tables import Snapshot
from operations.audit_tally import Amount, FoundRow
from tests.builders import CREATED_AT, NOW, STREAM

RETENTION = timedelta(hours=24)
HASH_KEY_LAST = 2**128 - 1
EVENT = {"tenant_id": "tenant-123", "metric": "api_calls", "value": "10", "timestamp": "2024-01-15T10:00:00Z"}
TOTAL = total_key("tenant-123", "api_calls")
WINDOW = window_key("tenant-123", "api_calls", NOW, 60)


def event(value: str = "10", **fields: str) -> dict[str, str]:
    return {**EVENT, "value": value, **fields}


def envelope(batch_id: str, *events: dict[str, Any]) -> bytes:
    return json.dumps({"batch_id": batch_id, "events": events}).encode()


class CrashError(Exception):
    """The consumer is killed."""


class MortalTables(MemoryTables):
    """Tables whose writer dies before a write. lives: writes until then; None: for ever."""

    def __init__(self) -> None:
        super().__init__()
        self.lives: int | None = None

    def _live(self) -> None:
        if self.lives is not None:
            self.lives -= 1
            if self.lives < 0:
                raise CrashError

    def reject(self, *arguments: Any, **more: Any) -> None:
        self._live()
        super().reject(*arguments, **more)

    def keep_reading(self, *arguments: Any, **more: Any) -> bool:
        self._live()
        return super().keep_reading(*arguments, **more)

    def apply(self, *arguments: Any, **more: Any) -> bool:
        self._live()
        return super().apply(*arguments, **more)

    def record_progress(self, *arguments: Any, **more: Any) -> None:
        self._live()
        super().record_progress(*arguments, **more)


@dataclass
class World:
    """now: the clock of all. claim_events: LEDGER. listed: the shards that the stream lists."""

    settings: Settings
    created_at: datetime = CREATED_AT
    now: datetime = NOW

    def __post_init__(self) -> None:
        self.tables = MortalTables()
        self.records: dict[str, list[ReceivedRecord]] = {}
        self.claim_events = True
        self.meters = meters_of(self.settings)
        self.other_streams = False
        self._number = 1
        self._read: dict[str, int] = {}
        for number in range(2):
            self.open(f"shardId-{number:012d}")

    def open(self, shard_id: str) -> None:
        self.records[shard_id] = []
        self._read[shard_id] = 0
        self.tables.open_shard(self.ref(shard_id), complete_until=None, now=self.now)

    def ref(self, shard_id: str) -> ShardRef:
        return ShardRef(STREAM, self.created_at, shard_id)

    # ── The stream and its consumer ──────────────────────────────────────────────────────────────────────────────────

    def put(self, *data: bytes | dict[str, Any], shard: int = 0) -> None:
        """Put records on a shard; they arrive now."""
        for each in data:
            raw = each if isinstance(each, bytes) else json.dumps(each).encode()
            self.records[f"shardId-{shard:012d}"].append(ReceivedRecord(str(self._number), raw, self.now))
            self._number += 1

    def consume(self, *, batch: int = 1000, crash_after: int | None = None) -> None:
        """Apply what has not been applied yet, a batch after the other, shard after shard.

        crash_after: writes after which the consumer dies; the batch that was under way comes again next time.
        """
        self.tables.lives = crash_after
        for shard_id, records in self.records.items():
            while rest := records[self._read[shard_id] :][:batch]:
                try:
                    self.apply(shard_id, rest)
                except CrashError:
                    return
                self._read[shard_id] += len(rest)

    def apply(self, shard_id: str, records: list[ReceivedRecord]) -> None:
        def once(call: Callable[[], object]) -> None:
            call()

        pipeline = ShardPipeline(
            self.tables,
            self.tables.ledger,
            self.ref(shard_id),
            window_minutes=self.settings.window_minutes,
            age_days_max=None,
            claim_events=self.claim_events,
            retry=once,
            clock=lambda: self.now,
            meters=self.meters,
            writers=1,
            claimers=1,  # the twins are not thread-safe
        )
        try:
            pipeline.apply(records, self.now)
        finally:
            pipeline._pool.shutdown(cancel_futures=True)

    def trim(self, *, before: datetime) -> None:
        """Let the stream forget what arrived before."""
        for shard_id, records in self.records.items():
            kept = [record for record in records if record.arrived_at >= before]
            self._read[shard_id] -= len(records) - len(kept)
            self.records[shard_id] = kept

    def void(self, event_id: str, tenant_id: str = "tenant-123") -> VoidOutcome:
        """Void a counted event, as billing does."""
        key = event_claim_key(tenant_id, event_id)
        claimed = self.tables.claimed(key)
        assert claimed is not None
        assert claimed.content is not None
        assert claimed.window is not None
        rows = counted_rows(tenant_id, claimed.content, claimed.window)
        void = Void(key, claimed.owner, rows, claimed.content.value, VoidRequest("ana", "a test"), None)
        return self.tables.void(void, now=self.now)

    # ── What a person might do ───────────────────────────────────────────────────────────────────────────────────────

    def change(self, key: RowKey, **values: Any) -> None:
        self.tables.rows[key] = replace(self.tables.rows.get(key, MemoryRow()), **values)

    def change_progress(self, shard: int = 0, **values: Any) -> None:
        key = (STREAM, f"shardId-{shard:012d}")
        self.tables.shards[key] = replace(self.tables.shards[key], **values)

    # ── The audit ────────────────────────────────────────────────────────────────────────────────────────────────────

    def audit(self, *, since: datetime | None = None) -> AuditReport:
        audit = Audit(
            replace(self.settings, ledger=self.claim_events),
            self,  # type: ignore[arg-type]
            self,  # type: ignore[arg-type]
            self,  # type: ignore[arg-type]
            clock=lambda: self.now,
        )
        return audit.run(since=since, start=lambda _: lambda _: None)

    def describe(self) -> StreamDescription:
        return StreamDescription(STREAM, self.created_at, "ACTIVE")

    def shards(self) -> list[Shard]:
        return [Shard(shard_id, (), True, "0", str(HASH_KEY_LAST)) for shard_id in self.records]

    def retention(self) -> timedelta:
        return RETENTION

    def pages(self, shard: Shard, *, since: datetime | None, until: str) -> Iterator[Page]:
        """Pages of two records: a record's claims may be on another page."""
        wanted = [
            record
            for record in self.records[shard.shard_id]
            if position_of(record.sequence_number) <= until and (since is None or record.arrived_at >= since)
        ]
        for start in range(0, len(wanted), 2):
            page = wanted[start : start + 2]
            yield Page(page, len(page))

    def snapshot(self, stream_created_at: datetime) -> Snapshot:
        progress = [shard for shard in self.tables.progress(STREAM) if shard.stream_created_at == stream_created_at]
        rows = {
            key: FoundRow(
                row.usage, row.events, dict(row.applied), self.voided_now(key), self.tables.kept_readings(key)
            )
            for key, row in self.tables.rows.items()
        }
        return Snapshot(progress, rows, self.other_streams)

    def held(self, keys: Iterable[str]) -> dict[str, HeldClaim]:
        claims = self.tables.ledger.claims
        return {
            key: HeldClaim(claims[key].holder, claims[key].counted_at, claims[key].voided_at is not None)
            for key in keys
            if key in claims
        }

    def voided_now(self, key: RowKey) -> Amount:
        row = self.tables.rows[key]
        return Amount(row.voided_usage, row.voided_events)

    def rejected_reasons(self, keys: Iterable[RowKey]) -> dict[RowKey, str]:
        return {key: self.tables.rejected[key].reason for key in keys if key in self.tables.rejected}


class EndlessWorld(World):
    """A stream whose records are made while they are read: 50 events each, all with ids, of ten tenants in turn."""

    EVENTS_OF_RECORD = 50
    TENANTS = 10

    def __init__(self, settings: Settings, *, records: int) -> None:
        super().__init__(settings)
        self._count = records

    def pages(self, shard: Shard, *, since: datetime | None, until: str) -> Iterator[Page]:
        for number in range(1, self._count + 1) if shard.shard_id.endswith("0") else ():
            events = (
                event("1", tenant_id=f"t-{index % self.TENANTS}", event_id=f"{number}-{index}")
                for index in range(self.EVENTS_OF_RECORD)
            )
            yield Page([ReceivedRecord(str(number), envelope(f"b-{number}", *events), self.now)], 1)

    def snapshot(self, stream_created_at: datetime) -> Snapshot:
        shard_id = "shardId-000000000000"
        last = position_of(str(self._count))
        events = self._count * self.EVENTS_OF_RECORD
        progress = replace(
            self.tables.shards[STREAM, shard_id], position=last, records=self._count, events=events, counted=events
        )
        row = FoundRow(Decimal(events // self.TENANTS), events // self.TENANTS, {self.attribute(shard_id): last})
        keys = (f"t-{number}" for number in range(self.TENANTS))
        rows = {key: row for t in keys for key in (total_key(t, "api_calls"), window_key(t, "api_calls", NOW, 60))}
        return Snapshot([progress], rows, other_streams=False)

    def attribute(self, shard_id: str) -> str:
        return applied_attribute(self.created_at, shard_id)

    def held(self, keys: Iterable[str]) -> dict[str, HeldClaim]:
        """Each event is held by its own place, which its id names."""
        found = {}
        for key in keys:
            number, index = key.rpartition("#")[2].split("-")
            where = place(position_of(number), int(index))
            owner = claim_owner(self.created_at, "shardId-000000000000", where)
            content = EventContent("api_calls", Decimal(1), EVENT["timestamp"])
            found[key] = HeldClaim(Holder(owner, content), self.now)
        return found
