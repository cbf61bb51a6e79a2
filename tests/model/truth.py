"""What a world must hold at its end, worked out from the stream alone; and in between, from what was seen.

Which of several places of an id counts is for the ledger to say; that it is one of them, and that all else follows
from it, is checked here. Nothing of the code under test is used but the names of keys and attributes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from metering.readings import KeptReading
from metering.rows import RowKey, applied_attribute, claim_owner, rejected_key
from tests.builders import CREATED_AT, STREAM
from tests.builders import shard as shard_ref
from tests.model.stream import Entry, Record, StreamShard

if TYPE_CHECKING:
    from metering.memory import MemoryRow
    from tests.model.world import World

COUNTED, DUPLICATE = "counted", "duplicate"


@dataclass(frozen=True, slots=True)
class RowSeen:
    """A counter row after a write: what was ever counted in it, voided or not. applied: by the attribute of a shard."""

    key: RowKey
    usage: Decimal
    events: int
    applied: Mapping[str, str]
    readings: tuple[KeptReading, ...]

    @classmethod
    def of(cls, key: RowKey, row: MemoryRow, readings: tuple[KeptReading, ...]) -> RowSeen:
        ever = (row.usage + row.voided_usage, row.events + row.voided_events)
        return cls(key, *ever, dict(row.applied), readings)


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
    not_held: list[str] = field(default_factory=list)
    """Keys of events that were counted when they were to be voided, and that their rows did not hold."""


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
    """What one counted event adds to one row. voided: and what is taken out of it again. place: in latest's order."""

    shard: int
    position: str
    value: int
    voided: bool
    place: tuple[datetime, datetime, str, str, int]


class Truth:
    """What the stream and the ledger's owners come to."""

    def __init__(
        self, stream: list[StreamShard], owners: Mapping[str, str], voided: Collection[str], *, claim_events: bool
    ) -> None:
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
                    out = f"TENANT#{entry.tenant_id}#EVENT#{entry.event_id}" in voided
                    place = (_time(record, entry), record.arrived_at, _attribute(record.shard), record.position, index)
                    addition = Addition(record.shard, record.position, entry.value, out, place)
                    for row in _rows(record, entry):
                        self.rows.setdefault(row, []).append(addition)

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
    voided = {key for key, claim in world.ledger.claims.items() if claim.voided_at is not None}
    truth = Truth(world.stream, owners, voided, claim_events=world.claim_events)
    laws = {
        "rows": _wrong_rows(world, truth),
        "voids": _wrong_voids(world, truth),
        "readings": _wrong_readings(world, truth),
        "cover": _counted_before_offered(world, truth),
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
        wanted = [each for each in truth.rows.get(key, []) if not each.voided]
        row = world.tables.rows.get(key)
        held = (row.usage, row.events) if row else None
        if held != (Decimal(sum(each.value for each in wanted)), len(wanted)):
            yield f"{key} holds {held}, not {wanted}"
    tenants = {key.pk.removeprefix("TENANT#") for key in truth.rows}
    if world.tables.directory.keys() != tenants:
        yield f"the directory holds {sorted(world.tables.directory)}, not {sorted(tenants)}"


def _wrong_voids(world: World, truth: Truth) -> Iterator[str]:
    yield from (f"{key} is counted, and its rows do not hold it" for key in world.history.not_held)
    for key, row in world.tables.rows.items():
        wanted = [each.value for each in truth.rows.get(key, []) if each.voided]
        if (row.voided_usage, row.voided_events) != (sum(wanted), len(wanted)):
            yield f"{key} says that {row.voided_usage} of {row.voided_events} event(s) is voided, not {wanted}"


def _wrong_readings(world: World, truth: Truth) -> Iterator[str]:
    """The row's maximum, or its latest, and the one event that it is of: whoever came when, and however often.

    Where the meters changed it may keep anything, but where it says that it is of all the row's events.
    """
    for key in truth.rows.keys() | world.tables.readings.keys():
        wanted = [each for each in truth.rows.get(key, []) if not each.voided]
        top = max(wanted, key=_order(key), default=None) if _aggregation(key) else None
        kept = [(each.reading.aggregation.value, *_kept(each), each.events) for each in world.tables.kept_readings(key)]
        expected = [(_aggregation(key), top.value, top.place[0], top.position, len(wanted))] if top else []
        covered = any(events == len(wanted) > 0 for *_, events in kept)
        if kept != expected and (covered or not world.meters_change):
            yield f"{key} keeps {kept}, not {expected}"


def _counted_before_offered(world: World, truth: Truth) -> Iterator[str]:
    """What a row has counted as covered it keeps, or a greater one: at all times."""
    for seen in [] if world.meters_change else world.history.rows:
        if not _aggregation(seen.key):
            continue
        held = [
            addition
            for addition in truth.rows.get(seen.key, [])
            if addition.position <= seen.applied.get(_attribute(addition.shard), "")
        ]
        if not seen.readings or seen.readings[0].events != seen.events or not held:
            yield f"{seen.key} has {seen.events} events, and keeps {seen.readings}"
            continue
        top, (value, moment, _) = max(held, key=_order(seen.key)), _kept(seen.readings[0])
        if value < top.value if _aggregation(seen.key) == "max" else moment < top.place[0]:
            yield f"{seen.key} has counted {top}, and keeps {seen.readings}"


def _aggregation(key: RowKey) -> str:
    """Return how the row's metric is aggregated; empty for a sum."""
    return next((name for metric, name in (("#seats", "max"), ("#calls", "latest")) if metric in key.sk), "")


def _order(key: RowKey) -> Callable[[Addition], Any]:
    if _aggregation(key) == "max":
        return lambda addition: (addition.value, addition.place)
    return lambda addition: addition.place


def _kept(kept: KeptReading) -> tuple[Decimal, datetime, str]:
    """Return value, event time and position of what a row keeps."""
    moment, _, owner = kept.reading.at.split("#", 2)
    return kept.reading.value, datetime.fromisoformat(moment), owner.split("@")[1].split("#")[0]


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
        wanted = (world.directory.ends(shard), shard.records[-1].position, len(shard.records), *counts)
        if held != wanted or row.events != row.counted + row.duplicates + row.rejected:
            yield f"the progress row of shard {shard.number} is {held}, not {wanted}"
        if sum(row.counted_by_hour.values()) != row.counted:
            yield f"the hours of shard {shard.number} are {row.counted_by_hour}, and {row.counted} were counted"


def _rows_beside_their_positions(world: World, truth: Truth) -> Iterator[str]:
    """A row holds exactly the records of each shard up to its own position: at all times."""
    ends = [RowSeen.of(key, row, ()) for key, row in world.tables.rows.items()]
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


def _time(record: Record, entry: Entry) -> datetime:
    if entry.timestamp is not None:
        return datetime.fromisoformat(entry.timestamp)
    return entry.received_at or record.arrived_at


def _rows(record: Record, entry: Entry) -> Iterator[RowKey]:
    at = _time(record, entry)
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
