"""Claims in the real KCLProcess: retries, replays and a ledger that fails, from the delivery to the checkpoint."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from typing import Any

import pytest

from metering.claims import Claim, Holder, RepeatsWrite
from metering.errors import StoreUnavailableError
from metering.memory import MemoryLedger, MemoryStream, MemoryTables
from metering.ports import ShardRef
from metering.rows import RowKey, event_claim_key, rejected_key
from metering.settings import Settings
from tests.builders import STREAM, at
from tests.protocol.daemon import SHARD_ID, Daemon, Sent, event_record

TOTAL = RowKey("TENANT#tenant-123", "METRIC#api_calls")


def batch_record(number: int, *events: dict[str, Any], batch_id: str = "b-1") -> Sent:
    bare = [json.loads(event_record(0, **event).data) for event in events]
    return Sent(number, json.dumps({"batch_id": batch_id, "events": bare}).encode())


def total(tables: MemoryTables) -> tuple[Decimal, int]:
    row = tables.rows[TOTAL]
    return row.usage, row.events


def test_an_event_sent_again_is_counted_once_and_said_to_have_come_again(
    tables: MemoryTables, stream: MemoryStream, settings: Settings
) -> None:
    ledger = MemoryLedger()
    with Daemon(tables, stream, settings, ledger) as daemon:
        daemon.initialize()
        daemon.deliver(event_record(1, event_id="req-1"), event_record(2, event_id="req-1"))
        daemon.deliver(event_record(3, event_id="req-1"))
    assert total(tables) == (Decimal(10), 1)
    assert ledger.claims[event_claim_key("tenant-123", "req-1")].duplicates == 2
    (progress,) = tables.progress(STREAM)
    assert (progress.events, progress.counted, progress.duplicates) == (3, 1, 2)


def test_a_conflict_is_kept_as_rejected_and_not_counted(
    tables: MemoryTables, stream: MemoryStream, settings: Settings
) -> None:
    with Daemon(tables, stream, settings) as daemon:
        daemon.initialize()
        daemon.deliver(event_record(1, event_id="req-1"), event_record(2, event_id="req-1", value="11"))
    assert total(tables) == (Decimal(10), 1)
    assert tables.rejected[rejected_key(SHARD_ID, at(2), 0)].reason == "event_id_conflict"
    (progress,) = tables.progress(STREAM)
    assert (progress.counted, progress.duplicates, progress.rejected) == (1, 0, 1)


def test_a_collectors_retry_of_a_record_is_counted_once(
    tables: MemoryTables, stream: MemoryStream, settings: Settings
) -> None:
    record = batch_record(1, {}, {"event_id": "req-1"}, {"value": "0.5"})
    ledger = MemoryLedger()
    for number in (1, 2):
        with Daemon(tables, stream, settings, ledger) as daemon:
            daemon.initialize()
            daemon.deliver(replace(record, number=number))
    assert total(tables) == (Decimal("20.5"), 3)


@pytest.mark.parametrize("ledger_on", [True, False])
def test_a_replay_changes_nothing_with_the_ledger_on_or_off(
    tables: MemoryTables, stream: MemoryStream, settings: Settings, *, ledger_on: bool
) -> None:
    ledger = MemoryLedger()
    records = [batch_record(n, {"event_id": f"req-{n}"}, {}, batch_id=f"b-{n}") for n in (1, 2, 3)]
    for _ in range(3):
        with Daemon(tables, stream, replace(settings, ledger=ledger_on), ledger) as daemon:
            daemon.initialize()
            daemon.deliver(*records)
    assert total(tables) == (Decimal(60), 6)
    assert all(claim.duplicates == 0 for claim in ledger.claims.values())
    assert any(key.startswith("TENANT#") for key in ledger.claims) is ledger_on


def test_no_row_is_written_before_all_claims_are_made(
    tables: MemoryTables, stream: MemoryStream, settings: Settings
) -> None:
    class Failing(MemoryLedger):
        def claim(self, shard: ShardRef, claims: Sequence[Claim], *, now: datetime) -> dict[str, Holder]:
            if any(claim.key.endswith("req-99") for claim in claims):
                raise StoreUnavailableError("throttled")
            return super().claim(shard, claims, now=now)

    with Daemon(tables, stream, settings, Failing()) as daemon:
        daemon.initialize()
        daemon.send_records(*(event_record(n, event_id=f"req-{n}") for n in range(1, 100)))
        assert daemon.expect_end() == 1, "the process ends without a checkpoint"
    assert tables.rows == {}


def test_a_sighting_that_cannot_be_noted_stops_the_batch_before_its_rows(
    tables: MemoryTables, stream: MemoryStream, settings: Settings
) -> None:
    class Failing(MemoryLedger):
        def note_repeats(self, shard: ShardRef, write: RepeatsWrite) -> None:
            raise StoreUnavailableError("throttled")

    with Daemon(tables, stream, settings, Failing()) as daemon:
        daemon.initialize()
        daemon.send_records(event_record(1, event_id="req-1"), event_record(2, event_id="req-1"))
        assert daemon.expect_end() == 1
    assert tables.rows == {}


def test_a_conflict_is_kept_before_any_row_is_written(
    tables: MemoryTables, stream: MemoryStream, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise StoreUnavailableError("throttled")

    monkeypatch.setattr(tables, "reject", refuse)
    with Daemon(tables, stream, settings) as daemon:
        daemon.initialize()
        daemon.send_records(event_record(1, event_id="req-1"), event_record(2, event_id="req-1", value="11"))
        assert daemon.expect_end() == 1
    assert tables.rows == {}


def test_a_claim_whose_answer_was_lost_is_found_by_the_retry(
    tables: MemoryTables, stream: MemoryStream, settings: Settings
) -> None:
    class Losing(MemoryLedger):
        lost = 0

        def claim(self, shard: ShardRef, claims: Sequence[Claim], *, now: datetime) -> dict[str, Holder]:
            holders = super().claim(shard, claims, now=now)
            self.lost += 1
            if self.lost <= 2:
                raise StoreUnavailableError("the answer was lost")
            return holders

    with Daemon(tables, stream, settings, Losing()) as daemon:
        daemon.initialize()
        daemon.deliver(event_record(1, event_id="req-1"))
    assert total(tables) == (Decimal(10), 1)


def test_a_row_in_the_ledger_that_cannot_be_read_does_not_block_the_shard(
    tables: MemoryTables, stream: MemoryStream, settings: Settings
) -> None:
    ledger = MemoryLedger()
    with Daemon(tables, stream, settings, ledger) as daemon:
        daemon.initialize()
        daemon.deliver(event_record(1, event_id="req-1"))
        ledger.claims[event_claim_key("tenant-123", "req-1")].holder = Holder("", None)
        daemon.deliver(event_record(2, event_id="req-1"), event_record(3, event_id="req-2"))
    assert total(tables) == (Decimal(20), 2)
    assert tables.rejected[rejected_key(SHARD_ID, at(2), 0)].reason == "ledger_row_unreadable"
