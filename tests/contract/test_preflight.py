"""What a consumer sees to before it starts, on DynamoDB Local and kinesis-mock."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from metering.aws import kinesis_client
from metering.dynamodb import DynamoCounterStore, DynamoUsageReader
from metering.errors import MissingResourceError
from metering.ports import ShardRef
from metering.settings import Settings
from operations.preflight import check_resources
from operations.provision import make_stream, make_tables, tables
from tests.builders import NOW

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

_numbers = itertools.count()


@pytest.fixture
def names(settings: Settings, dynamodb_local: str, kinesis_mock: str) -> Settings:
    name = f"preflight-{next(_numbers)}"
    return replace(
        settings,
        stream=name,
        stream_shards=3,
        table=f"{name}-aggregator",
        kcl_application=f"{name}-consumer",
        dynamodb_endpoint=dynamodb_local,
        kinesis_endpoint=kinesis_mock,
    )


def test_shards_without_a_progress_row_get_one_and_others_keep_theirs(
    names: Settings, clients: Callable[[Settings], DynamoDBClient]
) -> None:
    """Else billing's as_of would not wait for them: a stream that others made, or split while no consumer ran."""
    dynamodb = clients(names)
    make_tables(dynamodb, tables(names))
    with contextlib.closing(kinesis_client(names)) as kinesis:
        description, _ = make_stream(kinesis, names)
    store = DynamoCounterStore(dynamodb, table=names.table, rejected_table=names.rejected_table, rejected_ttl_days=1)
    middle = ShardRef(names.stream, description.created_at, "shardId-000000000001")
    store.open_shard(middle, complete_until=NOW, now=NOW)

    check_resources(names)
    check_resources(names)

    progress = DynamoUsageReader(dynamodb, table=names.table).progress(names.stream)
    assert [(shard.shard_id, shard.complete_until, shard.closed) for shard in progress] == [
        ("shardId-000000000000", None, False),
        ("shardId-000000000001", NOW, False),
        ("shardId-000000000002", None, False),
    ]
    assert {shard.stream_created_at for shard in progress} == {description.created_at}


def test_a_stream_or_a_table_that_is_missing_is_named(
    names: Settings, clients: Callable[[Settings], DynamoDBClient]
) -> None:
    with pytest.raises(MissingResourceError, match=names.stream):
        check_resources(names)
    with contextlib.closing(kinesis_client(names)) as kinesis:
        make_stream(kinesis, names)
    make_tables(clients(names), tables(names)[1:])
    with pytest.raises(MissingResourceError, match=names.table):
        check_resources(names)
