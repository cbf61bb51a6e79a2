"""Which events of a batch count, which are duplicates and which are rejected, by who holds their claims. Pure.

    decoded records ─► wishes ─► first claim of each key ─► (the ledger) ─► holders ─► settled records, repeats

Several events of a batch may share a key: the first of them, by place, makes the claim, and its holder judges all.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from consumer.decoding import DecodedRecord, PlacedEvent
from metering.aggregation import RecordOutcome
from metering.claims import (
    BatchContent,
    Claim,
    Content,
    EventContent,
    Holder,
    Repeat,
    RepeatsWrite,
    Verdict,
    judge,
)
from metering.envelopes import encode_event
from metering.events import Event, decimal_text
from metering.ports import RejectedEvent, ShardRef
from metering.rows import batch_claim_key, claim_owner, event_claim_key, place, window_stamp

REASONS = {EventContent: "event_id_conflict", BatchContent: "batch_id_conflict"}
UNREADABLE = "ledger_row_unreadable"


@dataclass(frozen=True, slots=True)
class Wish:
    """Events of one record that count together or not at all. claim: None when nothing can tell them from others."""

    position: str
    events: tuple[PlacedEvent, ...]
    claim: Claim | None


@dataclass(frozen=True, slots=True)
class SettledRecord:
    """A record after the claims: which of its events count, how many were there before, and what is rejected now."""

    decoded: DecodedRecord
    counted: tuple[PlacedEvent, ...]
    duplicates: int
    rejected: tuple[RejectedEvent, ...]

    @property
    def outcome(self) -> RecordOutcome:
        return RecordOutcome(
            position=self.decoded.position,
            arrived_at=self.decoded.arrived_at,
            counted=len(self.counted),
            duplicates=self.duplicates,
            rejected=len(self.decoded.rejected) + len(self.rejected),
        )


@dataclass(frozen=True, slots=True)
class Settlement:
    """A batch after the claims. repeats: the sightings to note, one write for each key."""

    records: list[SettledRecord]
    repeats: list[RepeatsWrite]


def wishes_of(record: DecodedRecord, *, claim_events: bool, window_minutes: int) -> Iterator[Wish]:
    """Return what a record's events wish, in order of their places.

    claim_events: an event with an id is claimed by it; else by its batch, like one without. A bare event without an
    id is told from another by its position alone. window_minutes: of the windows that they are counted in.
    """
    batches: dict[tuple[int, str], list[PlacedEvent]] = {}
    for placed in record.events:
        event_id = placed.event.event_id
        if claim_events and event_id is not None:
            yield Wish(record.position, (placed,), _event_claim(record, placed, event_id, window_minutes))
        elif placed.batch_id is not None:
            batches.setdefault((placed.part, placed.batch_id), []).append(placed)
        else:
            yield Wish(record.position, (placed,), None)
    for (_, batch_id), events in batches.items():
        content = BatchContent(_digest(placed.event for placed in events), len(events))
        where = place(record.position, events[0].index)
        yield Wish(record.position, tuple(events), Claim(batch_claim_key(batch_id), where, content, record.arrived_at))


def first_claims(wishes: Iterable[Wish]) -> list[Claim]:
    """Return the first claim of each key: one call must not hold a key twice, and the first place is the owner."""
    firsts: dict[str, Claim] = {}
    for wish in wishes:
        if wish.claim is not None:
            firsts.setdefault(wish.claim.key, wish.claim)
    return list(firsts.values())


def settle(
    shard: ShardRef, decoded: Sequence[DecodedRecord], wishes: Iterable[Wish], holders: Mapping[str, Holder]
) -> Settlement:
    """Judge each wish by the holder of its key. decoded, wishes: in order of the shard."""
    counted: dict[str, list[PlacedEvent]] = {record.position: [] for record in decoded}
    duplicates: dict[str, int] = dict.fromkeys(counted, 0)
    rejected: dict[str, list[RejectedEvent]] = {record.position: [] for record in decoded}
    repeats: dict[str, list[Repeat]] = {}
    for wish in wishes:
        claim = wish.claim
        if claim is None:
            counted[wish.position] += wish.events
            continue
        holder = holders[claim.key]
        verdict = judge(claim, claim_owner(shard.stream_created_at, shard.shard_id, claim.place), holder)
        match verdict:
            case Verdict.COUNTED:
                counted[wish.position] += wish.events
            case Verdict.DUPLICATE:
                duplicates[wish.position] += len(wish.events)
            case Verdict.CONFLICT | Verdict.UNREADABLE:
                rejected[wish.position] += _refused(wish, claim, holder, verdict)
        if verdict in {Verdict.DUPLICATE, Verdict.CONFLICT}:
            repeats.setdefault(claim.key, []).append(Repeat(claim.place, verdict is Verdict.CONFLICT, claim.arrived_at))
    records = [
        SettledRecord(
            record,
            tuple(sorted(counted[record.position], key=lambda placed: placed.index)),
            duplicates[record.position],
            tuple(rejected[record.position]),
        )
        for record in decoded
    ]
    return Settlement(records, [RepeatsWrite(key, tuple(found)) for key, found in repeats.items()])


def _event_claim(record: DecodedRecord, placed: PlacedEvent, event_id: str, window_minutes: int) -> Claim:
    event = placed.event
    return Claim(
        event_claim_key(event.tenant_id, event_id, event.source),
        place(record.position, placed.index),
        EventContent(event.metric, event.value, event.timestamp),
        record.arrived_at,
        window_stamp(event.occurred_at, window_minutes),
    )


def _digest(events: Iterable[Event]) -> str:
    digest = blake2b(digest_size=16)
    for event in events:
        digest.update(encode_event(event) + b"\n")
    return digest.hexdigest()


def _refused(wish: Wish, claim: Claim, holder: Holder, verdict: Verdict) -> list[RejectedEvent]:
    if verdict is Verdict.UNREADABLE:
        reason, detail = UNREADABLE, "the ledger's row of this id holds no claim that can be read"
    else:
        reason = REASONS[type(claim.content)]
        detail = f"the id is held by another {_described(holder.content)}"
    return [
        RejectedEvent(
            wish.position,
            placed.index,
            reason,
            detail,
            encode_event(placed.event),
            claim.arrived_at,
            placed.event.tenant_id,
            claim.key if isinstance(claim.content, EventContent) else None,
        )
        for placed in wish.events
    ]


def _described(content: Content | None) -> str:
    match content:
        case EventContent(metric, value, timestamp):
            return f"event: metric={metric}, value={decimal_text(value)}, timestamp={timestamp or 'none'}"
        case BatchContent(_, events):
            return f"batch of {events} event(s)"
        case None:
            return "claim"
