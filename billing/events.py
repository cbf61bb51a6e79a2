"""GET /v1/tenants/{t}/events/{event_id}: what has become of one event.

The progress is read first and the ledger second, see billing.app for why: what the stream held at as_of has been
claimed by then, and lies within the progress that was read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flask import request
from werkzeug.routing import BaseConverter

from billing.answers import answer, exact_number, time_member
from billing.event_status import Status, status_of_claim, status_of_receipt, status_of_unclaimed
from billing.freshness import freshness
from billing.parameters import query_parameters
from metering.events import RECEIPT_PREFIX, parse_identity, parse_name
from metering.places import place_of_owner, place_of_receipt
from metering.rows import event_claim_key
from metering.web import ProblemError
from metering.web_keys import key_tenants

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from flask import Flask, Response

    from metering.places import StreamPlace
    from metering.ports import BillingReader, ClaimedEvent, ShardProgress
    from metering.rejected import RejectedRow

REJECTIONS_MAX = 100
"""Rejected rows that are shown of one event; an id may have been sent with other content any number of times."""


class EventIdConverter(BaseConverter):
    """An event id in a path: percent-encoded, it may hold any character, `/` at its ends included."""

    regex = ".+"
    part_isolating = False


def add_events(app: Flask, reader: BillingReader, stream: str, now: Callable[[], datetime]) -> None:
    """Add the look-up of single events to `app`; stream: whose progress decides."""
    app.url_map.converters["event_id"] = EventIdConverter

    @app.get("/v1/tenants/<tenant_id>/events/<event_id:event_id>")
    def event(tenant_id: str, event_id: str) -> Response:
        parameters = query_parameters(request.args, "source")
        tenant_id = parse_name(tenant_id, "tenant_id")
        source = parameters.get("source")
        if event_id.startswith(RECEIPT_PREFIX):
            if source is not None:
                raise ProblemError(400, "unknown_parameter", "a receipt has no source", parameter="source")
            place = place_of_receipt(event_id)
            shards = reader.progress(stream)
            members = _receipt_members(reader, tenant_id, place, shards)
        else:
            key = checked_claim_key(tenant_id, event_id, source)
            shards = reader.progress(stream)
            members = event_members(reader, key, shards)
        return answer({**identity_members(tenant_id, event_id, source), **members}, freshness(shards, now=now()))


def identity_members(tenant_id: str, event_id: str, source: str | None) -> dict[str, str]:
    """Return what says which event an answer is about."""
    return {"tenant_id": tenant_id, "event_id": event_id} | ({} if source is None else {"source": source})


def checked_claim_key(tenant_id: str, event_id: str, source: str | None) -> str:
    """Return the event's key in the ledger. Raises InvalidEventError for an id or a source that no event can have."""
    parse_identity(identity_members(tenant_id, event_id, source))
    return event_claim_key(tenant_id, event_id, source)


def event_members(reader: BillingReader, key: str, shards: Sequence[ShardProgress]) -> dict[str, Any]:
    """Return what has become of the event with this key of the ledger. shards: the progress, read before."""
    claimed = reader.claimed(key)
    rejections = reader.rejections(key, limit=REJECTIONS_MAX + 1)
    owner = place_of_owner(claimed.owner) if claimed is not None else None
    if claimed is None or owner is None:
        return {"status": status_of_unclaimed(rejections).value, **_rejection_members(rejections)}
    status = status_of_claim(claimed, owner, shards)
    return {
        "status": status.value,
        **_content_members(claimed),
        # Until it is in the totals, the time of the claim would be read as the time of the count.
        "counted_at": None if status is Status.PENDING else time_member(claimed.counted_at),
        **_place_members(owner.place),
        "duplicates": claimed.duplicates,
        "conflicts": claimed.conflicts,
        "last_repeat_at": time_member(claimed.last_repeat_at),
        "voided_at": time_member(claimed.voided_at),
        "voided_by": claimed.voided_by,
        "void_reason": claimed.void_reason,
        **_rejection_members(rejections),
    }


def _receipt_members(
    reader: BillingReader, tenant_id: str, place: StreamPlace, shards: Sequence[ShardProgress]
) -> dict[str, Any]:
    row = reader.rejection(place)
    # A receipt carries no tenant and is believed; but a rejected event that says whose it is is shown to no other, and
    # one that does not say so to nobody who may see one tenant alone: a receipt can be guessed.
    shown = {tenant_id} if key_tenants() is not None else {None, tenant_id}
    if row is not None and row.said("tenant_id") not in shown:
        return {"status": Status.UNKNOWN.value, **_rejection_members([])}
    status = status_of_receipt(place, row, shards)
    known = {} if status is Status.UNKNOWN else _place_members(place)
    return {"status": status.value, **known, **_rejection_members([] if row is None else [row])}


def _content_members(claimed: ClaimedEvent) -> dict[str, Any]:
    content = claimed.content
    if content is None:
        return {"metric": None, "value": None, "timestamp": None}
    return {"metric": content.metric, "value": exact_number(content.value), "timestamp": content.timestamp}


def _place_members(place: StreamPlace) -> dict[str, Any]:
    return {"shard": place.shard_id, "position": place.sequence_number, "index": place.index}


def _rejection_members(rows: Sequence[RejectedRow]) -> dict[str, Any]:
    return {
        "rejections": [
            {
                "reason": row.reason,
                "detail": row.detail,
                "rejected_at": time_member(row.rejected_at),
                "shard": row.place.shard_id,
                "position": row.place.sequence_number,
                "index": row.place.index,
                "replayed_at": time_member(row.replayed_at),
                "replayed_as": list(row.replayed_as),
            }
            for row in rows[-REJECTIONS_MAX:]
        ],
        "more_rejections": len(rows) > REJECTIONS_MAX,
    }
