"""`metering consumer` by itself: started after the events, stopped in the middle of them, read by its log."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import requests

from tests.e2e.parts import Parts, Pipeline
from tests.e2e.processes import METERING, described, json_lines, processes_of, ran, until
from tests.e2e.stack import Stack
from tests.e2e.tables import Tables
from tests.e2e.truth import COUNTED_S, Load, Truth, assert_counted_exactly

STOP_S = 15.0


@pytest.fixture(scope="module")
def pipeline(parts: Parts) -> Pipeline:
    made = parts.named("alone")
    made.set_up()
    return made


def test_events_sent_before_the_consumer_ever_ran_and_while_it_was_down_are_counted(pipeline: Pipeline) -> None:
    truth = Truth()
    with pipeline.tables() as tables, pipeline.collector() as url:
        with Load(url, truth, name="never-ran") as load:
            load.await_events(100)
        assert tables.rows() == {}
        with pipeline.consumer() as consumer:
            assert_counted_exactly(tables, truth)
            with Load(url, truth, name="while-down") as load:
                load.await_events(50)
                code, seconds = consumer.stop()
                assert_stopped_with_last_checkpoint(pipeline, tables, code, seconds)
                counted = _counted(tables)
                load.await_events(50)
        assert _counted(tables) == counted < len(truth.sent())
        with pipeline.consumer():
            assert_counted_exactly(tables, truth)


def assert_stopped_with_last_checkpoint(pipeline: Pipeline, tables: Tables, code: int, seconds: float) -> None:
    """Nothing of the consumer is left, and each lease stands where its shard's progress does."""
    left = [process for process in processes_of(pipeline.folder) if "gunicorn" not in process.cmdline()]
    assert not left, described(left)
    assert code == 0
    assert seconds <= STOP_S
    progress = tables.progress()
    assert len(progress) == 2
    assert tables.checkpoints() == {shard_id: shard.position[3:] for shard_id, shard in progress.items()}


def _counted(tables: Tables) -> int:
    return sum(shard.counted for shard in tables.progress().values())


def test_a_second_consumer_with_the_same_worker_id_is_refused(stack: Stack) -> None:
    code, output, errors = ran([METERING, "consumer", "--local"], stack.environment)
    assert (code, output, errors.count("\n")) == (1, "", 1), errors
    [supervisor] = stack.supervisors()
    assert "WORKER_ID=" in errors
    assert f"pid {supervisor.pid}" in errors


def test_the_log_is_json_lines_with_each_promised_message_once(stack: Stack) -> None:
    event = {"tenant_id": "log-reader", "metric": "lines", "value": "1.50", "timestamp": "2024-01-15T10:00:00Z"}
    answer = requests.post(f"{stack.collector_url}/v1/usage", json=event, timeout=30)
    assert answer.status_code == 202
    promised = [
        "Processing event: tenant=log-reader, metric=lines, value=1.5",
        "Successfully updated DynamoDB: pk=TENANT#log-reader, sk=HOUR#lines#2024-01-15T10",
        "Successfully updated DynamoDB: pk=TENANT#log-reader, sk=METRIC#lines",
    ]
    log = stack.log("aggregator")
    until(lambda: log.read_text(encoding="utf-8").count("log-reader") >= len(promised), "it logs", timeout_s=COUNTED_S)
    lines = json_lines(log)
    messages = Counter(str(line["message"]) for line in lines)
    assert sorted(str(line["message"]) for line in lines if "log-reader" in json.dumps(line)) == promised
    assert messages["Received 1 record(s) from Kinesis"] >= 1
    started = [line for line in lines if line["message"] == "Consumer started, listening for new events"]
    assert {line["shard"] for line in started} == {"shardId-000000000000", "shardId-000000000001"}
