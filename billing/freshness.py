"""How current an answer is: as_of, the time up to which all that the stream held is in the rows. Pure.

as_of is a promise, so where it is not known it is null rather than late:

- No progress rows: nothing has been read from the stream yet. Null.
- Shards that are not closed: the slowest decides. as_of is the least complete_until among them, and null when
  one of them has none yet.
- A closed shard has been read to its end and takes no more records: all that it ever held is in the rows, so
  it holds nothing back.
- All shards closed: null. A stream always has an open shard, so there are shards without a row here, and
  nothing is known of what they hold; no complete_until of the closed ones tells.

It rests on the consumer entering shards in time, since a shard without a row cannot hold as_of back: the rows
of all open shards are there before the first complete_until is, and a shard's children before it is closed.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from metering.ports import ShardProgress


@dataclass(frozen=True, slots=True)
class Freshness:
    """as_of: aware UTC; lag_ms: how long ago that is, 0 or more. Both are None when nothing is known."""

    as_of: datetime | None
    lag_ms: int | None


def freshness(shards: Iterable[ShardProgress], *, now: datetime) -> Freshness:
    """Return how current the rows were when `shards`, the progress of the newest incarnation, was read.

    now: aware UTC. A consumer whose clock is ahead of this one gives a lag of 0, not a negative one.
    """
    complete_until = [shard.complete_until for shard in shards if not shard.closed]
    known = [moment for moment in complete_until if moment is not None]
    if not known or len(known) < len(complete_until):
        return Freshness(None, None)
    as_of = min(known)
    return Freshness(as_of, max(0, (now - as_of) // timedelta(milliseconds=1)))
