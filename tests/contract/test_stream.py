"""EventSink and StreamDirectory: where a record went, which ones did not, and what the stream says of itself."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from botocore.stub import Stubber

from metering.aws import kinesis_client
from metering.errors import StreamUnavailableError
from metering.memory import MemoryStream
from metering.partitions import explicit_hash_key
from metering.ports import Held, NotHeld, OutgoingRecord
from metering.positions import position_of
from tests.contract.conftest import Stream, stream_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from metering.settings import Settings

pytestmark = pytest.mark.contract

HASH_KEYS = 2**128
THROTTLED = "ProvisionedThroughputExceededException"


class TestEventSink:
    def test_every_record_is_answered_in_its_place(self, stream: Stream) -> None:
        records = [OutgoingRecord(partition, b"{}") for partition in range(64)]
        answers = stream.sink.put(records)
        assert len(answers) == 64
        ranges = {
            found.shard_id: range(int(found.starting_hash_key), int(found.ending_hash_key) + 1)
            for found in stream.directory.shards()
        }
        for record, answer in zip(records, answers, strict=True):
            assert isinstance(answer, Held)
            assert int(explicit_hash_key(record.partition, 64)) in ranges[answer.shard_id]
        assert {answer.shard_id for answer in answers if isinstance(answer, Held)} == ranges.keys()

    def test_a_partitions_records_keep_their_order(self, stream: Stream) -> None:
        answers = [stream.sink.put([OutgoingRecord(7, b"{}")])[0] for _ in range(12)]
        positions = [position_of(answer.sequence_number) for answer in answers if isinstance(answer, Held)]
        assert len(positions) == 12
        assert positions == sorted(set(positions))
        assert len({answer.shard_id for answer in answers if isinstance(answer, Held)}) == 1

    def test_any_bytes_can_be_put(self, stream: Stream) -> None:
        (answer,) = stream.sink.put([OutgoingRecord(0, bytes(range(256)) * 90)])
        assert isinstance(answer, Held)

    def test_the_check_returns_when_the_stream_is_there(self, stream: Stream) -> None:
        stream.sink.check()


class TestStreamDirectory:
    def test_it_says_when_the_stream_was_made_always_the_same(self, stream: Stream) -> None:
        description = stream.directory.describe()
        assert description.created_at.tzinfo is UTC
        assert description.status == "ACTIVE"
        assert stream.directory.describe() == description

    def test_open_shards_share_the_whole_hash_key_space(self, stream: Stream) -> None:
        shards = sorted(stream.directory.shards(), key=lambda found: int(found.starting_hash_key))
        assert len(shards) == 3
        assert all(found.open and found.parent_ids == () for found in shards)
        assert int(shards[0].starting_hash_key) == 0
        assert int(shards[-1].ending_hash_key) == HASH_KEYS - 1
        for left, right in pairwise(shards):
            assert int(left.ending_hash_key) + 1 == int(right.starting_hash_key)


@pytest.fixture(params=["memory", "stubbed-kinesis"])
def throttled(request: pytest.FixtureRequest, settings: Settings) -> Iterator[Any]:
    """Return a function that gives a sink of which the next call meets these error codes, record by record."""
    if request.param == "memory":

        def memory(codes: list[str | None]) -> MemoryStream:
            twin = MemoryStream()
            twin.failures.append(list(codes))
            return twin

        yield memory
        return
    with contextlib.closing(kinesis_client(settings)) as client, Stubber(client) as stubber:

        def stubbed(codes: list[str | None]) -> Any:
            results = [
                {"ErrorCode": code, "ErrorMessage": "Rate exceeded for shard"}
                if code
                else {"ShardId": "shardId-000000000000", "SequenceNumber": str(number)}
                for number, code in enumerate(codes)
            ]
            failed = len([code for code in codes if code])
            stubber.add_response("put_records", {"FailedRecordCount": failed, "Records": results})
            return stream_of(client, settings).sink

        yield stubbed


class TestPartialFailure:
    @pytest.mark.parametrize(
        "codes", [[None, THROTTLED, None], [THROTTLED, "InternalFailure", THROTTLED], [THROTTLED, None, None]]
    )
    def test_a_record_that_was_not_held_costs_no_other(self, throttled: Any, codes: list[str | None]) -> None:
        answers = throttled(codes).put([OutgoingRecord(0, b"{}")] * len(codes))
        assert [answer.code if isinstance(answer, NotHeld) else None for answer in answers] == codes


class TestKinesisAnswers:
    """What only the real adapter can meet, on stubbed answers."""

    def test_an_answer_for_another_number_of_records_is_not_trusted(self, settings: Settings) -> None:
        with contextlib.closing(kinesis_client(settings)) as client, Stubber(client) as stubber:
            held = {"ShardId": "shardId-000000000000", "SequenceNumber": "1"}
            stubber.add_response("put_records", {"Records": [held]})
            with pytest.raises(StreamUnavailableError, match="1 of 2"):
                stream_of(client, settings).sink.put([OutgoingRecord(0, b"{}")] * 2)

    @pytest.mark.parametrize("status", ["CREATING", "DELETING"])
    def test_a_stream_that_is_being_made_or_deleted_is_not_ready(self, settings: Settings, status: str) -> None:
        with contextlib.closing(kinesis_client(settings)) as client, Stubber(client) as stubber:
            summary = {
                "StreamName": settings.stream,
                "StreamARN": "arn:aws:kinesis:us-east-1:123456789012:stream/usage-events",
                "StreamStatus": status,
                "RetentionPeriodHours": 24,
                "StreamCreationTimestamp": datetime(2024, 1, 1, tzinfo=UTC),
                "EnhancedMonitoring": [],
                "OpenShardCount": 1,
            }
            stubber.add_response("describe_stream_summary", {"StreamDescriptionSummary": summary})
            with pytest.raises(StreamUnavailableError, match=status):
                stream_of(client, settings).sink.check()

    def test_closed_parents_of_a_merge_and_later_pages_are_listed(self, settings: Settings) -> None:
        def entry(number: int, *, ended: bool = False, **parents: str) -> dict[str, Any]:
            numbers = {"StartingSequenceNumber": "1"} | ({"EndingSequenceNumber": "9"} if ended else {})
            keys = {"StartingHashKey": "0", "EndingHashKey": str(HASH_KEYS - 1)}
            return {
                "ShardId": f"shardId-{number:012d}",
                "HashKeyRange": keys,
                "SequenceNumberRange": numbers,
                **parents,
            }

        child = entry(2, ParentShardId="shardId-000000000000", AdjacentParentShardId="shardId-000000000001")
        with contextlib.closing(kinesis_client(settings)) as client, Stubber(client) as stubber:
            first = {"Shards": [entry(0, ended=True), entry(1, ended=True)], "NextToken": "next"}
            stubber.add_response("list_shards", first, {"StreamName": settings.stream})
            stubber.add_response("list_shards", {"Shards": [child]}, {"NextToken": "next"})
            shards = stream_of(client, settings).directory.shards()
        assert [(found.open, found.parent_ids) for found in shards] == [
            (False, ()),
            (False, ()),
            (True, ("shardId-000000000000", "shardId-000000000001")),
        ]
