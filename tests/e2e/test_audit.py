"""`metering audit` beside the real consumer: no difference where nothing is wrong, and each thing that was changed."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.aggregated import aggregated
from tests.e2e.parts import Parts, Pipeline
from tests.e2e.processes import METERING, ran, until
from tests.e2e.shards import open_shards, split
from tests.e2e.tables import Tables
from tests.e2e.truth import COUNTED_S, Load, Truth

CLOSED_S = 150.0
TENANT = "audited"
LAST_HASH_KEY = str(2**128 - 1)
ROW = {"pk": {"S": f"TENANT#{TENANT}"}, "sk": {"S": "HOUR#calls#2024-01-15T10"}}
TOTAL = {"pk": {"S": f"TENANT#{TENANT}"}, "sk": {"S": "METRIC#calls"}}


@dataclass
class Audited:
    """A pipeline that runs, and what audits of it say."""

    pipeline: Pipeline
    tables: Tables
    url: str

    def audit(self, *options: str) -> tuple[int, list[str]]:
        """Run `metering audit`; return its exit code and its lines."""
        code, output, errors = ran([METERING, "audit", *options], self.pipeline.environment)
        assert output, errors
        return code, output.splitlines()

    def assert_no_difference(self, *options: str) -> list[str]:
        code, lines = self.audit(*options)
        assert (code, lines[-1]) == (0, "no difference"), "\n".join(lines)
        return lines

    def assert_differs(self, *words: str) -> None:
        """An audit ends with code 1 and has a line with all of `words`."""
        code, lines = self.audit()
        assert code == 1, "\n".join(lines)
        assert any(all(word in line for word in words) for line in lines), "\n".join(lines)

    def put_record(self, data: bytes, *, hash_key: str = "0") -> None:
        self.tables.kinesis.put_record(
            StreamName=self.tables.settings.stream, Data=data, PartitionKey="audit", ExplicitHashKey=hash_key
        )

    def await_applied(self) -> None:
        """Wait until all that is on the stream is in the rows."""
        until(
            lambda: (
                {shard: p.records for shard, p in self.tables.progress().items()}
                == {shard: len(records) for shard, records in self.tables.records().items()}
            ),
            lambda: f"all records are applied: {self.tables.progress()}",
            timeout_s=COUNTED_S,
        )

    @contextmanager
    def changed(self, table: str, key: Mapping[str, Any], **attributes: Any) -> Iterator[None]:
        """Write over attributes of an item, or delete it when none are given, until the end of the block."""
        client = self.tables.dynamodb
        before = client.get_item(TableName=table, Key=key, ConsistentRead=True)["Item"]
        if attributes:
            client.put_item(TableName=table, Item={**before, **attributes})
        else:
            client.delete_item(TableName=table, Key=key)
        try:
            yield
        finally:
            client.put_item(TableName=table, Item=before)


@pytest.fixture(scope="module")
def audited(parts: Parts) -> Iterator[Audited]:
    pipeline = parts.named("audit")
    pipeline.set_up()
    with pytest.MonkeyPatch.context() as patch:  # the clients outlive a test, and its credentials
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, pipeline.environment[name])
        yield from _running(pipeline)


def _running(pipeline: Pipeline) -> Iterator[Audited]:
    with pipeline.tables() as tables, pipeline.collector() as url, pipeline.consumer():
        running = Audited(pipeline, tables, url)
        with Load(url, Truth(), name="audit") as load:
            load.await_events(100)
        _put_all_kinds(running)
        running.await_applied()
        yield running


def _put_all_kinds(audited: Audited) -> None:
    """Duplicates, conflicts, rubbish, bare events, and a record as the KPL aggregates them."""
    with_id, without = _event("1", event_id="a"), _event("2")
    batch = _envelope(with_id, without, _event("-3", event_id="b"))
    for hash_key in ("0", "0", LAST_HASH_KEY):
        audited.put_record(batch, hash_key=hash_key)  # the same batch three times, once on another shard
    audited.put_record(_envelope(_event("5", event_id="a")))  # another value under the same id
    audited.put_record(b'{"batch_id": "twice", "events": [' + json.dumps(_event("7")).encode() + b"]}")
    audited.put_record(b'{"batch_id": "twice", "events": [' + json.dumps(_event("8")).encode() + b"]}")
    audited.put_record(b"\xff\xfe no JSON")
    for _ in range(2):
        audited.put_record(json.dumps(_event("11")).encode())
        audited.put_record(json.dumps(_event("13", event_id="c")).encode())
    audited.put_record(aggregated(_envelope(_event("17", event_id="d")), b"rubbish", json.dumps(_event("19")).encode()))


def test_all_that_can_happen_to_an_event_is_no_difference(audited: Audited) -> None:
    lines = audited.assert_no_difference("--strict")
    progress = audited.tables.progress()
    for shard_id, shard in progress.items():
        [line] = [line for line in lines if line.startswith(shard_id)]
        numbers = [shard.records, shard.events, shard.counted, shard.duplicates, shard.rejected, 0]
        assert line.split()[1:] == list(map(str, numbers))
    assert sum(shard.duplicates for shard in progress.values()) == 5
    assert sum(shard.rejected for shard in progress.values()) == 7
    rows = len(audited.tables.rows())
    assert f"rows: {rows} checked exactly, 0 between bounds, 0 for no less than was read" in lines


def test_since_checks_what_it_can_and_says_what_it_could_not(audited: Audited) -> None:
    audited.put_record(_envelope(_event("1", event_id="since")))
    audited.await_applied()
    now = datetime.now(UTC).isoformat()
    lines = audited.assert_no_difference("--since", now)
    assert any("before --since" in line for line in lines), lines
    code, _ = audited.audit("--since", now, "--strict")
    assert code == 1
    audited.assert_no_difference("--since", "7d", "--strict")


@pytest.mark.parametrize("since", ["yesterday", "2999-01-01T00:00:00Z"])
def test_a_time_that_can_not_be_used_is_one_line(audited: Audited, since: str) -> None:
    code, output, errors = ran([METERING, "audit", "--since", since], audited.pipeline.environment)
    assert (code, output, errors.count("\n")) == (1, "", 1), errors
    assert "--since" in errors


def test_a_row_that_was_changed_is_named_until_it_is_mended(audited: Audited) -> None:
    table = audited.tables.settings.table
    with audited.changed(table, ROW, usage={"N": "1"}):
        audited.assert_differs(ROW["pk"]["S"], ROW["sk"]["S"], "usage", "found 1")
    with audited.changed(table, TOTAL, events={"N": "2"}):
        audited.assert_differs(TOTAL["sk"]["S"], "events", "found 2")
    with audited.changed(table, ROW):
        audited.assert_differs(ROW["sk"]["S"], "found none")
    audited.assert_no_difference()


def test_a_row_that_no_event_explains_is_named(audited: Audited) -> None:
    table, key = audited.tables.settings.table, {"pk": {"S": "TENANT#test"}, "sk": {"S": "METRIC#test"}}
    # As the troubleshooting guide writes it.
    item = {**key, "usage": {"N": "1"}, "last_updated": {"S": "2024-01-15T10:00:00Z"}}
    audited.tables.dynamodb.put_item(TableName=table, Item=item)
    audited.assert_differs("TENANT#test METRIC#test", "expected none", "usage 1")
    audited.tables.dynamodb.delete_item(TableName=table, Key=key)
    audited.assert_no_difference()


def test_progress_rejected_rows_and_claims_that_were_changed_are_named(audited: Audited) -> None:
    settings = audited.tables.settings
    progress = {"pk": {"S": f"STREAM#{settings.stream}"}, "sk": {"S": "SHARD#shardId-000000000000"}}
    with audited.changed(settings.table, progress, duplicates={"N": "1000"}):
        audited.assert_differs("shardId-000000000000", "events", "duplicates 1000")
    pk, sk = min(audited.tables.rejected())
    with audited.changed(settings.rejected_table, {"pk": {"S": pk}, "sk": {"S": sk}}):
        audited.assert_differs(pk, sk, "rejected row", "found none")
    claim = {"pk": {"S": f"TENANT#{TENANT}#EVENT#d"}}
    with audited.changed(settings.ledger_table, claim):
        audited.assert_differs(claim["pk"]["S"], "claim", "found none")
    audited.assert_no_difference()


def test_audits_while_events_stream_in_and_a_shard_splits_find_no_difference(audited: Audited) -> None:
    tables = audited.tables
    parent = open_shards(tables)[0]
    with Load(audited.url, Truth(), name="running", events_s=20) as load:
        for _ in range(3):
            load.await_events(20)
            audited.assert_no_difference()
        split(tables, parent)
        load.await_events(40)
        audited.assert_no_difference()
        until(
            lambda: tables.progress()[parent["ShardId"]].closed,
            lambda: f"the parent is closed: {tables.progress()}",
            timeout_s=CLOSED_S,
        )
        audited.assert_no_difference()
    audited.await_applied()
    lines = audited.assert_no_difference("--strict")
    assert tables.progress()[parent["ShardId"]].closed
    assert sum(line.startswith("shardId-") for line in lines) == 4


def _event(value: str, *, event_id: str | None = None) -> dict[str, str]:
    fields = {"tenant_id": TENANT, "metric": "calls", "value": value, "timestamp": "2024-01-15T10:00:00Z"}
    return fields if event_id is None else fields | {"event_id": event_id}


def _envelope(*events: dict[str, str]) -> bytes:
    return json.dumps({"batch_id": str(uuid.uuid4()), "events": events}).encode()
