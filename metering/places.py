"""Places on the stream: as people and clients write them, and read back from the keys that metering.rows makes.

    kinesis:<shard>:<sequence number>:<index>         a receipt: the event_id of an event that was sent without one
    <shard>/<sequence number>/<index>                 the name of a rejected row, for `metering rejected`
    SHARD#<shard> | <position>#<index>                its key
    SHARD#<shard>#<position>#<index>                  the sort key of what points at it
    <incarnation>.<shard number>@<position>#<index>   the owner of a claim

Pure.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from metering.errors import InvalidEventError
from metering.events import RECEIPT_PREFIX
from metering.positions import position_of, sequence_number_of
from metering.rows import SHARD_PREFIX, RowKey, rejected_key

_SHARD_ID = re.compile(r"[A-Za-z0-9_.-]{1,128}\Z")
_BASE36 = re.compile(r"[0-9a-z]{1,24}\Z")
_OWNER = re.compile(r"([0-9a-z]{1,24})\.([A-Za-z0-9_.-]{1,128})@([0-9]{1,1002})#([0-9]{5,})\Z", re.ASCII)
_INDEX = re.compile(r"(?:0|[1-9][0-9]{0,4})\Z", re.ASCII)


@dataclass(frozen=True, slots=True)
class StreamPlace:
    """Where an event stands: the shard, its record's position there, its index within the record."""

    shard_id: str
    position: str
    index: int

    @property
    def sequence_number(self) -> str:
        return sequence_number_of(self.position)

    @property
    def name(self) -> str:
        """What `metering rejected` calls the row of this place."""
        return f"{self.shard_id}/{self.sequence_number}/{self.index}"

    @property
    def row_key(self) -> RowKey:
        """The key of the row of this place in the table of rejected events."""
        return rejected_key(self.shard_id, self.position, self.index)


@dataclass(frozen=True, slots=True)
class OwnerPlace:
    """Who owns a claim: a place of one incarnation of the stream, made at created_at_s (seconds since the epoch)."""

    created_at_s: int
    place: StreamPlace


def place_of_receipt(event_id: str) -> StreamPlace:
    """Return the place that a receipt names.

    Raises InvalidEventError `invalid_event_id` for what begins with `kinesis:` and is no receipt.
    """
    try:
        return _place(*event_id.removeprefix(RECEIPT_PREFIX).rsplit(":", 2))
    except (TypeError, ValueError) as error:
        raise InvalidEventError(
            "invalid_event_id", "a receipt is kinesis:<shard>:<sequence number>:<index>", "event_id"
        ) from error


def place_named(name: str) -> StreamPlace:
    """Return the place that StreamPlace.name names. Raises InvalidEventError `invalid_key`."""
    try:
        return _place(*name.split("/"))
    except (TypeError, ValueError) as error:
        raise InvalidEventError(
            "invalid_key", f"{name[:200]!r} is no key: it must be <shard>/<sequence number>/<index>, as `list` shows it"
        ) from error


def place_of_row(key: RowKey) -> StreamPlace:
    """Return the place of a rejected row by its key, as metering.rows.rejected_key makes it."""
    position, _, index = key.sk.rpartition("#")
    return StreamPlace(key.pk.removeprefix(SHARD_PREFIX), position, int(index))


def place_of_pointer(sort_key: str) -> StreamPlace:
    """Return the place at which a pointer points, by its sort key: metering.rows.rejected_pointer_key and its like."""
    *_, shard_id, position, index = sort_key.split("#")
    return StreamPlace(shard_id, position, int(index))


def place_of_owner(owner: str) -> OwnerPlace | None:
    """Return the place of a claim's owner, as metering.rows.claim_owner makes it; None for anything else."""
    parts = _OWNER.match(owner)
    if parts is None:
        return None
    created, number, position, index = parts.groups()
    # A shard whose id is no number goes by its whole id.
    shard_id = f"shardId-{int(number, 36):012d}" if _BASE36.match(number) else number
    return OwnerPlace(int(created, 36), StreamPlace(shard_id, position, int(index)))


def _place(shard_id: str, sequence_number: str, index: str) -> StreamPlace:
    """Raises ValueError, and TypeError when there are not three parts."""
    if not (_SHARD_ID.match(shard_id) and _INDEX.match(index)):
        raise ValueError("no shard or no index")
    return StreamPlace(shard_id, position_of(sequence_number), int(index))
