"""CounterStore: every call may come again, in other batches and from another process, and the rows are right."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING

import pytest

from metering.aggregation import Contribution, RowWrite
from metering.errors import StoreUnavailableError
from metering.positions import BEGINNING
from metering.rows import total_key
from tests.builders import CREATED_AT, NOW, STREAM, at, outcome, rejected, shard, write

if TYPE_CHECKING:
    from metering.aggregation import RecordOutcome
    from metering.ports import ShardProgress
    from tests.contract.conftest import Tables

pytestmark = pytest.mark.contract

LATER = NOW + timedelta(minutes=1)
AGAIN = CREATED_AT + timedelta(days=7)
"""When a stream of the same name was made anew."""


def total(backend: Tables, metric: str = "api_calls") -> tuple[Decimal, int] | None:
    found = backend.reader.total("tenant-123", metric)
    return None if found is None else (found.usage, found.events)


class TestApply:
    def test_a_write_adds_its_usage_and_events_and_notes_when(self, backend: Tables) -> None:
        assert backend.store.apply(shard(), write(1, 2, usage="2.5"), now=NOW)
        assert total(backend) == (Decimal(5), 2)
        found = backend.reader.total("tenant-123", "api_calls")
        assert found is not None
        assert found.last_updated == NOW

    def test_a_redelivered_batch_is_counted_once(self, backend: Tables) -> None:
        assert backend.store.apply(shard(), write(1, 2), now=NOW)
        assert not backend.store.apply(shard(), write(1, 2), now=LATER)
        assert total(backend) == (Decimal(2), 2)
        found = backend.reader.total("tenant-123", "api_calls")
        assert found is not None
        assert found.last_updated == NOW

    def test_overlapping_batches_are_trimmed_exactly(self, backend: Tables) -> None:
        backend.store.apply(shard(), write(1, 4, 7), now=NOW)
        assert backend.store.apply(shard(), write(4, 5, 7, 8, 12), now=NOW)
        assert total(backend) == (Decimal(5), 5)
        assert backend.store.apply(shard(), write(1, 4, 5, 7, 8, 12, 13), now=NOW)
        assert total(backend) == (Decimal(6), 6)

    @pytest.mark.parametrize("older", [(1,), (1, 4), (2, 3), (1, 4, 7), (7,)])
    def test_an_older_batch_after_a_newer_one_does_nothing(self, backend: Tables, older: tuple[int, ...]) -> None:
        backend.store.apply(shard(), write(1, 4, 7), now=NOW)
        assert not backend.store.apply(shard(), write(*older), now=NOW)
        assert total(backend) == (Decimal(3), 3)

    def test_positions_are_compared_as_numbers(self, backend: Tables) -> None:
        backend.store.apply(shard(), write(4), now=NOW)  # sequence number 99
        assert at(4)[3:] == "99"
        assert backend.store.apply(shard(), write(5), now=NOW)  # 100
        assert not backend.store.apply(shard(), write(4), now=NOW)
        assert total(backend) == (Decimal(2), 2)

    def test_two_shards_on_one_row_keep_a_position_each(self, backend: Tables) -> None:
        backend.store.apply(shard(0), write(9), now=NOW)
        assert backend.store.apply(shard(1), write(1), now=NOW)
        assert not backend.store.apply(shard(0), write(9), now=NOW)
        assert not backend.store.apply(shard(1), write(1), now=NOW)
        assert backend.store.apply(shard(1), write(1, 2), now=NOW)
        assert total(backend) == (Decimal(3), 3)

    def test_two_incarnations_of_a_stream_keep_a_position_each(self, backend: Tables) -> None:
        backend.store.apply(shard(), write(9), now=NOW)
        assert backend.store.apply(shard(created_at=AGAIN), write(1), now=NOW)
        assert not backend.store.apply(shard(), write(9), now=NOW)
        assert total(backend) == (Decimal(2), 2)

    def test_rows_are_fenced_apart_from_each_other(self, backend: Tables) -> None:
        backend.store.apply(shard(), write(5, metric="a"), now=NOW)
        assert backend.store.apply(shard(), write(1, metric="b"), now=NOW)
        assert (total(backend, "a"), total(backend, "b")) == ((Decimal(1), 1), (Decimal(1), 1))

    @pytest.mark.parametrize(
        ("usages", "sum_"),
        [
            (["0.1", "0.2"], "0.3"),
            (["999999999999999.999999999"] * 3, "2999999999999999.999999997"),
            (["1E+14", "1E-9"], "100000000000000.000000001"),
            (["0", "0"], "0"),
            (["9007199254740993"], "9007199254740993"),
        ],
    )
    def test_sums_are_exact(self, backend: Tables, usages: list[str], sum_: str) -> None:
        for number, usage in enumerate(usages):
            backend.store.apply(shard(), write(number, usage=usage), now=NOW)
        assert total(backend) == (Decimal(sum_), len(usages))

    def test_a_contribution_may_hold_many_events(self, backend: Tables) -> None:
        many = RowWrite(total_key("tenant-123", "api_calls"), (Contribution(at(1), Decimal("12.5"), 100),))
        backend.store.apply(shard(), many, now=NOW)
        assert total(backend) == (Decimal("12.5"), 100)

    def test_sequence_numbers_of_128_digits_work(self, backend: Tables) -> None:
        def huge(number: int) -> RowWrite:
            position = f"128{10**127 + number}"
            return RowWrite(total_key("tenant-123", "api_calls"), (Contribution(position, Decimal(1), 1),))

        assert backend.store.apply(shard(), huge(1), now=NOW)
        assert not backend.store.apply(shard(), huge(1), now=NOW)
        assert backend.store.apply(shard(), huge(2), now=NOW)


class TestReject:
    def test_a_rejected_event_is_kept_once_with_reason_and_bytes(self, backend: Tables) -> None:
        backend.store.reject(shard(), rejected(1, raw=b"\xff\x00 not JSON"), now=NOW)
        backend.store.reject(shard(), rejected(1, raw=b"\xff\x00 not JSON"), now=LATER)
        ((key, kept),) = backend.rejected().items()
        assert key == ("SHARD#shardId-000000000000", f"{at(1)}#00000")
        assert kept == ("negative_value", b"\xff\x00 not JSON")

    def test_each_event_of_a_record_and_each_shard_is_kept_apart(self, backend: Tables) -> None:
        for where, event in ((shard(0), rejected(1, 0)), (shard(0), rejected(1, 1)), (shard(1), rejected(1, 0))):
            backend.store.reject(where, event, now=NOW)
        assert len(backend.rejected()) == 3

    def test_an_empty_record_can_be_kept(self, backend: Tables) -> None:
        backend.store.reject(shard(), rejected(1, raw=b""), now=NOW)
        assert [raw for _, raw in backend.rejected().values()] == [b""]


class TestRegisterTenant:
    def test_a_tenant_is_entered_once(self, backend: Tables) -> None:
        for _ in range(2):
            backend.store.register_tenant("tenant-123", now=NOW)
        assert backend.reader.tenants(limit=10, after=None).tenant_ids == ("tenant-123",)


class TestProgress:
    def only_shard(self, backend: Tables) -> ShardProgress:
        (found,) = backend.reader.progress(STREAM)
        return found

    def opened(self, backend: Tables, *outcomes: RecordOutcome) -> None:
        backend.store.open_shard(shard(), complete_until=None, now=NOW)
        if outcomes:
            backend.store.record_progress(shard(), outcomes, complete_until=None, now=NOW)

    def test_an_opened_shard_has_applied_nothing(self, backend: Tables) -> None:
        self.opened(backend)
        found = self.only_shard(backend)
        assert (found.shard_id, found.stream_created_at) == ("shardId-000000000000", CREATED_AT)
        assert (found.position, found.records, found.events) == (BEGINNING, 0, 0)
        assert (found.complete_until, found.newest_arrival_at, found.heartbeat_at) == (None, None, None)
        assert not found.closed

    def test_opening_again_changes_nothing(self, backend: Tables) -> None:
        backend.store.open_shard(shard(), complete_until=NOW, now=NOW)
        backend.store.record_progress(shard(), [outcome(1)], complete_until=None, now=NOW)
        before = self.only_shard(backend)
        backend.store.open_shard(shard(), complete_until=None, now=LATER)
        backend.store.open_shard(shard(), complete_until=LATER, now=LATER)
        assert self.only_shard(backend) == before
        assert before.complete_until == NOW

    def test_outcomes_add_up_and_keep_the_invariant(self, backend: Tables) -> None:
        self.opened(backend, outcome(1, counted=3, duplicates=2, rejected=1), outcome(2))
        found = self.only_shard(backend)
        assert (found.records, found.events) == (2, 7)
        assert (found.counted, found.duplicates, found.rejected) == (4, 2, 1)
        assert found.position == at(2)

    def test_a_replay_of_outcomes_is_trimmed_exactly(self, backend: Tables) -> None:
        self.opened(backend, outcome(1), outcome(4), outcome(7))
        for replay in ([outcome(1), outcome(4)], [outcome(7)], [outcome(4), outcome(5), outcome(7), outcome(8)]):
            backend.store.record_progress(shard(), replay, complete_until=None, now=NOW)
        found = self.only_shard(backend)
        assert (found.position, found.records, found.events, found.counted) == (at(8), 4, 4, 4)

    def test_the_newest_arrival_is_that_of_the_newest_record_applied(self, backend: Tables) -> None:
        self.opened(backend, outcome(1, arrived_at=LATER), outcome(2, arrived_at=NOW))
        assert self.only_shard(backend).newest_arrival_at == LATER

    def test_a_heartbeat_moves_the_time_and_nothing_else(self, backend: Tables) -> None:
        self.opened(backend, outcome(1))
        before = self.only_shard(backend)
        backend.store.record_progress(shard(), [], complete_until=NOW, now=LATER)
        found = self.only_shard(backend)
        assert (found.heartbeat_at, found.complete_until) == (LATER, NOW)
        assert (found.position, found.records, found.newest_arrival_at) == (at(1), 1, before.newest_arrival_at)

    def test_an_unknown_complete_until_leaves_what_is_known(self, backend: Tables) -> None:
        self.opened(backend)
        backend.store.record_progress(shard(), [outcome(1)], complete_until=NOW, now=NOW)
        backend.store.record_progress(shard(), [outcome(2)], complete_until=None, now=LATER)
        assert self.only_shard(backend).complete_until == NOW

    @pytest.mark.parametrize("outcomes", [[], [outcome(1)], [outcome(1), outcome(2)], [outcome(2)]])
    def test_what_was_complete_stays_complete(self, backend: Tables, outcomes: list[RecordOutcome]) -> None:
        self.opened(backend, outcome(1))
        backend.store.record_progress(shard(), [], complete_until=LATER, now=NOW)
        backend.store.record_progress(shard(), outcomes, complete_until=NOW, now=LATER)
        found = self.only_shard(backend)
        assert (found.complete_until, found.heartbeat_at) == (LATER, LATER)
        assert found.records == (2 if outcome(2) in outcomes else 1)

    def test_a_replay_still_is_a_heartbeat(self, backend: Tables) -> None:
        self.opened(backend, outcome(1))
        backend.store.record_progress(shard(), [outcome(1)], complete_until=LATER, now=LATER)
        found = self.only_shard(backend)
        assert (found.records, found.heartbeat_at, found.complete_until) == (1, LATER, LATER)

    def test_what_was_counted_is_told_by_the_hour_in_which_it_arrived(self, backend: Tables) -> None:
        hour, before = NOW.replace(minute=0), NOW.replace(minute=0) - timedelta(hours=1)
        self.opened(backend, outcome(1, counted=2, duplicates=1, arrived_at=before), outcome(2, counted=0))
        backend.store.record_progress(shard(), [outcome(1), outcome(3)], complete_until=None, now=NOW)
        assert self.only_shard(backend).counted_by_hour == {before: 2, hour: 1}

    @pytest.mark.parametrize("outcomes", [[], [outcome(2, arrived_at=NOW + timedelta(hours=24))]])
    def test_an_hour_is_kept_for_a_day(self, backend: Tables, outcomes: list[RecordOutcome]) -> None:
        hour, day = NOW.replace(minute=0), timedelta(hours=24)
        self.opened(backend, outcome(1))
        backend.store.record_progress(shard(), [], complete_until=None, now=hour + day - timedelta(seconds=1))
        assert self.only_shard(backend).counted_by_hour == {hour: 1}
        backend.store.record_progress(shard(), outcomes, complete_until=None, now=hour + day)
        assert self.only_shard(backend).counted_by_hour == ({hour + day: 1} if outcomes else {})

    def test_what_arrived_longer_ago_is_counted_under_no_hour(self, backend: Tables) -> None:
        self.opened(backend, outcome(1, arrived_at=NOW.replace(minute=0) - timedelta(hours=23, seconds=1)))
        found = self.only_shard(backend)
        assert (found.counted, found.counted_by_hour) == (1, {})

    def test_hours_of_a_time_without_consumer_are_forgotten_when_the_shard_is_opened_again(
        self, backend: Tables
    ) -> None:
        self.opened(backend, outcome(1), outcome(2, arrived_at=NOW - timedelta(hours=5)))
        backend.store.open_shard(shard(), complete_until=None, now=NOW + timedelta(hours=19))
        assert self.only_shard(backend).counted_by_hour == {NOW.replace(minute=0): 1}
        backend.store.open_shard(shard(created_at=CREATED_AT - timedelta(1)), complete_until=None, now=LATER)
        backend.store.open_shard(shard(), complete_until=None, now=NOW + timedelta(days=7))
        found = self.only_shard(backend)
        assert (found.counted, found.counted_by_hour) == (2, {})

    def test_a_shard_that_was_not_opened_has_no_progress(self, backend: Tables) -> None:
        for outcomes in ([], [outcome(1)]):
            with pytest.raises(StoreUnavailableError):
                backend.store.record_progress(shard(), outcomes, complete_until=None, now=NOW)
        assert backend.reader.progress(STREAM) == []

    def test_a_shard_is_closed_and_stays_closed(self, backend: Tables) -> None:
        self.opened(backend, outcome(1))
        for _ in range(2):
            backend.store.close_shard(shard(), now=NOW)
        backend.store.open_shard(shard(), complete_until=None, now=LATER)
        found = self.only_shard(backend)
        assert found.closed
        assert found.position == at(1)

    def test_closing_a_shard_that_was_not_opened_does_nothing(self, backend: Tables) -> None:
        backend.store.close_shard(shard(), now=NOW)
        assert backend.reader.progress(STREAM) == []

    def test_a_new_incarnation_begins_anew_and_an_old_one_cannot_come_back(self, backend: Tables) -> None:
        self.opened(backend, outcome(9))
        backend.store.close_shard(shard(), now=NOW)
        backend.store.open_shard(shard(created_at=AGAIN), complete_until=None, now=NOW)
        backend.store.open_shard(shard(), complete_until=None, now=NOW)
        with pytest.raises(StoreUnavailableError):
            backend.store.record_progress(shard(), [outcome(10)], complete_until=NOW, now=NOW)
        backend.store.close_shard(shard(), now=NOW)
        found = self.only_shard(backend)
        assert (found.stream_created_at, found.position, found.closed) == (AGAIN, BEGINNING, False)

    def test_times_of_incarnations_are_told_apart_by_milliseconds(self, backend: Tables) -> None:
        created_at = datetime(2024, 1, 1, 0, 0, 0, 999_000, tzinfo=UTC)
        for moment in (created_at, created_at + timedelta(milliseconds=1)):
            backend.store.open_shard(shard(created_at=moment), complete_until=None, now=NOW)
        assert self.only_shard(backend).stream_created_at == created_at + timedelta(milliseconds=1)
