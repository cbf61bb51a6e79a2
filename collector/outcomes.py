"""How a submitted event ends: held, with a receipt, or not."""

from __future__ import annotations

from dataclasses import dataclass

from metering.errors import MeteringError, StreamUnavailableError
from metering.events import RECEIPT_PREFIX


@dataclass(frozen=True, slots=True)
class Receipt:
    """Where the stream holds an event: `index` counts the events of the record from 0."""

    shard_id: str
    sequence_number: str
    index: int

    @property
    def text(self) -> str:
        """The receipt as clients see it: `kinesis:<shard>:<sequence number>:<index>`."""
        return f"{RECEIPT_PREFIX}{self.shard_id}:{self.sequence_number}:{self.index}"


class EventNotHeldError(StreamUnavailableError):
    """An event was given up, or its answer is overdue.

    maybe_held: the answer to a put was lost or is still out, so the stream may hold the event all the same;
    False: it does not, and never will.
    """

    def __init__(self, detail: str, *, maybe_held: bool) -> None:
        super().__init__(detail)
        self.maybe_held = maybe_held


class TooManyPendingError(MeteringError):
    """As many events as MAX_PENDING_EVENTS allows are waiting for the stream; this one was not taken."""
