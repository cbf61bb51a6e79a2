"""The in-memory twin of RejectedStore, on the tables of metering.memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from metering.memory import MemoryTables
from metering.places import StreamPlace
from metering.rejected import RejectedPage, RejectedRow


class MemoryRejected:
    """RejectedStore on the rejected rows of `tables`."""

    def __init__(self, tables: MemoryTables, stream: str) -> None:
        self._tables = tables
        self._stream = stream

    def shard_ids(self) -> list[str]:
        return sorted(shard_id for stream, shard_id in self._tables.shards if stream == self._stream)

    def page(self, shard_id: str, *, limit: int, before: StreamPlace | None) -> RejectedPage:
        rows = [row for place, row in self._tables.rejected_rows.items() if place.shard_id == shard_id]
        rows = sorted(rows, key=lambda row: row.place.row_key, reverse=True)
        if before is not None:
            rows = [row for row in rows if row.place.row_key < before.row_key]
        return RejectedPage(tuple(rows[:limit]), len(rows) > limit)

    def get(self, place: StreamPlace) -> RejectedRow | None:
        return self._tables.rejected_rows.get(place)

    def begin_replay(self, place: StreamPlace, events: bytes, *, now: datetime) -> bytes | None:
        row = self.get(place)
        if row is None:
            return None
        if row.replay_events is not None:
            return row.replay_events
        self._tables.rejected_rows[place] = replace(row, replay_begun_at=now, replay_events=events)
        return events

    def mark_replayed(self, place: StreamPlace, event_ids: Sequence[str], *, now: datetime) -> bool:
        row = self.get(place)
        if row is None or row.replayed_at is not None:
            return False
        self._tables.rejected_rows[place] = replace(row, replayed_at=now, replayed_as=tuple(event_ids))
        return True
