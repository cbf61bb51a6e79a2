"""The client for programs: every event that it took ends once, and is never dropped in silence.

Over 300 lines, since all of it plays against the same collectors that fail in the same ways.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import stamina
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from metering.client import MeteringClient
from metering.deliveries import BufferFullError, FlushTimeoutError, Undelivered, UndeliveredEventsError
from metering.errors import InvalidEventError
from metering.sending import Rejected, Unsent
from tests.unit.collector_support import until
from tests.unit.collector_twin import FAULTS, WAIT_S, CollectorTwin, collector_twin

ROOT = Path(__file__).resolve().parents[2]
NOW = datetime(2024, 1, 15, 12, 0, tzinfo=UTC)
USAGE = ("tenant-123", "api_calls", 1)


@pytest.fixture
def twin() -> Iterator[CollectorTwin]:
    with collector_twin() as running:
        yield running


def client_of(twin: CollectorTwin, **options: Any) -> MeteringClient:
    return MeteringClient(twin.url, **{"linger_s": 0.0, **options})


def held_forms(twin: CollectorTwin) -> list[dict[str, str]]:
    return [form for forms in twin.held.values() for form in forms]


# ── What is submitted ────────────────────────────────────────────────────────────────────────────────────────────────


def test_events_are_held_when_the_block_ends(twin: CollectorTwin) -> None:
    with client_of(twin) as client:
        event_ids = [client.submit("tenant-123", "api_calls", number) for number in range(1200)]
    assert set(twin.held) == set(event_ids)
    assert len(set(event_ids)) == 1200
    assert max(len(post.events) for post in twin.posts) <= 500
    assert (client.counts.submitted, client.counts.accepted) == (1200, 1200)


def test_events_that_come_together_go_together(twin: CollectorTwin) -> None:
    with client_of(twin, linger_s=WAIT_S, batch_events_max=3) as client:
        for _ in range(6):
            client.submit(*USAGE)
        until(lambda: len(twin.held) == 6)
        client.submit(*USAGE)
        client.flush(WAIT_S / 2)  # lingers with nothing that is waited for
    assert [len(post.events) for post in twin.posts] == [3, 3, 1]


@pytest.mark.parametrize(
    ("value", "sent"),
    [
        (10, "10"),
        (Decimal("0.1"), "0.1"),
        (Decimal("1E+3"), "1000"),
        ("1.50", "1.5"),
        (Decimal("123456789012345.123456789"),) * 2,
    ],
)
def test_values_arrive_exactly(twin: CollectorTwin, value: Any, sent: object) -> None:
    with client_of(twin) as client:
        client.submit("tenant-123", "api_calls", value)
    assert [form["value"] for form in held_forms(twin)] == [str(sent)]


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"value": 0.1}, "invalid_value"),
        ({"value": True}, "invalid_value"),
        ({"value": None}, "invalid_value"),
        ({"value": Decimal("NaN")}, "invalid_value"),
        ({"value": Decimal("Infinity")}, "invalid_value"),
        ({"value": 10**5000}, "invalid_value"),
        ({"value": -1}, "negative_value"),
        ({"tenant_id": ""}, "invalid_tenant_id"),
        ({"metric": "a b"}, "invalid_metric"),
        ({"timestamp": "yesterday"}, "invalid_timestamp"),
        ({"timestamp": NOW.replace(tzinfo=None)}, "invalid_timestamp"),
        ({"event_id": "kinesis:x"}, "invalid_event_id"),
        ({"event_id": ""}, "invalid_event_id"),
    ],
)
def test_rules_are_held_before_anything_is_taken(twin: CollectorTwin, fields: dict[str, Any], code: str) -> None:
    with client_of(twin) as client:
        with pytest.raises(InvalidEventError) as caught:
            client.submit(**{"tenant_id": "tenant-123", "metric": "api_calls", "value": 1, **fields})
        assert caught.value.code == code
    assert client.counts.submitted == 0
    assert twin.posts == []


def test_event_counts_for_the_time_at_which_it_was_submitted(twin: CollectorTwin) -> None:
    with client_of(twin, clock=lambda: NOW) as client:
        client.submit(*USAGE)
        client.submit(*USAGE, timestamp=datetime(2024, 1, 15, 14, 0, tzinfo=timezone(timedelta(hours=2))))
        client.submit(*USAGE, timestamp="2024-01-15T14:00:00+02:00", event_id="mine")
    assert [form["timestamp"] for form in held_forms(twin)] == [
        "2024-01-15T12:00:00.000Z",
        "2024-01-15T12:00:00+00:00",
        "2024-01-15T14:00:00+02:00",
    ]


def test_event_with_the_callers_id_is_the_same_content_when_it_is_submitted_again(twin: CollectorTwin) -> None:
    with client_of(twin) as client:
        for _ in range(2):
            assert client.submit(*USAGE, event_id="mine") == "mine"
    assert len(twin.held["mine"]) == 2
    assert len(twin.contents("mine")) == 1


def test_time_in_the_future_is_the_collectors_to_refuse(twin: CollectorTwin) -> None:
    client = client_of(twin)
    client.submit(*USAGE, timestamp="2999-01-01T00:00:00Z")
    with pytest.raises(UndeliveredEventsError, match="timestamp_in_future"):
        client.close()


# ── What is not accepted ─────────────────────────────────────────────────────────────────────────────────────────────

FUTURE = {"timestamp": "2999-01-01T00:00:00Z"}
"""What the client takes and the collector refuses."""


def test_what_is_refused_is_handed_to_the_callback(twin: CollectorTwin) -> None:
    refused: list[Undelivered] = []
    with client_of(twin, on_rejected=refused.append) as client:
        client.submit(*USAGE)
        event_id = client.submit(*USAGE, **FUTURE)
    assert [event.fields for event in refused] == [
        {"tenant_id": "tenant-123", "metric": "api_calls", "value": "1", "event_id": event_id, **FUTURE}
    ]
    assert isinstance(refused[0].outcome, Rejected)


def test_what_could_not_be_sent_is_handed_to_the_callback_and_can_be_submitted_again(twin: CollectorTwin) -> None:
    failed: list[Undelivered] = []
    twin.script = ["401"]
    with client_of(twin, on_failed=failed.append) as client:
        event_id = client.submit(*USAGE)
        client.flush()
        assert [event.fields["event_id"] for event in failed] == [event_id]
        client.submit(**failed[0].fields)  # type: ignore[arg-type]
    assert len(twin.contents(event_id)) == 1
    assert (client.counts.submitted, client.counts.unsent, client.counts.accepted) == (2, 1, 1)


def test_without_a_callback_flush_raises_what_is_not_accepted_once(twin: CollectorTwin) -> None:
    twin.script = ["401"]
    client = client_of(twin)
    unsent = client.submit(*USAGE)
    with pytest.raises(UndeliveredEventsError, match="answers 401") as caught:
        client.flush()
    assert [event.fields["event_id"] for event in caught.value.unsent] == [unsent]
    client.flush()
    rejected = client.submit(*USAGE, **FUTURE)
    with pytest.raises(UndeliveredEventsError) as caught:
        client.close()
    assert [event.fields["event_id"] for event in caught.value.rejected] == [rejected]
    assert caught.value.unsent == ()


@pytest.mark.parametrize("failure", [ValueError("a bug"), SystemExit(1)])
def test_callback_that_fails_counts_as_none(twin: CollectorTwin, failure: BaseException) -> None:
    def callback(_: Undelivered) -> None:
        raise failure

    client = client_of(twin, on_rejected=callback)
    event_ids = [client.submit(*USAGE, **FUTURE) for _ in range(2)]
    with pytest.raises(UndeliveredEventsError) as caught:
        client.flush(WAIT_S)
    assert [event.fields["event_id"] for event in caught.value.events] == event_ids
    client.close()


def test_callback_may_submit_but_not_wait_for_itself(twin: CollectorTwin) -> None:
    errors: list[BaseException] = []

    def callback(_: Undelivered) -> None:
        client.submit(*USAGE, event_id="corrected")
        for wait in (client.flush, client.close):
            try:
                wait()
            except RuntimeError as error:
                errors.append(error)

    client = client_of(twin, on_rejected=callback)
    client.submit(*USAGE, **FUTURE)
    client.flush(WAIT_S)
    client.close(WAIT_S)
    assert set(twin.held) == {"corrected"}
    assert len(errors) == 2


def test_callback_that_submits_into_a_full_buffer_does_not_wait_for_itself(twin: CollectorTwin) -> None:
    client = client_of(twin, buffer_events_max=1, on_rejected=lambda _: client.submit(*USAGE))
    event_id = client.submit(*USAGE, **FUTURE)
    with pytest.raises(UndeliveredEventsError) as caught:
        client.flush(WAIT_S)
    assert [event.fields["event_id"] for event in caught.value.events] == [event_id]
    client.close()


def test_bug_in_sending_loses_no_event(twin: CollectorTwin, monkeypatch: pytest.MonkeyPatch) -> None:
    client = client_of(twin)
    monkeypatch.setattr(client._sender, "send", lambda _: 1 / 0)
    event_id = client.submit(*USAGE)
    with pytest.raises(UndeliveredEventsError, match="ZeroDivisionError") as caught:
        client.flush(WAIT_S)
    assert [event.fields["event_id"] for event in caught.value.unsent] == [event_id]
    monkeypatch.undo()
    client.submit(*USAGE)
    client.close(WAIT_S)
    assert len(twin.held) == 1


# ── The bounds ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_full_buffer_raises_or_waits(twin: CollectorTwin) -> None:
    twin.gate.clear()
    with client_of(twin, buffer_events_max=2) as client:
        client.submit(*USAGE)
        client.submit(*USAGE)
        with pytest.raises(BufferFullError, match="holds 2 events"):
            client.submit(*USAGE, block=False)
        with pytest.raises(BufferFullError):
            client.submit(*USAGE, timeout_s=0.01)
        waiting = threading.Thread(target=client.submit, args=USAGE)
        waiting.start()
        until(lambda: twin.posts)
        assert client.counts.submitted == 2
        twin.gate.set()
        waiting.join(WAIT_S)
        assert client.counts.submitted == 3
    assert len(twin.held) == 3


def test_buffer_full_of_what_nobody_took_raises_instead_of_waiting_for_ever(twin: CollectorTwin) -> None:
    client = client_of(twin, buffer_events_max=2)
    for _ in range(2):
        client.submit(*USAGE, **FUTURE)
    until(lambda: client.counts.rejected == 2)
    with pytest.raises(BufferFullError, match="flush hands these over"):
        client.submit(*USAGE)
    with pytest.raises(UndeliveredEventsError):
        client.flush()
    client.submit(*USAGE)
    client.close()
    assert len(twin.held) == 1


def test_flush_that_takes_too_long_says_so_and_loses_nothing(twin: CollectorTwin) -> None:
    twin.gate.clear()
    client = client_of(twin)
    client.submit(*USAGE)
    with pytest.raises(FlushTimeoutError, match="1 event"):
        client.flush(0.01)
    twin.gate.set()
    client.flush(WAIT_S)
    client.close()
    assert client.counts.accepted == 1


def test_close_that_takes_too_long_hands_over_what_is_open_once(twin: CollectorTwin) -> None:
    twin.gate.clear()
    client = client_of(twin, batch_events_max=1)
    event_ids = [client.submit(*USAGE) for _ in range(3)]
    until(lambda: twin.posts)
    with pytest.raises(UndeliveredEventsError, match="client was closed") as caught:
        client.close(0.01)
    assert [event.fields["event_id"] for event in caught.value.unsent] == event_ids
    twin.gate.set()
    assert client._thread is not None
    client._thread.join(WAIT_S)
    assert not client._thread.is_alive()
    assert client.counts.unsent == 3
    assert len(twin.posts) == 1
    client.close()
    with pytest.raises(RuntimeError, match="closed"):
        client.submit(*USAGE)


def test_submit_that_waits_for_room_ends_when_the_client_is_closed(twin: CollectorTwin) -> None:
    twin.gate.clear()
    client = client_of(twin, buffer_events_max=1)
    client.submit(*USAGE)
    errors: list[BaseException] = []

    def submit() -> None:
        try:
            client.submit(*USAGE)
        except RuntimeError as error:
            errors.append(error)

    waiting = threading.Thread(target=submit)
    waiting.start()
    until(lambda: client._changed._waiters)  # type: ignore[attr-defined]
    with pytest.raises(UndeliveredEventsError):
        client.close(0.01)
    waiting.join(WAIT_S)
    assert len(errors) == 1


# ── Everything at once ───────────────────────────────────────────────────────────────────────────────────────────────


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    script=st.lists(
        st.sampled_from([*[fault for fault in FAULTS if fault != "hang"], "page", "401", None]), max_size=8
    ),
    values=st.lists(st.booleans(), min_size=1, max_size=30),
    attempts=st.integers(1, 6),
    batch_events_max=st.sampled_from([1, 3, 500]),
    with_callbacks=st.booleans(),
)
def test_whatever_happens_every_event_ends_as_one_of_accepted_rejected_and_unsent(
    twin: CollectorTwin,
    *,
    script: list[str | None],
    values: list[bool],
    attempts: int,
    batch_events_max: int,
    with_callbacks: bool,
) -> None:
    twin.script, twin.held = list(script), {}
    told: list[Undelivered] = []
    callback = told.append if with_callbacks else None
    valid: dict[str, bool] = {}
    with stamina.set_testing(True, attempts=attempts):
        client = client_of(twin, batch_events_max=batch_events_max, on_rejected=callback, on_failed=callback)
        for right in values:
            valid[client.submit(*USAGE, timestamp=None if right else FUTURE["timestamp"])] = right
        try:
            client.close(WAIT_S)
        except UndeliveredEventsError as error:
            told += error.events
    ended = [event.fields["event_id"] for event in told]
    assert len(ended) == len(set(ended))
    accepted = set(valid) - set(ended)
    assert accepted <= set(twin.held)
    assert all(len(twin.contents(event_id)) == 1 for event_id in twin.held)
    assert all(valid[event_id] for event_id in accepted)
    for event in told:
        assert isinstance(event.outcome, Unsent) or not valid[event.fields["event_id"]]
    counts = client.counts
    assert (counts.submitted, counts.accepted, counts.settled) == (len(values), len(accepted), len(values))
    assert counts.rejected == sum(isinstance(event.outcome, Rejected) for event in told)


def test_many_threads_share_a_client(twin: CollectorTwin) -> None:
    event_ids: list[str] = []
    with client_of(twin, buffer_events_max=20, batch_events_max=7) as client:

        def submit() -> None:
            for _ in range(100):
                event_ids.append(client.submit(*USAGE))  # noqa: PERF401 - some are there when one fails

        threads = [threading.Thread(target=submit) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT_S)
    assert len(event_ids) == 800
    assert set(twin.held) == set(event_ids)


# ── The end of the process, and its copies ───────────────────────────────────────────────────────────────────────────


def run_program(source: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", source, *arguments],
        cwd=ROOT,
        env={name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ},
        capture_output=True,
        text=True,
        timeout=WAIT_S * 2,
        check=False,
    )


def test_program_that_just_ends_has_sent_what_it_submitted(twin: CollectorTwin) -> None:
    program = """
import sys
from metering.client import MeteringClient
client = MeteringClient(sys.argv[1], linger_s=30)
for number in range(700):
    client.submit("tenant-123", "api_calls", number)
"""
    ended = run_program(program, twin.url)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert len(twin.held) == 700


def test_program_that_ends_with_an_error_has_sent_what_it_submitted(twin: CollectorTwin) -> None:
    program = """
import sys
from metering.client import MeteringClient
client = MeteringClient(sys.argv[1], linger_s=30)
client.submit("tenant-123", "api_calls", 1)
sys.exit(7)
"""
    assert run_program(program, twin.url).returncode == 7
    assert len(twin.held) == 1


def test_program_that_ends_while_the_collector_is_away_writes_its_events_to_the_log(twin: CollectorTwin) -> None:
    twin.script = ["503"] * 1000
    program = """
import sys
from metering.client import MeteringClient
client = MeteringClient(sys.argv[1], exit_wait_s=0.2)
for number in range(3):
    client.submit("tenant-123", "api_calls", number, event_id=f"id-{number}")
"""
    ended = run_program(program, twin.url)
    lines = [line for line in ended.stderr.splitlines() if "not accepted" in line]
    logged = [json.loads(line[line.index("{") : line.index("}") + 1]) for line in lines]
    assert [event["event_id"] for event in logged] == ["id-0", "id-1", "id-2"]
    assert twin.held == {}


def test_ctrl_c_while_the_client_is_being_closed_loses_nothing(twin: CollectorTwin) -> None:
    program = """
import os, signal, sys, threading, time
from metering.client import MeteringClient

def interrupt():
    while client._awaited < 3:
        time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGINT)

with MeteringClient(sys.argv[1], batch_events_max=1) as client:
    for number in range(3):
        client.submit("tenant-123", "api_calls", number)
    threading.Thread(target=interrupt).start()
"""
    twin.gate.clear()
    with subprocess.Popen([sys.executable, "-c", program, twin.url], cwd=ROOT, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        assert any(b"KeyboardInterrupt" in line for line in process.stderr)
        twin.gate.set()
    assert len(twin.held) == 3


def test_child_sends_its_own_events_and_the_parent_its_own(twin: CollectorTwin) -> None:
    program = """
import os, sys
from metering.client import MeteringClient
client = MeteringClient(sys.argv[1], linger_s=30)
client.submit("tenant-123", "api_calls", 1, event_id="before")
child = os.fork()
client.submit("tenant-123", "api_calls", 1, event_id="of the child" if child == 0 else "of the parent")
if child:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
client.close()
os._exit(0 if client.counts.submitted == 1 else 9)
"""
    ended = run_program(program, twin.url)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert {event_id: len(forms) for event_id, forms in twin.held.items()} == {
        "before": 1,
        "of the child": 1,
        "of the parent": 1,
    }


def test_events_that_are_lost_between_close_and_a_callback_are_logged(
    twin: CollectorTwin, caplog: pytest.LogCaptureFixture
) -> None:
    entered, go = threading.Event(), threading.Event()

    def callback(_: Undelivered) -> None:
        entered.set()
        assert go.wait(WAIT_S)
        raise ValueError("a bug")

    client = client_of(twin, on_rejected=callback)
    event_id = client.submit(*USAGE, **FUTURE)
    assert entered.wait(WAIT_S)
    client.close(0.01)  # raises nothing: the callback has the event
    go.set()
    assert client._thread is not None
    client._thread.join(WAIT_S)
    lost = [record for record in caplog.records if record.levelno == logging.CRITICAL]
    assert [event_id in record.getMessage() for record in lost] == [True]
