"""Keys and attribute names are the schema: golden, since tables outlive releases."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metering.rows import (
    WINDOW_MINUTES_ALLOWED,
    applied_attribute,
    directory_key,
    expiry,
    progress_key,
    rejected_key,
    total_key,
    window_key,
    window_start,
)

MOMENT = datetime(2024, 1, 15, 10, 59, 59, 999_999, tzinfo=UTC)


def test_keys_are_golden() -> None:
    assert total_key("tenant-123", "api_calls") == ("TENANT#tenant-123", "METRIC#api_calls")
    assert directory_key("tenant-123") == ("TENANTS", "tenant-123")
    assert progress_key("usage-events", "shardId-000000000000") == (
        "STREAM#usage-events",
        "SHARD#shardId-000000000000",
    )
    assert rejected_key("shardId-000000000000", "00212", 7) == ("SHARD#shardId-000000000000", "00212#00007")


@pytest.mark.parametrize(
    ("minutes", "sk"),
    [
        (60, "HOUR#api_calls#2024-01-15T10"),
        (30, "HOUR#api_calls#2024-01-15T10:30"),
        (15, "HOUR#api_calls#2024-01-15T10:45"),
    ],
)
def test_a_windows_key_is_golden(minutes: int, sk: str) -> None:
    assert window_key("tenant-123", "api_calls", MOMENT, minutes) == ("TENANT#tenant-123", sk)


@pytest.mark.parametrize(
    ("moment", "stamp"),
    [
        (datetime(2023, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC), "2023-12-31T23"),
        (datetime(2024, 1, 1, tzinfo=UTC), "2024-01-01T00"),
        (datetime.fromisoformat("2024-01-01T00:30:00+05:30"), "2023-12-31T19"),
        (datetime(2024, 2, 29, 12, tzinfo=UTC), "2024-02-29T12"),
        (datetime(1, 1, 1, tzinfo=UTC), "0001-01-01T00"),
        (datetime(9999, 12, 31, 23, 59, tzinfo=UTC), "9999-12-31T23"),
    ],
)
def test_windows_change_with_the_hour_in_utc(moment: datetime, stamp: str) -> None:
    assert window_key("t", "m", moment, 60).sk == f"HOUR#m#{stamp}"


@given(st.datetimes(timezones=st.just(UTC)), st.sampled_from(WINDOW_MINUTES_ALLOWED))
def test_a_window_holds_its_moments_and_is_half_open(moment: datetime, minutes: int) -> None:
    start = window_start(moment, minutes)
    assert timedelta(0) <= moment - start < timedelta(minutes=minutes)
    assert window_start(start, minutes) == start


def test_the_applied_attribute_is_short_and_golden() -> None:
    created_at = datetime(2024, 1, 15, 10, tzinfo=UTC)
    assert applied_attribute(created_at, "shardId-000000000000") == "a.s7ars0.0"
    assert applied_attribute(created_at, "shardId-000000000036") == "a.s7ars0.10"


def test_incarnations_and_shards_never_share_an_attribute() -> None:
    created_at = datetime(2024, 1, 15, 10, tzinfo=UTC)
    names = [
        applied_attribute(created_at + timedelta(seconds=second), f"shardId-{shard:012d}")
        for second in range(100)
        for shard in range(100)
    ]
    names += [applied_attribute(created_at, name) for name in ("shardId-x", "shard-7", "shardId-", "shardId-٣")]
    assert len(set(names)) == len(names)


def test_expiry_is_in_seconds() -> None:
    assert expiry(datetime(1970, 1, 2, tzinfo=UTC), 35) == 36 * 24 * 3600
