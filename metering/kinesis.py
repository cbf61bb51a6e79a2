"""Kinesis as EventSink and StreamDirectory."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC
from typing import TYPE_CHECKING, Any

from metering.aws import stream_errors
from metering.errors import StreamUnavailableError
from metering.partitions import explicit_hash_key, partition_key
from metering.ports import Held, NotHeld, OutgoingRecord, Shard, StreamDescription

if TYPE_CHECKING:
    from mypy_boto3_kinesis import KinesisClient

PUT_RECORDS_MAX = 500
"""Records in one PutRecords call (Kinesis API reference)."""
PUT_BYTES_MAX = 5 * 1024 * 1024
"""Bytes in one PutRecords call, partition keys included (the older and smaller of the documented limits)."""


class KinesisEventSink:
    """Puts records on one stream; thread-safe."""

    def __init__(self, client: KinesisClient, stream: str, partitions: int) -> None:
        self._client = client
        self._stream = stream
        self._partitions = partitions

    def put(self, records: Sequence[OutgoingRecord]) -> list[Held | NotHeld]:
        with stream_errors(self._stream):
            answer = self._client.put_records(
                StreamName=self._stream,
                Records=[
                    {
                        "Data": record.data,
                        "PartitionKey": partition_key(record.partition),
                        "ExplicitHashKey": explicit_hash_key(record.partition, self._partitions),
                    }
                    for record in records
                ],
            )
        results = answer["Records"]
        if len(results) != len(records):
            raise StreamUnavailableError(f"PutRecords answered {len(results)} of {len(records)} records")
        return [_outcome(result) for result in results]

    def check(self) -> None:
        with stream_errors(self._stream):
            summary = self._client.describe_stream_summary(StreamName=self._stream)
        status = summary["StreamDescriptionSummary"]["StreamStatus"]
        if status not in {"ACTIVE", "UPDATING"}:
            raise StreamUnavailableError(f"the stream {self._stream!r} is {status}")


class KinesisStreamDirectory:
    """Describes one stream."""

    def __init__(self, client: KinesisClient, stream: str) -> None:
        self._client = client
        self._stream = stream

    def describe(self) -> StreamDescription:
        with stream_errors(self._stream):
            answer = self._client.describe_stream_summary(StreamName=self._stream)
        summary = answer["StreamDescriptionSummary"]
        return StreamDescription(
            name=self._stream,
            created_at=summary["StreamCreationTimestamp"].astimezone(UTC),
            status=summary["StreamStatus"],
        )

    def shards(self) -> list[Shard]:
        shards: list[Shard] = []
        request: dict[str, Any] = {"StreamName": self._stream}
        while True:
            with stream_errors(self._stream):
                page = self._client.list_shards(**request)
            for shard in page["Shards"]:
                parents = (shard.get("ParentShardId"), shard.get("AdjacentParentShardId"))
                shards.append(
                    Shard(
                        shard_id=shard["ShardId"],
                        parent_ids=tuple(parent for parent in parents if parent),
                        open="EndingSequenceNumber" not in shard["SequenceNumberRange"],
                        starting_hash_key=shard["HashKeyRange"]["StartingHashKey"],
                        ending_hash_key=shard["HashKeyRange"]["EndingHashKey"],
                    )
                )
            token = page.get("NextToken")
            if not token:
                return shards
            request = {"NextToken": token}


def _outcome(result: Any) -> Held | NotHeld:
    code = result.get("ErrorCode")
    if code:
        return NotHeld(code)
    return Held(result["ShardId"], result["SequenceNumber"])
