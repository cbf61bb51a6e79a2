from __future__ import annotations

import json
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from collector.committer import GroupCommitter
from collector.metrics import CollectorMetrics
from collector.outcomes import EventNotHeldError, TooManyPendingError
from metering.errors import AccessRefusedError, MissingResourceError, SetupError, StreamUnavailableError
from metering.outgoing import outgoing
from metering.ports import EventSink, Held, NotHeld, OutgoingRecord
from tests.unit.collector_support import (
    PARTITIONS,
    WAIT_S,
    ScriptedSink,
    Sent,
    event_with,
    settings_with,
    submit,
    until,
    values_in,
)

AWAY = StreamUnavailableError("the stream can't be reached")
THROTTLED = "ProvisionedThroughputExceededException"


@pytest.fixture
def committer_on() -> Iterator[Callable[..., GroupCommitter]]:
    made: list[GroupCommitter] = []

    def make(sink: EventSink, *, on_crash: Callable[[], None] = lambda: None, **environment: str) -> GroupCommitter:
        # No jitter: each wait is its formula's greatest, so that order is forced and not lucky.
        made.append(
            GroupCommitter(
                sink,
                settings_with(**environment),
                metrics=CollectorMetrics(CollectorRegistry()),
                on_crash=on_crash,
                uniform=lambda: 1.0,
            )
        )
        return made[-1]

    yield make
    for committer in made:
        assert committer.close(WAIT_S)


def blocked(sink: ScriptedSink, committer: GroupCommitter) -> Sent:
    """Submit an event and return when its put has begun and can't end: what is submitted next shares a call."""
    sink.gate.clear()
    future = submit(committer, event_with("blocker", value=0))
    until(lambda: sink.entered == 1)
    return future


def test_receipt_names_the_place_where_the_stream_holds_the_event(committer_on: Callable[..., GroupCommitter]) -> None:
    sink = ScriptedSink()
    committer = committer_on(sink)
    first = blocked(sink, committer)
    futures = [submit(committer, event_with(value=value)) for value in (1, 2, 3)]
    sink.gate.set()
    record = sink.stream.records
    assert first.result() == (record[0].shard_id, record[0].sequence_number, 0)
    for index, future in enumerate(futures):
        assert future.result() == (record[1].shard_id, record[1].sequence_number, index)
    assert values_in(record[1].data) == [1, 2, 3]


def test_nothing_is_answered_before_the_stream_holds_it(committer_on: Callable[..., GroupCommitter]) -> None:
    sink = ScriptedSink()
    committer = committer_on(sink)
    future = blocked(sink, committer)
    assert not future.ends()
    assert committer.pending == 1
    sink.gate.set()
    future.result()
    assert committer.pending == 0


def test_what_gathers_during_a_call_shares_the_next(committer_on: Callable[..., GroupCommitter]) -> None:
    sink = ScriptedSink()
    committer = committer_on(sink)
    blocked(sink, committer)
    futures = [submit(committer, event_with(f"tenant-{n}", value=n)) for n in range(50)]
    sink.gate.set()
    for future in futures:
        future.result()
    assert len(sink.calls) == 2
    assert len(sink.calls[1]) < 50


def test_events_wait_for_company_as_long_as_the_linger(committer_on: Callable[..., GroupCommitter]) -> None:
    sink = ScriptedSink()
    committer = committer_on(sink, COLLECTOR_LINGER_MS="150")
    began = time.monotonic()
    futures = [submit(committer, event_with(f"tenant-{n}", value=n)) for n in range(20)]
    for future in futures:
        future.result()
    assert time.monotonic() - began >= 0.15
    assert len(sink.calls) == 1


def test_only_refused_records_are_put_again_with_the_same_bytes(committer_on: Callable[..., GroupCommitter]) -> None:
    sink = ScriptedSink(script=[[None], [None, THROTTLED, None], [THROTTLED]])
    committer = committer_on(sink)
    blocked(sink, committer)
    tenants = ("tenant-1", "tenant-2", "tenant-3")
    futures = [submit(committer, event_with(tenant, value=n)) for n, tenant in enumerate(tenants, 1)]
    sink.gate.set()
    for future in futures:
        future.result()
    _, whole, second, third = sink.calls
    assert len(whole) == 3
    assert second == third == [whole[1]]
    assert Counter(sink.held_values()) == Counter([0, 1, 2, 3])


def test_call_whose_answer_was_lost_is_put_again_under_the_same_ids(
    committer_on: Callable[..., GroupCommitter],
) -> None:
    sink = ScriptedSink(script=[AWAY, AWAY], lost=True)
    committer = committer_on(sink)
    _, sequence_number, _ = submit(committer, event_with()).result()
    assert sink.calls[0] == sink.calls[1] == sink.calls[2]
    assert sequence_number == sink.stream.records[2].sequence_number
    assert len({json.loads(record.data)["batch_id"] for record in sink.stream.records}) == 1


def test_later_events_of_a_partition_wait_for_the_earlier_ones(committer_on: Callable[..., GroupCommitter]) -> None:
    sink = ScriptedSink(script=[[THROTTLED], [THROTTLED], [THROTTLED]])
    committer = committer_on(sink)
    futures = [submit(committer, event_with(value=0))]
    until(lambda: sink.entered == 1)
    futures += [submit(committer, event_with(value=value)) for value in (1, 2)]
    for future in futures:
        future.result()
    assert [values_in(record.data) for call in sink.calls for record in call] == [[0], [0], [0], [0], [1, 2]]


def test_throttled_partition_does_not_hold_up_the_others(committer_on: Callable[..., GroupCommitter]) -> None:
    sink = ScriptedSink(script=[[THROTTLED]])
    committer = committer_on(sink)
    slow = submit(committer, event_with("slow", value=1))
    until(lambda: sink.entered == 1)
    submit(committer, event_with("fast", value=2)).result()
    slow.result()
    assert sink.held_values() == [2, 1]


def test_events_that_the_stream_keeps_refusing_fail_at_the_deadline_and_the_others_are_held(
    committer_on: Callable[..., GroupCommitter],
) -> None:
    sink = ScriptedSink(script=[[None, THROTTLED], *[[THROTTLED]] * 50])
    committer = committer_on(sink, COLLECTOR_DEADLINE_MS="400", COLLECTOR_LINGER_MS="100")
    good, bad = submit(committer, event_with("tenant-1")), submit(committer, event_with("tenant-2"))
    began = time.monotonic()
    good.result()
    with pytest.raises(EventNotHeldError) as caught:
        bad.result()
    assert time.monotonic() - began < 2
    assert not caught.value.maybe_held
    assert 2 < len(sink.calls) < 10
    assert committer.pending == 0


def test_events_of_lost_answers_are_reported_as_perhaps_held(committer_on: Callable[..., GroupCommitter]) -> None:
    sink = ScriptedSink(script=[AWAY] * 50, lost=True)
    committer = committer_on(sink, COLLECTOR_DEADLINE_MS="200")
    with pytest.raises(EventNotHeldError) as caught:
        submit(committer, event_with()).result()
    assert caught.value.maybe_held


def test_events_behind_a_hanging_call_fail_unput_when_their_time_is_over(
    committer_on: Callable[..., GroupCommitter],
) -> None:
    sink = ScriptedSink()
    committer = committer_on(sink, COLLECTOR_DEADLINE_MS="100")
    first = blocked(sink, committer)
    behind = submit(committer, event_with(value=7))
    time.sleep(0.15)
    sink.gate.set()
    with pytest.raises(EventNotHeldError) as caught:
        behind.result()
    assert not caught.value.maybe_held
    first.result()
    assert sink.held_values() == [0]
    assert committer.pending == 0


def test_the_committer_recovers_by_itself_when_the_stream_comes_back(
    committer_on: Callable[..., GroupCommitter],
) -> None:
    sink = ScriptedSink(script=[AWAY] * 3)
    committer = committer_on(sink, COLLECTOR_DEADLINE_MS="100")
    with pytest.raises(EventNotHeldError):
        submit(committer, event_with(value=1)).result()
    until(lambda: _held(committer), WAIT_S)


def _held(committer: GroupCommitter) -> bool:
    try:
        submit(committer, event_with(value=2)).result()
    except EventNotHeldError:
        return False
    return True


@pytest.mark.parametrize("error", [MissingResourceError("stream", "usage-events"), AccessRefusedError("no permission")])
def test_missing_stream_and_refused_access_fail_at_once(
    committer_on: Callable[..., GroupCommitter], error: SetupError
) -> None:
    sink = ScriptedSink(script=[error])
    committer = committer_on(sink)
    with pytest.raises(type(error)):
        submit(committer, event_with(value=1)).result()
    assert len(sink.calls) == 1
    submit(committer, event_with(value=2)).result()


def test_unexpected_error_of_the_sink_fails_its_events_and_no_others(
    committer_on: Callable[..., GroupCommitter], caplog: pytest.LogCaptureFixture
) -> None:
    sink = ScriptedSink(script=[ZeroDivisionError("a bug")])
    committer = committer_on(sink)
    first = blocked(sink, committer)
    second = submit(committer, event_with(value=2))
    sink.gate.set()
    with pytest.raises(ZeroDivisionError):
        first.result()
    second.result()
    assert committer.pending == 0
    assert "unexpected error" in caplog.text


def test_answers_that_do_not_match_the_records_fail_them_all(committer_on: Callable[..., GroupCommitter]) -> None:
    class ShortSink(ScriptedSink):
        def put(self, records: Sequence[OutgoingRecord]) -> list[Held | NotHeld]:
            return super().put(records)[:-1]

    committer = committer_on(ShortSink())
    with pytest.raises(RuntimeError):
        submit(committer, event_with()).result()


@pytest.mark.parametrize("error", [KeyError("a bug"), SystemExit(3)])
def test_failure_of_the_committer_itself_fails_all_and_closes_it(
    committer_on: Callable[..., GroupCommitter], monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    crashed = threading.Event()
    sink = ScriptedSink()
    committer = committer_on(sink, on_crash=crashed.set)
    blocked(sink, committer)
    futures = [submit(committer, event_with(f"tenant-{n}")) for n in range(5)]

    def fail(_now: float) -> None:
        raise error

    monkeypatch.setattr(committer._lanes, "take", fail)
    sink.gate.set()
    for future in futures:
        with pytest.raises(EventNotHeldError):
            future.result()
    assert crashed.wait(WAIT_S)
    assert committer.pending == 0
    with pytest.raises(EventNotHeldError):
        submit(committer, event_with())
    with pytest.raises(EventNotHeldError):
        committer.check()


def test_sink_that_ends_the_thread_leaves_nobody_waiting(committer_on: Callable[..., GroupCommitter]) -> None:
    crashed = threading.Event()
    committer = committer_on(ScriptedSink(script=[SystemExit(1)]), on_crash=crashed.set)
    with pytest.raises(EventNotHeldError):
        submit(committer, event_with()).result()
    assert crashed.wait(WAIT_S)


def test_more_pending_events_than_allowed_are_refused_and_the_count_is_exact(
    committer_on: Callable[..., GroupCommitter],
) -> None:
    sink = ScriptedSink()
    committer = committer_on(sink, MAX_PENDING_EVENTS="3")
    futures = [blocked(sink, committer), submit(committer, event_with()), submit(committer, event_with())]
    for _ in range(2):
        with pytest.raises(TooManyPendingError):
            submit(committer, event_with())
        assert committer.pending == 3
    sink.gate.set()
    for future in futures:
        future.result()
    assert committer.pending == 0
    submit(committer, event_with()).result()


def test_close_drains_what_waits_and_takes_no_more(committer_on: Callable[..., GroupCommitter]) -> None:
    sink = ScriptedSink()
    committer = committer_on(sink, COLLECTOR_LINGER_MS="1000", COLLECTOR_DEADLINE_MS="300000")
    futures = [submit(committer, event_with(f"tenant-{n}", value=n)) for n in range(10)]
    began = time.monotonic()
    assert committer.close(WAIT_S)
    assert time.monotonic() - began < 0.9  # the linger is over when the committer closes
    assert all(future.ends() and future.result() for future in futures)
    with pytest.raises(EventNotHeldError):
        submit(committer, event_with())


def test_close_says_when_it_is_not_done_in_time(committer_on: Callable[..., GroupCommitter]) -> None:
    sink = ScriptedSink()
    committer = committer_on(sink)
    future = blocked(sink, committer)
    assert not committer.close(0.05)
    sink.gate.set()
    future.result()
    assert committer.close(WAIT_S)


def test_no_thread_runs_before_the_first_submit(committer_on: Callable[..., GroupCommitter]) -> None:
    def threads() -> int:
        return sum(thread.name == "group-committer" for thread in threading.enumerate())

    before = threads()
    committer = committer_on(ScriptedSink())
    assert threads() == before
    submit(committer, event_with()).result()
    assert threads() == before + 1


def test_log_says_what_was_published(
    committer_on: Callable[..., GroupCommitter], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "collector.committer")
    sink = ScriptedSink()
    committer = committer_on(sink)
    first = blocked(sink, committer)
    futures = [submit(committer, event_with(value=n)) for n in range(11)]
    sink.gate.set()
    for future in (first, *futures):
        future.result()
    assert [(record.levelname, record.message) for record in caplog.records] == [
        ("INFO", "Published 1 event(s) to Kinesis: stream=usage-events, records=1"),
        ("DEBUG", "Published 11 event(s) to Kinesis: stream=usage-events, records=1"),
    ]


def test_log_says_why_records_are_put_again(
    committer_on: Callable[..., GroupCommitter], caplog: pytest.LogCaptureFixture
) -> None:
    submit(committer_on(ScriptedSink(script=[[THROTTLED], AWAY])), event_with()).result()
    warnings = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings == [
        f"PutRecords, 1 of 1 record(s) refused: {THROTTLED}; 1 record(s) are put again in 0.050 s",
        "PutRecords, the call failed: the stream can't be reached; 1 record(s) are put again in 0.050 s",
    ]


class RandomSink(ScriptedSink):
    """Fails as the drawn numbers say, for ever; `lost` calls have put their records."""

    def __init__(self, choices: list[int]) -> None:
        super().__init__()
        self.choices = choices

    def put(self, records: Sequence[OutgoingRecord]) -> list[Held | NotHeld]:
        choice = self.choices[self.entered % len(self.choices)]
        self.script = []
        self.lost = False
        match choice:
            case 0:
                self.script = [[THROTTLED if n % 2 else None for n in range(len(records))]]
            case 1:
                self.script = [[THROTTLED] * len(records)]
            case 2:
                self.script, self.lost = [AWAY], True
            case 3:
                self.script = [MissingResourceError("stream", "usage-events")]
            case 4:
                self.script = [ZeroDivisionError("a bug")]
        return super().put(records)


@settings(max_examples=25, deadline=None)
@given(
    choices=st.lists(st.integers(0, 9), min_size=1, max_size=8),
    tenants=st.lists(st.integers(0, 5), min_size=1, max_size=40),
    size=st.integers(1, 15),
)
def test_every_event_ends_once_and_what_is_answered_is_held(choices: list[int], tenants: list[int], size: int) -> None:
    sink = RandomSink(choices)
    committer = GroupCommitter(
        sink,
        settings_with(COLLECTOR_DEADLINE_MS="100", COLLECTOR_LINGER_MS="1"),
        metrics=CollectorMetrics(CollectorRegistry()),
        uniform=lambda: 0.2,
    )
    values = list(range(len(tenants)))
    requests = [values[start : start + size] for start in range(0, len(values), size)]

    def submitted(request: list[int]) -> list[Sent]:
        events = [outgoing(event_with(f"tenant-{tenants[value]}", value=value), PARTITIONS) for value in request]
        submission = committer.submit(events)
        return [Sent(submission, index) for index in range(len(events))]

    with ThreadPoolExecutor(4) as pool:
        futures = [sent for request in pool.map(submitted, requests) for sent in request]
    assert committer.close(WAIT_S)
    assert [sent.ends() for sent in futures] == [1] * len(tenants)
    assert committer.pending == 0
    records = {(record.shard_id, record.sequence_number): values_in(record.data) for record in sink.stream.records}
    held = set(sink.held_values())
    for value, future in enumerate(futures):
        error = future.exception()
        if error is None:
            shard_id, sequence_number, index = future.result()
            assert records[shard_id, sequence_number][index] == value
        elif isinstance(error, EventNotHeldError) and not error.maybe_held:
            assert value not in held


def test_a_large_request_is_taken_when_nothing_waits_and_whole_or_not_at_all(
    committer_on: Callable[..., GroupCommitter],
) -> None:
    sink = ScriptedSink()
    committer = committer_on(sink, MAX_PENDING_EVENTS="3")
    sink.gate.clear()
    five = [outgoing(event_with(f"tenant-{n}", value=n), PARTITIONS) for n in range(5)]
    first = committer.submit(five)
    with pytest.raises(TooManyPendingError):
        committer.submit(five[:1])
    assert committer.pending == 5
    sink.gate.set()
    assert first.wait(WAIT_S)
    until(lambda: committer.pending == 0)
    committer.submit(five[:2])
    assert committer.close(WAIT_S)
    assert Counter(sink.held_values()) == Counter([0, 1, 2, 3, 4, 0, 1])
