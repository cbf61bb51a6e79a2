"""Rows as the consumer makes them, many at once: no consumer counts an event for each of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from itertools import islice
from typing import TYPE_CHECKING, Any

from metering.rows import directory_key, total_key, window_key

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

BATCH_ITEMS = 25
"""What BatchWriteItem takes (DynamoDB API reference)."""
LOADERS = 8

Item = dict[str, Any]


def tenant_items(tenant_id: str, metrics: Iterable[str], start: datetime, hours: int) -> Iterator[Item]:
    """Yield a tenant's rows: its entry in the directory, and for each metric a total and `hours` windows."""
    applied = {"last_updated": {"S": "2024-01-15T10:00:01.250Z"}, "a.s6k2o0.1": {"S": "056" + "4" * 56}}
    directory = directory_key(tenant_id)
    yield {"pk": {"S": directory.pk}, "sk": {"S": directory.sk}, "first_seen_at": applied["last_updated"]}
    for metric in metrics:
        total = total_key(tenant_id, metric)
        yield {"pk": {"S": total.pk}, "sk": {"S": total.sk}, "usage": {"N": "1"}, "events": {"N": "1"}, **applied}
        for hour in range(hours):
            key = window_key(tenant_id, metric, start + timedelta(hours=hour), 60)
            counted = {"usage": {"N": f"{hour * 7919 % 10_000}.25"}, "events": {"N": str(hour % 90 + 1)}}
            yield {"pk": {"S": key.pk}, "sk": {"S": key.sk}, **counted, **applied}


def write_items(client: DynamoDBClient, table: str, items: Iterable[Item]) -> None:
    """Put items into a table, LOADERS batches at a time. No key may come twice within a batch."""

    def put(batch: list[Item]) -> None:
        left: Any = {table: [{"PutRequest": {"Item": item}} for item in batch]}
        while left:
            left = client.batch_write_item(RequestItems=left)["UnprocessedItems"]

    def batches() -> Iterator[list[Item]]:
        coming = iter(items)
        while batch := list(islice(coming, BATCH_ITEMS)):
            yield batch

    with ThreadPoolExecutor(LOADERS) as executor:
        for _ in executor.map(put, batches()):
            pass
