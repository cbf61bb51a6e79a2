from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import requests

from tests.unit.collector_support import WAIT_S, encoded, until, usage

ROOT = Path(__file__).resolve().parents[2]
IN_MEMORY = "tests.live.collector_live_app:create()"
PUBLISHED = re.compile(r"Published (\d+) event\(s\) to Kinesis: stream=usage-events, records=(\d+)")
BOOT_S = 30.0


@dataclass
class LiveCollector:
    process: subprocess.Popen[bytes]
    port: int
    log_path: Path

    def post(self, event_id: str, tenant_id: str = "tenant-123") -> requests.Response:
        url = f"http://127.0.0.1:{self.port}/v1/usage"
        return requests.post(url, json=usage(event_id=event_id, tenant_id=tenant_id), timeout=WAIT_S)

    def alive(self) -> bool:
        try:
            return requests.get(f"http://127.0.0.1:{self.port}/healthz", timeout=WAIT_S).status_code == 200
        except requests.ConnectionError:
            assert self.process.poll() is None, self.log()
            return False

    def log(self) -> str:
        return self.log_path.read_text()

    def lines(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.log().splitlines()]

    def published(self) -> list[int]:
        return [int(events) for events, _ in PUBLISHED.findall(self.log())]

    def workers(self) -> set[int]:
        return {child.pid for child in psutil.Process(self.process.pid).children()}

    def memory_bytes(self) -> int:
        return sum(psutil.Process(pid).memory_info().rss for pid in self.workers())


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def gunicorn(log_path: Path, *arguments: str, port: int, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """Start gunicorn as people do, with nothing of this process's own settings; end it with the block."""
    inherited = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "gunicorn", "--config", "python:collector.gunicorn_conf", *arguments],
            cwd=ROOT,
            env={**inherited, "COLLECTOR_PORT": str(port), **environment},
            stderr=log,
            stdout=log,
        )
    try:
        yield process
    finally:
        family = [*psutil.Process(process.pid).children(), process] if process.poll() is None else []
        for member in family:
            member.kill()
        process.wait(WAIT_S)


@contextmanager
def collector(tmp_path: Path, app: str | None = IN_MEMORY, **environment: str) -> Iterator[LiveCollector]:
    port = free_port()
    log_path = tmp_path / "collector.log"
    arguments = [] if app is None else [app]
    with gunicorn(log_path, *arguments, port=port, **environment) as process:
        live = LiveCollector(process, port, log_path)
        until(live.alive, BOOT_S)
        yield live


def test_concurrent_posts_share_puts_and_each_request_is_one_line_of_json(tmp_path: Path) -> None:
    with (
        collector(tmp_path, PUT_S="0.05", WEB_CONCURRENCY="1", LOG_LEVEL="DEBUG") as live,
        ThreadPoolExecutor(16) as pool,
    ):
        answers = list(pool.map(live.post, [f"id-{n}" for n in range(96)]))
        assert {answer.status_code for answer in answers} == {202}
        assert sum(live.published()) == 96
        assert len(live.published()) <= 48
        until(lambda: len(_posts(live)) == 96)
        assert all((line["method"], line["status"]) == ("POST", 202) for line in _posts(live))
        assert "tenant-123" not in live.log()
        assert sum("open to everyone" in str(line["message"]) for line in live.lines()) == 1


def _posts(live: LiveCollector) -> list[dict[str, object]]:
    return [line for line in live.lines() if line["logger"] == "gunicorn.access" and line["path"] == "/v1/usage"]


def test_sigterm_in_the_middle_of_slow_puts_answers_what_is_in_flight(tmp_path: Path) -> None:
    with collector(tmp_path, PUT_S="1.0", LOG_LEVEL="DEBUG") as live, ThreadPoolExecutor(12) as pool:
        answers = [pool.submit(live.post, f"id-{n}") for n in range(12)]
        until(lambda: _connections(live) >= 12)
        live.process.send_signal(signal.SIGTERM)
        assert [answer.result(WAIT_S).status_code for answer in answers] == [202] * 12
        assert live.process.wait(WAIT_S) == 0
        assert sum(live.published()) == 12
        assert "Traceback" not in live.log()


def _connections(live: LiveCollector) -> int:
    """How many requests have arrived at the workers."""
    return sum(
        connection.status == psutil.CONN_ESTABLISHED and connection.laddr.port == live.port
        for pid in live.workers()
        for connection in psutil.Process(pid).net_connections(kind="tcp")
    )


def test_killed_worker_is_replaced_and_its_requests_are_not_answered_accepted(tmp_path: Path) -> None:
    with collector(tmp_path, PUT_S="2.0", WEB_CONCURRENCY="1") as live, ThreadPoolExecutor(1) as pool:
        (worker,) = live.workers()
        answer = pool.submit(live.post, "id-1")
        until(lambda: _connections(live) >= 1)
        os.kill(worker, signal.SIGKILL)
        with pytest.raises(requests.ConnectionError):
            answer.result(WAIT_S)
        until(lambda: live.workers() - {worker})
        assert live.post("id-1").status_code == 202


def test_worker_whose_committer_failed_answers_503_and_is_replaced(tmp_path: Path) -> None:
    with collector(tmp_path, WEB_CONCURRENCY="1") as live:
        before = live.workers()
        assert live.post("id-1", "crash").status_code == 503
        until(lambda: live.workers() and not live.workers() & before)
        until(live.alive)
        assert live.post("id-2").status_code == 202
        live.process.send_signal(signal.SIGTERM)
        assert live.process.wait(WAIT_S) == 0


def test_body_over_the_limit_is_refused_with_and_without_a_length(tmp_path: Path) -> None:
    with collector(tmp_path, WEB_CONCURRENCY="1") as live:
        piece = b" " * 65_536
        pieces = [encoded(usage()), *[piece] * 81]
        for body, content_type, status in (
            (b"".join(pieces), "application/json", 413),
            (iter(pieces), "application/json", 413),
            (b"".join(pieces), "text/plain", 415),
        ):
            with closing(http.client.HTTPConnection("127.0.0.1", live.port, timeout=WAIT_S)) as connection:
                connection.request("POST", "/v1/usage", body, {"Content-Type": content_type})
                response = connection.getresponse()
                assert response.status == status
                assert json.loads(response.read())["status"] == status
        assert live.post("id-1").status_code == 202


@pytest.mark.parametrize("body", [b"zz\r\n{}\r\n0\r\n\r\n", b"ffff\r\n{}"])
def test_body_that_breaks_off_is_a_bad_request(tmp_path: Path, body: bytes) -> None:
    head = b"POST /v1/usage HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    with (
        collector(tmp_path, WEB_CONCURRENCY="1") as live,
        socket.create_connection(("127.0.0.1", live.port), timeout=WAIT_S) as connection,
    ):
        connection.sendall(head + body)
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(65_536).startswith(b"HTTP/1.1 400 ")
        assert "Traceback" not in live.log()


def test_stream_that_can_not_be_reached_is_503_with_retry_after(tmp_path: Path) -> None:
    nobody = f"http://127.0.0.1:{free_port()}"
    keys = {"AWS_ACCESS_KEY_ID": "local", "AWS_SECRET_ACCESS_KEY": "local"}
    deadline = {"COLLECTOR_DEADLINE_MS": "300", "WEB_CONCURRENCY": "1"}
    with collector(tmp_path, app=None, AWS_ENDPOINT_URL_KINESIS=nobody, **keys, **deadline) as live:
        answer = live.post("id-1")
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "2")
        assert answer.json()["held"] == "unknown"
        assert requests.get(f"http://127.0.0.1:{live.port}/readyz", timeout=WAIT_S).status_code == 503
        live.process.send_signal(signal.SIGTERM)
        assert live.process.wait(WAIT_S) == 0


@pytest.mark.parametrize(
    "environment", [{"COLLECTOR_LINGER_MS": "soon"}, {"LOG_LEVEL": "loud"}, {"AWS_ENDPOINT": "nowhere"}]
)
def test_setting_that_can_not_be_used_stops_the_start_with_one_line(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    log_path = tmp_path / "collector.log"
    ((variable, value),) = environment.items()
    with gunicorn(log_path, port=free_port(), **environment) as process:
        assert process.wait(BOOT_S) == 1
    (line,) = log_path.read_text().splitlines()
    assert line.startswith(f"{variable}={value!r} can't be used: allowed: ")


def test_idle_collector_stops_at_once_on_sigterm(tmp_path: Path) -> None:
    with collector(tmp_path) as live:
        assert live.post("id-1").status_code == 202
        began = time.monotonic()
        live.process.send_signal(signal.SIGTERM)
        assert live.process.wait(WAIT_S) == 0
        assert time.monotonic() - began < 5
