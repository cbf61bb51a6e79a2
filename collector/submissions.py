"""The events of one request on their way to the stream, and how each of them ended."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

from metering.events import RECEIPT_PREFIX
from metering.outgoing import OutgoingEvent
from metering.ports import Held


class Submission:
    """Events that one request hands over together; each ends once, held or not.

    events: 1 or more; indexes below count them. Only the committer ends them, by one thread at a time. `endings` may be
    read once `wait` has returned True; until then it grows.
    """

    def __init__(self, events: Sequence[OutgoingEvent]) -> None:
        self.events = events
        self.endings: list[Ending] = []
        self._left = len(events)
        # Held until all have ended. A lock and not an Event, which makes a lock for each wait: one is made per request.
        self._under_way = threading.Lock()
        self._under_way.acquire()

    def wait(self, timeout_s: float) -> bool:
        """Return True once all events have ended, False when `timeout_s` is over first."""
        if not self._under_way.acquire(timeout=timeout_s):
            return False
        self._under_way.release()
        return True

    def end(self, indexes: Sequence[int], outcome: Held | Exception, first: int = 0) -> None:
        """Note how the events at `indexes` ended: as the events `first` and following of a record, or not held."""
        self.endings.append(Ending(indexes, outcome, first))
        self._left -= len(indexes)
        if not self._left:
            self._under_way.release()


@dataclass(frozen=True, slots=True)
class Ending:
    """How some events of a submission ended together.

    outcome: where the stream holds their record, in which they are `first` and following; or why it does not hold them:
    an EventNotHeldError, a SetupError, or what the sink raised unexpectedly.
    """

    indexes: Sequence[int]
    outcome: Held | Exception
    first: int


def receipt(place: Held, index: int) -> str:
    """Return the receipt of an event, as clients see it: `kinesis:<shard>:<sequence number>:<index>`."""
    return f"{RECEIPT_PREFIX}{place.shard_id}:{place.sequence_number}:{index}"
