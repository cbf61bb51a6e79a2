"""What the rest relies on in DynamoDB Local and kinesis-mock as devstack.tools starts them."""

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError

from devstack import tools
from tests import local_stack

REGION = "eu-central-1"
READY_S_MAX = 30
STOP_S_MAX = 10


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def client(service: str, port: int) -> Any:
    return boto3.client(
        service,
        endpoint_url=f"http://127.0.0.1:{port}",
        region_name=REGION,
        aws_access_key_id="local",
        aws_secret_access_key="local",
        config=Config(retries={"total_max_attempts": 1}, connect_timeout=1, read_timeout=10),
    )


def poll(ready: Callable[[], object]) -> None:
    give_up_at = time.monotonic() + READY_S_MAX
    while True:
        with contextlib.suppress(BotoCoreError):
            if ready() is not False:
                return
        assert time.monotonic() < give_up_at
        time.sleep(0.05)


@contextlib.contextmanager
def running(command: tools.Command) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command.argv, env=command.env, cwd=command.cwd, stdout=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def stopped(process: subprocess.Popen[bytes]) -> int:
    process.terminate()
    return process.wait(STOP_S_MAX)


def test_kinesis_mock_keeps_its_records_when_stopped_while_clients_are_connected(tmp_path: Path) -> None:
    port = free_port()
    command = tools.kinesis_mock_command(port, tmp_path, REGION)
    kinesis = client("kinesis", port)  # keeps its connection open
    with running(command) as process:
        poll(kinesis.list_streams)
        kinesis.create_stream(StreamName="kept", ShardCount=1)
        summary = lambda: kinesis.describe_stream_summary(StreamName="kept")["StreamDescriptionSummary"]  # noqa: E731
        poll(lambda: summary()["StreamStatus"] == "ACTIVE")
        put = kinesis.put_record(StreamName="kept", Data=b"event", PartitionKey="key")
        assert stopped(process) == 143
    with running(command):
        poll(kinesis.list_streams)
        start = kinesis.get_shard_iterator(StreamName="kept", ShardId=put["ShardId"], ShardIteratorType="TRIM_HORIZON")
        (record,) = kinesis.get_records(ShardIterator=start["ShardIterator"])["Records"]
    assert (record["SequenceNumber"], record["Data"]) == (put["SequenceNumber"], b"event")


def test_kinesis_mock_listens_on_this_machine_only(tmp_path: Path) -> None:
    port = free_port()
    with running(tools.kinesis_mock_command(port, tmp_path, REGION)):
        poll(client("kinesis", port).list_streams)
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.2", port), timeout=1)


@pytest.mark.parametrize("end", ["SIGTERM", "SIGKILL"])
def test_dynamodb_local_keeps_what_it_answered(tmp_path: Path, end: str) -> None:
    port = free_port()
    dynamodb = client("dynamodb", port)
    with running(tools.dynamodb_local_command(port, tmp_path)) as process:
        poll(dynamodb.list_tables)
        dynamodb.create_table(
            TableName="kept",
            KeySchema=[{"AttributeName": "pk", "KeyType": "HASH"}],
            AttributeDefinitions=[{"AttributeName": "pk", "AttributeType": "S"}],
            BillingMode="PAY_PER_REQUEST",
        )
        dynamodb.put_item(TableName="kept", Item={"pk": {"S": "row"}})
        if end == "SIGTERM":
            assert stopped(process) == 143
    with running(tools.dynamodb_local_command(port, tmp_path)):
        poll(dynamodb.list_tables)
        assert "Item" in dynamodb.get_item(TableName="kept", Key={"pk": {"S": "row"}}, ConsistentRead=True)
    assert len(list((tmp_path / "tmp").iterdir())) <= 1  # what a kill -9 leaves does not pile up


def test_a_port_at_which_another_process_listens_is_not_taken_for_the_emulators(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as another:
        ends = tools.Command((sys.executable, "-c", "import time; time.sleep(0.5)"), {}, tmp_path)
        with (
            pytest.raises(RuntimeError, match="does not listen"),
            local_stack.running(ends, another.getsockname()[1], tmp_path / "log"),
        ):
            pass
