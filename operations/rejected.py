"""What `metering rejected` shows: rows found, in lines, in full, and as JSON. Reading only; operations.replay puts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from heapq import merge

import msgspec

from metering.aws import dynamodb_client
from metering.dynamodb_rejected import DynamoRejectedStore
from metering.errors import InvalidEventError
from metering.events import parse_timestamp, time_text
from metering.places import StreamPlace
from metering.ports import RejectedStore
from metering.rejected import RejectedRow
from metering.settings import Settings

PAGE_ROWS = 100
"""Rows in one query: a row may hold 256 KB, and a page ends at 1 MB by itself."""

_AGO = re.compile(r"([0-9]{1,5})([mhd])\Z", re.ASCII)
_UNITS = {"m": "minutes", "h": "hours", "d": "days"}


def rejected_store(settings: Settings) -> DynamoRejectedStore:
    """Return the rows of the settings' stream."""
    return DynamoRejectedStore(
        dynamodb_client(settings),
        stream=settings.stream,
        table=settings.table,
        rejected_table=settings.rejected_table,
    )


@dataclass(frozen=True, slots=True)
class Filter:
    """Which rows are wanted. None: any. since: rejected at that time or later. replayed: those that were, too."""

    tenant_id: str | None = None
    reason: str | None = None
    shard_id: str | None = None
    since: datetime | None = None
    replayed: bool = False

    def takes(self, row: RejectedRow) -> bool:
        return (
            (self.replayed or row.replayed_at is None)
            and self.reason in {None, row.reason}
            and (self.since is None or row.rejected_at >= self.since)
            and (self.tenant_id is None or row.said("tenant_id") == self.tenant_id)
        )


def found(store: RejectedStore, wanted: Filter) -> Iterator[RejectedRow]:
    """Return the rows that `wanted` takes, the newest first.

    Within a shard they are in its order; those of several shards are ordered by when the stream took them.
    """
    shard_ids = store.shard_ids() if wanted.shard_id is None else [wanted.shard_id]
    rows = merge(*(_of_shard(store, shard_id) for shard_id in shard_ids), key=lambda row: row.arrived_at, reverse=True)
    return filter(wanted.takes, rows)


def since(text: str, *, now: datetime) -> datetime:
    """Return the time (aware UTC) that `90m`, `12h`, `7d` (ago) or an RFC 3339 time means.

    Raises InvalidEventError `invalid_timestamp`.
    """
    ago = _AGO.match(text)
    return now - timedelta(**{_UNITS[ago[2]]: int(ago[1])}) if ago else parse_timestamp(text, field="--since")


def line(row: RejectedRow) -> str:
    """Return a row as one line: key, when, why, whose, whether it was replayed, and the reason in words."""
    replayed = "-" if row.replayed_at is None else f"replayed {time_text(row.replayed_at)}"
    whose = "  ".join(f"{name}={printable(value)}" for name in ("tenant_id", "event_id") if (value := row.said(name)))
    return f"{row.place.name}  {time_text(row.rejected_at)}  {row.reason}  {whose or '-'}  {replayed}  " + printable(
        row.detail
    )


def members(row: RejectedRow) -> dict[str, object]:
    """Return what is known of a row, without its raw bytes, as a JSON object."""
    return {
        "key": row.place.name,
        "shard": row.place.shard_id,
        "position": row.place.sequence_number,
        "index": row.place.index,
        "reason": row.reason,
        "detail": row.detail,
        "tenant_id": row.said("tenant_id"),
        "event_id": row.said("event_id"),
        "source": row.said("source"),
        "arrived_at": time_text(row.arrived_at),
        "rejected_at": time_text(row.rejected_at),
        "stream": row.stream,
        "stream_created_at": time_text(row.stream_created_at),
        "raw_bytes": row.raw_bytes,
        "raw_sha256": row.raw_sha256,
        "replay_begun_at": None if row.replay_begun_at is None else time_text(row.replay_begun_at),
        "replayed_at": None if row.replayed_at is None else time_text(row.replayed_at),
        "replayed_as": list(row.replayed_as),
    }


def json_line(row: RejectedRow) -> str:
    """Return members(row) on one line."""
    return msgspec.json.encode(members(row)).decode()


def in_full(row: RejectedRow) -> str:
    """Return everything that is known of a row, for a person to read."""
    lines = [f"{name}: {_shown(value)}" for name, value in members(row).items() if value not in (None, [])]
    if row.replay_begun_at is not None and row.replayed_at is None:
        lines.append(f"replay begun as: {pretty(row.replay_events or b'')}")
    kept = f", {len(row.raw)} of {row.raw_bytes} bytes were kept" if row.raw_is_cut else ""
    return "\n".join([*lines, f"raw{kept}:", pretty(row.raw)])


def pretty(raw: bytes) -> str:
    """Return JSON indented, its numbers as they were written; anything else on one line, escaped."""
    try:
        decoded = msgspec.json.format(raw, indent=2).decode("utf-8")
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return _escaped(raw.decode("utf-8", "backslashreplace"), keep="")
    return _escaped(decoded, keep="\n")


def printable(text: str) -> str:
    """Return text from outside such that it can do nothing to a terminal."""
    return _escaped(text, keep="")


def row_of(store: RejectedStore, place: StreamPlace) -> RejectedRow:
    """Return one row. Raises InvalidEventError `not_found`."""
    row = store.get(place)
    if row is None:
        raise InvalidEventError("not_found", f"there is no rejected row {place.name}")
    return row


def _of_shard(store: RejectedStore, shard_id: str) -> Iterator[RejectedRow]:
    before: StreamPlace | None = None
    while True:
        page = store.page(shard_id, limit=PAGE_ROWS, before=before)
        yield from page.rows
        if not page.more or not page.rows:
            return
        before = page.rows[-1].place


def _shown(value: object) -> str:
    if isinstance(value, str):
        return printable(value)
    return ", ".join(map(printable, value)) if isinstance(value, Sequence) else str(value)


def _escaped(text: str, *, keep: str) -> str:
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)
