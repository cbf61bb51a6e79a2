"""Which events of a batch count: duplicates, conflicts and replays told apart, on the twin of the ledger."""

from __future__ import annotations

import json
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from consumer.claiming import Settlement, first_claims, settle, wishes_of
from consumer.decoding import ReceivedRecord, decode
from metering.claims import Claim, EventContent, Holder, Verdict, judge
from metering.memory import MemoryLedger
from metering.positions import sequence_number_of
from metering.rows import event_claim_key, place
from tests.builders import NOW, at, shard

EVENT = {"tenant_id": "tenant-123", "metric": "api_calls", "value": "10"}


def bare(event_id: str | None = "req-1", **fields: Any) -> bytes:
    identity = {} if event_id is None else {"event_id": event_id}
    return json.dumps({**EVENT, **identity, **fields}).encode()


def envelope(*events: bytes, batch_id: str = "b-1") -> bytes:
    return b'{"batch_id": "%b", "events": [%b]}' % (batch_id.encode(), b",".join(events))


class Shard:
    """Settles batches of one shard, one after the other, against a ledger that others may share."""

    def __init__(self, ledger: MemoryLedger | None = None, number: int = 0, *, claim_events: bool = True) -> None:
        self.ledger = ledger or MemoryLedger()
        self.shard = shard(number)
        self._claim_events = claim_events

    def settle(self, *records: tuple[int, bytes]) -> Settlement:
        received = [ReceivedRecord(sequence_number_of(at(n)), data, NOW + timedelta(seconds=n)) for n, data in records]
        decoded = list(decode(received, age_days_max=None))
        wishes = [
            wish for record in decoded for wish in wishes_of(record, claim_events=self._claim_events, window_minutes=60)
        ]
        holders = self.ledger.claim(self.shard, first_claims(wishes), now=NOW)
        return settle(self.shard, decoded, wishes, holders)

    def outcomes(self, *records: tuple[int, bytes]) -> list[tuple[int, int, int]]:
        """(counted, duplicates, rejected) of each record."""
        settled = self.settle(*records)
        return [(r.outcome.counted, r.outcome.duplicates, r.outcome.rejected) for r in settled.records]


def test_an_event_that_comes_again_counts_once() -> None:
    one = Shard()
    assert one.outcomes((1, bare()), (2, bare())) == [(1, 0, 0), (0, 1, 0)]
    assert one.outcomes((3, bare())) == [(0, 1, 0)]
    assert Shard(one.ledger, 1).outcomes((1, bare())) == [(0, 1, 0)]


def test_a_replay_finds_its_own_claims_whatever_the_borders() -> None:
    one = Shard()
    records = [(1, bare()), (2, bare()), (3, bare("req-2")), (4, bare("req-2", value="11"))]
    first = one.outcomes(*records)
    assert first == [(1, 0, 0), (0, 1, 0), (1, 0, 0), (0, 0, 1)]
    assert one.outcomes(*records) == first
    assert [outcome for record in records for outcome in one.outcomes(record)] == first


def test_one_id_twice_in_one_envelope_counts_once() -> None:
    settled = Shard().settle((1, envelope(bare(), bare(), bare("req-2"))))
    (record,) = settled.records
    assert [placed.event.event_id for placed in record.counted] == ["req-1", "req-2"]
    assert record.duplicates == 1
    (repeats,) = settled.repeats
    assert (repeats.key, [r.place for r in repeats.repeats]) == (
        event_claim_key("tenant-123", "req-1"),
        [place(at(1), 1)],
    )


@pytest.mark.parametrize("other", [{"value": "11"}, {"metric": "seats"}, {"timestamp": "2024-01-15T10:00:00Z"}])
def test_the_same_id_with_other_content_is_rejected_and_kept(other: dict[str, str]) -> None:
    settled = Shard().settle((1, bare()), (2, bare(**other)))
    assert settled.records[0].counted[0].event.value == Decimal(10)
    (conflict,) = settled.records[1].rejected
    assert (conflict.position, conflict.index, conflict.reason) == (at(2), 0, "event_id_conflict")
    assert conflict.detail == "the id is held by another event: metric=api_calls, value=10, timestamp=none"
    assert json.loads(conflict.raw) == {**EVENT, **other, "event_id": "req-1"}
    assert (conflict.tenant_id, conflict.claim_key) == ("tenant-123", event_claim_key("tenant-123", "req-1"))
    assert [r.conflict for write in settled.repeats for r in write.repeats] == [True]


@pytest.mark.parametrize("same", [{"value": 10}, {"value": "10.0"}, {"value": "1e1"}])
def test_a_number_written_otherwise_is_the_same_content(same: dict[str, Any]) -> None:
    assert Shard().outcomes((1, bare()), (2, bare(**same))) == [(1, 0, 0), (0, 1, 0)]


def test_a_time_written_otherwise_is_other_content() -> None:
    times = ["2024-01-15T10:00:00Z", "2024-01-15T10:00:00+00:00"]
    records = [(n, bare(timestamp=time)) for n, time in enumerate(times)]
    assert Shard().outcomes(*records) == [(1, 0, 0), (0, 0, 1)]


def test_received_at_is_no_content() -> None:
    records = [(n, bare(received_at=f"2024-01-15T10:00:0{n}Z")) for n in range(2)]
    assert Shard().outcomes(*records) == [(1, 0, 0), (0, 1, 0)]


def test_the_same_id_of_two_tenants_is_two_events() -> None:
    assert Shard().outcomes((1, bare()), (2, bare(tenant_id="other"))) == [(1, 0, 0), (1, 0, 0)]


def test_the_same_id_of_two_sources_is_two_events() -> None:
    records = [(1, bare()), (2, bare(source="/a")), (3, bare(source="/b")), (4, bare(source="/a"))]
    assert Shard().outcomes(*records) == [(1, 0, 0), (1, 0, 0), (1, 0, 0), (0, 1, 0)]


def test_ids_at_the_length_limit_are_told_apart_by_their_last_character() -> None:
    records = [(1, bare("x" * 127 + "a")), (2, bare("x" * 127 + "b")), (3, bare("x" * 127 + "a"))]
    assert Shard().outcomes(*records) == [(1, 0, 0), (1, 0, 0), (0, 1, 0)]


def test_an_id_over_the_limit_is_rejected_and_claims_nothing() -> None:
    one = Shard()
    assert one.outcomes((1, bare("x" * 129))) == [(0, 0, 1)]
    assert one.ledger.claims == {}


def test_a_rejected_event_claims_nothing_so_that_it_can_be_sent_right() -> None:
    assert Shard().outcomes((1, bare(value="-1")), (2, bare())) == [(0, 0, 1), (1, 0, 0)]


def test_events_without_ids_are_covered_by_their_batch() -> None:
    one = Shard()
    record = envelope(bare(None), bare(), bare(None))
    assert one.outcomes((1, record)) == [(3, 0, 0)]
    assert one.outcomes((2, record)) == [(0, 3, 0)]
    assert one.outcomes((1, record)) == [(3, 0, 0)]
    assert Shard(one.ledger, 1).outcomes((1, record)) == [(0, 3, 0)]


def test_a_batch_of_ids_alone_needs_no_claim_of_its_own() -> None:
    one = Shard()
    one.settle((1, envelope(bare(), bare("req-2"))))
    assert list(one.ledger.claims) == [event_claim_key("tenant-123", f"req-{n}") for n in (1, 2)]


def test_the_same_batch_id_with_other_events_is_rejected_and_kept() -> None:
    settled = Shard().settle((1, envelope(bare(None))), (2, envelope(bare(None, value="11"), bare("req-9"))))
    (conflict,) = settled.records[1].rejected
    assert (conflict.reason, conflict.index, conflict.claim_key) == ("batch_id_conflict", 0, None)
    assert conflict.detail == "the id is held by another batch of 1 event(s)"
    assert [placed.event.event_id for placed in settled.records[1].counted] == ["req-9"]


def test_bare_events_without_ids_are_told_apart_by_their_places() -> None:
    one = Shard()
    assert one.outcomes((1, bare(None)), (2, bare(None))) == [(1, 0, 0), (1, 0, 0)]
    assert one.ledger.claims == {}


def test_with_the_ledger_off_a_batch_still_counts_once_and_an_id_says_nothing() -> None:
    one = Shard(claim_events=False)
    record = envelope(bare(), bare(None))
    assert one.outcomes((1, record), (2, record)) == [(2, 0, 0), (0, 2, 0)]
    assert one.outcomes((3, envelope(bare(), batch_id="b-2")), (4, bare())) == [(1, 0, 0), (1, 0, 0)]


def test_two_envelopes_in_one_record_are_two_batches() -> None:
    sequence_number = sequence_number_of(at(1))
    received = [ReceivedRecord(sequence_number, envelope(bare(None)), NOW) for _ in range(2)]
    (record,) = decode(received, age_days_max=None)
    wishes = list(wishes_of(record, claim_events=True, window_minutes=60))
    assert [wish.claim.place for wish in wishes if wish.claim] == [place(at(1), 0), place(at(1), 1)]
    holders = MemoryLedger().claim(shard(), first_claims(wishes), now=NOW)
    (settled,) = settle(shard(), [record], wishes, holders).records
    assert (len(settled.counted), settled.duplicates) == (1, 1)


def test_a_row_that_cannot_be_read_is_rejected_not_counted_and_not_fatal() -> None:
    claim = Claim(event_claim_key("tenant-123", "req-1"), place(at(1), 0), EventContent("m", Decimal(1), None), NOW)
    received = [ReceivedRecord(sequence_number_of(at(1)), bare(), NOW)]
    decoded = list(decode(received, age_days_max=None))
    wishes = list(wishes_of(decoded[0], claim_events=True, window_minutes=60))
    settled = settle(shard(), decoded, wishes, {claim.key: Holder("", None)})
    assert [r.reason for r in settled.records[0].rejected] == ["ledger_row_unreadable"]
    assert settled.repeats == []
    assert judge(claim, "mine", Holder("mine", None)) is Verdict.COUNTED


def test_outcomes_add_up_whatever_becomes_of_the_events() -> None:
    record = envelope(bare(), bare(), bare(value="12"), bare(None), b'{"value": -1}')
    (outcome,) = (r.outcome for r in Shard().settle((1, record)).records)
    assert (outcome.counted, outcome.duplicates, outcome.rejected, outcome.events) == (2, 1, 2, 5)
