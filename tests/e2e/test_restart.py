"""`metering up` is stopped and started again."""

from __future__ import annotations

from tests.e2e.processes import described, processes_of
from tests.e2e.stack import STOP_S, Stack
from tests.e2e.truth import Load, Truth, assert_counted_exactly


def test_totals_stand_and_go_on_after_stop_and_start(stack: Stack, truth: Truth) -> None:
    with Load(stack.collector_url, truth, name="before-stop") as load:
        load.await_events(100)
    # The last events were answered a moment ago: most of them wait in the stream.
    with stack.tables() as tables:
        held_but_not_counted = len(truth.sent()) - sum(shard.counted for shard in tables.progress().values())
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
    assert held_but_not_counted > 0
