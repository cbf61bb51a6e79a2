"""The stream as a producer beside the collector uses it, and the shards' progress: straight, past the proxy."""

from __future__ import annotations

import random
import threading
import time
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from tests.e2e.tables import Tables

HASH_KEYS = 2**128
PROGRESS_AGE_S = 0.15
"""Progress rows are read again when what is known of them is older: several wait for them at once."""


@dataclass(frozen=True)
class OpenShard:
    """A shard that takes records, with the part of the hash key space that it holds."""

    shard_id: str
    first: int
    last: int


@dataclass(frozen=True)
class Place:
    """Where the stream holds a record; position: as the consumer writes it, longer numbers after shorter ones."""

    shard_id: str
    position: str


class Stream:
    """Puts, splits and merges; thread-safe but for the progress, which one thread reads."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._name = tables.settings.stream
        self._kinesis = tables.kinesis
        self._lock = threading.Lock()
        self._progress: dict[str, str] = {}
        self._progress_at = 0.0

    def put(self, data: bytes, hash_key: int) -> Place:
        """Put one record on the shard that holds `hash_key`."""
        answer = self._kinesis.put_record(
            StreamName=self._name, Data=data, PartitionKey="straight", ExplicitHashKey=str(hash_key)
        )
        number = answer["SequenceNumber"]
        return Place(answer["ShardId"], f"{len(number):03d}{number}")

    def open_shards(self) -> list[OpenShard]:
        """The open shards, in order of their hash keys."""
        shards = self._kinesis.list_shards(StreamName=self._name)["Shards"]
        found = [
            OpenShard(
                shard["ShardId"],
                int(shard["HashKeyRange"]["StartingHashKey"]),
                int(shard["HashKeyRange"]["EndingHashKey"]),
            )
            for shard in shards
            if "EndingSequenceNumber" not in shard["SequenceNumberRange"]
        ]
        return sorted(found, key=lambda shard: shard.first)

    def active(self) -> bool:
        summary = self._kinesis.describe_stream_summary(StreamName=self._name)["StreamDescriptionSummary"]
        return summary["StreamStatus"] == "ACTIVE"

    def split(self, choose: random.Random) -> None:
        """Split one open shard in the middle."""
        shard = choose.choice(self.open_shards())
        middle = (shard.first + shard.last) // 2 + 1
        self._kinesis.split_shard(StreamName=self._name, ShardToSplit=shard.shard_id, NewStartingHashKey=str(middle))

    def merge(self, choose: random.Random) -> None:
        """Merge two open neighbours."""
        left, right = choose.choice(list(pairwise(self.open_shards())))
        self._kinesis.merge_shards(
            StreamName=self._name, ShardToMerge=left.shard_id, AdjacentShardToMerge=right.shard_id
        )

    def positions(self) -> dict[str, str]:
        """Each shard's applied position."""
        if time.monotonic() - self._progress_at > PROGRESS_AGE_S:
            self._progress = {
                item["sk"]["S"].removeprefix("SHARD#"): item["position"]["S"] for item in self.progress_items()
            }
            self._progress_at = time.monotonic()
        return self._progress

    def progress_items(self) -> list[dict[str, Any]]:
        """The progress rows as they are."""
        answer = self._tables.dynamodb.query(
            TableName=self._tables.settings.table,
            KeyConditionExpression="pk = :pk",
            ExpressionAttributeValues={":pk": {"S": f"STREAM#{self._name}"}},
            ConsistentRead=True,
        )
        return [dict(item) for item in answer["Items"]]

    def applied(self, places: list[Place]) -> bool:
        """Whether all these records are in the rows."""
        positions = self.positions()
        return all(positions.get(place.shard_id, "") >= place.position for place in places)
