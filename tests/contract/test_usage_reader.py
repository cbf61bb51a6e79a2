"""UsageReader: what billing reads is what the consumer has written, in order, complete, and nothing else."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from typing import TYPE_CHECKING

import pytest

from metering.aggregation import row_writes
from metering.ports import TenantPage
from tests.builders import CREATED_AT, NOW, STREAM, at, event, shard, write

if TYPE_CHECKING:
    from tests.contract.conftest import DynamoTables, Tables

pytestmark = pytest.mark.contract

# In the order of their UTF-8 bytes. In UTF-16 the last two would change places.
TENANTS = ("A", "a", "a-1", "a.1", "b", "ü", "арендатор", "テナント", "ﬀ", "\U0001d4b3")


class TestTenants:
    def test_pages_are_in_order_of_the_ids_bytes(self, backend: Tables) -> None:
        for tenant_id in reversed(TENANTS):
            backend.store.register_tenant(tenant_id, now=NOW)
        assert backend.reader.tenants(limit=100, after=None) == TenantPage(TENANTS, None)

    @pytest.mark.parametrize("limit", [1, 3, 9, 10, 11])
    def test_a_cursor_leads_to_the_next_page_and_the_last_page_has_none(self, backend: Tables, limit: int) -> None:
        for tenant_id in TENANTS:
            backend.store.register_tenant(tenant_id, now=NOW)
        listed: list[str] = []
        after: str | None = None
        for _ in range(len(TENANTS)):
            page = backend.reader.tenants(limit=limit, after=after)
            listed += page.tenant_ids
            after = page.cursor
            if after is None:
                break
            assert len(page.tenant_ids) == limit
        assert tuple(listed) == TENANTS

    def test_a_page_begins_after_an_id_that_is_not_there(self, backend: Tables) -> None:
        backend.store.register_tenant("b", now=NOW)
        assert backend.reader.tenants(limit=10, after="a").tenant_ids == ("b",)
        assert backend.reader.tenants(limit=10, after="c") == TenantPage((), None)


class TestTotals:
    def test_a_counter_never_seen_has_no_total(self, backend: Tables) -> None:
        backend.store.apply(shard(), write(1), now=NOW)
        assert backend.reader.total("tenant-123", "api_call") is None
        assert backend.reader.total("tenant-12", "api_calls") is None
        assert backend.reader.totals("tenant-12") == []

    def test_totals_are_a_tenants_own_and_no_windows(self, backend: Tables) -> None:
        batch = [
            (at(1), event(metric="storage", value="0.5")),
            (at(2), event(metric="api_calls", value="2")),
            (at(3), event(tenant_id="tenant-1234")),
            (at(4), event(metric="テナント", value="3")),
        ]
        for row_write in row_writes(batch, window_minutes=60):
            backend.store.apply(shard(), row_write, now=NOW)
        totals = backend.reader.totals("tenant-123")
        assert [(total.tenant_id, total.metric, total.usage, total.events) for total in totals] == [
            ("tenant-123", "api_calls", Decimal(2), 1),
            ("tenant-123", "storage", Decimal("0.5"), 1),
            ("tenant-123", "テナント", Decimal(3), 1),
        ]
        assert backend.reader.total("tenant-123", "storage") == totals[1]


class TestProgress:
    def test_all_shards_of_the_stream_and_of_no_other_are_read(self, backend: Tables) -> None:
        for number in (0, 1, 2):
            backend.store.open_shard(shard(number), complete_until=None, now=NOW)
        backend.store.open_shard(shard(7, stream=f"{STREAM}-2"), complete_until=None, now=NOW)
        assert [found.shard_id for found in backend.reader.progress(STREAM)] == [
            shard(number).shard_id for number in (0, 1, 2)
        ]

    def test_shards_of_an_older_incarnation_are_left_out(self, backend: Tables) -> None:
        for number in (0, 1, 2):
            backend.store.open_shard(shard(number), complete_until=NOW, now=NOW)
        again = shard(0, created_at=CREATED_AT + timedelta(days=1))
        backend.store.open_shard(again, complete_until=None, now=NOW)
        (found,) = backend.reader.progress(STREAM)
        assert (found.shard_id, found.stream_created_at) == (again.shard_id, again.stream_created_at)

    def test_a_stream_never_read_has_no_progress(self, backend: Tables) -> None:
        assert backend.reader.progress(STREAM) == []


def test_the_check_returns_when_the_table_can_be_read(backend: Tables) -> None:
    backend.reader.check()


class TestSchema:
    """What people and other programs see in the tables (the troubleshooting guide's get-item)."""

    def test_a_total_is_found_under_the_keys_of_the_guide(self, dynamo: DynamoTables) -> None:
        dynamo.store.apply(shard(), write(1, usage="10"), now=NOW)
        item = dynamo.client.get_item(
            TableName=dynamo.settings.table,
            Key={"pk": {"S": "TENANT#tenant-123"}, "sk": {"S": "METRIC#api_calls"}},
        )["Item"]
        assert item["usage"] == {"N": "10"}
        assert item["events"] == {"N": "1"}
        assert item["last_updated"] == {"S": "2024-01-15T10:30:00.000Z"}

    def test_a_page_of_dynamodb_is_not_the_end_of_the_totals(self, dynamo: DynamoTables) -> None:
        # A query answers 1 MB at a time; items of long names and many shards make that few.
        filler = {"filler": {"S": "x" * 300_000}}
        for number in range(8):
            dynamo.client.put_item(
                TableName=dynamo.settings.table,
                Item={
                    "pk": {"S": "TENANT#tenant-123"},
                    "sk": {"S": f"METRIC#m{number}"},
                    "usage": {"N": "1"},
                    "events": {"N": "1"},
                    "last_updated": {"S": "2024-01-15T10:30:00.000Z"},
                    **filler,
                },
            )
        assert [total.metric for total in dynamo.reader.totals("tenant-123")] == [f"m{n}" for n in range(8)]
