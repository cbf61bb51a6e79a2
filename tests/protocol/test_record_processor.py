"""The record processor in the real KCLProcess: what must hold whatever the daemon, the store and the records do."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from metering.errors import MissingResourceError, StoreUnavailableError
from metering.memory import MemoryStream, MemoryTables
from metering.ports import Shard
from metering.rows import RowKey
from metering.settings import Settings
from tests.builders import CREATED_AT, STREAM, at
from tests.protocol.daemon import SHARD_ID, Daemon, Sent, event_record

TOTAL = RowKey("TENANT#tenant-123", "METRIC#api_calls")
WINDOW = RowKey("TENANT#tenant-123", "HOUR#api_calls#2024-01-15T10")


def total(tables: MemoryTables) -> tuple[Decimal, int]:
    row = tables.rows[TOTAL]
    assert (row.usage, row.events) == (tables.rows[WINDOW].usage, tables.rows[WINDOW].events)
    return row.usage, row.events


def test_a_delivery_is_counted_and_then_checkpointed(
    tables: MemoryTables, stream: MemoryStream, settings: Settings
) -> None:
    with Daemon(tables, stream, settings) as daemon:
        daemon.initialize()
        daemon.send_records(event_record(1), event_record(2, value="0.5"))
        message = daemon.receive()
        assert message is not None
        assert message["action"] == "checkpoint"
        assert total(tables) == (Decimal("10.5"), 2), "the rows must be there before the checkpoint is asked for"
        progress = tables.progress(STREAM)[0]
        assert (progress.position, progress.counted) == (at(2), 2), "and so must the progress row"
        daemon.send(action="checkpoint", sequenceNumber=None, subSequenceNumber=None, error=None)
        daemon.expect_status("processRecords")
    assert daemon.exit_code == 0
    assert list(tables.directory) == ["tenant-123"]


def test_the_steps_of_a_batch_keep_their_order(stream: MemoryStream, settings: Settings) -> None:
    steps: list[str] = []

    class Recorder(MemoryTables):
        def __getattribute__(self, name: str) -> Any:
            if name in {"reject", "register_tenant", "apply", "record_progress"}:
                steps.append(name)
            return super().__getattribute__(name)

    with Daemon(Recorder(), stream, settings) as daemon:
        daemon.initialize()
        steps.clear()
        daemon.send_records(event_record(1), Sent(2, b"rubbish"))
        assert daemon.receive() == {"action": "checkpoint", "sequenceNumber": None, "subSequenceNumber": None}
        assert list(dict.fromkeys(steps)) == ["reject", "register_tenant", "apply", "record_progress"]


def test_redelivered_batch_is_counted_once(tables: MemoryTables, stream: MemoryStream, settings: Settings) -> None:
    batch = [event_record(number) for number in range(1, 10)]
    with Daemon(tables, stream, settings) as daemon:
        daemon.initialize()
        daemon.send_records(*batch)
        assert daemon.receive() is not None  # asks for the checkpoint, and the daemon dies
    for _ in range(2):
        with Daemon(tables, stream, settings) as daemon:
            daemon.initialize()
            daemon.deliver(*batch)
    assert total(tables) == (Decimal(90), 9)
    progress = tables.progress(STREAM)[0]
    assert (progress.records, progress.events, progress.counted) == (9, 9, 9)


@pytest.mark.parametrize("borders", [(1, 9), (4, 9), (2, 3, 7, 9), (8, 9), tuple(range(1, 10))])
def test_batch_borders_that_differ_on_replay_change_nothing(
    borders: tuple[int, ...], tables: MemoryTables, stream: MemoryStream, settings: Settings
) -> None:
    records = [event_record(number, value=str(number)) for number in range(1, 10)]
    with Daemon(tables, stream, settings) as daemon:
        daemon.initialize()
        daemon.deliver(*records[:5])
    with Daemon(tables, stream, settings) as daemon:
        daemon.initialize()
        start = 0
        for border in borders:
            daemon.deliver(*records[start:border])
            start = border
    assert total(tables) == (Decimal(45), 9)
    assert tables.progress(STREAM)[0].counted == 9


def test_a_batch_that_replays_some_rows_and_not_others_completes_them_all(
    tables: MemoryTables, stream: MemoryStream, settings: Settings
) -> None:
    class Crashing(MemoryTables):
        """Fails for good at the second metric, after the first has been written."""

        def apply(self, shard: Any, write: Any, *, now: datetime) -> bool:
            if write.key.sk == "METRIC#second":
                raise RuntimeError("a bug")
            return super().apply(shard, write, now=now)

    crashing = Crashing()
    batch = [event_record(1), event_record(2, metric="second"), event_record(3)]
    with Daemon(crashing, stream, settings) as daemon:
        daemon.initialize()
        daemon.send_records(*batch)
        assert daemon.expect_end() == 1
    tables.rows, tables.shards = crashing.rows, crashing.shards
    with Daemon(tables, stream, settings) as daemon:
        daemon.initialize()
        daemon.deliver(*batch)
    assert total(tables) == (Decimal(20), 2)
    assert tables.rows[RowKey("TENANT#tenant-123", "METRIC#second")].usage == Decimal(10)


def test_a_throttled_checkpoint_is_asked_for_again(
    tables: MemoryTables, stream: MemoryStream, settings: Settings
) -> None:
    with Daemon(tables, stream, settings) as daemon:
        daemon.initialize()
        daemon.deliver(event_record(1), checkpoint_errors=["ThrottlingException", "ThrottlingException", None])
        daemon.deliver(event_record(2))
    assert total(tables) == (Decimal(20), 2)


def test_a_checkpoint_that_stays_throttled_ends_the_process(
    tables: MemoryTables, stream: MemoryStream, settings: Settings
) -> None:
    with Daemon(tables, stream, settings) as daemon:
        daemon.initialize()
        daemon.send_records(event_record(1))
        while (message := daemon.receive()) is not None:
            assert message["action"] == "checkpoint"
            daemon.send(action="checkpoint", sequenceNumber=None, subSequenceNumber=None, error="ThrottlingException")
        assert daemon.expect_end() == 1


@pytest.mark.parametrize("error", ["InvalidStateException", "SomethingElse"])
def test_a_checkpoint_error_that_is_not_understood_ends_the_process(
    error: str, tables: MemoryTables, stream: MemoryStream, settings: Settings
) -> None:
    with Daemon(tables, stream, settings) as daemon:
        daemon.initialize()
        daemon.send_records(event_record(1))
        daemon.expect_checkpoint(error)
        assert daemon.expect_end() == 1


def test_after_a_refused_checkpoint_nothing_more_is_written(
    tables: MemoryTables, stream: MemoryStream, settings: Settings
) -> None:
    with Daemon(tables, stream, settings) as daemon:
        daemon.initialize()
        daemon.deliver(event_record(1), checkpoint_errors=["ShutdownException"])
        daemon.send_records(event_record(2))
        daemon.expect_status("processRecords")  # without a checkpoint
        daemon.send_records()
        daemon.expect_status("processRecords")
        daemon.send(action="leaseLost")
        daemon.expect_status("leaseLost")
    assert total(tables) == (Decimal(10), 1)


def test_a_daemon_that_is_gone_at_a_checkpoint_ends_the_process(
    tables: MemoryTables, stream: MemoryStream, settings: Settings
) -> None:
    with Daemon(tables, stream, settings) as daemon:
        daemon.initialize()
        daemon.send_records(event_record(1))
        assert daemon.receive() is not None
        daemon.hang_up()
        assert daemon.expect_end() == 1


@pytest.mark.parametrize("error", [RuntimeError("a bug"), KeyError("x"), MissingResourceError("table", "usage")])
def test_an_exception_in_process_records_ends_the_process_without_a_checkpoint(
    error: Exception, stream: MemoryStream, settings: Settings
) -> None:
    class Broken(MemoryTables):
        def apply(self, shard: Any, write: Any, *, now: datetime) -> bool:
            raise error

    tables = Broken()
    with Daemon(tables, stream, settings) as daemon:
        daemon.initialize()
        daemon.send_records(event_record(1))
        assert daemon.expect_end() == 1, "neither a checkpoint nor a status may follow"
    assert daemon.escaped is None
    assert tables.progress(STREAM)[0].records == 0


def test_a_store_that_comes_back_is_waited_for(stream: MemoryStream, settings: Settings) -> None:
    class Flaky(MemoryTables):
        failures = 3

        def apply(self, shard: Any, write: Any, *, now: datetime) -> bool:
            if self.failures:
                self.failures -= 1
                raise StoreUnavailableError("throttled")
            return super().apply(shard, write, now=now)

    tables = Flaky()
    with Daemon(tables, stream, settings) as daemon:
        daemon.initialize()
        daemon.deliver(event_record(1))
    assert total(tables) == (Decimal(10), 1)


def test_a_store_that_stays_away_ends_the_process_without_a_checkpoint(
    stream: MemoryStream, settings: Settings
) -> None:
    class Away(MemoryTables):
        def apply(self, shard: Any, write: Any, *, now: datetime) -> bool:
            raise StoreUnavailableError("throttled")

    with Daemon(Away(), stream, settings) as daemon:
        daemon.initialize()
        daemon.send_records(event_record(1))
        assert daemon.expect_end() == 1


def test_rejected_events_are_kept_and_never_block_the_shard(
    tables: MemoryTables, stream: MemoryStream, settings: Settings
) -> None:
    envelope = {"batch_id": "b-1", "events": [json.loads(event_record(0).data), {"tenant_id": "t", "metric": "m"}]}
    with Daemon(tables, stream, settings) as daemon:
        daemon.initialize()
        daemon.deliver(Sent(1, b"\xff\x00not json"), Sent(2, json.dumps(envelope).encode()), event_record(3))
    assert total(tables) == (Decimal(20), 2)
    kept = [(key.pk, rejected.position, rejected.index, rejected.reason) for key, rejected in tables.rejected.items()]
    assert kept == [
        (f"SHARD#{SHARD_ID}", at(1), 0, "malformed_record"),
        (f"SHARD#{SHARD_ID}", at(2), 1, "missing_field"),
    ]
    assert tables.rejected[next(iter(tables.rejected))].raw == b"\xff\x00not json"
    progress = tables.progress(STREAM)[0]
    assert (progress.records, progress.events, progress.counted, progress.rejected) == (3, 4, 2, 2)


def test_parts_of_one_aggregated_record_are_one_record(
    tables: MemoryTables, stream: MemoryStream, settings: Settings
) -> None:
    parts = [event_record(1), event_record(1), Sent(1, b"rubbish")]
    for _ in range(2):
        with Daemon(tables, stream, settings) as daemon:
            daemon.initialize()
            daemon.deliver(*parts)
    assert total(tables) == (Decimal(20), 2)
    assert [rejected.index for rejected in tables.rejected.values()] == [2]
    assert tables.progress(STREAM)[0].records == 1


def test_shard_end_opens_the_children_closes_the_shard_and_then_checkpoints(
    tables: MemoryTables, settings: Settings
) -> None:
    class Split(MemoryStream):
        def shards(self) -> list[Shard]:
            parent, *others = super().shards()
            parent = replace(parent, open=False)
            children = [Shard(f"shardId-00000000000{n}", (parent.shard_id,), True, "0", "1") for n in (4, 5)]
            return [parent, *others, *children]

    clock = Clock()
    with Daemon(tables, Split(created_at=CREATED_AT), settings, clock=clock) as daemon:
        daemon.initialize()
        daemon.deliver(event_record(1))
        for _ in range(7):
            clock.advance(1)
            daemon.deliver()
        daemon.send(action="shardEnded")
        message = daemon.receive()
        assert message is not None
        assert message["action"] == "checkpoint"
        progress = {shard.shard_id: shard for shard in tables.progress(STREAM)}
        assert progress[SHARD_ID].closed
        for child in ("shardId-000000000004", "shardId-000000000005"):
            assert not progress[child].closed
            assert progress[child].complete_until == clock.start + timedelta(seconds=0.999), "as the shard's own row"
        daemon.send(action="checkpoint", sequenceNumber=None, subSequenceNumber=None, error="ThrottlingException")
        daemon.expect_checkpoint()
        daemon.expect_status("shardEnded")


@pytest.mark.parametrize("listed_open", [True, False])
def test_an_end_that_the_stream_does_not_know_of_ends_the_process_and_closes_nothing(
    listed_open: bool,  # noqa: FBT001
    tables: MemoryTables,
    settings: Settings,
) -> None:
    """The KCL takes a shard for ended when the stream does not know its iterator."""

    class Listed(MemoryStream):
        def shards(self) -> list[Shard]:
            own, *others = super().shards()
            return [replace(own, open=listed_open), *others]

    with Daemon(tables, Listed(created_at=CREATED_AT), settings) as daemon:
        daemon.initialize()
        daemon.deliver(event_record(1))
        before = dict(tables.shards)
        daemon.send(action="shardEnded")
        assert daemon.expect_end() == 1
    assert tables.shards == before


def test_a_shard_that_is_no_longer_listed_enters_all_that_are_before_it_is_closed(
    tables: MemoryTables, settings: Settings
) -> None:
    """Its children may be gone from the stream as it is, and none of the others be known."""

    class Trimmed(MemoryStream):
        def shards(self) -> list[Shard]:
            return [Shard("shardId-000000000005", ("shardId-000000000003",), True, "0", "1"), *super().shards()[1:]]

    with Daemon(tables, Trimmed(created_at=CREATED_AT), settings) as daemon:
        daemon.initialize()
        daemon.deliver(event_record(1))
        daemon.send(action="shardEnded")
        daemon.expect_checkpoint()
        daemon.expect_status("shardEnded")
    progress = {shard.shard_id: (shard.closed, shard.complete_until is None) for shard in tables.progress(STREAM)}
    assert progress == {
        SHARD_ID: (True, False),
        "shardId-000000000001": (False, True),
        "shardId-000000000005": (False, True),
    }


def test_shutdown_requested_checkpoints(tables: MemoryTables, stream: MemoryStream, settings: Settings) -> None:
    with Daemon(tables, stream, settings) as daemon:
        daemon.initialize()
        daemon.deliver(event_record(1))
        daemon.send(action="shutdownRequested")
        daemon.expect_checkpoint()
        daemon.expect_status("shutdownRequested")
        daemon.send(action="leaseLost")
        daemon.expect_status("leaseLost")


def test_lease_lost_writes_nothing(tables: MemoryTables, stream: MemoryStream, settings: Settings) -> None:
    with Daemon(tables, stream, settings) as daemon:
        daemon.initialize()
        before = dict(tables.shards)
        daemon.send(action="leaseLost")
        daemon.expect_status("leaseLost")
        assert (tables.shards, tables.rows) == (before, {})


def test_empty_deliveries_are_heartbeats_and_never_checkpoint(
    tables: MemoryTables, stream: MemoryStream, settings: Settings
) -> None:
    clock = Clock()
    with Daemon(tables, stream, settings, clock=clock) as daemon:
        daemon.initialize()
        for _ in range(7):
            clock.advance(0.6)
            daemon.deliver()
        progress = tables.progress(STREAM)[0]
        assert progress.heartbeat_at is not None
        assert progress.position == ""
        # Delivered every 0.6 s up to 4.2, written every other time; complete up to the fifth delivery before the
        # last but one.
        assert progress.heartbeat_at == clock.start + timedelta(seconds=4.2)
        assert progress.complete_until == clock.start + timedelta(seconds=0.599)


def test_positions_of_the_row_name_the_shard_and_the_incarnation(tables: MemoryTables, settings: Settings) -> None:
    for created_at in (CREATED_AT, CREATED_AT + timedelta(days=1)):
        with Daemon(tables, MemoryStream(created_at=created_at), settings) as daemon:
            daemon.initialize()
            daemon.deliver(event_record(1))
    assert total(tables) == (Decimal(20), 2), "a stream made again numbers its records anew"
    assert len(tables.rows[TOTAL].applied) == 2


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.start = datetime(2024, 1, 15, 11, 0, tzinfo=UTC)
        self._now = self.start

    def __call__(self) -> datetime:
        return self._now

    def advance(self, seconds: float) -> None:
        self._now += timedelta(seconds=seconds)
