"""Billing's OpenAPI document: the status of the stream's shards."""

from __future__ import annotations

from billing.openapi_parts import AS_OF, EXAMPLE_AS_OF, operation
from metering.openapi import COUNT, TIME, Part, json_response, nullable, record, schema_ref

_SHARD: Part = {
    "shard_id": {"type": "string"},
    "owner": {"type": ["string", "null"], "description": "The worker that has it; null: none, or not known."},
    "position": {
        "type": ["string", "null"],
        "pattern": "^[0-9]+$",
        "description": "The sequence number of the last record applied; null: none has been.",
    },
    "records": COUNT,
    "events": {**COUNT, "description": "counted, duplicates and rejected together."},
    "counted": COUNT,
    "duplicates": COUNT,
    "rejected": COUNT,
    "newest_arrival_at": {**nullable(TIME), "description": "Of the records applied."},
    "complete_until": {**nullable(TIME), "description": "All that the shard held at that time has been applied."},
    "heartbeat_at": nullable(TIME),
    "closed": {"type": "boolean", "description": "Read to its end; it takes no more records."},
    "lag_ms": {**nullable(COUNT), "description": "How long ago complete_until is; null: not known, or closed."},
}
_EXAMPLE = {
    "shard_id": "shardId-000000000000", "owner": "aggregator-1",
    "position": "49655555555555555555555555555555555555555555555555555555",
    "records": 3, "events": 5, "counted": 3, "duplicates": 1, "rejected": 1,
    "newest_arrival_at": "2024-01-15T10:00:01.100Z", "complete_until": "2024-01-15T10:00:02.000Z",
    "heartbeat_at": "2024-01-15T10:00:02.200Z", "closed": False, "lag_ms": 350,
}  # fmt: skip


def status_paths() -> Part:
    """Return the operation."""
    members: Part = {"stream": {"type": "string"}, "shards": {"type": "array", "items": schema_ref("ShardStatus")}}
    example = {"stream": "usage-events", "shards": [_EXAMPLE], **EXAMPLE_AS_OF}
    return {
        "/v1/status": {
            "get": operation(
                "getStatus",
                "How far the stream has been counted",
                "The shards of the stream that the consumer has begun to read. Needs a key for all tenants, where keys "
                "are set.",
                [],
                json_response("The shards.", record({**members, **AS_OF}), status=example),
            )
        }
    }


def status_schemas() -> Part:
    """Return the schema that the operation refers to."""
    return {"ShardStatus": record(_SHARD)}
