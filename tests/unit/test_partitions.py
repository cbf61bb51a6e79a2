"""A counter's partition never changes, and partitions share the stream's shards evenly."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metering.partitions import explicit_hash_key, partition_key, partition_of

HASH_KEYS = 2**128


@pytest.mark.parametrize(
    ("tenant_id", "metric", "partition"),
    [("tenant-123", "api_calls", 55), ("tenant-123", "storage", 19), ("テナント", "呼び出し", 26)],
)
def test_the_partition_of_a_counter_is_the_same_in_every_release(tenant_id: str, metric: str, partition: int) -> None:
    assert partition_of(tenant_id, metric, 64) == partition


def test_names_that_run_together_are_told_apart() -> None:
    assert partition_of("ab", "c", 10_000) != partition_of("a", "bc", 10_000)


@given(st.text(max_size=128), st.text(max_size=128), st.integers(1, 10_000))
def test_a_partition_is_in_range(tenant_id: str, metric: str, partitions: int) -> None:
    try:
        partition = partition_of(tenant_id, metric, partitions)
    except UnicodeEncodeError:
        return  # half a surrogate pair, which no name may hold
    assert 0 <= partition < partitions


def test_counters_spread_over_the_partitions() -> None:
    spread = Counter(partition_of(f"tenant-{n}", "api_calls", 64) for n in range(6400))
    assert len(spread) == 64
    assert max(spread.values()) < 2 * 100


@pytest.mark.parametrize("shards", range(2, 9))
def test_evenly_split_shards_get_an_even_share_of_the_partitions(shards: int) -> None:
    width = HASH_KEYS // shards
    share = Counter(min(int(explicit_hash_key(n, 64)) // width, shards - 1) for n in range(64))
    assert len(share) == shards
    assert max(share.values()) - min(share.values()) <= 1


@given(st.integers(1, 10_000))
def test_hash_keys_are_in_kinesis_range_and_in_order(partitions: int) -> None:
    keys = [int(explicit_hash_key(n, partitions)) for n in (0, partitions // 2, partitions - 1)]
    assert keys == sorted(keys)
    assert keys[0] > 0
    assert keys[-1] < HASH_KEYS


def test_partition_keys_are_golden() -> None:
    assert partition_key(7) == "partition-0007"
    assert explicit_hash_key(0, 1) == str(2**127)
    assert explicit_hash_key(63, 64) == str(127 * 2**121)
