"""DynamoDB and the in-memory twin agree, write for write, on whatever a replaying or outdated consumer may send."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from metering.memory import MemoryTables
from tests.builders import NOW, at, outcome, shard, write

if TYPE_CHECKING:
    from tests.contract.conftest import DynamoTables

pytestmark = pytest.mark.contract

numbers = st.sets(st.integers(0, 9), min_size=1, max_size=5).map(sorted)
batches = st.lists(st.tuples(st.integers(0, 1), numbers), min_size=1, max_size=8)
"""Which shard, and which of its records; in any order, overlapping as they like."""

fresh = itertools.count()
same_tables = settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
"""Every example has a tenant or a stream of its own, so the tables need not be empty."""


@same_tables
@given(batches)
def test_on_every_write(dynamo: DynamoTables, deliveries: list[tuple[int, list[int]]]) -> None:
    twin, tenant_id = MemoryTables(), f"tenant-{next(fresh)}"
    for number, records in deliveries:
        batch = write(*records, tenant_id=tenant_id, usage="0.1")
        assert dynamo.store.apply(shard(number), batch, now=NOW) == twin.apply(shard(number), batch, now=NOW)
        assert dynamo.reader.totals(tenant_id) == twin.totals(tenant_id)


@same_tables
@given(batches)
def test_on_progress(dynamo: DynamoTables, deliveries: list[tuple[int, list[int]]]) -> None:
    twin, stream = MemoryTables(), f"stream-{next(fresh)}"
    for number, records in deliveries:
        where = shard(number, stream=stream)
        outcomes = [outcome(record, counted=record, duplicates=1) for record in records]
        for store in (dynamo.store, twin):
            store.open_shard(where, complete_until=None, now=NOW)
            store.record_progress(where, outcomes, complete_until=None, now=NOW)
        assert dynamo.reader.progress(stream) == twin.progress(stream)
    for found in twin.progress(stream):
        assert found.events == found.counted + found.duplicates + found.rejected
        assert found.position in {at(number) for number in range(10)}
