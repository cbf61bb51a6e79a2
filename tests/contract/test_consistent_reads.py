"""Whatever billing and the runner of alerts read, they read strongly consistent: as_of is a promise by that alone.

No local DynamoDB shows what an eventually consistent read may miss, so it is the requests that are looked at.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from billing.alerting import AlertRunner
from billing.alerts_file import ALERTS_FILE
from billing.app import create_app
from metering.dynamodb_alerts import DynamoAlertStore
from metering.dynamodb_voids import DynamoBillingStore
from metering.meters import NO_METERS
from tests.builders import NOW, STREAM, count, event, rejected, shard
from tests.unit.alert_world import Receiver

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.contract.conftest import DynamoOn, DynamoTables

pytestmark = pytest.mark.contract

TEXT = """\
alerts: [{name: high, metric: api_calls, period: day, thresholds: [1]}]
quotas: [{metric: api_calls, period: month, limit: 10000}]
"""
TENANT = "/v1/tenants/tenant-123"
READS = frozenset({"GetItem", "Query", "BatchGetItem", "Scan"})


@pytest.fixture
def tables(dynamo_on: DynamoOn) -> Iterator[DynamoTables]:
    with dynamo_on("moto") as made:
        made.store.open_shard(shard(), complete_until=NOW, now=NOW)
        made.store.register_tenant("tenant-123", now=NOW)
        count(made.store, event(event_id="id"))
        made.store.reject(shard(), replace(rejected(9), tenant_id="tenant-123"), now=NOW)
        yield made


@pytest.fixture
def reads(tables: DynamoTables, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """Note what every read asks for from now on: one for each table of it."""
    made: list[tuple[str, Any]] = []
    original = tables.client._make_api_call  # type: ignore[attr-defined]  # where all of botocore's calls go through

    def noted(name: str, arguments: Any) -> Any:
        if name in READS:
            made.extend((name, each) for each in arguments.get("RequestItems", {"": arguments}).values())
        return original(name, arguments)

    monkeypatch.setattr(tables.client, "_make_api_call", noted)
    return made


@pytest.mark.parametrize(
    "path",
    [
        "/v1/tenants",
        f"{TENANT}/usage",
        f"{TENANT}/usage/api_calls",
        f"{TENANT}/usage/api_calls?window=hour",
        f"{TENANT}/usage/api_calls?from=2020-01&to=2024-02",
        f"{TENANT}/usage/api_calls?from=2024-01&to=2024-02&min_as_of=2024-01-15T10:30:00Z",
        f"{TENANT}/quota/api_calls",
        f"{TENANT}/alerts",
        f"{TENANT}/events/id",
        "/v1/status",
        "/tenants/tenant-123",
        "/",
    ],
)
def test_every_answer_is_of_consistent_reads(
    tables: DynamoTables, reads: list[tuple[str, Any]], tmp_path: Path, path: str
) -> None:
    (tmp_path / "alerts.yaml").write_text(TEXT)
    settings = replace(tables.settings, alerts_file=tmp_path / "alerts.yaml")
    client = create_app(DynamoBillingStore(tables.client, settings), settings, now=lambda: NOW).test_client()
    client.get(path)
    assert [name for name, asked in reads if asked.get("ConsistentRead") is not True] == []
    assert len(reads) >= 2


def test_every_look_is_of_consistent_reads(tables: DynamoTables, reads: list[tuple[str, Any]]) -> None:
    store, receiver, now = DynamoAlertStore(tables.client, table=tables.settings.table), Receiver(), NOW
    runner = AlertRunner(
        DynamoBillingStore(tables.client, tables.settings),
        store,
        ALERTS_FILE.parse(TEXT.encode(), name="f"),
        NO_METERS,
        STREAM,
        poster=receiver,
        now=lambda: now,
    )
    runner.round()
    now += timedelta(minutes=1)
    runner.round()
    assert len(receiver.posts) == 1
    assert [name for name, asked in reads if asked.get("ConsistentRead") is not True] == []
    assert len(reads) >= 6
