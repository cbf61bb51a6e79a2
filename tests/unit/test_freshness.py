"""complete_until may be too early, never too late."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from hypothesis import example, given
from hypothesis import strategies as st

from consumer.freshness import ARRIVAL_RESOLUTION, QUEUE_MAX, Freshness

START = datetime(2024, 1, 15, 10, 0, tzinfo=UTC)
LONG_AGO = START - timedelta(days=1)


def at(milliseconds: int) -> datetime:
    return START + timedelta(milliseconds=milliseconds)


def test_nothing_is_claimed_before_there_is_evidence() -> None:
    freshness = Freshness()
    for number in range(QUEUE_MAX + 3):
        assert freshness.delivered(behind_ms=0, newest_arrival_at=None) is None
        freshness.returned(at(200 * number))
    assert freshness.delivered(behind_ms=0, newest_arrival_at=None) == at(-1)


def test_idle_deliveries_claim_when_the_fifth_before_the_last_was_done() -> None:
    freshness = Freshness()
    for number in range(12):
        claim = freshness.delivered(behind_ms=0, newest_arrival_at=None)
        freshness.returned(at(200 * number + 1))
    assert claim == freshness.complete_until == at(200 * (11 - 6))


def test_what_was_caught_up_may_be_claimed_by_a_delivery_that_is_not() -> None:
    freshness = Freshness()
    for number in range(12):
        freshness.delivered(behind_ms=0 if number < 11 else 5000, newest_arrival_at=None)
        freshness.returned(at(200 * number + 1))
    assert freshness.complete_until == at(200 * (11 - 6))
    assert freshness.delivered(behind_ms=0, newest_arrival_at=None) == at(200 * (11 - 6))
    freshness.returned(at(2401))
    assert freshness.delivered(behind_ms=0, newest_arrival_at=None) == at(200 * (12 - 5))


def test_a_delivery_with_records_claims_no_time_though_it_is_behind_by_0_ms() -> None:
    """What arrived in the same millisecond as its last record may be left behind it."""
    freshness = Freshness()
    for number in range(12):
        freshness.delivered(behind_ms=0, newest_arrival_at=at(-9000 + number))
        freshness.returned(at(200 * number + 1))
    assert freshness.delivered(behind_ms=0, newest_arrival_at=None) == at(-9000 + 11) - ARRIVAL_RESOLUTION


def test_a_delivery_with_more_behind_it_claims_its_newest_record_alone() -> None:
    freshness = Freshness()
    for number in range(12):
        claim = freshness.delivered(behind_ms=5000, newest_arrival_at=at(-9000 + number))
        freshness.returned(at(200 * number + 1))
    assert claim == at(-9000 + 11) - ARRIVAL_RESOLUTION


def test_a_claim_never_goes_back() -> None:
    freshness = Freshness()
    assert freshness.delivered(behind_ms=0, newest_arrival_at=at(-10)) == at(-10) - ARRIVAL_RESOLUTION
    freshness.returned(at(1))
    assert freshness.delivered(behind_ms=0, newest_arrival_at=at(-5000)) == at(-10) - ARRIVAL_RESOLUTION


class Step(NamedTuple):
    """What each part takes for one delivery, in ms: any of them may get no CPU for a while."""

    pause: int = 0
    fetch: int = 0
    hand_over: int = 0
    work: int = 0
    records: bool = False


STARVED = [Step(), Step(work=16_000), *[Step(work=1000, hand_over=50)] * 8]
"""Small deliveries are fetched while the child works for long, and each is waited for when its turn comes."""


ENDED = [Step(), Step(work=16_000), *[Step()] * 4]
"""The shard ends while the child works for long, and the last of its records are fetched when it has returned."""
ENDED_IN_TWO = [Step(), Step(work=16_000), *[Step()] * 3, Step(records=True), Step(records=True)]
"""So it does here, but the last of its records come in two deliveries, both behind by 0 ms."""


@given(st.lists(st.builds(Step, *[st.integers(0, 400)] * 4, st.booleans()), min_size=1, max_size=40))
@example(STARVED)
@example(ENDED)
@example(ENDED_IN_TWO)
def test_no_claim_is_later_than_the_shard_was_read_while_open_whatever_stands_still(steps: list[Step]) -> None:
    assert not late_claims(steps, queue_max=QUEUE_MAX)


def test_a_longer_queue_than_the_one_that_is_known_would_be_found() -> None:
    assert late_claims([Step(work=100)] * 20, queue_max=QUEUE_MAX + 1)


def late_claims(steps: Sequence[Step], *, queue_max: int) -> list[datetime]:
    """Run the KCL's fetching and delivering threads; return the claims that may be wrong.

    A fetch begins when the one before has a place in the queue; a place is free when a delivery was handed over; one is
    handed over when the child has returned from the one before. Any delivery may be among the shard's last: it may have
    ended as soon as the last fetch before began that was empty, and its children may have had events from then on.
    """
    freshness, late, open_at = Freshness(), [], 0
    queued, left, returned = [0], [0] * (queue_max + 1), 0
    for step in steps:
        begun = queued[-1] + step.pause
        queued.append(max(begun + step.fetch, left[-queue_max]))
        left.append(max(queued[-1], returned) + step.hand_over)
        claim = freshness.delivered(behind_ms=0, newest_arrival_at=LONG_AGO if step.records else None)
        if claim is not None and claim > at(open_at):
            late.append(claim)
        if not step.records:
            open_at = begun
        returned = left[-1] + step.work
        freshness.returned(at(returned))
    return late
