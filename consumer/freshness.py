"""What a child can say about complete_until: the time up to which every event of its shard has reached it.

Two sources. A record's arrival: what arrived before the newest record delivered has been delivered too. And time: an
empty delivery with nothing behind it was fetched at some moment, and the shard held nothing else then; but the KCL
fetches ahead, and the child is not told when. How far ahead is bounded: the KCL fetches one after the other into a
queue of QUEUE_MAX, and a delivery leaves it when it is handed over, which is after the child has returned from the one
before.

    child returns from k-5 ──► k-4 leaves the queue ──► k-1 has room in it ──► k is fetched, and is empty
            │                                                                        └─ not the end ──► k+1 comes
            └─ claimed when k+1 comes: later than this the fetch of k began

How long a delivery was waited for says nothing: a daemon that gets no CPU hands over late what it fetched long ago.
A delivery with records is behind by 0 ms, too, when what was left behind it arrived in the same millisecond.

A shard that has ended has nothing behind its last delivery either, but its children may have had events for long when
that one is fetched. The last delivery is not marked, so none claims the time of its fetch before the next has come:
only then was it fetched from an open shard.

Pure. Source: PrefetchRecordsPublisher, ShardConsumerSubscriber and ProcessTask of the KCL.
"""

from __future__ import annotations

from collections import deque
from datetime import datetime, timedelta

QUEUE_MAX = 3
"""Fetches that the KCL 3.1.3 keeps ready for each shard; no property of it says otherwise."""
ARRIVAL_RESOLUTION = timedelta(milliseconds=1)
"""To which Kinesis cuts what it says of arrivals: of the last millisecond that is known some may be missing."""


class Freshness:
    """Follows the deliveries of one shard. Times are aware UTC, all of one clock but the records' arrivals."""

    def __init__(self) -> None:
        self._returned_at: deque[datetime] = deque(maxlen=QUEUE_MAX + 2)
        self._until_fetched: datetime | None = None
        self.complete_until: datetime | None = None

    def delivered(self, *, behind_ms: int | None, newest_arrival_at: datetime | None) -> datetime | None:
        """Note a delivery and return complete_until as it is once the delivery has been applied; never goes back.

        behind_ms: millisBehindLatest of the delivery; newest_arrival_at: of its records, None when there are none.
        """
        candidates = [self.complete_until, self._until_fetched]
        if newest_arrival_at is not None:
            candidates.append(newest_arrival_at - ARRIVAL_RESOLUTION)
        self.complete_until = max((moment for moment in candidates if moment is not None), default=None)
        caught_up = behind_ms == 0 and newest_arrival_at is None
        known = len(self._returned_at) == self._returned_at.maxlen
        self._until_fetched = self._returned_at[0] - ARRIVAL_RESOLUTION if caught_up and known else None
        return self.complete_until

    def returned(self, at: datetime) -> None:
        """Note that the child is about to return from the delivery."""
        self._returned_at.append(at)
