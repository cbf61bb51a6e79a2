"""WindowReader and LeaseReader: the rows of a counter in a range, all of them and no others, in few calls."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest

from metering import dynamodb_windows
from metering.dynamodb_billing import DynamoBillingReader
from metering.dynamodb_windows import QUERIES_MAX
from metering.rows import window_key
from metering.windows import WindowRow, usage_in
from operations.provision import make_tables, tables
from tests.builders import count, event

if TYPE_CHECKING:
    from tests.contract.conftest import DynamoTables, Tables

pytestmark = pytest.mark.contract

TENANT, METRIC = "tenant-123", "api_calls"
START = datetime(2023, 1, 1, tzinfo=UTC)
HOUR, MINUTE = timedelta(hours=1), timedelta(minutes=1)


def found(tables: Tables, first: float, last: float) -> list[tuple[float, int, str, int]]:
    """Return the rows in a range, their starts in hours."""
    rows = tables.reader.windows(TENANT, METRIC, start=START + first * HOUR, end=START + last * HOUR)
    return [((row.start - START) / HOUR, row.minutes, str(row.usage), row.events) for row in rows]


def happened(hours: float, value: str = "1", **fields: str) -> Any:
    return event(timestamp=(START + hours * HOUR).isoformat(), value=value, **fields)


class TestWindows:
    def test_the_rows_of_a_range_are_a_counters_own_in_order(self, backend: Tables) -> None:
        others = ({"metric": "api_call"}, {"metric": "api_calls2"}, {"tenant_id": "tenant-1234"}, {"metric": "-"})
        mine = (happened(3, "0.5"), happened(0), happened(2.99), happened(3.5, "2"), happened(5))
        count(backend.store, *mine, *(happened(3, **other) for other in others))
        assert found(backend, 0, 5) == [(0, 60, "1", 1), (2, 60, "1", 1), (3, 60, "2.5", 2)]
        assert found(backend, 3, 4) == [(3, 60, "2.5", 2)]
        assert found(backend, 1, 2) == []

    def test_smaller_rows_begin_and_end_within_the_hour(self, backend: Tables) -> None:
        count(backend.store, *(happened(quarter / 4) for quarter in range(12)), window_minutes=15)
        assert [start for start, *_ in found(backend, 1, 2)] == [1, 1.25, 1.5, 1.75]
        assert [start for start, *_ in found(backend, 1.25, 1.75)] in ([1.25, 1.5], [1, 1.25, 1.5])

    def test_rows_of_several_sizes_are_read_side_by_side(self, backend: Tables) -> None:
        for number, size in enumerate((60, 30, 15)):
            count(backend.store, happened(1.3), happened(1.8), window_minutes=size, first=10 * number)
        # 1:00 holds what was counted by the hour; 1:30 by the half-hour, and 1:45 by the quarter
        assert found(backend, 1, 2) == [(1, 60, "2", 2), (1, 30, "1", 1), (1.25, 15, "1", 1), (1.5, 30, "1", 1),
                                        (1.75, 15, "1", 1)]  # fmt: skip
        assert found(backend, 1.5, 2)[0] == (1, 60, "2", 2)
        assert found(backend, 2, 3) == []

    def test_a_counter_never_seen_has_no_rows_and_no_ends(self, backend: Tables) -> None:
        count(backend.store, happened(0, tenant_id="tenant-1234"), happened(0, metric="api"))
        assert found(backend, -1, 9) == []
        assert backend.reader.window_ends(TENANT, METRIC) is None
        assert backend.reader.window_ends("tenant-9", METRIC) is None

    def test_the_ends_are_the_first_and_the_last_row(self, backend: Tables) -> None:
        count(backend.store, happened(5), happened(-9000), happened(7.6, "2"), happened(99, metric="api_calls2"))
        first, last = (WindowRow(START + hours * HOUR, 60, Decimal(usage), 1) for hours, usage in ((-9000, 1), (7, 2)))
        assert backend.reader.window_ends(TENANT, METRIC) == (first, last)

    def test_rows_of_the_first_and_the_last_year_are_read(self, backend: Tables) -> None:
        first, late = datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 22, tzinfo=UTC)
        count(backend.store, event(timestamp="0001-01-01T00:00:00Z"), happened(0))
        rows = list(backend.reader.windows(TENANT, METRIC, start=first, end=late))
        assert [row.start for row in rows] == [first, START]


@pytest.fixture(scope="module")
def pool() -> Iterator[Executor]:
    with ThreadPoolExecutor(4) as executor:
        yield executor


class TestLongRanges:
    """Rows of 300 hours, where a part of a range is worth its Query from 50 rows on."""

    HOURS = 300

    @pytest.fixture
    def long(self, dynamo: DynamoTables, monkeypatch: pytest.MonkeyPatch) -> DynamoTables:
        monkeypatch.setattr(dynamodb_windows, "ROWS_EACH", 50)
        keys = [window_key(TENANT, METRIC, START + hour * HOUR, 60) for hour in range(-2, self.HOURS + 2)]
        items: Any = [
            {"pk": {"S": key.pk}, "sk": {"S": key.sk}, "usage": {"N": f"{hour}.5"}, "events": {"N": "2"}}
            for hour, key in enumerate(keys, -2)
        ]
        for first in range(0, len(items), 25):
            puts: Any = [{"PutRequest": {"Item": item}} for item in items[first : first + 25]]
            dynamo.client.batch_write_item(RequestItems={dynamo.settings.table: puts})
        return dynamo

    @pytest.mark.parametrize("threads", [None, 4])
    def test_a_long_range_is_read_whole_in_parts_of_a_query_each(
        self, long: DynamoTables, pool: Executor, threads: int | None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[Any] = []
        query = long.client.query
        monkeypatch.setattr(long.client, "query", lambda **each: asked.append(query(**each)) or asked[-1])
        reader = DynamoBillingReader(long.client, long.settings, executor=pool if threads else None)
        usage = sum((Decimal(f"{hour}.5") for hour in range(self.HOURS)), Decimal(0))
        found = usage_in(reader, TENANT, METRIC, START, START + self.HOURS * HOUR)
        assert (found.usage, found.events) == (usage, 2 * self.HOURS)
        assert len(asked) == QUERIES_MAX
        assert sum(page["ScannedCount"] for page in asked) == self.HOURS
        usage_in(reader, TENANT, METRIC, START, START + 99 * HOUR)
        assert len(asked) == QUERIES_MAX + 1

    def test_a_page_that_ends_early_is_gone_on_from(
        self, long: DynamoTables, pool: Executor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        query = long.client.query
        monkeypatch.setattr(long.client, "query", lambda **asked: query(**asked, Limit=40))
        reader = DynamoBillingReader(long.client, long.settings, executor=pool)
        rows = reader.windows(TENANT, METRIC, start=START, end=START + self.HOURS * HOUR)
        assert [row.start for row in rows] == [START + hour * HOUR for hour in range(self.HOURS)]


class TestLeases:
    def test_the_owner_of_a_shard_is_its_leases(self, dynamo: DynamoTables) -> None:
        names = replace(dynamo.settings, kcl_application="leases-of-billing")
        make_tables(dynamo.client, [table for table in tables(names) if table.name == "leases-of-billing"])
        for number in range(105):
            lease: Any = {"leaseKey": {"S": f"shard-{number}"}, "leaseCounter": {"N": "1"}}
            owner = {"leaseOwner": {"S": f"worker-{number % 2}"}} if number else {}
            dynamo.client.put_item(TableName="leases-of-billing", Item={**lease, **owner})
        reader = DynamoBillingReader(dynamo.client, names)
        asked = [f"shard-{number}" for number in range(106)]
        assert reader.lease_owners(asked) == {f"shard-{number}": f"worker-{number % 2}" for number in range(1, 105)}
        assert reader.lease_owners(["shard-0", "shard-3"]) == {"shard-3": "worker-1"}
        assert reader.lease_owners([]) == {}

    def test_where_no_consumer_ever_ran_there_are_none(self, dynamo: DynamoTables) -> None:
        names = replace(dynamo.settings, kcl_application="no-such-application")
        assert DynamoBillingReader(dynamo.client, names).lease_owners(["shard-1"]) == {}


def test_the_twin_gives_what_dynamodb_does_for_any_range(backend: Tables) -> None:
    """A fixed, odd set of rows: what the others leave out at both ends of a range."""
    for number, size in enumerate((60, 15)):
        count(
            backend.store, *(happened(hours / 4) for hours in range(0, 40, 3)), window_minutes=size, first=100 * number
        )
    for first in range(0, 40, 5):
        for length in (1, 2, 4, 7):
            rows = found(backend, first / 4, (first + length) / 4)
            assert all(start < (first + length) / 4 and start + size / 60 > first / 4 for start, size, *_ in rows)
            assert rows == sorted(rows, key=lambda row: row[0])
