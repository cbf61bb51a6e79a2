"""Virtual partitions: all events of one counter go to one partition, and so to one shard at a time.

Kinesis places a record by a 128-bit hash key. The partitions divide that space evenly, so a stream whose shards
divide it evenly gets an even share of partitions each; MD5 of 64 short keys would not be even.
"""

from __future__ import annotations

from hashlib import blake2b

_HASH_KEYS = 2**128
"""Kinesis's hash key space, 0 to 2**128 - 1 (Kinesis API reference, PutRecords, ExplicitHashKey)."""


def partition_of(tenant_id: str, metric: str, partitions: int) -> int:
    """Return the partition, 0 to partitions - 1, of the counter (tenant_id, metric).

    Stable across processes, machines and releases. `/` separates the two names because neither may hold it.
    """
    digest = blake2b(f"{tenant_id}/{metric}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % partitions


def partition_key(partition: int) -> str:
    """Return the Kinesis partition key of a partition."""
    return f"partition-{partition:04d}"


def explicit_hash_key(partition: int, partitions: int) -> str:
    """Return the middle of the partition's part of the hash key space, as Kinesis wants it: a decimal string."""
    return str((2 * partition + 1) * _HASH_KEYS // (2 * partitions))
