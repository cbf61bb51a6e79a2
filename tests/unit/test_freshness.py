"""complete_until may be too early, never too late."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from consumer.freshness import ARRIVAL_RESOLUTION, WAITED_MIN, Freshness

START = datetime(2024, 1, 15, 10, 0, tzinfo=UTC)


def at(milliseconds: int) -> datetime:
    return START + timedelta(milliseconds=milliseconds)


def test_nothing_is_claimed_before_there_is_evidence() -> None:
    freshness = Freshness()
    assert freshness.delivered(at(0), behind_ms=0, newest_arrival_at=None) is None
    freshness.returned(at(1))
    assert freshness.delivered(at(200), behind_ms=0, newest_arrival_at=None) is None


def test_idle_deliveries_claim_the_time_of_the_delivery_before_the_last() -> None:
    freshness = Freshness()
    for number in range(4):
        claim = freshness.delivered(at(200 * number), behind_ms=0, newest_arrival_at=None)
        freshness.returned(at(200 * number + 1))
    assert claim == at(200)


def test_a_delivery_that_the_child_did_not_wait_for_claims_no_time() -> None:
    freshness = Freshness()
    for number in range(4):
        claim = freshness.delivered(at(200 * number), behind_ms=0, newest_arrival_at=None)
        freshness.returned(at(200 * (number + 1)) - WAITED_MIN / 2)
    assert claim is None


def test_a_delivery_with_more_behind_it_claims_its_newest_record_alone() -> None:
    freshness = Freshness()
    for number in range(4):
        claim = freshness.delivered(at(200 * number), behind_ms=5000, newest_arrival_at=at(-9000 + number))
        freshness.returned(at(200 * number + 1))
    assert claim == at(-9000 + 3) - ARRIVAL_RESOLUTION


def test_a_claim_never_goes_back() -> None:
    freshness = Freshness()
    freshness.delivered(at(0), behind_ms=0, newest_arrival_at=at(-10))
    freshness.returned(at(1))
    assert freshness.delivered(at(100), behind_ms=0, newest_arrival_at=at(-5000)) == at(-10) - ARRIVAL_RESOLUTION
    assert freshness.newest_arrival_at == at(-10)


@given(st.lists(st.tuples(st.integers(0, 400), st.integers(0, 400)), min_size=1, max_size=40))
def test_against_a_model_of_the_kcls_queue_no_claim_is_later_than_the_fetch(steps: list[tuple[int, int]]) -> None:
    """The daemon fetches ahead into a queue and delivers as soon as the child is free.

    Each step: pause before a fetch (ms) and the time that the child works on what was fetched.
    """
    freshness = Freshness()
    fetched_at, free_at = 0, 0
    for pause_ms, work_ms in steps:
        fetched_at += pause_ms
        delivered_at = max(fetched_at, free_at)
        claim = freshness.delivered(at(delivered_at), behind_ms=0, newest_arrival_at=None)
        assert claim is None or claim <= at(fetched_at)
        free_at = delivered_at + work_ms
        freshness.returned(at(free_at))
