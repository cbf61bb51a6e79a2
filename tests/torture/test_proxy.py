"""The fault proxy does what its faults are named after, on the real emulators, and nothing when none is on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError, ConnectionClosedError, ReadTimeoutError

from metering.aws import error_code
from tests.e2e.processes import until
from tests.torture.proxy import LATE_S
from tests.torture.world import Proxy

TABLE, STREAM = "proxied", "proxied"
FOR_LONG_S = 60.0


@pytest.fixture(scope="module")
def proxy(folder: Path, urls: tuple[str, str]) -> Iterator[Proxy]:
    with ExitStack() as stack:
        yield Proxy(stack, folder, *urls, seed=1)


@pytest.fixture(scope="module")
def straight(urls: tuple[str, str]) -> Iterator[dict[str, Any]]:
    """Clients past the proxy; they have made the table and the stream."""
    clients = {name: _client(name, url, answer_s=60) for name, url in zip(("kinesis", "dynamodb"), urls, strict=True)}
    clients["dynamodb"].create_table(
        TableName=TABLE,
        KeySchema=[{"AttributeName": "pk", "KeyType": "HASH"}],
        AttributeDefinitions=[{"AttributeName": "pk", "AttributeType": "S"}],
        BillingMode="PAY_PER_REQUEST",
    )
    clients["kinesis"].create_stream(StreamName=STREAM, ShardCount=1)
    clients["kinesis"].get_waiter("stream_exists").wait(StreamName=STREAM, WaiterConfig={"Delay": 1})
    yield clients
    for client in clients.values():
        client.close()


@pytest.fixture
def through(proxy: Proxy) -> Iterator[dict[str, Any]]:
    """Clients that do not retry; no fault is on before and after."""
    clients = {
        "kinesis": _client("kinesis", proxy.kinesis_url),
        "dynamodb": _client("dynamodb", proxy.dynamodb_url),
    }
    yield clients
    for name, client in clients.items():
        proxy.play(name, "none", rate=0, seconds=0)
        client.close()


def test_without_a_fault_it_passes_everything_on(through: dict[str, Any], straight: dict[str, Any]) -> None:
    _put(through, "plain")
    assert _is_there(straight, "plain")
    assert _put_records(through, straight, 5) == ([None] * 5, 5)
    with pytest.raises(through["dynamodb"].exceptions.ResourceNotFoundException):
        through["dynamodb"].get_item(TableName="no-such-table", Key={"pk": {"S": "x"}})


@pytest.mark.parametrize(
    ("kind", "code"), [("throttled", "ProvisionedThroughputExceededException"), ("500", "InternalServerError")]
)
def test_a_refused_write_is_not_done(
    proxy: Proxy, through: dict[str, Any], straight: dict[str, Any], kind: str, code: str
) -> None:
    proxy.play("dynamodb", kind, rate=1, seconds=FOR_LONG_S)
    with pytest.raises(ClientError, match=code):
        _put(through, kind)
    assert not _is_there(straight, kind)


def test_a_reset_write_is_not_done_and_one_whose_answer_is_lost_is(
    proxy: Proxy, through: dict[str, Any], straight: dict[str, Any]
) -> None:
    for kind, done in (("reset", False), ("answer_lost", True)):
        proxy.play("dynamodb", kind, rate=1, seconds=FOR_LONG_S)
        with pytest.raises(ConnectionClosedError):
            _put(through, kind)
        assert _is_there(straight, kind) is done


def test_a_late_write_is_done_after_its_client_has_given_up(
    proxy: Proxy, through: dict[str, Any], straight: dict[str, Any]
) -> None:
    proxy.play("dynamodb", "late", rate=1, seconds=FOR_LONG_S)
    with pytest.raises(ReadTimeoutError):
        _put(through, "late")
    assert not _is_there(straight, "late")
    until(lambda: _is_there(straight, "late"), "the late write is done", timeout_s=30)


def test_calls_with_many_parts_are_done_in_part_and_say_which(
    proxy: Proxy, through: dict[str, Any], straight: dict[str, Any]
) -> None:
    proxy.play("kinesis", "throttled", rate=1, seconds=FOR_LONG_S)
    proxy.play("dynamodb", "throttled", rate=1, seconds=FOR_LONG_S)
    in_part = set()
    for attempt in range(30):  # some are refused as a whole
        try:
            codes, held = _put_records(through, straight, 20)
            assert held == codes.count(None)
            in_part.add("kinesis")
            keys = [f"{attempt}-{number}" for number in range(20)]
            answer = through["dynamodb"].batch_execute_statement(
                Statements=[
                    {"Statement": f"INSERT INTO \"{TABLE}\" VALUE {{'pk': ?}}", "Parameters": [{"S": key}]}
                    for key in keys
                ]
            )
            for key, result in zip(keys, answer["Responses"], strict=True):
                assert _is_there(straight, key) is ("Error" not in result)
            in_part.add("dynamodb")
        except ClientError as error:
            if error_code(error) != "ProvisionedThroughputExceededException":
                raise
    assert in_part == {"kinesis", "dynamodb"}


def _client(name: str, url: str, *, answer_s: float = LATE_S / 2) -> Any:
    config = Config(retries={"total_max_attempts": 1}, read_timeout=answer_s)
    session = boto3.session.Session("local", "local", region_name="us-east-1")
    return session.client(name, endpoint_url=url, config=config)  # type: ignore[call-overload]


def _put(clients: dict[str, Any], key: str) -> None:
    clients["dynamodb"].put_item(TableName=TABLE, Item={"pk": {"S": key}})


def _is_there(clients: dict[str, Any], key: str) -> bool:
    return "Item" in clients["dynamodb"].get_item(TableName=TABLE, Key={"pk": {"S": key}}, ConsistentRead=True)


def _put_records(through: dict[str, Any], straight: dict[str, Any], count: int) -> tuple[list[str | None], int]:
    """Put `count` records; return the code of each, None when it was taken, and how many the stream holds more."""
    before = _held(straight)
    records = [{"Data": str(number).encode(), "PartitionKey": "a"} for number in range(count)]
    answer = through["kinesis"].put_records(StreamName=STREAM, Records=records)
    codes = [record.get("ErrorCode") for record in answer["Records"]]
    assert answer["FailedRecordCount"] == count - codes.count(None)
    return codes, _held(straight) - before


def _held(clients: dict[str, Any]) -> int:
    [shard] = clients["kinesis"].list_shards(StreamName=STREAM)["Shards"]
    iterator = clients["kinesis"].get_shard_iterator(
        StreamName=STREAM, ShardId=shard["ShardId"], ShardIteratorType="TRIM_HORIZON"
    )["ShardIterator"]
    return len(clients["kinesis"].get_records(ShardIterator=iterator)["Records"])
