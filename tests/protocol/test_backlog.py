"""A backlog comes in large deliveries: they are applied part by part, each part checkpointed behind its last record."""

from __future__ import annotations

from decimal import Decimal

import pytest

from consumer import record_processor
from consumer.decoding import ReceivedRecord, in_parts
from metering.memory import MemoryStream, MemoryTables
from metering.rows import RowKey
from metering.settings import Settings
from tests.builders import NOW, STREAM, at
from tests.protocol.daemon import Daemon, Sent, event_record

TOTAL = RowKey("TENANT#tenant-123", "METRIC#api_calls")
RECORDS = [event_record(number) for number in range(1, 8)]
PARTS = [RECORDS[:3], RECORDS[3:6], RECORDS[6:]]


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record_processor, "PART_BYTES_MAX", 3 * len(RECORDS[0].data))


def expect_checkpoint_behind(daemon: Daemon, record: Sent, error: str | None = None) -> None:
    assert daemon.receive() == {
        "action": "checkpoint",
        "sequenceNumber": record.sequence_number,
        "subSequenceNumber": 0,
    }
    daemon.send(action="checkpoint", sequenceNumber=record.sequence_number, subSequenceNumber=0, error=error)


def test_each_part_is_applied_before_it_is_checkpointed(
    tables: MemoryTables, stream: MemoryStream, settings: Settings
) -> None:
    with Daemon(tables, stream, settings) as daemon:
        daemon.initialize()
        daemon.send_records(*RECORDS)
        done = 0
        for part in PARTS[:-1]:
            expect_checkpoint_behind(daemon, part[-1])
            done += len(part)
            assert tables.rows[TOTAL].events >= done
        daemon.expect_checkpoint()
        daemon.expect_status("processRecords")
    assert tables.rows[TOTAL].events == 7
    (progress,) = tables.progress(STREAM)
    assert (progress.position, progress.records, progress.counted) == (at(7), 7, 7)


def test_nothing_of_a_part_is_written_before_the_checkpoint_of_the_one_before(
    tables: MemoryTables, stream: MemoryStream, settings: Settings
) -> None:
    with Daemon(tables, stream, settings) as daemon:
        daemon.initialize()
        daemon.send_records(*RECORDS)
        assert daemon.receive() is not None
        assert tables.rows[TOTAL].events == 3


def test_a_daemon_that_ends_between_two_parts_goes_on_behind_the_first(
    tables: MemoryTables, stream: MemoryStream, settings: Settings
) -> None:
    with Daemon(tables, stream, settings) as daemon:
        daemon.initialize()
        daemon.send_records(*RECORDS)
        expect_checkpoint_behind(daemon, PARTS[0][-1])
        assert daemon.receive() is not None  # the second part is applied, its checkpoint never written
    with Daemon(tables, stream, settings) as daemon:
        daemon.initialize()
        daemon.send_records(*RECORDS[3:])
        expect_checkpoint_behind(daemon, PARTS[1][-1])
        daemon.expect_checkpoint()
        daemon.expect_status("processRecords")
    assert (tables.rows[TOTAL].usage, tables.rows[TOTAL].events) == (Decimal(70), 7)


def test_a_lost_lease_stops_the_parts_that_are_left(
    tables: MemoryTables, stream: MemoryStream, settings: Settings
) -> None:
    with Daemon(tables, stream, settings) as daemon:
        daemon.initialize()
        daemon.send_records(*RECORDS)
        expect_checkpoint_behind(daemon, PARTS[0][-1], error="ShutdownException")
        daemon.expect_status("processRecords")
    assert tables.rows[TOTAL].events == 3


def test_the_newest_time_is_claimed_with_the_last_part_alone(stream: MemoryStream, settings: Settings) -> None:
    seen: list[bool] = []

    class Recording(MemoryTables):
        def record_progress(self, *args: object, complete_until: object, **kwargs: object) -> None:
            seen.append(complete_until is not None)
            super().record_progress(*args, complete_until=complete_until, **kwargs)  # type: ignore[arg-type]

    with Daemon(Recording(), stream, settings) as daemon:
        daemon.initialize()
        daemon.send_records(*RECORDS)
        for part in PARTS[:-1]:
            expect_checkpoint_behind(daemon, part[-1])
        daemon.expect_checkpoint()
        daemon.expect_status("processRecords")
    assert seen == [False, False, True]


@pytest.mark.parametrize(
    ("sizes", "parts"),
    [
        ([], []),
        ([10], [1]),
        ([11], [1]),
        ([5, 5], [2]),
        ([5, 6], [1, 1]),
        ([11, 1, 1], [1, 2]),
        ([3, 3, 3, 3], [3, 1]),
        ([0, 0, 0], [3]),
    ],
)
def test_parts_hold_as_many_records_as_fit(sizes: list[int], parts: list[int]) -> None:
    records = [ReceivedRecord(str(100 + n), b"x" * size, NOW) for n, size in enumerate(sizes)]
    cut = list(in_parts(records, bytes_max=10))
    assert [len(part) for part in cut] == parts
    assert [record for part in cut for record in part] == records


def test_records_that_the_kpl_aggregated_stay_together() -> None:
    together = [ReceivedRecord("101", b"xxxx", NOW, sub) for sub in range(4)]
    records = [ReceivedRecord("100", b"x", NOW), *together, ReceivedRecord("102", b"x", NOW)]
    cut = list(in_parts(records, bytes_max=10))
    assert [[record.sequence_number for record in part] for part in cut] == [["100"], ["101"] * 4, ["102"]]
    assert cut[1][-1].sub_sequence_number == 3
