"""Replaying rejected events: counted once, however often it is tried, wherever it crashed; a batch's steps are real."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
import stamina

from metering.errors import InvalidEventError, MissingResourceError, StoreUnavailableError, StreamUnavailableError
from metering.memory_rejected import MemoryRejected
from metering.places import StreamPlace
from metering.ports import Held, NotHeld, OutgoingRecord
from operations import replay as replay_module
from operations.correction import Correction, derived_id
from operations.replay import Outcome, Replayed, Replayer, replay_all
from tests.builders import NOW, STREAM
from tests.unit.counting_world import EVENT, World

AS_IT_IS = Correction({})
BAD = {**EVENT, "event_id": "req-1", "value": "-5"}
MENDED = Correction({"value": "5"})
METRIC_RULE = "metric must be 1 to 128 letters, digits and . _ - : @, nothing else"


class CrashingStore(MemoryRejected):
    """Fails the next mark, as if the process had ended before it."""

    crashes = 0

    def mark_replayed(self, place: StreamPlace, event_ids: Sequence[str], *, now: datetime) -> bool:
        if self.crashes:
            self.crashes -= 1
            raise StoreUnavailableError("away")
        return super().mark_replayed(place, event_ids, now=now)


class Replays:
    """A world and its replayer. Each replay reads the row anew, as the command does."""

    def __init__(self, *, claim_events: bool = True) -> None:
        self.world = World(claim_events=claim_events)
        self.store = CrashingStore(self.world.tables, STREAM)
        self.replayer = Replayer(
            self.store,
            self.world.tables,
            self.world.stream,
            stream=STREAM,
            partitions=64,
            age_days_max=None,
            clock=lambda: self.world.now,
        )

    def replay(self, place: StreamPlace, correction: Correction = AS_IT_IS, *, dry_run: bool = False) -> Replayed:
        try:
            return self.replayer.replay(self.world.row(place), correction, dry_run=dry_run)
        finally:
            self.world.consume()

    def crash(self, place: StreamPlace, correction: Correction = AS_IT_IS) -> None:
        """Replay up to the mark, and no further."""
        self.store.crashes = 1
        with pytest.raises(StoreUnavailableError):
            self.replay(place, correction)

    def refused(self, place: StreamPlace, correction: Correction = AS_IT_IS) -> str:
        """The code with which a replay is refused; nothing may have been put, noted or marked."""
        records, row = len(self.world.stream.records), self.world.row(place)
        with pytest.raises(InvalidEventError) as caught:
            self.replay(place, correction)
        assert len(self.world.stream.records) == records
        assert self.world.row(place) == row
        return caught.value.code

    def sent(self) -> list[dict[str, Any]]:
        """The events of the last record."""
        return list(json.loads(self.world.stream.records[-1].data)["events"])

    def outcomes(self) -> tuple[int, int, int]:
        """Counted, duplicates and rejected, of all shards."""
        shards = self.world.tables.progress(STREAM)
        return (
            sum(shard.counted for shard in shards),
            sum(shard.duplicates for shard in shards),
            sum(shard.rejected for shard in shards),
        )


@pytest.fixture(params=[True, False], ids=["ledger", "no-ledger"])
def replays(request: pytest.FixtureRequest) -> Replays:
    return Replays(claim_events=request.param)


@pytest.fixture
def with_ledger() -> Replays:
    return Replays()


# ── Once ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_corrected_event_counts_under_its_own_id_and_its_row_is_marked(replays: Replays) -> None:
    place = replays.world.put(BAD)
    assert replays.replay(place, MENDED) == Replayed(Outcome.REPLAYED, ("req-1",))
    assert replays.world.total() == (Decimal(5), 1)
    row = replays.world.row(place)
    assert (row.replayed_at, row.replayed_as) == (NOW, ("req-1",))
    assert json.loads(replays.world.stream.records[-1].data)["batch_id"] == derived_id(place)


def test_a_second_replay_is_skipped(replays: Replays) -> None:
    place = replays.world.put(BAD)
    replays.replay(place, MENDED)
    for again in (MENDED, AS_IT_IS, Correction({"value": "6"}), Correction({}, as_new=True)):
        assert replays.replay(place, again) == Replayed(Outcome.ALREADY, ("req-1",))
    assert replays.world.total() == (Decimal(5), 1)
    assert replays.outcomes() == (1, 0, 1)


@pytest.mark.parametrize("fields", [BAD, {k: v for k, v in BAD.items() if k != "event_id"}], ids=["id", "no-id"])
@pytest.mark.parametrize("without", ["", "timestamp"])
def test_after_a_crash_between_put_and_mark_it_is_a_duplicate(
    replays: Replays, fields: dict[str, str], without: str
) -> None:
    event = {name: field for name, field in fields.items() if name != without}
    place = replays.world.put(event)
    for _ in range(2):
        replays.crash(place, MENDED)
        replays.world.now += timedelta(hours=1)
    assert replays.world.row(place).replayed_at is None
    assert replays.replay(place, MENDED).outcome is Outcome.FINISHED
    assert replays.world.total() == (Decimal(5), 1)
    assert replays.outcomes() == (1, 2, 1)
    assert replays.world.row(place).replayed_at == replays.world.now


def test_after_a_crash_it_is_finished_as_it_was_begun_without_giving_the_correction_again(replays: Replays) -> None:
    place = replays.world.put(BAD)
    replays.crash(place, Correction({"value": "5", "tenant_id": "other"}))
    assert replays.replay(place) == Replayed(Outcome.FINISHED, ("req-1",))
    assert replays.world.total("other") == (Decimal(5), 1)
    assert replays.outcomes() == (1, 1, 1)


@pytest.mark.parametrize(
    "other",
    [
        Correction({"value": "5", "tenant_id": "other"}),
        Correction({"value": "5", "event_id": "req-2"}),
        Correction({"value": "6"}),
        Correction({"value": "5"}, as_new=True),
    ],
    ids=["tenant", "id", "value", "as-new"],
)
def test_after_a_crash_another_correction_is_refused_for_it_would_count_as_well(
    replays: Replays, other: Correction
) -> None:
    place = replays.world.put(BAD)
    replays.crash(place, MENDED)
    assert replays.refused(place, other) == "replay_begun"
    assert replays.outcomes() == (1, 0, 1)


def test_two_people_at_once_with_two_corrections_count_once(replays: Replays) -> None:
    place = replays.world.put(BAD)
    stale = replays.world.row(place)
    replays.crash(place, MENDED)
    with pytest.raises(InvalidEventError, match="replay_begun"):
        replays.replayer.replay(stale, Correction({"value": "5", "tenant_id": "other"}))
    assert replays.replayer.replay(stale, MENDED).outcome is Outcome.REPLAYED
    assert replays.replayer.replay(stale, MENDED).outcome is Outcome.ALREADY
    replays.world.consume()
    assert replays.world.total() == (Decimal(5), 1)


def test_a_row_that_expires_meanwhile_is_not_put(replays: Replays) -> None:
    place = replays.world.put(BAD)
    row = replays.world.row(place)
    del replays.world.tables.rejected_rows[place]
    with pytest.raises(InvalidEventError, match="not_found"):
        replays.replayer.replay(row, MENDED)
    assert len(replays.world.stream.records) == 1


def test_a_dry_run_changes_nothing(replays: Replays) -> None:
    place = replays.world.put(BAD)
    row = replays.world.row(place)
    assert replays.replay(place, MENDED, dry_run=True) == Replayed(Outcome.WOULD, ("req-1",))
    assert (replays.world.row(place), len(replays.world.stream.records)) == (row, 1)


# ── Rules ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("fields", "correction", "code"),
    [
        ({"value": "-5"}, {}, "negative_value"),
        ({"value": "-5"}, {"value": "-6"}, "negative_value"),
        ({"value": "x"}, {"metric": "m"}, "invalid_value"),
        ({"timestmap": "2024-01-15T10:00:00Z"}, {"value": "5"}, "unknown_field"),
        ({"value": "-5"}, {"value": ""}, "missing_field"),
        ({"value": "-5"}, {"value": "5", "valeu": "5"}, "unknown_field"),
        ({"tenant_id": "a b"}, {"tenant_id": "a#b"}, "invalid_tenant_id"),
        ({"event_id": "x" * 129}, {}, "invalid_event_id"),
        ({"value": "-5"}, {"value": "5", "source": "/a"}, None),
    ],
)
def test_what_still_breaks_a_rule_is_refused_with_its_code(
    with_ledger: Replays, fields: dict[str, str], correction: dict[str, str], code: str | None
) -> None:
    place = with_ledger.world.put({**EVENT, **fields})
    if code is None:
        assert with_ledger.replay(place, Correction(correction)).outcome is Outcome.REPLAYED
    else:
        assert with_ledger.refused(place, Correction(correction)) == code


def test_a_field_is_taken_away_by_setting_it_to_nothing(with_ledger: Replays) -> None:
    place = with_ledger.world.put({**EVENT, "event_id": "req-1", "timestmap": "x", "source": "/a"})
    with_ledger.replay(place, Correction({"timestmap": ""}))
    assert with_ledger.sent() == [{**EVENT, "event_id": "req-1", "source": "/a"}]


@pytest.mark.parametrize("received_at", [{}, {"received_at": "2024-01-15T10:29:59.000Z"}], ids=["bare", "collected"])
def test_what_lay_in_the_future_may_be_past_by_now(with_ledger: Replays, received_at: dict[str, str]) -> None:
    place = with_ledger.world.put({**EVENT, "timestamp": "2024-01-15T11:00:00Z", "event_id": "req-1", **received_at})
    assert with_ledger.refused(place) == "timestamp_in_future"
    with_ledger.world.at(NOW + timedelta(hours=1))
    assert with_ledger.replay(place).outcome is Outcome.REPLAYED
    assert with_ledger.world.windows() == {"HOUR#api_calls#2024-01-15T11": Decimal(10)}


@pytest.mark.parametrize(
    ("received_at", "window"),
    [({}, "10"), ({"received_at": "2024-01-15T08:59:59.999Z"}, "08")],
    ids=["arrival", "sent"],
)
def test_an_event_without_a_timestamp_counts_in_its_own_time(
    with_ledger: Replays, received_at: dict[str, str], window: str
) -> None:
    place = with_ledger.world.put({"tenant_id": "t", "metric": "m", "value": "-1", **received_at})
    with_ledger.world.at(NOW + timedelta(days=3))
    with_ledger.replay(place, Correction({"value": "1"}))
    assert with_ledger.world.windows() == {f"HOUR#m#2024-01-15T{window}": Decimal(1)}


def test_the_age_limit_is_held_against_now() -> None:
    replays = Replays()
    replays.replayer._age_days_max = 7
    place = replays.world.put(BAD)
    replays.world.at(NOW + timedelta(days=8))
    assert replays.refused(place, MENDED) == "timestamp_too_old"


def test_a_row_of_another_stream_is_refused(with_ledger: Replays) -> None:
    place = with_ledger.world.put(BAD)
    with_ledger.replayer._stream = "another"
    assert with_ledger.refused(place, MENDED) == "other_stream"


# ── Ids that are held ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_conflict_counts_as_new_or_not_at_all(with_ledger: Replays) -> None:
    with_ledger.world.put({**EVENT, "event_id": "req-1"})
    place = with_ledger.world.put({**EVENT, "event_id": "req-1", "value": "11"})
    assert with_ledger.refused(place) == "event_id_conflict"
    assert with_ledger.replay(place, Correction({}, as_new=True)).event_ids == (derived_id(place),)
    assert with_ledger.world.total() == (Decimal(21), 2)


def test_a_conflict_that_is_corrected_until_it_is_equal_is_a_duplicate(with_ledger: Replays) -> None:
    with_ledger.world.put({**EVENT, "event_id": "req-1"})
    place = with_ledger.world.put({**EVENT, "event_id": "req-1", "value": "11"})
    assert with_ledger.replay(place, Correction({"value": "10.0"})).outcome is Outcome.REPLAYED
    assert with_ledger.world.total() == (Decimal(10), 1)
    assert with_ledger.outcomes() == (1, 1, 1)


def test_as_new_stays_one_event_after_a_crash(with_ledger: Replays) -> None:
    with_ledger.world.put({**EVENT, "event_id": "req-1"})
    place = with_ledger.world.put({**EVENT, "event_id": "req-1", "value": "11"})
    with_ledger.crash(place, Correction({}, as_new=True))
    assert with_ledger.replay(place, Correction({}, as_new=True)).outcome is Outcome.FINISHED
    assert with_ledger.world.total() == (Decimal(21), 2)


def test_a_corrected_event_whose_id_counted_meanwhile_is_refused_before_it_is_put(with_ledger: Replays) -> None:
    place = with_ledger.world.put(BAD)
    with_ledger.world.put({**EVENT, "event_id": "req-1"})
    assert with_ledger.refused(place, MENDED) == "event_id_conflict"
    assert with_ledger.replay(place, Correction({"value": "10"})).outcome is Outcome.REPLAYED
    assert with_ledger.world.total() == (Decimal(10), 1)


def test_a_ledger_row_that_cannot_be_read_is_said(with_ledger: Replays) -> None:
    place = with_ledger.world.put(BAD)
    with_ledger.world.put({**EVENT, "event_id": "req-1"})
    (claim,) = with_ledger.world.tables.ledger.claims.values()
    claim.holder = type(claim.holder)(claim.holder.owner, None)
    assert with_ledger.refused(place, MENDED) == "ledger_row_unreadable"


def test_a_batch_that_conflicts_counts_only_as_new(replays: Replays) -> None:
    replays.world.put({"batch_id": "b", "events": [EVENT]})
    place = replays.world.put({"batch_id": "b", "events": [{**EVENT, "value": "11"}]})
    assert replays.world.row(place).reason == "batch_id_conflict"
    assert replays.refused(place) == "batch_id_conflict"
    replays.crash(place, Correction({}, as_new=True))
    replays.replay(place, Correction({}, as_new=True))
    assert replays.world.total() == (Decimal(21), 2)


# ── Records ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_undecodable_record_needs_an_event_in_its_place(replays: Replays) -> None:
    place = replays.world.put(b"\xff\xfe")
    assert replays.refused(place) == "malformed_json"
    assert replays.refused(place, Correction({"value": "1"})) == "malformed_json"
    given = Correction({}, json.dumps({**EVENT, "event_id": "req-9"}).encode())
    assert replays.replay(place, given).event_ids == ("req-9",)
    assert replays.world.total() == (Decimal(10), 1)


@pytest.mark.parametrize("data", [b"[]", b"7", b'"x"', b"null"])
def test_what_is_no_object_has_no_fields_to_correct(with_ledger: Replays, data: bytes) -> None:
    place = with_ledger.world.put(data)
    assert with_ledger.refused(place) == "invalid_event"
    assert with_ledger.refused(place, Correction({"value": "1"})) == "invalid_event"


def test_a_record_that_decodes_by_now_is_replayed_event_by_event(
    replays: Replays, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = [EVENT, {**EVENT, "event_id": "own"}, {**EVENT, "metric": "seats", "value": "2"}]
    place = replays.world.put(json.dumps({"batch_id": "", "events": events}).encode())
    assert replays.refused(place) == "malformed_record"
    row = replays.world.row(place)
    raw = json.dumps({"batch_id": "b", "events": events}).encode()
    replays.world.tables.rejected_rows[place] = type(row)(
        **{name: getattr(row, name) for name in row.__slots__} | {"raw": raw, "raw_bytes": len(raw)}
    )
    monkeypatch.setattr(replay_module, "REMEMBERED_BYTES_MAX", 100)  # as if it were too much for the row
    ids = (derived_id(place, 0), "own", derived_id(place, 2))
    replays.crash(place)
    assert (replays.world.row(place).replay_events or b"").startswith(b"sha256:")
    assert replays.refused(place, Correction({}, as_new=True)) == "replay_begun"
    assert replays.replay(place) == Replayed(Outcome.FINISHED, ids)
    assert replays.world.total() == (Decimal(20), 2)
    assert replays.world.total(metric="seats") == (Decimal(2), 1)
    assert replays.outcomes() == (3, 3, 1)


def test_one_bad_event_of_a_record_keeps_all_of_it_back(replays: Replays) -> None:
    place = replays.world.put(b"\xff")
    given = json.dumps({"batch_id": "b", "events": [EVENT, {**EVENT, "value": "-1"}]}).encode()
    assert replays.refused(place, Correction({}, given)) == "negative_value"
    assert replays.refused(place, Correction({"value": "1"}, given)) == "invalid_event"
    assert replays.world.total() == (Decimal(0), 0)


def test_a_row_whose_bytes_were_cut_needs_the_event(replays: Replays) -> None:
    place = replays.world.put(b'{"tenant_id": "t", "x": "' + b"y" * 300_000 + b'"}')
    assert replays.refused(place) == "raw_cut"
    assert replays.replay(place, Correction({}, json.dumps(BAD | {"value": "1"}).encode())).event_ids == ("req-1",)


def test_numbers_go_back_as_exact_as_they_came(replays: Replays) -> None:
    place = replays.world.put(
        b'{"tenant_id": "tenant-123", "metric": "api_calls", "value": 123456789012345.123456789, "x": 1.10}'
    )
    replays.replay(place, Correction({"x": ""}))
    assert replays.world.total() == (Decimal("123456789012345.123456789"), 1)


def test_a_derived_id_is_an_id_however_long_the_place_is() -> None:
    place = StreamPlace("shardId-000000000000", "128" + "4" * 128, 99_999)
    assert derived_id(place, 1) != derived_id(place)
    assert all(len(each) <= 128 for each in (derived_id(place), derived_id(place, 1)))


# ── A stream that fails ──────────────────────────────────────────────────────────────────────────────────────────────


def test_what_the_stream_refuses_is_put_again_and_the_rest_is_not(replays: Replays) -> None:
    place = replays.world.put(b"\xff")
    events = [{**EVENT, "event_id": f"e-{n}", "value": str(n)} for n in range(3)]
    replays.world.stream.failures = [
        [None, "ProvisionedThroughputExceededException", None],
        StreamUnavailableError("x"),
    ]
    with stamina.set_testing(True, attempts=5):
        replays.replay(place, Correction({}, json.dumps({"batch_id": "b", "events": events}).encode()))
    assert replays.outcomes() == (3, 0, 1)


def test_a_stream_that_stays_away_leaves_the_row_to_be_finished(replays: Replays) -> None:
    place = replays.world.put(BAD)
    replays.world.stream.failures = [StreamUnavailableError("away")] * 5
    with stamina.set_testing(True, attempts=5), pytest.raises(StreamUnavailableError):
        replays.replay(place, MENDED)
    assert replays.world.row(place).replayed_at is None
    assert replays.replay(place).outcome is Outcome.FINISHED
    assert replays.world.total() == (Decimal(5), 1)


def test_a_stream_that_is_not_there_leaves_the_row_as_it_was(replays: Replays, monkeypatch: pytest.MonkeyPatch) -> None:
    place = replays.world.put(BAD)
    row = replays.world.row(place)

    def missing() -> None:
        raise MissingResourceError("stream", STREAM)

    monkeypatch.setattr(replays.world.stream, "check", missing)
    with pytest.raises(MissingResourceError):
        replays.replay(place, MENDED)
    assert replays.world.row(place) == row


def test_many_events_go_in_as_many_calls_as_kinesis_takes(replays: Replays, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    put = replays.world.stream.put

    def counted(records: Sequence[OutgoingRecord]) -> list[Held | NotHeld]:
        sizes.append(len(records))
        return put(records)

    place = replays.world.put(b"\xff")
    monkeypatch.setattr(replays.world.stream, "put", counted)
    data = json.dumps({"batch_id": "b", "events": [EVENT] * 501}).encode()
    replays.replay(place, Correction({}, data))
    assert sizes == [500, 1]
    assert replays.world.total() == (Decimal(5010), 501)


# ── Many rows ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_line_is_said_of_each_row_and_one_that_is_refused_stops_no_other(replays: Replays) -> None:
    places = [
        replays.world.put({**BAD, "event_id": f"req-{n}", "metric": metric}) for n, metric in enumerate(["m", " "])
    ]
    lines: list[str] = []

    def run(*which: StreamPlace) -> bool:
        lines.clear()
        return replay_all(replays.replayer, replays.store, which, MENDED, dry_run=False, say=lines.append)

    assert not run(places[1], places[0])
    assert lines == [
        f"{places[1].name}: refused: invalid_metric: {METRIC_RULE}",
        f"{places[0].name}: replayed: req-0",
        "2 row(s), 1 refused",
    ]
    assert run(places[0])
    assert lines == [f"{places[0].name}: was replayed already: req-0"]
    gone = StreamPlace("shardId-000000000000", "0011", 0)
    assert not run(gone)
    assert lines == [f"{gone.name}: refused: not_found: there is no rejected row {gone.name}"]
