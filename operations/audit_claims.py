"""How each event of a record ended, by who holds its claims in the ledger. Pure, and not the consumer's own judgement.

    event ──► its claims: the one that LEDGER as set now asks for, then the one of the other setting
          ──► one of them held by the event's own place: counted
          ──► one of them held by another place, same content: a duplicate
          ──► else by the first one: a conflict, or nobody holds it any more: not known

A claim's owner never changes while the claim lives, and all claims of a batch are made before any of its rows is
written: so what the ledger says now decided then, unless the claim has expired since.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from consumer.claiming import REASONS, UNREADABLE, wishes_of
from consumer.decoding import DecodedRecord, PlacedEvent
from metering.claims import Claim, Holder, Verdict, judge
from metering.ports import ShardRef
from metering.rows import WINDOW_MINUTES_ALLOWED, RowKey, claim_owner, rejected_key


@dataclass(frozen=True, slots=True)
class HeldClaim:
    """A claim in the ledger. counted_at: when it was made (aware UTC), None when the row does not say.

    voided: whether its event was taken out of the rows again.
    """

    holder: Holder
    counted_at: datetime | None
    voided: bool = False


@dataclass(frozen=True, slots=True)
class AuditedEvent:
    """An event and the claims that may decide on it, the likelier one first; none: nothing tells it from others."""

    placed: PlacedEvent
    claims: tuple[Claim, ...]


@dataclass(slots=True)
class EndedRecord:
    """A record and how its events ended. rejected: key of the row that must be there, and its reason.

    voided: those of the counted that were taken out of the rows again.
    unknown: events of which the ledger can't say any more whether they were counted.
    unclaimed: those of them whose claims can't have expired yet.
    """

    position: str
    arrived_at: datetime
    counted: list[PlacedEvent] = field(default_factory=list)
    voided: list[PlacedEvent] = field(default_factory=list)
    duplicates: int = 0
    rejected: list[tuple[RowKey, str]] = field(default_factory=list)
    unknown: list[PlacedEvent] = field(default_factory=list)
    unclaimed: list[AuditedEvent] = field(default_factory=list)

    @property
    def events(self) -> int:
        return len(self.counted) + self.duplicates + len(self.rejected) + len(self.unknown)


class ClaimJudge:
    """Judges the events of one shard.

    claim_events: LEDGER as set now. ttl: how long a claim is kept at least. voids: whether events were voided: their
    own claims say so, even where LEDGER is off now and the claims of their batches make them count.
    """

    def __init__(self, shard: ShardRef, *, claim_events: bool, ttl: timedelta, voids: bool) -> None:
        self._shard = shard
        self._claim_events = claim_events
        self._ttl = ttl
        self._voids = voids

    def claimed(self, record: DecodedRecord) -> list[AuditedEvent]:
        """Return the record's valid events with the first claim of each, in order of their places."""
        claims = dict(_claims(record, claim_events=self._claim_events))
        return [AuditedEvent(each, () if (claim := claims[each.index]) is None else (claim,)) for each in record.events]

    def reconsidered(
        self, record: DecodedRecord, events: list[AuditedEvent], held: Mapping[str, HeldClaim]
    ) -> list[AuditedEvent]:
        """Return the same events; those that their first claim does not make count with their second one, too.

        All of them where that one may say that they are voided.
        """
        decided = self._claim_events or not self._voids
        if decided and all(self._own(claim, held.get(claim.key)) for event in events for claim in event.claims):
            return events
        others = dict(_claims(record, claim_events=not self._claim_events))
        found = []
        for event in events:
            second = others[event.placed.index]
            if event.claims and second is not None and second not in event.claims:
                found.append(AuditedEvent(event.placed, (*event.claims, second)))
            else:
                found.append(event)
        return found

    def end(
        self, record: DecodedRecord, events: Iterable[AuditedEvent], held: Mapping[str, HeldClaim], *, now: datetime
    ) -> EndedRecord:
        """Return how the record's events ended. held: what the ledger held of their keys, looked up before `now`."""
        ended = EndedRecord(record.position, record.arrived_at)
        for refused in record.rejected:
            ended.rejected.append((rejected_key(self._shard.shard_id, record.position, refused.index), refused.reason))
        for event in events:
            match self._verdict(event, held, record.arrived_at):
                case Verdict.COUNTED:
                    ended.counted.append(event.placed)
                    if self._is_voided(event, held):
                        ended.voided.append(event.placed)
                case Verdict.DUPLICATE:
                    ended.duplicates += 1
                case Verdict.CONFLICT:
                    self._refuse(ended, event, REASONS[type(event.claims[0].content)])
                case Verdict.UNREADABLE:
                    self._refuse(ended, event, UNREADABLE)
                case None:
                    ended.unknown.append(event.placed)
                    if record.arrived_at + self._ttl > now:
                        ended.unclaimed.append(event)
        return ended

    def _verdict(self, event: AuditedEvent, held: Mapping[str, HeldClaim], arrived_at: datetime) -> Verdict | None:
        if not event.claims:
            return Verdict.COUNTED
        fitting = [
            (claim, held[claim.key])
            for claim in event.claims
            if claim.key in held and held[claim.key].holder.content == claim.content
        ]
        if any(self._own(claim, found) for claim, found in fitting):
            return Verdict.COUNTED
        claim, found = fitting[0] if fitting else (event.claims[0], held.get(event.claims[0].key))
        if found is None:
            return None
        verdict = judge(claim, self._owner(claim), found.holder)
        # Made when the event's own claim may have expired: who held the key before is not known.
        made_anew = found.counted_at is not None and found.counted_at >= arrived_at + self._ttl
        return None if made_anew and verdict is not Verdict.COUNTED else verdict

    def _refuse(self, ended: EndedRecord, event: AuditedEvent, reason: str) -> None:
        ended.rejected.append((rejected_key(self._shard.shard_id, ended.position, event.placed.index), reason))

    def _own(self, claim: Claim, found: HeldClaim | None) -> bool:
        return found is not None and found.holder.owner == self._owner(claim)

    def _is_voided(self, event: AuditedEvent, held: Mapping[str, HeldClaim]) -> bool:
        found = ((claim, held.get(claim.key)) for claim in event.claims)
        return any(each is not None and each.voided and self._own(claim, each) for claim, each in found)

    def _owner(self, claim: Claim) -> str:
        return claim_owner(self._shard.stream_created_at, self._shard.shard_id, claim.place)


def _claims(record: DecodedRecord, *, claim_events: bool) -> Iterator[tuple[int, Claim | None]]:
    # An audit takes no claim, so the window that one would keep does not matter.
    for wish in wishes_of(record, claim_events=claim_events, window_minutes=WINDOW_MINUTES_ALLOWED[0]):
        for placed in wish.events:
            yield placed.index, wish.claim
