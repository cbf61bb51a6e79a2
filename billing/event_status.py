"""Where an event stands: counted, voided, rejected, pending or unknown. Pure.

    claimed in the ledger ──► voided there                                    voided
         │                └─► its shard has been applied up to its place      counted
         │                └─► not yet                                         pending
         └─ not claimed ────► a rejected row is there                         rejected
                          └─► none                                            unknown

A claim comes before the count, so a claim alone does not say that the event is in the totals. The shard's progress
does: it is written after the rows. A receipt names its place by itself and is judged by the same progress.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from enum import Enum

from metering.places import OwnerPlace, StreamPlace
from metering.ports import ClaimedEvent, ShardProgress
from metering.rejected import RejectedRow


class Status(Enum):
    """What has become of an event."""

    COUNTED = "counted"
    VOIDED = "voided"
    REJECTED = "rejected"
    PENDING = "pending"
    UNKNOWN = "unknown"


def status_of_claim(claimed: ClaimedEvent, owner: OwnerPlace, shards: Sequence[ShardProgress]) -> Status:
    """Return where a claimed event stands. shards: the progress of the stream's newest incarnation, read before it."""
    if claimed.voided_at is not None:
        return Status.VOIDED
    # An incarnation that is gone takes no more part: what it claimed was counted in its time.
    newest = max((_created_at_s(shard) for shard in shards), default=0)
    if owner.created_at_s < newest or (owner.created_at_s == newest and _applied(owner.place, shards)):
        return Status.COUNTED
    return Status.PENDING


def status_of_receipt(place: StreamPlace, row: RejectedRow | None, shards: Sequence[ShardProgress]) -> Status:
    """Return where the event of a receipt stands. row: the rejected row of its place, if there is one."""
    if row is not None:
        return Status.REJECTED
    if all(shard.shard_id != place.shard_id for shard in shards):
        return Status.UNKNOWN
    return Status.COUNTED if _applied(place, shards) else Status.PENDING


def status_of_unclaimed(rejections: Collection[RejectedRow]) -> Status:
    """Return where an event stands that nobody has claimed."""
    return Status.REJECTED if rejections else Status.UNKNOWN


def _applied(place: StreamPlace, shards: Sequence[ShardProgress]) -> bool:
    return any(shard.shard_id == place.shard_id and shard.position >= place.position for shard in shards)


def _created_at_s(shard: ShardProgress) -> int:
    return int(shard.stream_created_at.timestamp())  # what an owner keeps of it
