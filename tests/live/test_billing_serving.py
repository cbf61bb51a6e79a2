"""Billing as it is started: gunicorn with its own configuration, in a process of its own, without AWS."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMMAND = (sys.executable, "-m", "gunicorn", "--config", "python:billing.gunicorn_conf")


def environment(**variables: str) -> dict[str, str]:
    inherited = {name: text for name, text in os.environ.items() if not name.startswith(("AWS_", "GUNICORN_"))}
    return inherited | variables


@pytest.mark.parametrize(
    ("variable", "value"), [("BILLING_PORT", "eighty"), ("AWS_ENDPOINT", "localhost:4566"), ("LOG_LEVEL", "LOUD")]
)
def test_an_unusable_environment_is_one_line_and_no_service(variable: str, value: str) -> None:
    ended = subprocess.run(
        COMMAND, cwd=ROOT, env=environment(**{variable: value}), capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert ended.stderr.startswith(f"{variable}={value!r} can't be used: allowed: ")
    assert len(ended.stderr.splitlines()) == 1


def test_it_listens_logs_json_lines_once_and_stops_on_sigterm(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path / "stderr"
    variables = {
        "BILLING_PORT": str(port),
        "AWS_ENDPOINT_URL_DYNAMODB": "http://127.0.0.1:1",  # nobody listens there
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
    }
    with log.open("wb") as stderr:
        service = subprocess.Popen(COMMAND, cwd=ROOT, env=environment(**variables), stderr=stderr)
    try:
        assert answer_of(port, "/healthz", service) == (200, {"status": "alive"})
        status, body = answer_of(port, "/v1/tenants/tenant-123/usage/api_calls", service)
        assert (status, body["code"]) == (503, "unavailable")
    finally:
        service.send_signal(signal.SIGTERM)
        assert service.wait(timeout=15) == 0
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert all({"timestamp", "level", "logger", "message"} <= line.keys() for line in lines)
    messages = [line["message"] for line in lines]
    assert len([message for message in messages if message.startswith("Listening at: ")]) == 1
    assert len([message for message in messages if "can't be reached" in message]) == 1
    assert len([message for message in messages if message.startswith("no API keys are set")]) == 1
    assert len([line for line in lines if line.get("path") == "/v1/tenants/tenant-123/usage/api_calls"]) == 1


def answer_of(port: int, path: str, service: subprocess.Popen[bytes]) -> tuple[int, dict[str, str]]:
    """Return status and body as soon as the service answers."""
    for _ in range(300):
        assert service.poll() is None, "the service ended"
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=30) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read())
        except urllib.error.URLError:
            time.sleep(0.05)
    raise AssertionError("the service did not answer within 15 s")
