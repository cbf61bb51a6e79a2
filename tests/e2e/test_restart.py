"""`metering up` is stopped and started again."""

from __future__ import annotations

from tests.e2e.processes import described, processes_of
from tests.e2e.stack import STOP_S, Stack
from tests.e2e.truth import Load, Truth, assert_counted_exactly


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
