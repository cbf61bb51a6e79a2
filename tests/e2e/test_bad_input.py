"""What can't work is said in one line that names the cause, and nothing is started or left behind."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest
import requests

from tests.e2e.parts import Parts, Pipeline
from tests.e2e.processes import METERING, clean_environment, described, processes_of, ran
from tests.e2e.stack import PORTS, Stack
from tests.local_stack import free_port

COLLECTOR = [sys.executable, "-m", "collector"]
BILLING = [sys.executable, "-m", "billing"]
UP = [METERING, "up"]
CONSUMER = [METERING, "consumer"]
SETUP = [METERING, "setup"]


@pytest.fixture(scope="module")
def pipeline(parts: Parts) -> Pipeline:
    made = parts.named("bad-input")
    made.set_up()
    return made


def assert_refused(command: list[str], environment: dict[str, str], *words: str) -> None:
    """The command ends with code 1 and one line on stderr that holds `words`."""
    code, output, errors = ran(command, environment)
    assert (code, output, errors.count("\n")) == (1, "", 1), f"{code}\n{output}\n{errors}"
    assert all(word in errors for word in words), errors


def up_environment(home: Path, **values: str) -> dict[str, str]:
    return clean_environment(METERING_HOME=str(home), **{name: str(free_port()) for name in PORTS} | values)


def assert_nothing_was_started(home: Path) -> None:
    left = processes_of(home)
    assert not left, described(left)
    assert not (home / "logs").exists()


@pytest.mark.parametrize("variable", PORTS)
@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])  # noqa: S104 - what may stand in the way
def test_a_port_in_use_is_one_line_before_anything_starts(tmp_path: Path, variable: str, host: str) -> None:
    with socket.socket() as other:
        other.bind((host, 0))
        other.listen()
        port = str(other.getsockname()[1])
        assert_refused(UP, up_environment(tmp_path, **{variable: port}), f"port {port} is in use", variable)
    assert_nothing_was_started(tmp_path)


def test_one_port_for_two_services_is_refused(tmp_path: Path) -> None:
    port = str(free_port())
    environment = up_environment(tmp_path, COLLECTOR_PORT=port, BILLING_PORT=port)
    assert_refused(UP, environment, "COLLECTOR_PORT", "BILLING_PORT", port)
    assert_nothing_was_started(tmp_path)


def test_a_second_stack_on_the_same_home_is_refused(stack: Stack) -> None:
    assert_refused(UP, up_environment(stack.home), f"METERING_HOME={stack.home}", "runs already")
    assert requests.get(f"{stack.billing_url}/readyz", timeout=10).ok


@pytest.mark.parametrize("command", [UP, CONSUMER, SETUP, COLLECTOR, BILLING], ids=lambda command: command[-1])
@pytest.mark.parametrize(
    ("variable", "value", "allowed"),
    [
        ("COLLECTOR_PORT", "eighty", "a whole number from 1 to 65535"),
        ("KINESIS_STREAM", "usage events", "letters, digits"),
    ],
)
def test_an_unusable_environment_value_is_one_line(
    tmp_path: Path, command: list[str], variable: str, value: str, allowed: str
) -> None:
    assert_refused(command, up_environment(tmp_path, **{variable: value}), variable, repr(value), allowed)


@pytest.mark.parametrize("command", [UP, CONSUMER, COLLECTOR, BILLING], ids=lambda command: command[-1])
def test_meters_that_are_wrong_are_one_line_with_their_place(tmp_path: Path, command: list[str]) -> None:
    path = tmp_path / "meters.yaml"
    path.write_text("meters:\n  seats: {aggregation: maximum}\n")
    environment = up_environment(tmp_path / "home", METERS_FILE=str(path))
    assert_refused(command, environment, "METERS_FILE", f"{path}:2:24: 'maximum' stands here")


@pytest.mark.parametrize("command", [UP, CONSUMER], ids=lambda command: command[-1])
@pytest.mark.parametrize(
    ("properties", "words"),
    [
        ("maxrecords=5", ["'maxrecords'", "'maxRecords'"]),
        ("initialPositionInStream=LATEST", ["initialPositionInStream", "TRIM_HORIZON"]),
        ("maxRecords", ["KCL_PROPERTIES", "name=value"]),
    ],
)
def test_a_kcl_property_that_can_not_be_used_is_one_line(
    pipeline: Pipeline, command: list[str], properties: str, words: list[str]
) -> None:
    environment = pipeline.environment | {name: str(free_port()) for name in PORTS}
    assert_refused(command, environment | {"KCL_PROPERTIES": properties}, *words)
    assert_nothing_was_started(pipeline.folder / "home")


@pytest.mark.parametrize(
    ("variable", "kind"),
    [
        ("KINESIS_STREAM", "stream"),
        ("DYNAMODB_TABLE", "table"),
        ("LEDGER_TABLE", "table"),
        ("REJECTED_TABLE", "table"),
        ("KCL_APPLICATION", "table"),
    ],
)
def test_a_consumer_without_its_stream_or_a_table_says_which_and_how_to_make_it(
    pipeline: Pipeline, variable: str, kind: str
) -> None:
    assert_refused(CONSUMER, pipeline.environment | {variable: "not-there"}, f"{kind} 'not-there'", "metering setup")


@pytest.mark.parametrize("command", [CONSUMER, SETUP], ids=lambda command: command[-1])
def test_credentials_that_are_refused_are_one_line(pipeline: Pipeline, command: list[str]) -> None:
    # DynamoDB Local takes any access key of letters and digits, and no other.
    environment = pipeline.environment | {"AWS_ACCESS_KEY_ID": "not-a-key"}
    assert_refused(command, environment, "refused access", "UnrecognizedClientException")


@pytest.mark.parametrize("command", [CONSUMER, SETUP], ids=lambda command: command[-1])
def test_credentials_that_are_missing_are_one_line(pipeline: Pipeline, command: list[str]) -> None:
    without = {name: value for name, value in pipeline.environment.items() if name != "AWS_ACCESS_KEY_ID"}
    without |= {"AWS_CONFIG_FILE": "/dev/null", "AWS_SHARED_CREDENTIALS_FILE": "/dev/null"}
    assert_refused(command, without, "credentials")


def test_local_without_a_local_stack_is_one_line(tmp_path: Path) -> None:
    assert_refused([METERING, "setup", "--local"], up_environment(tmp_path), str(tmp_path), "make run")


def test_a_collector_without_its_stream_answers_503_and_takes_events_once_it_is_there(parts: Parts) -> None:
    pipeline = parts.named("no-stream")
    event = {"tenant_id": "t", "metric": "m", "value": 1}
    with pipeline.collector() as url:
        answer = requests.post(f"{url}/v1/usage", json=event, timeout=30)
        assert (answer.status_code, answer.json()["code"]) == (503, "stream_missing")
        assert answer.headers["Content-Type"] == "application/problem+json"
        assert "metering setup" in answer.json()["detail"]
        assert requests.get(f"{url}/readyz", timeout=30).status_code == 503
        assert requests.get(f"{url}/healthz", timeout=30).status_code == 200
        pipeline.set_up()
        assert requests.post(f"{url}/v1/usage", json=event, timeout=30).status_code == 202
