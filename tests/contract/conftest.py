"""The backends of the contract tests: the in-memory twins, moto in this process, DynamoDB Local and kinesis-mock.

Each test of a port runs on all of its backends. The emulators run once for all tests; each test finds its tables
empty and has a stream of its own.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import pytest
from moto import mock_aws

from devstack.tools import dynamodb_local_command, kinesis_mock_command
from metering.aws import dynamodb_client, kinesis_client
from metering.dynamodb import DynamoCounterStore
from metering.dynamodb_voids import DynamoBillingStore
from metering.kinesis import KinesisEventSink, KinesisStreamDirectory
from metering.memory import MemoryStream, MemoryTables
from metering.rows import RowKey
from metering.settings import Settings
from operations.provision import Table, make_stream, make_tables, tables
from tests.builders import TTL_DAYS
from tests.local_stack import free_port, running

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient
    from mypy_boto3_kinesis import KinesisClient

    from metering.ports import BillingReader, CounterStore, EventSink, StreamDirectory

_numbers = itertools.count()
DynamoOn = Callable[[str], contextlib.AbstractContextManager["DynamoTables"]]


class Tables(Protocol):
    """A CounterStore, the BillingReader of the same tables, and a look at what no port reads yet."""

    @property
    def store(self) -> CounterStore: ...

    @property
    def reader(self) -> BillingReader: ...

    def rejected(self) -> dict[RowKey, tuple[str, bytes]]:
        """Return reason and raw bytes of each rejected event."""


@dataclass
class TwinTables:
    store: MemoryTables
    reader: MemoryTables

    def rejected(self) -> dict[RowKey, tuple[str, bytes]]:
        return {key: (event.reason, event.raw) for key, event in self.store.rejected.items()}


@dataclass
class DynamoTables:
    client: DynamoDBClient
    settings: Settings
    store: DynamoCounterStore
    reader: DynamoBillingStore

    def rejected(self) -> dict[RowKey, tuple[str, bytes]]:
        return {
            RowKey(item["pk"]["S"], item["sk"]["S"]): (item["reason"]["S"], item["raw"]["B"])
            for item in self.items(self.settings.rejected_table)
            if item["pk"]["S"].startswith("SHARD#")  # the others point at these
        }

    def items(self, table: str) -> list[dict[str, Any]]:
        pages = self.client.get_paginator("scan").paginate(TableName=table, ConsistentRead=True)
        return [dict(item) for page in pages for item in page["Items"]]

    def empty(self, table: Table) -> None:
        keys = [key["AttributeName"] for key in table.key_schema]
        for item in self.items(table.name):
            self.client.delete_item(TableName=table.name, Key={name: item[name] for name in keys})


@dataclass
class Stream:
    """An EventSink and the StreamDirectory of the same stream, which has 3 shards."""

    sink: EventSink
    directory: StreamDirectory


@pytest.fixture(autouse=True)
def _aws_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_DYNAMODB"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")


@pytest.fixture(scope="session")
def dynamodb_local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    port, folder = free_port(), tmp_path_factory.mktemp("dynamodb-local")
    with running(dynamodb_local_command(port, folder / "tables"), port, folder / "log") as endpoint:
        yield endpoint


@pytest.fixture(scope="session")
def kinesis_mock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    port, folder = free_port(), tmp_path_factory.mktemp("kinesis-mock")
    with running(kinesis_mock_command(port, folder / "streams", "us-east-1"), port, folder / "log") as endpoint:
        yield endpoint


@pytest.fixture(scope="session")
def clients() -> Iterator[Callable[[Settings], DynamoDBClient]]:
    """Give a DynamoDB client per endpoint, made once: making one takes longer than most tests."""
    with contextlib.ExitStack() as stack:

        @functools.cache
        def client_of(endpoint: str | None) -> DynamoDBClient:
            settings = replace(Settings.from_environment({}), dynamodb_endpoint=endpoint)
            return stack.enter_context(contextlib.closing(dynamodb_client(settings)))

        yield lambda settings: client_of(settings.dynamodb_endpoint)


@pytest.fixture
def dynamo_on(
    request: pytest.FixtureRequest, settings: Settings, clients: Callable[[Settings], DynamoDBClient]
) -> DynamoOn:
    """Return a function that gives empty tables on "moto" or "dynamodb-local"."""

    @contextlib.contextmanager
    def on(where: str) -> Iterator[DynamoTables]:
        with contextlib.ExitStack() as stack:
            names = settings
            if where == "moto":
                stack.enter_context(mock_aws())
            else:
                names = replace(settings, dynamodb_endpoint=request.getfixturevalue("dynamodb_local"))
            found = dynamo_of(clients(names), names)
            ours = tables(names)[:3]  # the others are the KCL's
            make_tables(found.client, ours)
            for table in ours:
                found.empty(table)
            yield found

    return on


@pytest.fixture(params=["moto", "dynamodb-local"])
def dynamo(request: pytest.FixtureRequest, dynamo_on: DynamoOn) -> Iterator[DynamoTables]:
    """Tables of the real adapter."""
    with dynamo_on(request.param) as found:
        yield found


@pytest.fixture(params=["memory", "moto", "dynamodb-local"])
def backend(request: pytest.FixtureRequest, dynamo_on: DynamoOn) -> Iterator[Tables]:
    """Tables of the adapter and of its twin."""
    if request.param == "memory":
        twin = MemoryTables()
        yield TwinTables(twin, twin)
        return
    with dynamo_on(request.param) as found:
        yield found


@pytest.fixture(params=["memory", "moto", "kinesis-mock"])
def stream(request: pytest.FixtureRequest, settings: Settings) -> Iterator[Stream]:
    if request.param == "memory":
        twin = MemoryStream(shards=3)
        yield Stream(twin, twin)
        return
    names = replace(settings, stream=f"usage-events-{next(_numbers)}", stream_shards=3)
    with contextlib.ExitStack() as stack:
        if request.param == "moto":
            stack.enter_context(mock_aws())
        else:
            names = replace(names, kinesis_endpoint=request.getfixturevalue("kinesis_mock"))
        client = stack.enter_context(contextlib.closing(kinesis_client(names)))
        make_stream(client, names)
        yield stream_of(client, names)


def dynamo_of(client: DynamoDBClient, names: Settings) -> DynamoTables:
    store = DynamoCounterStore(
        client, table=names.table, rejected_table=names.rejected_table, rejected_ttl_days=TTL_DAYS
    )
    return DynamoTables(client, names, store, DynamoBillingStore(client, names))


def stream_of(client: KinesisClient, names: Settings) -> Stream:
    return Stream(
        KinesisEventSink(client, names.stream, names.partitions), KinesisStreamDirectory(client, names.stream)
    )
