"""The check of a quota asks DynamoDB once: the rows of a whole month are one Query, of whatever size they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from billing.app import create_app
from metering.dynamodb_voids import DynamoBillingStore
from metering.rows import applied_attribute, progress_key, window_key
from tests.builders import CREATED_AT, STREAM, at, shard

if TYPE_CHECKING:
    from tests.contract.conftest import DynamoOn, DynamoTables

pytestmark = pytest.mark.contract

TENANT, METRIC = "tenant-123", "api_calls"
MONTH = datetime(2024, 1, 1, tzinfo=UTC)
NOW = datetime(2024, 1, 31, 23, 59, tzinfo=UTC)
TEXT = "quotas: [{metric: api_calls, period: month, limit: 10000}]"


def fill(tables: DynamoTables, *, minutes: int) -> int:
    """Write a row for every twelfth hour of a month, as two shards leave it; return how many there are.

    A row for each window is one page as well, but takes DynamoDB Local a minute to fill: docs/alerts.md has the sizes.
    """
    applied = {applied_attribute(CREATED_AT, shard(number).shard_id): {"S": at(10**55)} for number in range(2)}
    starts = [
        MONTH + number * timedelta(minutes=minutes) for number in range(0, 31 * 24 * 60 // minutes, 720 // minutes)
    ]
    keys = [window_key(TENANT, METRIC, start, minutes) for start in starts]
    updated = {"S": "2024-01-31T23:00:00.000Z"}
    items: Any = [
        {
            "pk": {"S": key.pk},
            "sk": {"S": key.sk},
            "usage": {"N": "1.5"},
            "events": {"N": "1"},
            "last_updated": updated,
            **applied,
        }
        for key in keys
    ]
    for first in range(0, len(items), 25):
        puts: Any = [{"PutRequest": {"Item": item}} for item in items[first : first + 25]]
        tables.client.batch_write_item(RequestItems={tables.settings.table: puts})
    return len(items)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Callable[[DynamoTables], list[str]]:
    """Note the name of every call that a client makes from now on."""

    def of(tables: DynamoTables) -> list[str]:
        made: list[str] = []
        original = tables.client._make_api_call  # type: ignore[attr-defined]  # where all of botocore's calls go through

        def noted(name: str, arguments: Any) -> Any:
            made.append(f"{name} {arguments['ExpressionAttributeValues'][':pk']['S']}")
            return original(name, arguments)

        monkeypatch.setattr(tables.client, "_make_api_call", noted)
        return made

    return of


@pytest.mark.parametrize("minutes", [60, 15])
def test_a_check_is_one_query_and_the_progress_is_shared(
    dynamo_on: DynamoOn, calls: Callable[[DynamoTables], list[str]], tmp_path: Path, minutes: int
) -> None:
    path = tmp_path / "alerts.yaml"
    path.write_text(TEXT)
    with dynamo_on("dynamodb-local") as tables:
        rows = fill(tables, minutes=minutes)
        tables.store.open_shard(shard(), complete_until=NOW, now=NOW)
        settings = replace(tables.settings, alerts_file=path, window_minutes=minutes)
        client = create_app(DynamoBillingStore(tables.client, settings), settings, now=lambda: NOW).test_client()
        made = calls(tables)
        progress, usage = f"Query {progress_key(STREAM, '').pk}", f"Query TENANT#{TENANT}"
        for expected in ([progress, usage], [usage], [usage]):
            answer = client.get(f"/v1/tenants/{TENANT}/quota/{METRIC}").json
            assert answer is not None
            assert (answer["used"], answer["as_of"]) == (1.5 * rows, "2024-01-31T23:59:00.000Z")
            assert made == expected
            made.clear()
