"""Checkpoints that the stream does not know, on DynamoDB Local and kinesis-mock, in leases as KCL 3.1.3 writes them."""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from consumer.leader_watcher import SHARD_END, TRIM_HORIZON
from consumer.lost_records import rewind_lost
from metering.aws import kinesis_client
from metering.settings import Settings
from operations.provision import make_stream, make_tables, tables

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient
    from mypy_boto3_kinesis import KinesisClient

UNKNOWN = "49680691090347804333685901219249961565737995183268560898"
OPEN, ANOTHER_OPEN, CLOSED, GONE = (f"shardId-{number:012d}" for number in (1, 2, 0, 77))
_numbers = itertools.count()


class Split:
    """A stream of one shard that was split, with records in each, and the leases of its shards.

    Of a shard without records kinesis-mock knows any number, and forgets it with the first record.
    """

    def __init__(self, settings: Settings, dynamodb: DynamoDBClient, kinesis: KinesisClient) -> None:
        self.settings = settings
        self._dynamodb = dynamodb
        self._kinesis = kinesis
        make_tables(dynamodb, tables(settings)[3:])
        make_stream(kinesis, settings)
        self.put(CLOSED)
        kinesis.split_shard(StreamName=settings.stream, ShardToSplit=CLOSED, NewStartingHashKey=str(2**127))
        make_stream(kinesis, settings)  # waits until it is active
        self.known = self.put(OPEN)
        self.put(ANOTHER_OPEN)

    def put(self, shard: str) -> str:
        """Put a record on a shard; return its sequence number."""
        hash_key = str(2**127) if shard == ANOTHER_OPEN else "0"
        answer = self._kinesis.put_record(
            StreamName=self.settings.stream, Data=b"{}", PartitionKey="p", ExplicitHashKey=hash_key
        )
        assert answer["ShardId"] == shard
        return answer["SequenceNumber"]

    def lease(self, shard: str, checkpoint: str) -> None:
        item = {
            "leaseKey": {"S": shard},
            "checkpoint": {"S": checkpoint},
            "checkpointSubSequenceNumber": {"N": "3"},
            "leaseCounter": {"N": "7"},
            "leaseOwner": {"S": "w-1"},
        }
        self._dynamodb.put_item(TableName=self.settings.kcl_application, Item=item)

    def read(self, shard: str) -> tuple[str, str, str, str]:
        """Checkpoint, sub sequence number, counter and owner."""
        item = self._dynamodb.get_item(
            TableName=self.settings.kcl_application, Key={"leaseKey": {"S": shard}}, ConsistentRead=True
        )["Item"]
        number, counter = item["checkpointSubSequenceNumber"]["N"], item["leaseCounter"]["N"]
        return item["checkpoint"]["S"], number, counter, item["leaseOwner"]["S"]

    def rewind_lost(self, **properties: str) -> None:
        rewind_lost(self.settings, {"applicationName": self.settings.kcl_application, **properties})


@pytest.fixture
def stream(
    settings: Settings, dynamodb_local: str, kinesis_mock: str, clients: Callable[[Settings], DynamoDBClient]
) -> Iterator[Split]:
    name = f"lost-{next(_numbers)}"
    names = replace(
        settings,
        stream=name,
        stream_shards=1,
        kcl_application=f"{name}-consumer",
        dynamodb_endpoint=dynamodb_local,
        kinesis_endpoint=kinesis_mock,
    )
    with contextlib.closing(kinesis_client(names)) as kinesis:
        yield Split(names, clients(names), kinesis)


@pytest.mark.parametrize(
    ("shard", "checkpoint"), [(OPEN, UNKNOWN), (ANOTHER_OPEN, UNKNOWN), (CLOSED, UNKNOWN), (OPEN, SHARD_END)]
)
def test_a_checkpoint_that_the_stream_does_not_know_is_set_back_and_said(
    stream: Split, shard: str, checkpoint: str, caplog: pytest.LogCaptureFixture
) -> None:
    stream.lease(shard, checkpoint)
    stream.rewind_lost()
    assert stream.read(shard) == (TRIM_HORIZON, "0", "7", "w-1")
    [said] = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "read from its beginning" in said.message
    assert (said.shard, said.checkpoint) == (shard, checkpoint)  # type: ignore[attr-defined]
    stream.rewind_lost()
    assert len([record for record in caplog.records if record.levelno == logging.WARNING]) == 1


@pytest.mark.parametrize(
    ("shard", "checkpoint"),
    [(CLOSED, SHARD_END), (OPEN, TRIM_HORIZON), (OPEN, "LATEST"), (GONE, UNKNOWN), (GONE, SHARD_END)],
)
def test_a_checkpoint_that_means_something_is_left(stream: Split, shard: str, checkpoint: str) -> None:
    stream.lease(shard, checkpoint)
    stream.rewind_lost()
    assert stream.read(shard) == (checkpoint, "3", "7", "w-1")


def test_a_checkpoint_that_the_stream_knows_is_left_and_others_are_looked_at_all_the_same(stream: Split) -> None:
    stream.lease(OPEN, stream.known)
    stream.lease(ANOTHER_OPEN, UNKNOWN)
    stream.rewind_lost()
    assert stream.read(OPEN) == (stream.known, "3", "7", "w-1")
    assert stream.read(ANOTHER_OPEN)[0] == TRIM_HORIZON


def test_a_table_that_the_properties_rename_is_the_one_that_is_set_right(stream: Split) -> None:
    stream.lease(OPEN, UNKNOWN)
    stream.rewind_lost(applicationName="another", tableName=stream.settings.kcl_application)
    assert stream.read(OPEN)[0] == TRIM_HORIZON


@pytest.mark.parametrize("missing", ["stream", "kcl_application"])
def test_a_failure_is_said_and_stops_nothing(stream: Split, missing: str, caplog: pytest.LogCaptureFixture) -> None:
    stream.lease(OPEN, UNKNOWN)
    stream.settings = replace(stream.settings, **{missing: "no-such-thing"})
    stream.rewind_lost()
    [said] = caplog.records
    assert "can't be told" in said.message
    assert "no-such-thing" in said.message
