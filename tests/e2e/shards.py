"""The shards of a pipeline's stream: what there are, and how they are split and merged."""

from __future__ import annotations

from typing import Any

from tests.e2e.processes import until
from tests.e2e.tables import Tables


def shards(tables: Tables) -> list[Any]:
    return list(tables.kinesis.list_shards(StreamName=tables.settings.stream)["Shards"])


def open_shards(tables: Tables) -> list[Any]:
    """The shards that take records, in the order of their hash keys."""
    taking = [shard for shard in shards(tables) if "EndingSequenceNumber" not in shard["SequenceNumberRange"]]
    return sorted(taking, key=lambda shard: int(shard["HashKeyRange"]["StartingHashKey"]))


def double(tables: Tables) -> None:
    """Split all shards, with the command that the runbook shows."""
    count = len(open_shards(tables))
    tables.kinesis.update_shard_count(
        StreamName=tables.settings.stream, TargetShardCount=2 * count, ScalingType="UNIFORM_SCALING"
    )
    await_active(tables)


def split(tables: Tables, shard: Any) -> None:
    """Split a shard in the middle."""
    start, end = (int(shard["HashKeyRange"][name]) for name in ("StartingHashKey", "EndingHashKey"))
    tables.kinesis.split_shard(
        StreamName=tables.settings.stream,
        ShardToSplit=shard["ShardId"],
        NewStartingHashKey=str((start + end) // 2 + 1),
    )
    await_active(tables)


def merge(tables: Tables, shard: Any, next_one: Any) -> None:
    """Merge two neighbours."""
    tables.kinesis.merge_shards(
        StreamName=tables.settings.stream,
        ShardToMerge=shard["ShardId"],
        AdjacentShardToMerge=next_one["ShardId"],
    )
    await_active(tables)


def await_active(tables: Tables) -> None:
    def active() -> bool:
        described = tables.kinesis.describe_stream_summary(StreamName=tables.settings.stream)
        return described["StreamDescriptionSummary"]["StreamStatus"] == "ACTIVE"

    until(active, "the stream is active")
