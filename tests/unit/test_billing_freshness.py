"""as_of is a promise: where it is not known it is null, and it is never later than what is known."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.freshness import Freshness, freshness
from metering.ports import ShardProgress
from metering.positions import BEGINNING
from tests.builders import CREATED_AT, NOW

UNKNOWN = Freshness(None, None)


def progress(complete_until: datetime | None, *, closed: bool = False) -> ShardProgress:
    return ShardProgress(
        shard_id="shardId-000000000000",
        stream_created_at=CREATED_AT,
        position=BEGINNING,
        records=0,
        events=0,
        counted=0,
        duplicates=0,
        rejected=0,
        newest_arrival_at=None,
        complete_until=complete_until,
        heartbeat_at=None,
        closed=closed,
    )


def ago(seconds: float) -> datetime:
    return NOW - timedelta(seconds=seconds)


def test_the_slowest_open_shard_decides() -> None:
    shards = [progress(ago(1)), progress(ago(90)), progress(ago(5))]
    assert freshness(shards, now=NOW) == Freshness(ago(90), 90_000)


def test_nothing_is_known_before_the_first_shard_has_a_row() -> None:
    assert freshness([], now=NOW) == UNKNOWN


def test_nothing_is_known_while_one_open_shard_has_not_reported() -> None:
    assert freshness([progress(ago(1)), progress(None)], now=NOW) == UNKNOWN


@pytest.mark.parametrize("complete_until", [None, ago(86_400)])
def test_a_closed_shard_holds_nothing_back(complete_until: datetime | None) -> None:
    shards = [progress(complete_until, closed=True), progress(ago(2))]
    assert freshness(shards, now=NOW) == Freshness(ago(2), 2_000)


def test_when_all_known_shards_are_closed_the_open_ones_are_not_known() -> None:
    assert freshness([progress(ago(1), closed=True), progress(ago(2), closed=True)], now=NOW) == UNKNOWN


def test_a_consumer_whose_clock_is_ahead_gives_no_negative_lag() -> None:
    assert freshness([progress(ago(-3))], now=NOW) == Freshness(ago(-3), 0)


def test_the_lag_is_in_whole_milliseconds() -> None:
    assert freshness([progress(ago(0.0019))], now=NOW).lag_ms == 1


moments = st.none() | st.integers(0, 10**6).map(ago)
shards = st.lists(st.builds(progress, moments, closed=st.booleans()), max_size=8)


@given(shards)
def test_as_of_is_never_later_than_what_any_open_shard_reports(known: list[ShardProgress]) -> None:
    fresh = freshness(known, now=NOW)
    for shard in known:
        if not shard.closed and fresh.as_of is not None:
            assert shard.complete_until is not None
            assert fresh.as_of <= shard.complete_until
