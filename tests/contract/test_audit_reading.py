"""What an audit reads of stream and tables, on kinesis-mock and DynamoDB Local; moto, where the pace of AWS counts.

Over 300 lines: one stream and its tables, read in every way.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
from botocore.exceptions import ClientError
from moto import mock_aws

from metering.aws import kinesis_client
from metering.claims import BatchContent, Claim, EventContent, Holder
from metering.dynamodb_ledger import DynamoLedger
from metering.kinesis import KinesisStreamDirectory
from metering.meters import Aggregation
from metering.ports import CLAIMS_MAX, Shard
from metering.positions import position_of
from metering.readings import KeptReading, Reading
from metering.rows import applied_attribute, batch_claim_key, claim_owner, event_claim_key, place, rejected_key
from metering.settings import Settings
from metering.voids import Void, VoidRequest
from operations.audit_claims import HeldClaim
from operations.audit_stream import READ_INTERVAL_S, AuditedStream, Page
from operations.audit_tables import AuditedTables
from operations.audit_tally import ZERO, Amount, FoundRow
from operations.provision import make_stream
from tests.aggregated import aggregated
from tests.builders import CREATED_AT, NOW, STREAM, TTL_DAYS, at, outcome, rejected, shard, write

if TYPE_CHECKING:
    from mypy_boto3_kinesis import KinesisClient

    from tests.contract.conftest import DynamoOn, DynamoTables

pytestmark = pytest.mark.contract

END = position_of("9" * 100)
_numbers = itertools.count()


class Failing:
    """A client of which some calls fail first. failures: an error for each call of a name, None: it goes through."""

    def __init__(self, client: Any, **failures: list[str | None]) -> None:
        self.client = client
        self.failures = failures

    def __getattr__(self, name: str) -> Any:
        code = self.failures[name].pop(0) if self.failures.get(name) else None
        if code is None:
            return getattr(self.client, name)

        def fail(**_: Any) -> Any:
            raise ClientError({"Error": {"Code": code, "Message": "for a test"}}, name)

        return fail


@dataclass
class Emulated:
    """A stream of one shard."""

    client: KinesisClient
    settings: Settings

    def put(self, *data: bytes) -> list[str]:
        """Put records; return their positions."""
        return [
            position_of(
                self.client.put_record(StreamName=self.settings.stream, Data=each, PartitionKey="k")["SequenceNumber"]
            )
            for each in data
        ]

    def shards(self) -> list[Shard]:
        return KinesisStreamDirectory(self.client, self.settings.stream).shards()

    def pages(
        self, *, until: str = END, since: datetime | None = None, shard: int = 0, client: Any = None
    ) -> list[Page]:
        audited = AuditedStream(client or self.client, self.settings)
        return list(audited.pages(self.shards()[shard], since=since, until=until))


def data_of(pages: list[Page]) -> list[bytes]:
    return [record.data for page in pages for record in page.received]


@contextlib.contextmanager
def emulated(settings: Settings) -> Iterator[Emulated]:
    names = replace(settings, stream=f"audited-{next(_numbers)}", stream_shards=1)
    with contextlib.closing(kinesis_client(names)) as client:
        make_stream(client, names)
        yield Emulated(client, names)


@pytest.fixture
def stream(settings: Settings, kinesis_mock: str) -> Iterator[Emulated]:
    with emulated(replace(settings, kinesis_endpoint=kinesis_mock)) as found:
        yield found


class TestStream:
    def test_all_records_come_in_order_and_none_twice(self, stream: Emulated) -> None:
        sent = [str(number).encode() for number in range(250)]  # more than the first page takes
        positions = stream.put(*sent)
        pages = stream.pages()
        assert data_of(pages) == sent
        assert [position_of(record.sequence_number) for page in pages for record in page.received] == positions
        assert len(pages) > 1
        assert sum(page.records for page in pages) == len(sent)

    def test_arrivals_are_in_whole_milliseconds_as_the_kcl_hands_them_over(self, stream: Emulated) -> None:
        class Finer:
            """Says arrivals to the microsecond."""

            def __getattr__(self, name: str) -> Any:
                return getattr(stream.client, name)

            def get_records(self, **request: Any) -> Any:
                page = stream.client.get_records(**request)
                for record in page["Records"]:
                    record["ApproximateArrivalTimestamp"] = NOW.replace(microsecond=123_999)
                return page

        stream.put(b"a")
        [page] = stream.pages(client=Finer())
        assert page.received[0].arrived_at == NOW.replace(microsecond=123_000)

    def test_an_empty_shard_has_no_pages(self, stream: Emulated) -> None:
        assert stream.pages() == []

    def test_nothing_beyond_the_position_is_read(self, stream: Emulated) -> None:
        positions = stream.put(b"a", b"b", b"c")
        assert data_of(stream.pages(until=positions[1])) == [b"a", b"b"]
        assert data_of(stream.pages(until=position_of("1"))) == []

    def test_since_starts_where_the_time_says(self, stream: Emulated) -> None:
        stream.put(b"before")
        arrived_at = stream.pages()[0].received[0].arrived_at
        since = arrived_at + timedelta(milliseconds=1)
        while datetime.now(UTC) <= since + timedelta(milliseconds=5):
            time.sleep(0.005)
        stream.put(b"after")
        assert data_of(stream.pages(since=since)) == [b"after"]
        assert data_of(stream.pages(since=arrived_at - timedelta(days=3))) == [b"before", b"after"]

    def test_a_closed_parent_is_read_to_its_end(self, stream: Emulated) -> None:
        stream.put(b"parent")
        stream.client.split_shard(
            StreamName=stream.settings.stream,
            ShardToSplit="shardId-000000000000",
            NewStartingHashKey=str(2**127),
        )
        make_stream(stream.client, stream.settings)
        stream.put(b"child")
        found = [data_of(stream.pages(shard=number)) for number in range(3)]
        assert found[0] == [b"parent"]
        assert sorted(found[1:]) == [[], [b"child"]]

    def test_aggregated_records_are_taken_apart(self, stream: Emulated) -> None:
        last = int(stream.shards()[0].ending_hash_key)
        stream.put(aggregated(b"a", b"b"), aggregated(b"x", b"y", hash_keys=("0", str(last + 1))), b"c")
        [page] = stream.pages()
        assert data_of([page]) == [b"a", b"b", b"x", b"y", b"c"]
        assert len({record.sequence_number for record in page.received}) == 3
        assert page.records == 3

    def test_reads_are_tried_again_when_the_consumer_has_used_up_the_quota(self, stream: Emulated) -> None:
        stream.put(b"a", b"b")
        throttled: list[str | None] = ["ProvisionedThroughputExceededException", "LimitExceededException"]
        client = Failing(stream.client, get_records=throttled, get_shard_iterator=throttled[:1])
        assert data_of(stream.pages(client=client)) == [b"a", b"b"]

    def test_an_iterator_that_has_expired_goes_on_where_it_was(self, stream: Emulated) -> None:
        sent = [str(number).encode() for number in range(250)]
        stream.put(*sent)
        expired: list[str | None] = ["ExpiredIteratorException", None, "ExpiredIteratorException"]
        assert data_of(stream.pages(client=Failing(stream.client, get_records=expired))) == sent

    def test_its_retention(self, stream: Emulated) -> None:
        assert AuditedStream(stream.client, stream.settings).retention() == timedelta(hours=24)

    def test_on_aws_a_shard_is_read_once_a_second(self, settings: Settings) -> None:
        with mock_aws(), emulated(settings) as aws:
            aws.put(*(str(number).encode() for number in range(150)))
            begun_at = time.monotonic()
            pages = aws.pages()
            assert len(data_of(pages)) == 150
            assert len(pages) == 2
            assert time.monotonic() - begun_at >= READ_INTERVAL_S


@pytest.fixture
def local(dynamo_on: DynamoOn) -> Iterator[DynamoTables]:
    with dynamo_on("dynamodb-local") as tables:
        yield tables


def audited(tables: DynamoTables, client: Any = None) -> AuditedTables:
    return AuditedTables(client or tables.client, tables.settings)


class TestTables:
    def test_rows_come_with_the_positions_applied(self, local: DynamoTables) -> None:
        local.store.apply(shard(), write(1, 2, usage="0.000000001"), now=NOW)
        local.store.apply(shard(1), write(7), now=NOW)
        positions = {applied_attribute(CREATED_AT, f"shardId-{n:012d}"): at(of) for n, of in ((0, 2), (1, 7))}
        assert audited(local).snapshot(CREATED_AT).rows == {
            write(1).key: FoundRow(Decimal("1.000000002"), 3, positions),
        }

    def test_rows_and_claims_come_with_what_was_voided(self, local: DynamoTables) -> None:
        claim = Claim(event_claim_key("tenant-123", "1"), place(at(2), 0), EventContent("m", Decimal(1), None), NOW)
        DynamoLedger(local.client, table=local.settings.ledger_table, ttl_days=TTL_DAYS).claim(
            shard(), [claim], now=NOW
        )
        key = write(1).key
        local.store.apply(shard(), write(1, 2), now=NOW)
        owner = claim_owner(CREATED_AT, shard().shard_id, claim.place)
        assert audited(local).voided_now(key) == ZERO
        local.reader.void(Void(claim.key, owner, (key,), Decimal(1), VoidRequest("ana", "test"), None), now=NOW)
        [found] = audited(local).snapshot(CREATED_AT).rows.values()
        assert (found.usage, found.events, found.voided) == (Decimal(1), 1, Amount(Decimal(1), 1))
        assert audited(local).held([claim.key])[claim.key].voided
        conflict = Failing(local.client, transact_get_items=["TransactionConflictException"])
        assert audited(local, conflict).voided_now(key) == Amount(Decimal(1), 1)
        assert audited(local).voided_now(write(1, metric="none").key) == ZERO

    def test_rows_come_with_what_they_keep_and_not_before_they_have_usage(self, local: DynamoTables) -> None:
        greatest = Reading(Aggregation.MAX, Decimal("999999999999999.999999999"), "2024-01-15T10:00:00.000000Z#x")
        counted = replace(write(1, 2), reading=greatest)
        for key in (counted.key, write(1, metric="seats").key):
            local.store.keep_reading(key, greatest)
        local.store.apply(shard(), counted, now=NOW)
        positions = {applied_attribute(CREATED_AT, shard().shard_id): at(2)}
        assert audited(local).snapshot(CREATED_AT).rows == {
            counted.key: FoundRow(Decimal(2), 2, positions, readings=(KeptReading(greatest, 2),))
        }

    def test_rows_that_were_written_by_hand_can_be_read(self, local: DynamoTables) -> None:
        key = {"pk": {"S": "TENANT#t"}, "sk": {"S": "METRIC#m"}}
        for item, usage, events in (
            ({}, None, None),
            ({"usage": {"N": "1"}}, Decimal(1), None),
            ({"usage": {"N": "1"}, "events": {"N": "1"}, "voided_usage": {"N": "1"}}, Decimal(1), 1),
            ({"usage": {"N": "1"}, "events": {"N": "1"}, "latest": {"N": "1"}}, Decimal(1), 1),
            ({"usage": {"S": "one"}, "events": {"N": "1.5"}, "a.x.0": {"N": "1"}}, None, None),
        ):
            local.client.put_item(TableName=local.settings.table, Item={**key, **item})
            assert [*audited(local).snapshot(CREATED_AT).rows.values()] == [FoundRow(usage, events, {})]

    def test_progress_is_that_of_this_incarnation(self, local: DynamoTables) -> None:
        local.store.open_shard(shard(), complete_until=None, now=NOW)
        local.store.record_progress(shard(), [outcome(1)], complete_until=None, now=NOW)
        [progress] = audited(local).snapshot(CREATED_AT).progress
        assert (progress.shard_id, progress.position, progress.records) == ("shardId-000000000000", at(1), 1)
        assert audited(local).snapshot(CREATED_AT + timedelta(days=1)).progress == []

    def test_another_stream_in_the_same_table_is_noted(self, local: DynamoTables) -> None:
        local.store.open_shard(shard(), complete_until=None, now=NOW)
        local.store.register_tenant("t", now=NOW)
        assert not audited(local).snapshot(CREATED_AT).other_streams
        local.store.open_shard(shard(stream=f"{STREAM}-2"), complete_until=None, now=NOW)
        assert audited(local).snapshot(CREATED_AT).other_streams

    def test_claims_are_found_however_many_and_those_that_are_not_there_are_not(self, local: DynamoTables) -> None:
        ledger = DynamoLedger(local.client, table=local.settings.ledger_table, ttl_days=TTL_DAYS)
        of, batch = EventContent("m", Decimal("0.5"), None), BatchContent("00ff", 3)
        claims = [Claim(event_claim_key("t", f"{n}"), place(at(1), n), of, NOW) for n in range(230)]
        claims.append(Claim(batch_claim_key("b"), place(at(1), 230), batch, NOW))
        for start in range(0, len(claims), CLAIMS_MAX):
            ledger.claim(shard(), claims[start : start + CLAIMS_MAX], now=NOW)
        keys = [*(claim.key for claim in claims), event_claim_key("t", "not there")]
        assert audited(local).held(keys) == {
            claim.key: HeldClaim(Holder(claim_owner(CREATED_AT, shard().shard_id, claim.place), claim.content), NOW)
            for claim in claims
        }
        assert audited(local).held([]) == {}

    def test_keys_that_were_left_out_are_asked_for_again(self, local: DynamoTables) -> None:
        class Sparing:
            """Answers for half of the keys, after one answer for none."""

            calls = 0

            def batch_get_item(self, RequestItems: dict[str, Any]) -> Any:  # noqa: N803 - boto3's name
                self.calls += 1
                [(table, request)] = RequestItems.items()
                keys = request["Keys"]
                now = 0 if self.calls == 1 else -(-len(keys) // 2)
                answer: dict[str, Any] = {"Responses": {table: []}}
                if now:
                    answer = dict(local.client.batch_get_item(RequestItems={table: {**request, "Keys": keys[:now]}}))
                rest = {table: {**request, "Keys": keys[now:]}} if keys[now:] else {}
                return answer | {"UnprocessedKeys": rest}

        for number in range(5):
            local.store.reject(shard(), rejected(1, number), now=NOW)
        keys = [rejected_key(shard().shard_id, at(1), number) for number in range(6)]
        assert audited(local, Sparing()).rejected_reasons(keys) == dict.fromkeys(keys[:5], "negative_value")
