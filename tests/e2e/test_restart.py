"""`metering up` is stopped and started again, or is killed, or its kinesis-mock is."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import requests

from tests.e2e.processes import described, processes_of, until
from tests.e2e.stack import STOP_S, Stack, kill
from tests.e2e.truth import COUNTED_S, Load, Truth, assert_counted_exactly, await_as_of


def test_totals_stand_and_go_on_after_stop_and_start(stack: Stack, truth: Truth) -> None:
    with Load(stack.collector_url, truth, name="before-stop") as load:
        load.await_events(100)
    # The last events were answered a moment ago. How many of them still wait in the stream is a matter of luck, and
    # must make no difference; test_consumer.py makes sure of some that do.
    code, seconds = stack.stop()
    left = processes_of(stack.home)
    assert not left, described(left)
    assert code == 0
    assert seconds <= STOP_S
    assert not (stack.home / "local.json").exists()

    stack.start()
    with stack.tables() as tables:
        assert_counted_exactly(tables, truth)
        with Load(stack.collector_url, truth, name="after-start") as load:
            load.await_events(100)
        assert_counted_exactly(tables, truth)


def test_events_are_counted_though_the_stream_has_lost_what_was_checkpointed(tmp_path: Path) -> None:
    """kinesis-mock writes its data when it stops, and every ten minutes: killed, it comes back without the rest."""
    truth = Truth()
    with closing(Stack(tmp_path)) as stack:
        stack.start()
        assert stack.stop()[0] == 0
        stack.start()
        send_and_await_counted(stack, truth, "kept")

        kill(stack.kinesis_mock())
        until(lambda: accepts(stack), "events are accepted again", timeout_s=COUNTED_S)
        send_and_await_counted(stack, truth, "kinesis-mock-killed")

        stack.kill()
        stack.start()
        send_and_await_counted(stack, truth, "all-killed")


def send_and_await_counted(stack: Stack, truth: Truth, name: str) -> None:
    """Send events, and wait until all that were ever sent are counted and billing says so."""
    with Load(stack.collector_url, truth, name=name) as load:
        load.await_events(50)
    with stack.tables() as tables:
        until(
            lambda: truth.rows().items() <= tables.rows().items(),
            lambda: f"all is counted: {tables.progress()}",
            timeout_s=COUNTED_S,
        )
        assert not any(shard.closed for shard in tables.progress().values())
    await_as_of(stack.billing_url, truth)


def accepts(stack: Stack) -> bool:
    return requests.get(f"{stack.collector_url}/readyz", timeout=30).ok
