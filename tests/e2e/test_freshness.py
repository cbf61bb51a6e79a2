"""What as_of rests on: how far ahead of a child the real KCL fetches (consumer/freshness.py)."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from consumer.freshness import QUEUE_MAX
from tests.e2e.parts import Parts, Pipeline
from tests.e2e.processes import json_lines, processes_of, until
from tests.e2e.shards import open_shards, split
from tests.e2e.tables import Tables
from tests.e2e.truth import COUNTED_S

INTERVAL_S = 0.05
"""Between two records: each read of the local stack, 200 ms apart, finds some."""
RECORDS_STOPPED = 120
"""While the child stands still: 6 s, and as many reads as there were if the KCL had no bound would be 30."""
EVENT = {"tenant_id": "acme", "metric": "api_calls", "value": "1", "timestamp": "2024-01-15T10:00:00Z"}


def test_the_kcl_fetches_no_further_ahead_of_a_child_than_as_of_allows_for(parts: Parts) -> None:
    pipeline = parts.named("ahead")
    with counting(pipeline) as (tables, put):
        with standing_child(pipeline):
            stopped_with = len(put)
            until(lambda: len(put) >= stopped_with + RECORDS_STOPPED, "records are put while it stands still")
            went_on_at, went_on_with = datetime.now(UTC), len(put)
        until(lambda: _counted(tables) >= went_on_with, "what was put meanwhile is counted", timeout_s=COUNTED_S)
    sizes = [
        int(line["message"].split()[1])
        for line in json_lines(pipeline.consumer_log)
        if line["message"].startswith("Received ") and datetime.fromisoformat(line["timestamp"]) >= went_on_at
    ]
    # The first with most of what came meanwhile was fetched after the child went on; those before it, ahead of it: what
    # stood in its pipe, what filled the queue, and what waited for a place there.
    assert max(sizes) > RECORDS_STOPPED / 2, sizes
    assert sizes.index(max(sizes)) <= QUEUE_MAX + 2, sizes


def test_a_shard_claims_nothing_later_than_its_end_when_it_is_read_to_there_late(parts: Parts) -> None:
    pipeline = parts.named("ended")
    with counting(pipeline) as (tables, put):
        (parent,) = open_shards(tables)
        with standing_child(pipeline):
            stopped_with = len(put)
            until(lambda: len(put) >= stopped_with + RECORDS_STOPPED / 2, "the KCL has fetched what it may")
            split(tables, parent)
            ended_at, ended_with = datetime.now(UTC), len(put)
            until(lambda: len(put) >= ended_with + RECORDS_STOPPED / 2, "records are put to its children")
        until(lambda: tables.progress()[parent["ShardId"]].closed, "the parent is closed", timeout_s=COUNTED_S)
        complete_until = tables.progress()[parent["ShardId"]].complete_until
    assert complete_until is not None
    assert complete_until <= ended_at


@contextmanager
def counting(pipeline: Pipeline) -> Iterator[tuple[Tables, list[str]]]:
    """Run a consumer of one shard and put records until the end of the block; give the tables, and what was put."""
    pipeline.environment["KINESIS_SHARDS"] = "1"
    pipeline.set_up()
    with pipeline.tables() as tables, pipeline.consumer(), putting(tables) as put:
        until(lambda: _counted(tables) > 20, "the child counts", timeout_s=COUNTED_S)
        yield tables, put


@contextmanager
def standing_child(pipeline: Pipeline) -> Iterator[None]:
    """Let its one child stand still in the block."""
    (child,) = (each for each in processes_of(pipeline.folder) if "record-processor" in " ".join(each.cmdline()))
    child.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        child.send_signal(signal.SIGCONT)


@contextmanager
def putting(tables: Tables) -> Iterator[list[str]]:
    """Put a record every INTERVAL_S until the end of the block; give the sequence numbers."""
    put: list[str] = []
    end = threading.Event()

    def run() -> None:
        while not end.wait(INTERVAL_S):
            answer = tables.kinesis.put_record(
                StreamName=tables.settings.stream, Data=json.dumps(EVENT).encode(), PartitionKey="ahead"
            )
            put.append(answer["SequenceNumber"])

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield put
    finally:
        end.set()
        thread.join()


def _counted(tables: Tables) -> int:
    return sum(shard.counted for shard in tables.progress().values())
