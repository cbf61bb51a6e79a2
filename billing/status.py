"""GET /v1/status: how far the consumer is, shard by shard, and which worker has which."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any

from flask import request

from billing.answers import answer, time_member
from billing.freshness import freshness
from billing.parameters import query_parameters
from metering.positions import BEGINNING, sequence_number_of
from metering.web_keys import require_all_tenants

if TYPE_CHECKING:
    from flask import Flask, Response

    from metering.ports import BillingReader, ShardProgress


def add_status(app: Flask, reader: BillingReader, stream: str, now: Callable[[], datetime]) -> None:
    """Add the status of the stream's shards to `app`; it says what all tenants together do, so to keys for all."""

    @app.get("/v1/status")
    def status() -> Response:
        query_parameters(request.args)
        require_all_tenants()
        shards = reader.progress(stream)
        owners = reader.lease_owners([shard.shard_id for shard in shards])
        moment = now()
        members = [_shard_members(shard, owners.get(shard.shard_id), moment) for shard in shards]
        return answer({"stream": stream, "shards": members}, freshness(shards, now=moment))


def _shard_members(shard: ShardProgress, owner: str | None, now: datetime) -> dict[str, Any]:
    return {
        "shard_id": shard.shard_id,
        "owner": owner,
        "position": None if shard.position == BEGINNING else sequence_number_of(shard.position),
        "records": shard.records,
        "events": shard.events,
        "counted": shard.counted,
        "duplicates": shard.duplicates,
        "rejected": shard.rejected,
        "newest_arrival_at": time_member(shard.newest_arrival_at),
        "complete_until": time_member(shard.complete_until),
        "heartbeat_at": time_member(shard.heartbeat_at),
        "closed": shard.closed,
        "lag_ms": freshness([shard], now=now).lag_ms,
    }
