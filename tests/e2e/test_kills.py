"""Whatever is killed in the middle of a load, each event is counted once: totals and windows, row by row."""

from __future__ import annotations

from decimal import Decimal

import psutil
import requests

from tests.e2e.processes import described, until
from tests.e2e.stack import Stack, kill
from tests.e2e.tables import Tables
from tests.e2e.truth import Load, Truth, assert_counted_exactly
from tests.e2e.watcher import BillingWatcher

AGAIN_S = 60.0
KILLS = 2
EVENTS_BETWEEN = 40


def test_a_load_on_two_shards_is_counted_exactly_and_billing_shows_it(
    stack: Stack, tables: Tables, truth: Truth
) -> None:
    with Load(stack.collector_url, truth, name="plain") as load:
        load.await_events(200)
    assert_counted_exactly(tables, truth)
    assert [shard.counted > 0 for shard in tables.progress().values()] == [True, True]
    for tenant_id in {sent.tenant_id for sent in truth.sent()}:
        answer = requests.get(f"{stack.billing_url}/v1/tenants/{tenant_id}/usage", timeout=30)
        shown = {
            (f"TENANT#{tenant_id}", f"METRIC#{total['metric']}"): (total["usage"], total["events"])
            for total in answer.json(parse_float=Decimal, parse_int=Decimal)["totals"]
        }
        assert shown == {key: row for key, row in truth.rows().items() if key in shown}
        assert len(shown) == len({s.metric for s in truth.sent() if s.tenant_id == tenant_id})


def test_events_are_counted_once_when_the_jvm_is_killed_in_the_middle_of_a_load(
    stack: Stack, tables: Tables, truth: Truth
) -> None:
    killed: list[psutil.Process] = []
    with Load(stack.collector_url, truth, name="jvm") as load, BillingWatcher(stack.billing_url, truth, "jvm"):
        for _ in range(KILLS):
            load.await_events(EVENTS_BETWEEN)
            until(lambda: _others(stack.daemons(), killed), "the daemon is started again", timeout_s=AGAIN_S)
            stack.await_batch()
            [daemon] = stack.daemons()
            kill(daemon)
            killed.append(daemon)
        until(lambda: _others(stack.record_processors(), killed), "the daemon is started again", timeout_s=AGAIN_S)
    assert_counted_exactly(tables, truth)
    assert len(set(killed)) == KILLS


def test_events_are_counted_once_when_a_record_processor_is_killed_in_the_middle_of_a_load(
    stack: Stack, tables: Tables, truth: Truth
) -> None:
    killed: list[psutil.Process] = []
    with Load(stack.collector_url, truth, name="child") as load, BillingWatcher(stack.billing_url, truth, "child"):
        for number in range(KILLS):
            load.await_events(EVENTS_BETWEEN)
            until(lambda: len(_others(stack.record_processors(), killed)) == 2, "both shards are read again")
            stack.await_batch()
            victim = _others(stack.record_processors(), killed)[number % 2]
            kill(victim)
            killed.append(victim)
            [daemon] = stack.daemons()
            until(lambda d=daemon: not d.is_running(), "the daemon ends with its child")  # type: ignore[misc]
    assert_counted_exactly(tables, truth)
    assert len(set(killed)) == KILLS


def test_a_killed_supervisor_takes_daemon_and_children_along_and_is_started_again(
    stack: Stack, tables: Tables, truth: Truth
) -> None:
    with Load(stack.collector_url, truth, name="supervisor") as load:
        load.await_events(EVENTS_BETWEEN)
        stack.await_batch()
        [supervisor] = stack.supervisors()
        below = [*stack.daemons(), *stack.record_processors()]
        assert len(below) == 3
        kill(supervisor)
        _, left = psutil.wait_procs(below, timeout=15)
        assert not left, described(left)
        until(lambda: _others(stack.supervisors(), [supervisor]), "it is started again", timeout_s=AGAIN_S)
    assert_counted_exactly(tables, truth)


def _others(processes: list[psutil.Process], than: list[psutil.Process]) -> list[psutil.Process]:
    return [process for process in processes if process not in than and process.is_running()]
