"""Claims: which of the events that share an identity is the one that counts.

    event with an id ──► claim of its id     ─┐   put if absent   ┌─► held by its own place: counted, now or before
    events without   ──► claim of their batch ┴──► the ledger ────┼─► by another place, same content: a duplicate
                                                                  └─► by another place, other content: a conflict

A claim's owner is a place on the stream, not a process: whoever replays the record finds its own name. So a claim can
be made any number of times, and needs no transaction with the count. Claims come before the count: an event that was
counted without one could be counted again under another place. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from enum import Enum


@dataclass(frozen=True, slots=True)
class EventContent:
    """What must be equal for an event to be the same event. timestamp: as sent, None when none was."""

    metric: str
    value: Decimal
    timestamp: str | None


@dataclass(frozen=True, slots=True)
class BatchContent:
    """What must be equal for a batch to be the same batch: the digest of its events, and how many they are."""

    digest: str
    events: int


Content = EventContent | BatchContent


@dataclass(frozen=True, slots=True)
class Claim:
    """A wish to be the one that counts. key: of the ledger; place: see metering.rows.place.

    arrived_at: when the stream took the record (aware UTC).
    window: of an event, the window that it is counted in, see metering.rows.window_stamp; for who takes it out again.
    """

    key: str
    place: str
    content: Content
    arrived_at: datetime
    window: str | None = None


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a key of the ledger. content: None when the row can't be read as what its key promises."""

    owner: str
    content: Content | None


@dataclass(frozen=True, slots=True)
class Repeat:
    """One more sighting of a claimed event, at another place. conflict: with other content.

    arrived_at: when the stream took it (aware UTC).
    """

    place: str
    conflict: bool
    arrived_at: datetime


@dataclass(frozen=True, slots=True)
class RepeatsWrite:
    """The sightings of one claimed event in a batch, in order of their places; one or more."""

    key: str
    repeats: tuple[Repeat, ...]

    @property
    def first(self) -> str:
        return self.repeats[0].place

    @property
    def last(self) -> str:
        return self.repeats[-1].place

    def beyond(self, place: str) -> RepeatsWrite | None:
        """Return what lies beyond `place`, or None when all of it has been noted already."""
        rest = tuple(repeat for repeat in self.repeats if repeat.place > place)
        return RepeatsWrite(self.key, rest) if rest else None


class Verdict(Enum):
    """How an event ends that wished to count."""

    COUNTED = "counted"
    DUPLICATE = "duplicate"
    CONFLICT = "conflict"
    UNREADABLE = "unreadable"


def judge(claim: Claim, owner: str, holder: Holder) -> Verdict:
    """Return what becomes of `claim`, made in the name of `owner`, when `holder` holds its key."""
    if holder.owner == owner:
        return Verdict.COUNTED
    if holder.content is None:
        return Verdict.UNREADABLE
    return Verdict.DUPLICATE if holder.content == claim.content else Verdict.CONFLICT
