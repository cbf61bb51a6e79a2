"""What a child can say about complete_until: the time up to which every event of its shard has reached it.

Two sources. A record's arrival: what arrived before the newest record delivered has been delivered too. And time: a
delivery with nothing behind it was fetched at some moment, and the shard held nothing else then; but the KCL fetches
ahead, and the child is not told when. A child that had to wait for a delivery knows that the KCL's queue was empty, so
the fetch began after the delivery before the last one:

    delivery k-2 ──────► delivery k-1 ──────► (child waits) ──────► delivery k, nothing behind it
         └─ complete_until of k: later than this its fetch began

Being one delivery too careful costs one read interval of lag and covers pauses of the daemon. Pure.
"""

from __future__ import annotations

from datetime import datetime, timedelta

WAITED_MIN = timedelta(milliseconds=20)
"""A child that waited at least this long found the daemon's queue empty."""
ARRIVAL_RESOLUTION = timedelta(milliseconds=1)


class Freshness:
    """Follows the deliveries of one shard. Times are aware UTC, all of one clock but the records' arrivals."""

    def __init__(self) -> None:
        self._delivered_at: tuple[datetime | None, datetime | None] = (None, None)
        self._returned_at: datetime | None = None
        self._complete_until: datetime | None = None
        self.newest_arrival_at: datetime | None = None

    def delivered(self, at: datetime, *, behind_ms: int | None, newest_arrival_at: datetime | None) -> datetime | None:
        """Note a delivery and return complete_until as it is once the delivery has been applied; never goes back.

        behind_ms: millisBehindLatest of the delivery; newest_arrival_at: of its records, None when there are none.
        """
        before_last, last = self._delivered_at
        waited = self._returned_at is not None and at - self._returned_at >= WAITED_MIN
        candidates = [self._complete_until]
        if newest_arrival_at is not None:
            self.newest_arrival_at = max(newest_arrival_at, self.newest_arrival_at or newest_arrival_at)
            candidates.append(newest_arrival_at - ARRIVAL_RESOLUTION)
        if behind_ms == 0 and waited:
            candidates.append(before_last)
        self._delivered_at = (last, at)
        self._complete_until = max((moment for moment in candidates if moment is not None), default=None)
        return self._complete_until

    def returned(self, at: datetime) -> None:
        """Note that the child is done with the delivery and waits for the next."""
        self._returned_at = at
