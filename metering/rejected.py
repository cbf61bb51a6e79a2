"""A rejected row as it is read: why an event was not counted, what the record held, what became of it. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from metering.errors import InvalidEventError
from metering.events import JsonNumber, decode_json
from metering.places import StreamPlace


@dataclass(frozen=True, slots=True)
class RejectedRow:
    """A rejected event, or a record that could not be decoded. Times are aware UTC.

    raw: what the record held, cut at 256 KiB; raw_bytes: how long it was; raw_sha256: of all of it, in hex.
    stream, stream_created_at: the incarnation of the stream that held it.
    replay_events: what a replay has begun to put, in the form that operations.replay gives it; None before the first.
    replayed_at, replayed_as: when its replay was done, and the ids of the events that were put; None and empty before.
    """

    place: StreamPlace
    reason: str
    detail: str
    raw: bytes
    raw_bytes: int
    raw_sha256: str
    arrived_at: datetime
    rejected_at: datetime
    stream: str
    stream_created_at: datetime
    replay_begun_at: datetime | None = None
    replay_events: bytes | None = None
    replayed_at: datetime | None = None
    replayed_as: tuple[str, ...] = ()

    @property
    def raw_is_cut(self) -> bool:
        return self.raw_bytes > len(self.raw)

    def said(self, field: str) -> str | None:
        """Return a text field of the event as its producer wrote it, valid or not; None when there is none.

        For people to find their event by; nothing is counted by it.
        """
        try:
            event = decode_json(self.raw)
        except InvalidEventError:
            return None
        value = event.get(field) if isinstance(event, dict) else None
        return value if isinstance(value, str) and not isinstance(value, JsonNumber) else None


@dataclass(frozen=True, slots=True)
class RejectedPage:
    """Rejected rows of one shard, from the newest to the oldest. more: there are older ones than the last of these."""

    rows: tuple[RejectedRow, ...]
    more: bool
