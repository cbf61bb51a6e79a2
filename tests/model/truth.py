"""What a world must hold at its end, worked out from the stream alone; and in between, from what was seen.

Which of several places of an id counts is for the ledger to say; that it is one of them, and that all else follows
from it, is checked here. Nothing of the code under test is used but the names of keys and attributes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING

from metering.rows import RowKey, applied_attribute, claim_owner, rejected_key
from tests.builders import CREATED_AT, STREAM
from tests.builders import shard as shard_ref
from tests.model.stream import Entry, Record, StreamShard

if TYPE_CHECKING:
    from tests.model.world import World

COUNTED, DUPLICATE = "counted", "duplicate"


@dataclass(frozen=True, slots=True)
class RowSeen:
    """A counter row after a write. applied: by the attribute of a shard."""

    key: RowKey
    usage: Decimal
    events: int
    applied: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class ShardSeen:
    """A progress row after a write, and how far each counter row held the shard then."""

    shard_id: str
    position: str
    complete_until: datetime | None
    applied: Mapping[RowKey, str]


@dataclass(frozen=True, slots=True)
class ClosedSeen:
    """A shard that was closed, and the shards that had a progress row then."""

    shard_id: str
    opened: frozenset[str]


@dataclass
class History:
    """What the tables held in between."""

    rows: list[RowSeen] = field(default_factory=list)
    shards: list[ShardSeen] = field(default_factory=list)
    closed: list[ClosedSeen] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Place:
    """A sighting of an id, or of a batch. indexes: of the events that it decides on, in the record."""

    record: Record
    indexes: tuple[int, ...]
    content: object

    @property
    def owner(self) -> str:
        shard = shard_ref(self.record.shard)
        return claim_owner(shard.stream_created_at, shard.shard_id, f"{self.record.position}#{self.indexes[0]:05d}")


@dataclass(frozen=True, slots=True)
class Addition:
    """What one counted event adds to one row."""

    shard: int
    position: str
    value: int


class Truth:
    """What the stream and the ledger's owners come to."""

    def __init__(self, stream: list[StreamShard], owners: Mapping[str, str], *, claim_events: bool) -> None:
        self.records = [record for shard in stream for record in shard.records]
        self.places = _places_by_key(self.records, claim_events=claim_events)
        self.endings: dict[tuple[Record, int], str] = {}
        self.repeats: dict[str, Counter[str]] = {}
        self.repeated_at: dict[str, datetime] = {}
        for record in self.records:
            for index, ending in _endings_without_claims(record, claim_events=claim_events):
                self.endings[record, index] = ending
        for key, places in self.places.items():
            self._decide(key, places, owners.get(key))
        self.rows: dict[RowKey, list[Addition]] = {}
        for record in self.records:
            for index, entry in enumerate(record.entries):
                if self.endings[record, index] == COUNTED:
                    for row in _rows(record, entry):
                        self.rows.setdefault(row, []).append(Addition(record.shard, record.position, entry.value))

    def _decide(self, key: str, places: list[Place], owner: str | None) -> None:
        winner = next((place for place in places if place.owner == owner), places[0])
        conflict = "batch_id_conflict" if key.startswith("BATCH#") else "event_id_conflict"
        self.repeats[key] = Counter()
        for place in places:
            ending = COUNTED if place is winner else DUPLICATE if place.content == winner.content else conflict
            self.repeats[key][ending] += 1
            if place is not winner:
                arrived_at = place.record.arrived_at
                self.repeated_at[key] = max(self.repeated_at.get(key, arrived_at), arrived_at)
            for index in place.indexes:
                self.endings[place.record, index] = ending


def _places_by_key(records: Iterable[Record], *, claim_events: bool) -> dict[str, list[Place]]:
    """Return the places that contend for each key of the ledger."""
    places: dict[str, list[Place]] = {}
    for record in records:
        by_batch = []
        for index, entry in enumerate(record.entries):
            if entry.valid and entry.event_id is not None and claim_events:
                key = f"TENANT#{entry.tenant_id}#EVENT#{entry.event_id}"
                content = (entry.metric, entry.value, entry.timestamp)
                places.setdefault(key, []).append(Place(record, (index,), content))
            elif entry.valid:
                by_batch.append(index)
        if record.batch_id is not None and by_batch:
            batch = tuple(record.entries[index] for index in by_batch)
            places.setdefault(f"BATCH#{record.batch_id}", []).append(Place(record, tuple(by_batch), batch))
    return places


def findings(world: World) -> dict[str, list[str]]:
    """Return what is wrong in a world at its end, by the law that it breaks."""
    owners = {key: claim.holder.owner for key, claim in world.ledger.claims.items()}
    truth = Truth(world.stream, owners, claim_events=world.claim_events)
    laws = {
        "rows": _wrong_rows(world, truth),
        "claims": _wrong_claims(world, truth),
        "repeats": _wrong_repeats(world, truth),
        "rejected": _wrong_rejected(world, truth),
        "progress": _wrong_progress(world, truth),
        "prefix": _rows_beside_their_positions(world, truth),
        "promise": _progress_ahead_of_rows(world, truth),
        "lineage": _closed_before_children_open(world),
        "freshness": _complete_no_more(world),
    }
    return {law: found for law, wrong in laws.items() if (found := list(wrong))}


def _wrong_rows(world: World, truth: Truth) -> Iterator[str]:
    for key in truth.rows.keys() | world.tables.rows.keys():
        wanted = truth.rows.get(key, [])
        row = world.tables.rows.get(key)
        held = (row.usage, row.events) if row else None
        if held != (Decimal(sum(each.value for each in wanted)), len(wanted)):
            yield f"{key} holds {held}, not {wanted}"
    tenants = {key.pk.removeprefix("TENANT#") for key in truth.rows}
    if world.tables.directory.keys() != tenants:
        yield f"the directory holds {sorted(world.tables.directory)}, not {sorted(tenants)}"


def _wrong_claims(world: World, truth: Truth) -> Iterator[str]:
    if world.ledger.claims.keys() != truth.places.keys():
        yield f"the ledger's keys differ by {sorted(world.ledger.claims.keys() ^ truth.places.keys())}"
    for key, claim in world.ledger.claims.items():
        if claim.holder.owner not in {place.owner for place in truth.places.get(key, [])}:
            yield f"{key} is held by {claim.holder.owner}, no place of it"


def _wrong_repeats(world: World, truth: Truth) -> Iterator[str]:
    for key, claim in world.ledger.claims.items():
        wanted = truth.repeats.get(key, Counter())
        conflicts = wanted.total() - wanted[COUNTED] - wanted[DUPLICATE]
        if (claim.duplicates, claim.conflicts) != (wanted[DUPLICATE], conflicts):
            yield f"{key} notes {claim.duplicates} duplicates and {claim.conflicts} conflicts, not {wanted}"
        if claim.last_repeat_at != truth.repeated_at.get(key):
            yield f"{key} was last repeated at {truth.repeated_at.get(key)}, not {claim.last_repeat_at}"


def _wrong_rejected(world: World, truth: Truth) -> Iterator[str]:
    wanted = {
        rejected_key(shard_ref(record.shard).shard_id, record.position, index): ending
        for (record, index), ending in truth.endings.items()
        if ending not in {COUNTED, DUPLICATE}
    }
    held = {key: rejected.reason for key, rejected in world.tables.rejected.items()}
    if held != wanted:
        yield f"rejected are {held}, not {wanted}"


def _wrong_progress(world: World, truth: Truth) -> Iterator[str]:
    for shard in world.stream:
        endings = Counter(
            ending if ending in {COUNTED, DUPLICATE} else "rejected"
            for (record, _), ending in truth.endings.items()
            if record.shard == shard.number
        )
        row = world.tables.shards[STREAM, shard_ref(shard.number).shard_id]
        held = (row.closed, row.position, row.records, row.events, row.counted, row.duplicates, row.rejected)
        counts = (endings.total(), endings[COUNTED], endings[DUPLICATE], endings["rejected"])
        wanted = (True, shard.records[-1].position, len(shard.records), *counts)
        if held != wanted or row.events != row.counted + row.duplicates + row.rejected:
            yield f"the progress row of shard {shard.number} is {held}, not {wanted}"


def _rows_beside_their_positions(world: World, truth: Truth) -> Iterator[str]:
    """A row holds exactly the records of each shard up to its own position: at all times."""
    ends = [RowSeen(key, row.usage, row.events, row.applied) for key, row in world.tables.rows.items()]
    for seen in [*world.history.rows, *ends]:
        held = [
            addition
            for addition in truth.rows.get(seen.key, [])
            if addition.position <= seen.applied.get(_attribute(addition.shard), "")
        ]
        if (seen.usage, seen.events) != (sum(addition.value for addition in held), len(held)):
            yield f"{seen} should hold {held}"


def _progress_ahead_of_rows(world: World, truth: Truth) -> Iterator[str]:
    """What a progress row says is in is in: billing answers a receipt and `as_of` by it."""
    for seen in world.history.shards:
        for key, additions in truth.rows.items():
            last = max(
                (
                    addition.position
                    for addition in additions
                    if shard_ref(addition.shard).shard_id == seen.shard_id and addition.position <= seen.position
                ),
                default="",
            )
            if seen.applied.get(key, "") < last:
                yield f"{seen.shard_id} is said to be in up to {seen.position}, and {key} lacks {last}"


def _closed_before_children_open(world: World) -> Iterator[str]:
    """`as_of` must never miss both a parent and its children."""
    for seen in world.history.closed:
        for shard in world.stream:
            parents = {shard_ref(parent).shard_id for parent in shard.parents}
            if seen.shard_id in parents and shard_ref(shard.number).shard_id not in seen.opened:
                yield f"{seen.shard_id} was closed before shard {shard.number} had a progress row"


def _endings_without_claims(record: Record, *, claim_events: bool) -> Iterator[tuple[int, str]]:
    if not record.entries:
        yield 0, "malformed_record"
    for index, entry in enumerate(record.entries):
        if not entry.valid:
            yield index, "negative_value"
        elif record.batch_id is None and (entry.event_id is None or not claim_events):
            yield index, COUNTED


def _rows(record: Record, entry: Entry) -> Iterator[RowKey]:
    at = entry.received_at or record.arrived_at
    if entry.timestamp is not None:
        at = datetime.fromisoformat(entry.timestamp)
    yield RowKey(f"TENANT#{entry.tenant_id}", f"METRIC#{entry.metric}")
    yield RowKey(f"TENANT#{entry.tenant_id}", f"HOUR#{entry.metric}#{at.astimezone(UTC):%Y-%m-%dT%H}")


def _attribute(shard: int) -> str:
    return applied_attribute(CREATED_AT, shard_ref(shard).shard_id)


def _complete_no_more(world: World) -> Iterator[str]:
    """What was complete stays complete, whoever writes late: billing's `as_of` does not go back."""
    until: dict[str, datetime] = {}
    for seen in world.history.shards:
        before = until.get(seen.shard_id)
        if before is not None and (seen.complete_until is None or seen.complete_until < before):
            yield f"{seen.shard_id} was complete until {before}, then until {seen.complete_until}"
        if seen.complete_until is not None:
            until[seen.shard_id] = seen.complete_until
