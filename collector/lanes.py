"""What is put next: one lane for each virtual partition, with at most one batch of it on its way.

    events ──add──► lane 0: [e e e e]  ──take──► batch ─┐
                    lane 7: [e]        ──take──► batch ─┼─► one PutRecords
                    lane 9: []                          ┘

Order within a partition follows from the shape, not from care:

    lane 7    batch A  put ── refused ── put again ── held │
              e e e    ................................... │ batch B  put ── held
                                                  only here: A has left the lane (held or given up)

so a call never holds two batches of one partition, and a later event can't overtake an earlier one.

Pure: no thread, no lock, no clock. Times are seconds of a monotonic clock, handed in by the committer.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from uuid import uuid4

from collector.submissions import Submission
from metering.envelopes import ENVELOPE_BYTES_TARGET, encode_envelope, envelope_bytes
from metering.kinesis import PUT_BYTES_MAX, PUT_RECORDS_MAX
from metering.partitions import partition_key

ENVELOPE_BYTES_MAX = 10 * ENVELOPE_BYTES_TARGET
"""A lane with more waiting than the target may fill a record up to this: one record of a lane is out at a time, and
ten PUT payload units in one cost what ten with one each do."""


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """Events of one submission and one partition, in their order: those at `indexes`."""

    submission: Submission
    indexes: Sequence[int]
    submitted_at: float

    def encoded(self) -> list[bytes]:
        """Return the events as they stand in an envelope."""
        events = self.submission.events
        return [events[index].encoded for index in self.indexes]


@dataclass(slots=True, eq=False)
class Batch:
    """Events of one partition that are put as one record, always under the same batch_id and with the same bytes.

    pieces: what they are, in the record's order; events: how many; size: of the data, in bytes.
    attempts: how often the stream refused it. not_before: when it may be put. expires_at: when it is given up.
    maybe_held: a call with it failed as a whole, so that the stream may hold it.
    """

    partition: int
    batch_id: str
    pieces: tuple[Piece, ...]
    events: int
    size: int
    expires_at: float
    not_before: float = -math.inf
    attempts: int = 0
    maybe_held: bool = False
    _data: bytes = b""

    @property
    def data(self) -> bytes:
        """The record's data; made when it is first asked for, since no lock need be held for that."""
        if not self._data:
            self._data = encode_envelope(self.batch_id, [event for piece in self.pieces for event in piece.encoded()])
        return self._data


@dataclass(frozen=True, slots=True)
class GivenUp:
    """Events whose time is over. maybe_held: see Batch."""

    pieces: tuple[Piece, ...]
    maybe_held: bool

    @property
    def events(self) -> int:
        """How many they are."""
        return sum(len(piece.indexes) for piece in self.pieces)


class _BatchIds:
    """Gives 32 hexadecimal digits never used before: numbers from a random one on.

    The random one is drawn with the first id, so that processes that were forked before do not share it.
    """

    def __init__(self) -> None:
        self._numbers: Iterator[int] | None = None

    def __call__(self) -> str:
        if self._numbers is None:
            self._numbers = count(uuid4().int)
        return f"{next(self._numbers) % 2**128:032x}"


@dataclass(slots=True, eq=False)
class _Lane:
    """The events of one partition, oldest first: those in `batch` before those in `waiting`."""

    partition: int
    waiting: deque[Piece] = field(default_factory=deque)
    batch: Batch | None = None

    def oldest(self) -> float:
        return (self.batch.pieces if self.batch else self.waiting)[0].submitted_at


class Lanes:
    """All events between submit and outcome, in order of their submits within each partition.

    linger_s: how long an event may wait for company. deadline_s: how long after the submit of a batch's oldest event
    the batch is given up; the same for an event that no batch has taken. new_batch_id: returns an id never used before.
    """

    def __init__(self, *, linger_s: float, deadline_s: float, new_batch_id: Callable[[], str] | None = None) -> None:
        self._linger_s = linger_s
        self._deadline_s = deadline_s
        self._new_batch_id = new_batch_id or _BatchIds()
        self._lanes: dict[int, _Lane] = {}
        self._hold_until = -math.inf

    def __bool__(self) -> bool:
        """Whether any event is here."""
        return bool(self._lanes)

    def add(self, partition: int, piece: Piece) -> float:
        """Take events in; return when they are due, by their linger alone. Submit times must not decrease."""
        lane = self._lanes.get(partition)
        if lane is None:
            lane = self._lanes[partition] = _Lane(partition)
        lane.waiting.append(piece)
        return piece.submitted_at + self._linger_s

    def due_at(self, *, linger: bool = True) -> float:
        """Return when something is next to be put or given up, inf when nothing is here. linger: False to hurry."""
        linger_s = self._linger_s if linger else 0.0
        due = math.inf
        for lane in self._lanes.values():
            ready = lane.batch.not_before if lane.batch else lane.oldest() + linger_s
            due = min(due, max(ready, self._hold_until), lane.oldest() + self._deadline_s)
        return due

    def expire(self, now: float) -> list[GivenUp]:
        """Remove and return what has been here for too long; call it before take, so that nothing late is put."""
        given_up: list[GivenUp] = []
        for lane in list(self._lanes.values()):
            if lane.batch and lane.batch.expires_at <= now:
                given_up.append(GivenUp(lane.batch.pieces, lane.batch.maybe_held))
                lane.batch = None
            late = []
            while lane.waiting and lane.waiting[0].submitted_at + self._deadline_s <= now:
                late.append(lane.waiting.popleft())
            if late:
                given_up.append(GivenUp(tuple(late), maybe_held=False))
            self._drop_if_empty(lane)
        return given_up

    def take(self, now: float) -> list[Batch]:
        """Return the batches of the next call, oldest first: one a lane at most, within the limits of PutRecords.

        Lanes that still linger come along: the call is made anyway. Each batch stays in its lane until `leave`;
        `put_again` must be called for one that is to be tried again.
        """
        if now < self._hold_until:
            return []
        ready = [lane for lane in self._lanes.values() if lane.batch is None or lane.batch.not_before <= now]
        taken: list[Batch] = []
        size = 0
        for lane in sorted(ready, key=_Lane.oldest):
            batch = lane.batch or self._close_batch(lane)
            size += batch.size + len(partition_key(lane.partition))
            if taken and (size > PUT_BYTES_MAX or len(taken) == PUT_RECORDS_MAX):
                break
            taken.append(batch)
        return taken

    def put_again(self, batch: Batch, not_before: float) -> None:
        """Let a batch be taken again at `not_before` or later; nothing of its partition is taken until then."""
        batch.not_before = not_before

    def hold_back(self, until: float) -> None:
        """Let nothing be taken before `until`: the stream as a whole is away."""
        self._hold_until = until

    def leave(self, batch: Batch) -> None:
        """Remove a batch that is held or given up; its partition's next events may go."""
        lane = self._lanes[batch.partition]
        lane.batch = None
        self._drop_if_empty(lane)

    def leave_all(self) -> list[Piece]:
        """Remove and return all events."""
        pieces: list[Piece] = []
        for lane in self._lanes.values():
            pieces.extend(lane.batch.pieces if lane.batch else ())
            pieces.extend(lane.waiting)
        self._lanes.clear()
        return pieces

    def _close_batch(self, lane: _Lane) -> Batch:
        """Make the lane's oldest events its batch: at least one, and as many as a record should hold."""
        batch_id = self._new_batch_id()
        pieces: list[Piece] = []
        events = encoded_bytes = 0
        while lane.waiting:
            piece = lane.waiting.popleft()
            fitting = 0
            for event in piece.encoded():
                grown = encoded_bytes + len(event)
                if events and envelope_bytes(batch_id, grown, events + 1) > ENVELOPE_BYTES_MAX:
                    break
                encoded_bytes = grown
                events += 1
                fitting += 1
            if fitting == len(piece.indexes):
                pieces.append(piece)
                continue
            if fitting:
                pieces.append(Piece(piece.submission, piece.indexes[:fitting], piece.submitted_at))
            lane.waiting.appendleft(Piece(piece.submission, piece.indexes[fitting:], piece.submitted_at))
            break
        lane.batch = Batch(
            partition=lane.partition,
            batch_id=batch_id,
            pieces=tuple(pieces),
            events=events,
            size=envelope_bytes(batch_id, encoded_bytes, events),
            expires_at=pieces[0].submitted_at + self._deadline_s,
        )
        return lane.batch

    def _drop_if_empty(self, lane: _Lane) -> None:
        if lane.batch is None and not lane.waiting:
            del self._lanes[lane.partition]
