"""Shards are split and merged under load: parents are finished before their children, and rows are exact."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from contextlib import ExitStack

from tests.e2e.parts import Parts, Worker
from tests.e2e.processes import json_lines, until
from tests.e2e.shards import double, merge, open_shards, shards, split
from tests.e2e.tables import Tables
from tests.e2e.truth import Load, Truth, assert_progress_agrees, assert_receipts_agree, await_as_of
from tests.e2e.watcher import BillingWatcher

RESHARDED_S = 120.0
NAME = "reshard"
EVENTS_S = 25.0


def test_shards_are_split_and_merged_under_load_and_every_event_is_counted_once(parts: Parts) -> None:
    pipeline = parts.named(NAME)
    pipeline.set_up()
    truth = Truth()
    with ExitStack() as running:
        tables = running.enter_context(pipeline.tables())
        collector_url = running.enter_context(pipeline.collector())
        billing_url = running.enter_context(pipeline.billing())
        workers = [running.enter_context(pipeline.worker(f"{NAME}-{number}")) for number in range(2)]
        with (
            Load(collector_url, truth, name=NAME, events_s=EVENTS_S) as load,
            BillingWatcher(billing_url, truth, NAME),
        ):
            await_applied(tables, load, shards=2)
            double(tables)
            await_applied(tables, load, shards=4)
            split(tables, open_shards(tables)[0])
            merge(tables, *open_shards(tables)[-2:])
            await_applied(tables, load, shards=4)
        await_as_of(billing_url, truth)

        assert tables.rows() == truth.rows()
        assert_progress_agrees(tables)
        assert_receipts_agree(tables, truth.sent())
        assert_parents_ended_before_children_began(tables, workers)


# ── What is waited for and what must hold ────────────────────────────────────────────────────────────────────────────


def await_applied(tables: Tables, load: Load, *, shards: int) -> None:
    """Wait until so many shards take records and have some applied, and every other one is closed."""

    def applied() -> bool:
        progress, taking = tables.progress(), {shard["ShardId"] for shard in open_shards(tables)}
        return (
            len(taking) == shards
            and progress.keys() >= taking
            and all(shard.records if shard.shard_id in taking else shard.closed for shard in progress.values())
        )

    until(applied, lambda: f"open shards are applied, others closed: {tables.progress()}", timeout_s=RESHARDED_S)
    load.await_events(20)


def assert_parents_ended_before_children_began(tables: Tables, workers: Iterable[Worker]) -> None:
    """By the logs of all workers, whichever of them had the shard."""
    lines = [line for worker in workers for line in json_lines(worker.supervisor.log)]
    ended, began = defaultdict[str, list[str]](list), defaultdict[str, list[str]](list)
    for line in lines:
        if line["message"] == "Shard ended":
            ended[line["shard"]].append(line["timestamp"])
        elif line["message"] == "Consumer started, listening for new events" or line["message"].startswith("Received "):
            began[line["shard"]].append(line["timestamp"])
    pairs = [
        (parent, shard["ShardId"])
        for shard in shards(tables)
        for name in ("ParentShardId", "AdjacentParentShardId")
        if (parent := shard.get(name))
    ]
    assert pairs
    for parent, child in pairs:
        assert min(ended[parent]) < min(began[child]), (parent, child, dict(ended), dict(began))
