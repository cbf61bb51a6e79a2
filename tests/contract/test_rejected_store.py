"""RejectedStore and EventReader: what the consumer kept is found again, by place, by shard and by whose event it is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest

from metering.claims import Claim, EventContent, Repeat, RepeatsWrite
from metering.dynamodb_events import DynamoEventReader
from metering.dynamodb_ledger import DynamoLedger
from metering.dynamodb_rejected import DynamoRejectedStore
from metering.memory import MemoryTables
from metering.memory_rejected import MemoryRejected
from metering.places import StreamPlace
from metering.ports import ClaimedEvent, RejectedEvent
from metering.rejected import RejectedRow
from metering.rows import claim_owner, event_claim_key, place
from tests.builders import CREATED_AT, NOW, STREAM, TTL_DAYS, at, rejected, shard

if TYPE_CHECKING:
    from metering.ports import CounterStore, EventReader, Ledger, RejectedStore
    from tests.contract.conftest import DynamoOn, DynamoTables

pytestmark = pytest.mark.contract

LATER = NOW + timedelta(minutes=1)
KEY = event_claim_key("tenant-123", "req-1")


@dataclass
class Backend:
    writes: CounterStore
    store: RejectedStore
    reader: EventReader


def on_dynamo(tables: DynamoTables) -> Backend:
    names = tables.settings
    reader = DynamoEventReader(
        tables.client, table=names.table, ledger_table=names.ledger_table, rejected_table=names.rejected_table
    )
    store = DynamoRejectedStore(tables.client, stream=STREAM, table=names.table, rejected_table=names.rejected_table)
    return Backend(tables.store, store, reader)


@pytest.fixture(params=["memory", "moto", "dynamodb-local"])
def backend(request: pytest.FixtureRequest, dynamo_on: DynamoOn) -> Iterator[Backend]:
    if request.param == "memory":
        twin = MemoryTables()
        yield Backend(twin, MemoryRejected(twin, STREAM), twin)
        return
    with dynamo_on(request.param) as tables:
        yield on_dynamo(tables)


def where(number: int, index: int = 0, *, on: int = 0) -> StreamPlace:
    return StreamPlace(f"shardId-{on:012d}", at(number), index)


def of_event(number: int, index: int = 0, *, key: str = KEY) -> RejectedEvent:
    return replace(rejected(number, index), claim_key=key)


def of_tenant(tenant_id: str | None, number: int, arrived_s: int) -> RejectedEvent:
    return replace(rejected(number), tenant_id=tenant_id, arrived_at=NOW + timedelta(seconds=arrived_s))


class TestRow:
    def test_a_row_comes_back_as_it_was_kept(self, backend: Backend) -> None:
        raw = b'{"value": -1, "x": "\xff\x00"}'
        backend.writes.reject(shard(), rejected(3, 2, raw=raw), now=LATER)
        row = backend.store.get(where(3, 2))
        assert row == backend.reader.rejection(where(3, 2))
        assert row == RejectedRow(
            place=where(3, 2),
            reason="negative_value",
            detail="value must not be negative",
            raw=raw,
            raw_bytes=len(raw),
            raw_sha256="e7e32509bed88e8f33e5afda0cef54be3ba10de4bc1577e8599b0aa8b5353169",
            arrived_at=NOW,
            rejected_at=LATER,
            stream=STREAM,
            stream_created_at=CREATED_AT,
        )

    def test_a_long_record_is_cut_and_says_how_long_it_was(self, backend: Backend) -> None:
        backend.writes.reject(shard(), rejected(1, raw=b"x" * 1_000_000), now=NOW)
        row = backend.store.get(where(1))
        assert row is not None
        assert (len(row.raw), row.raw_bytes, row.raw_is_cut) == (256 * 1024, 1_000_000, True)

    def test_there_is_no_row_at_another_place(self, backend: Backend) -> None:
        backend.writes.reject(shard(), rejected(1), now=NOW)
        for other in (where(2), where(1, 1), where(1, on=1)):
            assert backend.store.get(other) is None
            assert backend.reader.rejection(other) is None


class TestPage:
    def test_shards_are_all_that_were_ever_opened(self, backend: Backend) -> None:
        assert backend.store.shard_ids() == []
        backend.writes.open_shard(shard(7), complete_until=None, now=NOW)
        newer = CREATED_AT + timedelta(days=1)
        backend.writes.open_shard(shard(0, created_at=newer), complete_until=None, now=NOW)
        backend.writes.open_shard(shard(1, stream="other"), complete_until=None, now=NOW)
        assert backend.store.shard_ids() == ["shardId-000000000000", "shardId-000000000007"]

    @pytest.mark.parametrize("limit", [1, 2, 3, 7, 8, 100])
    def test_pages_lead_from_the_newest_to_the_oldest(self, backend: Backend, limit: int) -> None:
        places = [(2, 0), (4, 0), (4, 1), (4, 11), (5, 0), (6, 2), (9, 0)]  # numbers cross a power of ten at 5
        for number, index in places:
            backend.writes.reject(shard(), rejected(number, index), now=NOW)
            backend.writes.reject(shard(1), rejected(number, index), now=NOW)
        found: list[StreamPlace] = []
        for _ in range(len(places) + 1):
            page = backend.store.page("shardId-000000000000", limit=limit, before=found[-1] if found else None)
            assert len(page.rows) <= limit
            found += [row.place for row in page.rows]
            if not page.more:
                break
        assert found == [where(*each) for each in reversed(places)]

    def test_a_page_ends_at_a_megabyte_and_the_next_goes_on(self, backend: Backend) -> None:
        for number in range(6):
            backend.writes.reject(shard(), rejected(number, raw=b"x" * 300_000), now=NOW)
        found: list[RejectedRow] = []
        more = True
        while more:
            page = backend.store.page("shardId-000000000000", limit=100, before=found[-1].place if found else None)
            found += page.rows
            more = page.more
        assert [row.place for row in found] == [where(number) for number in reversed(range(6))]

    def test_a_shard_without_rows_has_an_empty_page(self, backend: Backend) -> None:
        page = backend.store.page("shardId-000000000000", limit=1, before=None)
        assert (page.rows, page.more) == ((), False)


class TestReplay:
    def test_what_is_begun_first_stays(self, backend: Backend) -> None:
        backend.writes.reject(shard(), rejected(1), now=NOW)
        assert backend.store.begin_replay(where(1), b"one", now=NOW) == b"one"
        assert backend.store.begin_replay(where(1), b"one", now=LATER) == b"one"
        assert backend.store.begin_replay(where(1), b"two", now=LATER) == b"one"
        row = backend.store.get(where(1))
        assert row is not None
        assert (row.replay_events, row.replay_begun_at, row.replayed_at) == (b"one", NOW, None)

    def test_the_longest_that_is_begun_fits_beside_the_longest_row(self, backend: Backend) -> None:
        backend.writes.reject(shard(), rejected(1, raw=b"x" * 1_000_000), now=NOW)
        events = b"y" * (100 * 1024)
        assert backend.store.begin_replay(where(1), events, now=NOW) == events

    def test_it_is_marked_once(self, backend: Backend) -> None:
        backend.writes.reject(shard(), rejected(1), now=NOW)
        assert backend.store.mark_replayed(where(1), ["ü/1", "b"], now=NOW)
        assert not backend.store.mark_replayed(where(1), ["c"], now=LATER)
        row = backend.store.get(where(1))
        assert row is not None
        assert (row.replayed_at, row.replayed_as) == (NOW, ("ü/1", "b"))

    def test_a_row_that_is_gone_is_not_made_again(self, backend: Backend) -> None:
        assert backend.store.begin_replay(where(1), b"one", now=NOW) is None
        assert not backend.store.mark_replayed(where(1), ["a"], now=NOW)
        assert backend.store.get(where(1)) is None

    def test_a_delivery_that_comes_again_leaves_the_mark(self, backend: Backend) -> None:
        backend.writes.reject(shard(), rejected(1), now=NOW)
        backend.store.begin_replay(where(1), b"one", now=NOW)
        backend.store.mark_replayed(where(1), ["a"], now=NOW)
        before = backend.store.get(where(1))
        backend.writes.reject(shard(), rejected(1), now=LATER)
        assert backend.store.get(where(1)) == before


class TestRejections:
    def test_an_event_has_its_own_rejections_oldest_first(self, backend: Backend) -> None:
        backend.writes.reject(shard(1), of_event(2), now=NOW)
        backend.writes.reject(shard(), of_event(7, 3), now=LATER)
        backend.writes.reject(shard(), of_event(1, key=event_claim_key("tenant-123", "req-10")), now=NOW)
        backend.writes.reject(shard(), of_event(1, 1, key=event_claim_key("tenant-12", "req-1")), now=NOW)
        backend.writes.reject(shard(), of_event(1, 2, key=event_claim_key("tenant-123", "req-1", "/a")), now=NOW)
        backend.writes.reject(shard(), rejected(3), now=NOW)
        rows = backend.reader.rejections(KEY, limit=10)
        assert [row.place for row in rows] == [where(2, on=1), where(7, 3)]
        assert rows == [backend.store.get(row.place) for row in rows]

    @pytest.mark.parametrize("event_id", ["a#b", "SHARD#shardId-000000000000", "x" * 128, "\U0001f600" * 128])
    def test_any_id_finds_its_rejection(self, backend: Backend, event_id: str) -> None:
        key = event_claim_key("t" * 128, event_id, "s" * 1024)
        backend.writes.reject(shard(), of_event(1, key=key), now=NOW)
        assert [row.place for row in backend.reader.rejections(key, limit=1)] == [where(1)]

    def test_there_are_no_more_than_asked_for(self, backend: Backend) -> None:
        for number in range(5):
            backend.writes.reject(shard(), of_event(number), now=NOW + timedelta(seconds=number))
        assert [row.place for row in backend.reader.rejections(KEY, limit=3)] == [where(2), where(3), where(4)]
        assert backend.reader.rejections("TENANT#nobody#EVENT#x", limit=3) == []

    def test_the_newest_of_a_tenant_are_found_whatever_others_send(self, backend: Backend) -> None:
        for number, arrived_s in ((1, 5), (3, 1), (2, 9)):
            backend.writes.reject(shard(number), of_tenant("tenant-123", number, arrived_s), now=NOW)
            for other in ("tenant-12", "tenant-1234", None):
                backend.writes.reject(shard(number), of_tenant(other, number + 10, 20), now=NOW)
        backend.writes.reject(shard(2), of_tenant("tenant-123", 2, 9), now=LATER)  # a replay
        rows = backend.reader.newest_rejections("tenant-123", limit=2)
        assert [row.place for row in rows] == [where(2, on=2), where(1, on=1)]
        assert rows == [backend.store.get(row.place) for row in rows]
        assert len(backend.reader.newest_rejections("tenant-123", limit=9)) == 3
        assert backend.reader.newest_rejections("tenant", limit=9) == []

    def test_of_what_arrived_at_once_the_newest_place_comes_first(self, backend: Backend) -> None:
        for number, index in ((4, 0), (4, 11), (5, 2), (4, 2)):
            event = replace(of_tenant("tenant-123", number, 0), index=index)
            backend.writes.reject(shard(), event, now=NOW)
        rows = backend.reader.newest_rejections("tenant-123", limit=9)
        assert [(row.place.position, row.place.index) for row in rows] == [
            (at(5), 2),
            (at(4), 11),
            (at(4), 2),
            (at(4), 0),
        ]


class TestClaimed:
    """The ledger is filled by its own adapter, for which moto lacks what it takes; see test_ledger."""

    @pytest.fixture(params=["memory", "dynamodb-local"])
    def ledger(self, request: pytest.FixtureRequest, dynamo_on: DynamoOn) -> Iterator[tuple[Ledger, EventReader]]:
        if request.param == "memory":
            twin = MemoryTables()
            yield twin.ledger, twin
            return
        with dynamo_on("dynamodb-local") as tables:
            names = tables.settings
            writes = DynamoLedger(tables.client, table=names.ledger_table, ttl_days=TTL_DAYS)
            yield writes, on_dynamo(tables).reader

    @pytest.mark.parametrize("timestamp", [None, "2024-01-15T10:00:00Z"])
    def test_a_claim_comes_back_with_what_became_of_it(
        self, ledger: tuple[Ledger, EventReader], timestamp: str | None
    ) -> None:
        writes, reader = ledger
        content = EventContent("api_calls", Decimal("0.000000001"), timestamp)
        writes.claim(shard(), [Claim(KEY, place(at(1), 2), content, NOW)], now=NOW)
        owner = claim_owner(CREATED_AT, "shardId-000000000000", place(at(1), 2))
        fresh = ClaimedEvent(owner, content, NOW, 0, 0, None, None)
        assert reader.claimed(KEY) == fresh
        writes.note_repeats(shard(), RepeatsWrite(KEY, (Repeat(place(at(2), 0), False, LATER),)))
        writes.note_repeats(shard(1), RepeatsWrite(KEY, (Repeat(place(at(3), 0), True, NOW),)))
        assert reader.claimed(KEY) == replace(fresh, duplicates=1, conflicts=1, last_repeat_at=LATER)

    def test_what_nobody_claimed_is_nobodys(self, ledger: tuple[Ledger, EventReader]) -> None:
        assert ledger[1].claimed(KEY) is None


class TestOnDynamoDB:
    def put(self, tables: DynamoTables, **attributes: Any) -> None:
        tables.client.put_item(TableName=tables.settings.ledger_table, Item={"pk": {"S": KEY}, **attributes})

    def test_a_voided_claim_says_when(self, dynamo: DynamoTables) -> None:
        whole = {"owner": {"S": "x"}, "metric": {"S": "m"}, "value": {"N": "1"}}
        self.put(dynamo, **whole, voided_at={"S": "2024-01-15T10:31:00.000Z"})
        claimed = on_dynamo(dynamo).reader.claimed(KEY)
        assert claimed is not None
        assert (claimed.voided_at, claimed.content) == (LATER, EventContent("m", Decimal(1), None))

    @pytest.mark.parametrize(
        "row",
        [
            {},
            {"owner": {"N": "1"}},
            {"owner": {"S": "x"}, "value": {"S": "ten"}, "t.x.0": {"N": "1"}},
            {"owner": {"S": "x"}, "t.x.0": {"S": "noon"}},
            {"owner": {"S": "x"}, "duplicates": {"S": "many"}, "conflicts": {"N": "1.5"}, "counted_at": {"S": "noon"}},
        ],
    )
    def test_a_row_that_someone_has_written_over_says_what_it_can(
        self, dynamo: DynamoTables, row: dict[str, Any]
    ) -> None:
        self.put(dynamo, **row)
        owner = row.get("owner", {}).get("S", "")
        assert on_dynamo(dynamo).reader.claimed(KEY) == ClaimedEvent(owner, None, None, 0, 0, None, None)

    def test_a_pointer_whose_row_has_expired_is_passed_over(self, dynamo: DynamoTables) -> None:
        for number in (1, 2):
            dynamo.store.reject(shard(), replace(of_event(number), tenant_id="tenant-123"), now=NOW)
        key = where(1).row_key
        dynamo.client.delete_item(
            TableName=dynamo.settings.rejected_table, Key={"pk": {"S": key.pk}, "sk": {"S": key.sk}}
        )
        reader = on_dynamo(dynamo).reader
        assert [row.place for row in reader.rejections(KEY, limit=9)] == [where(2)]
        assert [row.place for row in reader.newest_rejections("tenant-123", limit=9)] == [where(2)]

    def test_what_a_crash_left_out_comes_with_the_replay(self, dynamo: DynamoTables) -> None:
        event = replace(of_event(1), tenant_id="tenant-123")
        dynamo.store.reject(shard(), replace(event, claim_key=None, tenant_id=None), now=NOW)
        dynamo.store.reject(shard(), event, now=LATER)
        reader = on_dynamo(dynamo).reader
        assert [row.place for row in reader.rejections(KEY, limit=9)] == [where(1)]
        assert [row.place for row in reader.newest_rejections("tenant-123", limit=9)] == [where(1)]

    def test_a_pointer_is_in_no_page(self, dynamo: DynamoTables) -> None:
        dynamo.store.reject(shard(), of_event(1), now=datetime(2024, 1, 15, tzinfo=UTC))
        page = on_dynamo(dynamo).store.page("shardId-000000000000", limit=9, before=None)
        assert [row.place for row in page.rows] == [where(1)]
