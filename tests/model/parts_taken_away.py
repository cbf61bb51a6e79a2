"""The algorithm with one part taken away, each as somebody might write it. Test code only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from types import SimpleNamespace
from typing import Any

from amazon_kclpy.kcl import Checkpointer

from consumer.claiming import SettledRecord, Settlement, first_claims, settle, wishes_of
from consumer.decoding import DecodedRecord
from consumer.pipeline import ShardPipeline
from consumer.record_processor import UsageRecordProcessor
from metering.aggregation import EXACT, RecordOutcome, RowWrite
from metering.claims import Claim, Holder, RepeatsWrite
from metering.errors import StoreUnavailableError
from metering.memory import MemoryLedger, MemoryRow, MemoryTables
from metering.ports import ShardRef
from metering.positions import BEGINNING
from metering.readings import Reading
from metering.rows import BATCH_PREFIX, RowKey, applied_attribute, claim_owner, owner_fence
from metering.voids import Void, VoidOutcome
from tests.model.world import Parts


def _holder(shard: ShardRef, claim: Claim) -> Holder:
    return Holder(claim_owner(shard.stream_created_at, shard.shard_id, claim.place), claim.content)


# ── Claims ───────────────────────────────────────────────────────────────────────────────────────────────────────────


class Granting(MemoryLedger):
    """Gives each claim of these keys to whoever makes it."""

    def _grants(self, key: str) -> bool:
        return True

    def claim(self, shard: ShardRef, claims: Sequence[Claim], *, now: datetime) -> dict[str, Holder]:
        holders = super().claim(shard, claims, now=now)
        return holders | {claim.key: _holder(shard, claim) for claim in claims if self._grants(claim.key)}


class GrantingBatches(Granting):
    def _grants(self, key: str) -> bool:
        return key.startswith(BATCH_PREFIX)


class GrantingEvents(Granting):
    def _grants(self, key: str) -> bool:
        return not key.startswith(BATCH_PREFIX)


class Ownerless(MemoryLedger):
    """Knows that a key is held, not by whom: present is a duplicate."""

    def claim(self, shard: ShardRef, claims: Sequence[Claim], *, now: datetime) -> dict[str, Holder]:
        present = {claim.key for claim in claims if claim.key in self.claims}
        holders = super().claim(shard, claims, now=now)
        return holders | {key: replace(holders[key], owner="somebody") for key in present}


class Unfenced(MemoryLedger):
    """Notes a repeat whenever it is told of it."""

    def note_repeats(self, shard: ShardRef, write: RepeatsWrite) -> None:
        self.claims[write.key].seen.clear()
        super().note_repeats(shard, write)


class Asked(MemoryLedger):
    """Says who holds keys without claiming them."""

    def holders(self, shard: ShardRef, claims: Sequence[Claim]) -> dict[str, Holder]:
        return {c.key: self.claims[c.key].holder if c.key in self.claims else _holder(shard, c) for c in claims}


class CountsThenClaims(ShardPipeline):
    """Looks who holds the claims, counts, and makes its own afterwards."""

    _unmade: list[Claim]

    def _claim(self, decoded: Sequence[DecodedRecord]) -> Settlement:
        wishes = [
            wish
            for record in decoded
            for wish in wishes_of(record, claim_events=self._claim_events, window_minutes=self._window_minutes)
        ]
        self._unmade = first_claims(wishes)
        holders: dict[str, Holder] = {}
        asked: Any = self._ledger
        self._retry(lambda: holders.update(asked.holders(self._shard, self._unmade)))
        return settle(self._shard, decoded, wishes, holders)

    def _apply(self, writes: Sequence[RowWrite]) -> None:
        super()._apply(writes)
        if self._unmade:
            self._claim_chunk(self._unmade)


# ── The fence of a row ───────────────────────────────────────────────────────────────────────────────────────────────


class Adding(MemoryTables):
    """Adds to a row what its condition lets through; what it does not let through is taken for done."""

    def _lets_through(self, applied: str, write: RowWrite) -> bool:
        return True

    def apply(self, shard: ShardRef, write: RowWrite, *, now: datetime) -> bool:
        row = self.rows.setdefault(write.key, MemoryRow())
        attribute = applied_attribute(shard.stream_created_at, shard.shard_id)
        if not self._lets_through(row.applied.get(attribute, BEGINNING), write):
            return False
        row.usage = EXACT.add(row.usage, write.usage)
        row.events += write.events
        row.applied[attribute] = max(write.last, row.applied.get(attribute, BEGINNING))
        return True


class ConditionOnLast(Adding):
    def _lets_through(self, applied: str, write: RowWrite) -> bool:
        return applied < write.last


class FenceHitIsAllDone(Adding):
    def _lets_through(self, applied: str, write: RowWrite) -> bool:
        return applied < write.first


class ForgettingPositions(MemoryTables):
    """Removes a finished shard's position from the rows, to keep them small."""

    def close_shard(self, shard: ShardRef, *, now: datetime) -> None:
        super().close_shard(shard, now=now)
        for row in self.rows.values():
            row.applied.pop(applied_attribute(shard.stream_created_at, shard.shard_id), None)


class WithoutLength(MemoryTables):
    """Compares sequence numbers as they are, as text."""

    def apply(self, shard: ShardRef, write: RowWrite, *, now: datetime) -> bool:
        applied = self.rows.get(write.key, MemoryRow()).applied
        attribute = applied_attribute(shard.stream_created_at, shard.shard_id)
        before = applied.get(attribute, BEGINNING)
        rest = tuple(c for c in write.contributions if c.position[3:] > before[3:])
        if not rest:
            return False
        applied.pop(attribute, None)
        return super().apply(shard, RowWrite(write.key, rest), now=now)


class OnePositionForAllShards(MemoryTables):
    """Keeps one position in a row, whichever shard it is of."""

    def apply(self, shard: ShardRef, write: RowWrite, *, now: datetime) -> bool:
        row = self.rows.setdefault(write.key, MemoryRow())
        attribute = applied_attribute(shard.stream_created_at, shard.shard_id)
        if row.applied:
            row.applied[attribute] = max(row.applied.values())
        return super().apply(shard, write, now=now)


# ── Readings ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class KeepsTheLast(MemoryTables):
    """Keeps the reading that comes last."""

    def keep_reading(self, key: RowKey, reading: Reading) -> bool:
        self.readings.pop(key, None)
        return super().keep_reading(key, reading)


class LatestByTimeAlone(MemoryTables):
    """Leaves what it keeps when another event has the same time."""

    def keep_reading(self, key: RowKey, reading: Reading) -> bool:
        before = self.readings.get(key, {}).get(reading.aggregation)
        if before is not None and before.at.partition("#")[0] == reading.at.partition("#")[0]:
            return False
        return super().keep_reading(key, reading)


class CountsThenKeeps(ShardPipeline):
    """Adds to the row first, and keeps the reading then."""

    def _apply_row(self, write: RowWrite) -> bool:
        added, kept = self._add(write), write.reading
        if kept is not None:
            self._retry(lambda: self._store.keep_reading(write.key, kept))
        return added

    def _add(self, write: RowWrite) -> bool:
        added: list[bool] = []
        self._retry(lambda: added.append(self._store.apply(self._shard, write, now=self._clock())))
        return added[-1]


class KeepsWhatIsAdded(CountsThenKeeps):
    """Keeps the reading of a batch that the row let through, and takes one that it did not for done."""

    def _apply_row(self, write: RowWrite) -> bool:
        added, kept = self._add(write), write.reading
        if added and kept is not None:
            self._retry(lambda: self._store.keep_reading(write.key, kept))
        return added


# ── The order of the steps ───────────────────────────────────────────────────────────────────────────────────────────


class CheckpointsFirst(UsageRecordProcessor):
    """Checkpoints a delivery, then applies it."""

    def process_records(self, process_records_input: Any) -> None:
        if process_records_input.records and not self._lease_lost:
            self._checkpoint(process_records_input.checkpointer)
        quiet: Checkpointer = SimpleNamespace(checkpoint=lambda *_: None)
        super().process_records(SimpleNamespace(**vars(process_records_input) | {"checkpointer": quiet}))


class ProgressFirst(ShardPipeline):
    """Writes the progress row, then the counter rows."""

    _unwritten: Sequence[RowWrite] = ()

    def _apply(self, writes: Sequence[RowWrite]) -> None:
        self._unwritten = writes

    def _progress(self, settled: Sequence[SettledRecord], complete_until: datetime | None) -> None:
        super()._progress(settled, complete_until)
        super()._apply(self._unwritten)
        self._unwritten = ()


class RowsAtOnce(ShardPipeline):
    """Has several writes of one row under way at once: one for each record."""

    def _apply(self, writes: Sequence[RowWrite]) -> None:
        super()._apply([RowWrite(write.key, (each,)) for write in writes for each in write.contributions])


class PassesOver(ShardPipeline):
    """Goes on when the retries of a row have run out."""

    def _apply_row(self, write: RowWrite) -> bool:
        try:
            return super()._apply_row(write)
        except StoreUnavailableError:
            return False


class CountingTwice(MemoryTables):
    """Adds a batch's outcomes to the progress row whether they are in it or not."""

    def record_progress(self, shard: ShardRef, outcomes: Sequence[RecordOutcome], **written: Any) -> None:
        key = (shard.stream, shard.shard_id)
        position = self.shards[key].position
        self.shards[key] = replace(self.shards[key], position=BEGINNING)
        super().record_progress(shard, outcomes, **written)
        self.shards[key] = replace(self.shards[key], position=max(position, self.shards[key].position))


# ── Voids ────────────────────────────────────────────────────────────────────────────────────────────────────────────


class VoidsInThreeWrites(MemoryTables):
    """Voids the total, the window and the claim one after the other; every other void ends on the way."""

    voids = 0

    def void(self, void: Void, *, now: datetime) -> VoidOutcome:
        claim = self.ledger.claims[void.key]
        if claim.voided_at is not None:
            return VoidOutcome.CLAIM_CHANGED
        self.voids += 1
        for key in void.rows[: self.voids % 2 + 1]:
            row = self.rows[key]
            row.usage, row.events = row.usage - void.usage, row.events - 1
            row.voided_usage, row.voided_events = row.voided_usage + void.usage, row.voided_events + 1
        if self.voids % 2:
            claim.voided_at = now
        return VoidOutcome.VOIDED


class VoidsAgain(MemoryTables):
    """Does not look whether the event is voided already."""

    def void(self, void: Void, *, now: datetime) -> VoidOutcome:
        self.ledger.claims[void.key].voided_at = None
        return super().void(void, now=now)


class VoidsWithPositions(MemoryTables):
    """Sets the rows back to before the event."""

    def void(self, void: Void, *, now: datetime) -> VoidOutcome:
        outcome = super().void(void, now=now)
        attribute, position = owner_fence(void.owner)
        for key in void.rows if outcome is VoidOutcome.VOIDED else ():
            self.rows[key].applied[attribute] = max(BEGINNING, f"{position[:-1]}0")
        return outcome


class VoidsWithClaims(MemoryTables):
    """Deletes the claim of what is voided."""

    def void(self, void: Void, *, now: datetime) -> VoidOutcome:
        outcome = super().void(void, now=now)
        self.ledger.claims.pop(void.key, None)
        return outcome


class VoidsFromReadings(MemoryTables):
    """Takes events out of a maximum, too."""

    def void(self, void: Void, *, now: datetime) -> VoidOutcome:
        kept, self.readings = self.readings, {}
        try:
            return super().void(void, now=now)
        finally:
            self.readings = kept


TAKEN_AWAY = {
    "no claims": ("rows", Parts(ledger=Granting)),
    "no claims of batches": ("rows", Parts(ledger=GrantingBatches)),
    "no claims of events": ("rows", Parts(ledger=GrantingEvents)),
    "claims without an owner": ("rows", Parts(ledger=Ownerless)),
    "claims after the count": ("rows", Parts(ledger=Asked, pipeline=CountsThenClaims)),
    "repeats without their fence": ("repeats", Parts(ledger=Unfenced)),
    "no fence": ("rows", Parts(tables=Adding)),
    "condition on :last": ("rows", Parts(tables=ConditionOnLast)),
    "a fence hit is all done": ("rows", Parts(tables=FenceHitIsAllDone)),
    "a finished shard's position removed": ("rows", Parts(tables=ForgettingPositions)),
    "positions without their length": ("rows", Parts(tables=WithoutLength)),
    "one position for all shards": ("rows", Parts(tables=OnePositionForAllShards)),
    "checkpoint before apply": ("rows", Parts(processor=CheckpointsFirst)),
    "progress row before rows": ("promise", Parts(pipeline=ProgressFirst)),
    "two writes of a row at once": ("rows", Parts(pipeline=RowsAtOnce)),
    "a failed row passed over": ("rows", Parts(pipeline=PassesOver)),
    "progress without its fence": ("progress", Parts(tables=CountingTwice)),
    "a void in three writes": ("rows", Parts(tables=VoidsInThreeWrites)),
    "a void of what is voided": ("rows", Parts(tables=VoidsAgain)),
    "a void that takes the position back": ("rows", Parts(tables=VoidsWithPositions)),
    "a void that deletes the claim": ("rows", Parts(tables=VoidsWithClaims)),
    "a void from a maximum": ("readings", Parts(tables=VoidsFromReadings)),
    "the reading that comes last": ("readings", Parts(tables=KeepsTheLast)),
    "latest by time alone": ("readings", Parts(tables=LatestByTimeAlone)),
    "counted, then kept": ("cover", Parts(pipeline=CountsThenKeeps)),
    "kept of what was added alone": ("readings", Parts(pipeline=KeepsWhatIsAdded)),
}
"""What is taken away, the law that must break by it, and what is left."""
