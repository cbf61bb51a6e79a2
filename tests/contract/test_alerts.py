"""AlertStore: an alert is recorded once and resolved once, with its messages, and no message is lost before it is done.

On the twin, on moto and on DynamoDB Local.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest

from metering.alerts import Alert, Crossing, Delivery, Kind, Message, Notice, WatchedPeriod
from metering.dynamodb_alerts import DynamoAlertStore
from metering.errors import StoreUnavailableError
from metering.local_time import Period
from metering.memory import MemoryTables
from metering.rows import RowKey
from tests.builders import NOW

if TYPE_CHECKING:
    from metering.ports import AlertReader, AlertStore
    from tests.contract.conftest import DynamoOn, DynamoTables

pytestmark = pytest.mark.contract

DAY, MINUTE = timedelta(days=1), timedelta(minutes=1)
START = datetime(2024, 1, 14, 23, tzinfo=UTC)  # the 15th in Berlin
PENDING, POSTED, FAILED = Notice(Delivery.PENDING), Notice(Delivery.POSTED, NOW), Notice(Delivery.FAILED)


def watched(day: int = 0, **changed: Any) -> WatchedPeriod:
    start = START + day * DAY
    period = WatchedPeriod("tenant-123", "high", "api_calls", Period.DAY, "Europe/Berlin", start, start + DAY)
    return replace(period, **changed)


def crossing(day: int = 0, threshold: str = "10", **changed: Any) -> Crossing:
    return Crossing(watched(day, **changed), Decimal(threshold), Decimal("10.5"), NOW, NOW - MINUTE)


def message(of: Crossing, kind: Kind = Kind.CROSSED, **changed: Any) -> Message:
    found = Message(of.message_id(kind), kind, of.key, '{"é": 1}'.encode(), NOW, NOW)
    return replace(found, **changed)


@dataclass
class Backend:
    store: AlertStore
    reader: AlertReader
    forget: Callable[[RowKey], object]

    def alert(self, of: Crossing) -> Alert:
        page = self.reader.alerts(of.watched.tenant_id, limit=100, after=None)
        (found,) = (each for each in page.alerts if each.crossing.key == of.key)
        return found

    def waiting(self, now: datetime = NOW + DAY) -> list[Message]:
        return self.store.due_messages(now, limit=100)


def on_dynamo(tables: DynamoTables) -> Backend:
    def forget(key: RowKey) -> object:
        return tables.client.delete_item(
            TableName=tables.settings.table, Key={"pk": {"S": key.pk}, "sk": {"S": key.sk}}
        )

    return Backend(DynamoAlertStore(tables.client, table=tables.settings.table), tables.reader, forget)


@pytest.fixture(params=["memory", "moto", "dynamodb-local"])
def backend(request: pytest.FixtureRequest, dynamo_on: DynamoOn) -> Iterator[Backend]:
    if request.param == "memory":
        twin = MemoryTables()
        yield Backend(twin, twin, twin.alert_rows.pop)
        return
    with dynamo_on(request.param) as tables:
        yield on_dynamo(tables)


class TestRecording:
    def test_an_alert_is_read_as_it_was_recorded(self, backend: Backend) -> None:
        told, silent = crossing(), replace(crossing(threshold="0.000000001"), as_of=None)
        assert backend.store.record(told, message(told))
        assert backend.store.record(silent, None)
        assert backend.alert(told) == Alert(told, None, PENDING, None)
        assert backend.alert(silent) == Alert(silent, None, None, None)
        assert backend.waiting() == [message(told)]

    def test_it_is_recorded_once_whatever_was_seen_the_second_time(self, backend: Backend) -> None:
        first = crossing()
        again = replace(first, usage=Decimal(99), crossed_at=NOW + MINUTE)
        assert again.alert_id == first.alert_id
        assert backend.store.record(first, message(first))
        assert not backend.store.record(again, message(again, due_at=NOW + MINUTE))
        assert backend.alert(first).crossing == first
        assert backend.waiting() == [message(first)]
        assert backend.store.open_until(first.watched.end, limit=9) == [first]

    def test_what_differs_in_what_makes_an_alert_is_another(self, backend: Backend) -> None:
        others = [
            crossing(),
            crossing(threshold="10.5"),
            crossing(day=1),
            crossing(name="high2"),
            crossing(tenant_id="tenant-1234"),
            crossing(start=START - DAY),
        ]
        assert len({each.alert_id for each in others}) == len(others)
        assert all(backend.store.record(each, message(each)) for each in others)
        assert {each.message_id for each in backend.waiting()} == {each.message_id(Kind.CROSSED) for each in others}

    def test_recorded_thresholds_are_those_of_one_period_of_one_alert(self, backend: Backend) -> None:
        for each in (crossing(), crossing(threshold="20"), crossing(1, "30"), crossing(threshold="40", name="high2")):
            backend.store.record(each, None)
        backend.store.record(crossing(threshold="50", tenant_id="tenant-1234"), None)
        assert backend.store.recorded(watched()) == {Decimal(10), Decimal(20)}
        assert backend.store.recorded(watched(1)) == {Decimal(30)}
        assert backend.store.recorded(watched(2)) == set()

    def test_of_many_at_once_one_records_it(self, dynamo_on: DynamoOn) -> None:
        with dynamo_on("dynamodb-local") as tables:
            backend = on_dynamo(tables)

            def record(number: int) -> bool:
                one = replace(crossing(), usage=Decimal(number))
                while True:
                    try:
                        return backend.store.record(one, message(one, made_at=NOW + number * MINUTE))
                    except StoreUnavailableError:  # two transactions on one item: asked again, as a runner would
                        continue

            with ThreadPoolExecutor(8) as threads:
                assert sum(threads.map(record, range(16))) == 1
            (waiting,) = backend.waiting()
            assert backend.alert(crossing()).crossing.usage == (waiting.made_at - NOW) / MINUTE


class TestReading:
    def test_a_page_begins_with_what_ends_last_and_the_next_goes_on(self, backend: Backend) -> None:
        all_of_them = [crossing(day, threshold) for day in (3, 1, 2) for threshold in ("10", "20")]
        for each in (*all_of_them, crossing(9, tenant_id="tenant-1234"), crossing(9, tenant_id="tenant-12")):
            backend.store.record(each, None)
        wanted = sorted(all_of_them, key=lambda each: each.key.sk, reverse=True)
        for limit in (1, 2, 5, 6, 7):
            pages = [backend.reader.alerts("tenant-123", limit=limit, after=None)]
            while pages[-1].cursor is not None:
                pages.append(backend.reader.alerts("tenant-123", limit=limit, after=pages[-1].cursor))
            assert [each.crossing for page in pages for each in page.alerts] == wanted
            assert len(pages) == -(-len(wanted) // limit)

    def test_a_tenant_without_alerts_has_an_empty_page(self, backend: Backend) -> None:
        page = backend.reader.alerts("tenant-123", limit=1, after=None)
        assert (page.alerts, page.cursor) == ((), None)


class TestResolving:
    def test_those_are_open_whose_period_is_over_first(self, backend: Backend) -> None:
        for day in (2, 0, 1):
            backend.store.record(crossing(day), None)
        assert backend.store.open_until(crossing(0).watched.end - MINUTE, limit=9) == []
        assert backend.store.open_until(crossing(1).watched.end, limit=9) == [crossing(0), crossing(1)]
        assert backend.store.open_until(crossing(9).watched.end, limit=2) == [crossing(0), crossing(1)]

    def test_an_alert_is_resolved_once_and_its_message_put_with_it(self, backend: Backend) -> None:
        one = crossing()
        backend.store.record(one, message(one))
        resolved = message(one, Kind.RESOLVED)
        assert backend.store.resolve(one, resolved, now=NOW + DAY)
        assert not backend.store.resolve(one, message(one, Kind.RESOLVED, due_at=NOW + MINUTE), now=NOW + 2 * DAY)
        assert backend.alert(one) == Alert(one, NOW + DAY, PENDING, PENDING)
        assert backend.store.open_until(one.watched.end, limit=9) == []
        assert sorted(backend.waiting(), key=lambda each: each.kind) == [message(one), resolved]
        assert len({each.message_id for each in backend.waiting()}) == 2

    def test_without_anybody_to_post_to_it_is_resolved_in_silence(self, backend: Backend) -> None:
        backend.store.record(crossing(), None)
        assert backend.store.resolve(crossing(), None, now=NOW + DAY)
        assert backend.alert(crossing()) == Alert(crossing(), NOW + DAY, None, None)
        assert backend.waiting() == []

    def test_an_alert_that_a_person_has_deleted_does_not_come_for_ever(self, dynamo_on: DynamoOn) -> None:
        with dynamo_on("dynamodb-local") as tables:
            backend = on_dynamo(tables)
            backend.store.record(crossing(), None)
            backend.forget(crossing().key)
            assert not backend.store.resolve(crossing(), None, now=NOW + DAY)
            assert backend.store.open_until(crossing().watched.end, limit=9) == []


class TestPosting:
    def test_messages_come_in_the_order_of_their_due_times(self, backend: Backend) -> None:
        for day, minutes in enumerate((2, 0, 1)):
            one = crossing(day)
            backend.store.record(one, message(one, due_at=NOW + minutes * MINUTE))
        assert [each.due_at for each in backend.store.due_messages(NOW + MINUTE, limit=9)] == [NOW, NOW + MINUTE]
        assert [each.due_at for each in backend.store.due_messages(NOW + DAY, limit=1)] == [NOW]
        assert backend.store.due_messages(NOW - MINUTE, limit=9) == []

    def test_an_attempt_is_noted_before_it_is_made_by_one_runner_alone(self, backend: Backend) -> None:
        one = crossing()
        first = message(one)
        backend.store.record(one, first)
        begun = first.begun(until=NOW + MINUTE)
        assert begun == replace(first, attempts=1, due_at=NOW + MINUTE)
        assert backend.store.move(first, begun)
        assert not backend.store.move(first, first.begun(until=NOW + 2 * MINUTE))
        assert backend.waiting(NOW) == []
        assert backend.waiting(NOW + MINUTE) == [begun]
        assert backend.alert(one).crossed == PENDING

    def test_a_failed_attempt_is_due_again_when_it_is_said_to_be(self, backend: Backend) -> None:
        one = crossing()
        backend.store.record(one, message(one))
        begun = message(one).begun(until=NOW + MINUTE)
        later = replace(begun, due_at=NOW + 2 * MINUTE)
        assert backend.store.move(message(one), begun)
        assert backend.store.move(begun, later)
        assert backend.waiting(NOW + MINUTE) == []
        assert backend.waiting(NOW + 2 * MINUTE) == [later]
        assert not backend.store.move(begun, replace(begun, due_at=NOW))  # as a runner would that has lost it
        assert backend.store.move(later, later)
        assert backend.waiting(NOW + 2 * MINUTE) == [later]
        assert backend.alert(one).crossed == PENDING

    @pytest.mark.parametrize("kind", Kind)
    def test_what_is_posted_is_noted_and_waits_no_more(self, backend: Backend, kind: Kind) -> None:
        one = crossing()
        backend.store.record(one, message(one))
        backend.store.resolve(one, message(one, Kind.RESOLVED), now=NOW)
        backend.store.posted(message(one, kind), now=NOW)
        backend.store.posted(message(one, kind), now=NOW)  # again, after a crash
        found = backend.alert(one)
        assert (found.crossed, found.resolved) == ((POSTED, PENDING) if kind is Kind.CROSSED else (PENDING, POSTED))
        assert [each.kind for each in backend.waiting()] == [each for each in Kind if each is not kind]

    def test_what_is_given_up_is_noted_as_failed(self, backend: Backend) -> None:
        one = crossing()
        backend.store.record(one, message(one))
        backend.store.give_up(message(one))
        assert backend.alert(one).crossed == FAILED
        assert backend.waiting() == []

    def test_what_another_runner_has_posted_is_not_failed(self, backend: Backend) -> None:
        one = crossing()
        backend.store.record(one, message(one))
        begun = message(one).begun(until=NOW + MINUTE)
        assert backend.store.move(message(one), begun)
        backend.store.posted(message(one), now=NOW)
        backend.store.give_up(begun)
        assert backend.alert(one).crossed == POSTED
        assert backend.waiting() == []
