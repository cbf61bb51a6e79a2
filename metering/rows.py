"""Keys and attribute names of the tables: the one place that knows the schema.

`usage-aggregator` (pk, sk):

    TENANT#t | METRIC#m                     the total of a counter
    TENANT#t | HOUR#m#2024-01-15T10         one window by event time
    TENANTS  | t                            directory of tenants
    STREAM#s | SHARD#id                     progress of a shard

`usage-rejected` (pk, sk):

    SHARD#id                | position#index                  a rejected event
    TENANT#t#EVENT#id       | SHARD#id#position#index         points at it, when it has an id
    TENANT#t                | arrival#SHARD#id#position#index points at it, when it names a tenant

`usage-events`, the ledger (pk):

    TENANT#t#EVENT#id                       the claim of an event by its id
    TENANT#t#SOURCE#digest#EVENT#id         the same for a CloudEvent, whose source is part of its identity
    BATCH#id                                the claim of a record's events that have no id

Tenants and metrics cannot hold `#`, and ids stand last, so keys can't collide. Pure.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from typing import NamedTuple

from metering.events import time_text

DIRECTORY_PK = "TENANTS"
TENANT_PREFIX = "TENANT#"
METRIC_PREFIX = "METRIC#"
WINDOW_PREFIX = "HOUR#"
STREAM_PREFIX = "STREAM#"
SHARD_PREFIX = "SHARD#"
BATCH_PREFIX = "BATCH#"
APPLIED_PREFIX = "a."
SEEN_PREFIX = "s."
REPEATED_PREFIX = "t."
HOUR_PREFIX = "h."
WINDOW_MINUTES_ALLOWED = (60, 30, 15)

_BASE36 = "0123456789abcdefghijklmnopqrstuvwxyz"
_SHARD_ID_PREFIX = "shardId-"


class RowKey(NamedTuple):
    """Primary key of an item."""

    pk: str
    sk: str


def tenant_pk(tenant_id: str) -> str:
    return TENANT_PREFIX + tenant_id


def total_key(tenant_id: str, metric: str) -> RowKey:
    """Return the key of the total of one counter."""
    return RowKey(tenant_pk(tenant_id), METRIC_PREFIX + metric)


def window_key(tenant_id: str, metric: str, occurred_at: datetime, window_minutes: int) -> RowKey:
    """Return the key of the window that `occurred_at` (aware) falls into; windows start at multiples in UTC."""
    return stamped_window_key(tenant_id, metric, window_stamp(occurred_at, window_minutes))


def window_stamp(occurred_at: datetime, window_minutes: int) -> str:
    """Return what names a window among those of its counter: the end of its key, and what a claim keeps of it."""
    start = window_start(occurred_at, window_minutes).isoformat()  # 2024-01-15T10:00:00+00:00
    return start[: len("2024-01-15T10")] if window_minutes == 60 else start[: len("2024-01-15T10:00")]


def stamped_window_key(tenant_id: str, metric: str, stamp: str) -> RowKey:
    """Return the key of the window that window_stamp names."""
    return RowKey(tenant_pk(tenant_id), f"{WINDOW_PREFIX}{metric}#{stamp}")


def window_start(occurred_at: datetime, window_minutes: int) -> datetime:
    """Return the start (aware UTC) of the window that holds `occurred_at`."""
    moment = occurred_at.astimezone(UTC)
    return moment.replace(minute=moment.minute // window_minutes * window_minutes, second=0, microsecond=0)


def directory_key(tenant_id: str) -> RowKey:
    """Return the key of a tenant's entry in the directory."""
    return RowKey(DIRECTORY_PK, tenant_id)


def progress_key(stream: str, shard_id: str) -> RowKey:
    """Return the key of a shard's progress row."""
    return RowKey(STREAM_PREFIX + stream, SHARD_PREFIX + shard_id)


def rejected_key(shard_id: str, position: str, index: int) -> RowKey:
    """Return the key of a rejected event: `index` is its place in the record, 0 for an undecodable record."""
    return RowKey(SHARD_PREFIX + shard_id, place(position, index))


def rejected_pointer_key(claim_key: str, rejected: RowKey) -> RowKey:
    """Return the key of the item by which a rejected event is found by its id."""
    return RowKey(claim_key, f"{rejected.pk}#{rejected.sk}")


def rejected_of_tenant_key(tenant_id: str, arrived_at: datetime, rejected: RowKey) -> RowKey:
    """Return the key of the item by which a rejected event is found among those of its tenant, by arrival."""
    return RowKey(tenant_pk(tenant_id), f"{time_text(arrived_at)}#{rejected.pk}#{rejected.sk}")


def applied_attribute(stream_created_at: datetime, shard_id: str) -> str:
    """Return the attribute in which a row holds the position applied of one shard of one incarnation of the stream.

    A stream that is deleted and made again starts at shardId-000000000000 again, with other sequence numbers: the
    creation time keeps the two apart. Short, since an item over 1 KB costs a second write unit.
    """
    return APPLIED_PREFIX + _shard_tag(stream_created_at, shard_id)


def seen_attribute(stream_created_at: datetime, shard_id: str) -> str:
    """Return the attribute in which a claim holds the last place of a shard at which its event came again."""
    return SEEN_PREFIX + _shard_tag(stream_created_at, shard_id)


def repeated_attribute(stream_created_at: datetime, shard_id: str) -> str:
    """Return the attribute in which a claim holds when its event last came again through a shard."""
    return REPEATED_PREFIX + _shard_tag(stream_created_at, shard_id)


def event_claim_key(tenant_id: str, event_id: str, source: str | None = None) -> str:
    """Return the ledger key of an event. A source may be long, so its digest stands for it: 1,100 bytes at most."""
    if source is None:
        return f"{tenant_pk(tenant_id)}#EVENT#{event_id}"
    digest = blake2b(source.encode(), digest_size=16).hexdigest()
    return f"{tenant_pk(tenant_id)}#SOURCE#{digest}#EVENT#{event_id}"


def batch_claim_key(batch_id: str) -> str:
    """Return the ledger key of a record's events that have no id."""
    return BATCH_PREFIX + batch_id


def place(position: str, index: int) -> str:
    """Return where an event stands within its shard: string order is the order of the shard."""
    return f"{position}#{index:05d}"


def claim_owner(stream_created_at: datetime, shard_id: str, place: str) -> str:
    """Return the owner of a claim: one place of one shard of one incarnation of the stream."""
    return f"{_shard_tag(stream_created_at, shard_id)}@{place}"


def owner_fence(owner: str) -> tuple[str, str]:
    """Return by what a row shows that it holds a claim's event, given what claim_owner made.

    The attribute in which a row holds the position applied of the owner's shard, and the position of its record.
    """
    tag, _, place = owner.partition("@")
    return APPLIED_PREFIX + tag, place.partition("#")[0]


def hour_attribute(hour: datetime) -> str:
    """Return the attribute in which a progress row holds what it counted in an hour (its start, aware UTC)."""
    return HOUR_PREFIX + hour.isoformat()[: len("2024-01-15T10")]


def hour_of_attribute(attribute: str) -> datetime | None:
    """Return the hour of an attribute that hour_attribute made, None for another one."""
    if not attribute.startswith(HOUR_PREFIX):
        return None
    return datetime.fromisoformat(f"{attribute.removeprefix(HOUR_PREFIX)}+00:00")


def _shard_tag(stream_created_at: datetime, shard_id: str) -> str:
    created = _base36(int(stream_created_at.timestamp()))
    number = shard_id.removeprefix(_SHARD_ID_PREFIX)
    short = _base36(int(number)) if number != shard_id and number.isascii() and number.isdigit() else shard_id
    return f"{created}.{short}"


def _base36(number: int) -> str:
    digits = ""
    while True:
        number, digit = divmod(number, 36)
        digits = _BASE36[digit] + digits
        if not number:
            return digits


def expiry(now: datetime, days: int) -> int:
    """Return the TTL attribute, seconds since the epoch, of an item that is kept `days` days from `now`."""
    return int((now + timedelta(days=days)).timestamp())
