"""The access log: one JSON line for each request of both services, by default, that no client can break or flood."""

from __future__ import annotations

import json
import logging
import signal
import socket
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests

from metering.gunicorn_log import PATH_CHARACTERS_MAX, JsonLinesLogger
from tests.live.test_collector_live import LiveCollector, collector
from tests.unit.collector_support import WAIT_S, until


def logged(caplog: pytest.LogCaptureFixture, level: int, *, status: int = 200, **environ: str) -> list[dict[str, Any]]:
    """The fields of the lines that one request leaves at `level`."""
    logger = JsonLinesLogger.__new__(JsonLinesLogger)
    logger.access_log = logging.getLogger("gunicorn.access")
    caplog.clear()
    with caplog.at_level(level):
        logger.access(
            SimpleNamespace(status=f"{status} X", sent=17),
            None,
            {"REQUEST_METHOD": "GET", "PATH_INFO": "/", "REMOTE_ADDR": "10.0.0.7", **environ},
            timedelta(milliseconds=12.34),
        )
    return [record.__dict__ for record in caplog.records]


def path_of(caplog: pytest.LogCaptureFixture, path: str) -> str:
    (line,) = logged(caplog, logging.INFO, PATH_INFO=path)
    return str(line["path"])


def test_a_line_says_who_asked_what_and_what_came_of_it(caplog: pytest.LogCaptureFixture) -> None:
    (line,) = logged(caplog, logging.INFO, REQUEST_METHOD="POST", PATH_INFO="/v1/usage", CONTENT_LENGTH="123")
    assert {name: line[name] for name in ("method", "path", "status", "client")} == {
        "method": "POST",
        "path": "/v1/usage",
        "status": 200,
        "client": "10.0.0.7",
    }
    assert (line["bytes_in"], line["bytes_out"], line["duration_ms"]) == (123, 17, 12.3)


@pytest.mark.parametrize("length", ["", "9" * 19, "x"])
def test_a_length_that_is_none_is_null(caplog: pytest.LogCaptureFixture, length: str) -> None:
    (line,) = logged(caplog, logging.INFO, CONTENT_LENGTH=length)
    assert line["bytes_in"] is None


def test_a_path_is_shown_as_ascii_that_breaks_no_line(caplog: pytest.LogCaptureFixture) -> None:
    assert path_of(caplog, "/v1/tenants/a.b_c-d:e@f/usage") == "/v1/tenants/a.b_c-d:e@f/usage"
    assert path_of(caplog, "/a\r\n\x1b[31m\x85\x9b\"\\{}'") == "/a%0D%0A%1B%5B31m%85%9B%22%5C%7B%7D'"
    assert path_of(caplog, "/テナント".encode().decode("latin-1")) == "/%E3%83%86%E3%83%8A%E3%83%B3%E3%83%88"


@pytest.mark.parametrize("character", ["a", "\x00"])
def test_a_long_path_is_cut(caplog: pytest.LogCaptureFixture, character: str) -> None:
    shown = path_of(caplog, "/" + character * 4000)
    assert len(shown) == PATH_CHARACTERS_MAX
    assert shown.endswith("...")


def test_a_path_of_just_the_limit_is_whole(caplog: pytest.LogCaptureFixture) -> None:
    path = "/" + "a" * (PATH_CHARACTERS_MAX - 1)
    assert path_of(caplog, path) == path


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics"])
def test_probes_are_logged_at_debug_unless_they_fail(caplog: pytest.LogCaptureFixture, path: str) -> None:
    assert not logged(caplog, logging.INFO, PATH_INFO=path)
    assert len(logged(caplog, logging.DEBUG, PATH_INFO=path)) == 1
    assert len(logged(caplog, logging.INFO, status=503, PATH_INFO=path)) == 1


def access_lines(service: LiveCollector) -> list[dict[str, object]]:
    return [line for line in service.lines() if line["logger"] == "gunicorn.access"]


def test_it_is_on_by_default_and_holds_neither_query_nor_headers_nor_body(tmp_path: Path) -> None:
    with collector(tmp_path, WEB_CONCURRENCY="1") as service:
        url = f"http://127.0.0.1:{service.port}/v1/nothing%0Ahere?token=secret-1"
        requests.post(url, data=b"secret-2", headers={"X-Token": "secret-3"}, timeout=WAIT_S)
        until(lambda: access_lines(service))
        (line,) = access_lines(service)
        assert (line["method"], line["path"], line["status"]) == ("POST", "/v1/nothing%0Ahere", 404)
        assert (line["bytes_in"], line["client"], line["level"]) == (8, "127.0.0.1", "INFO")
        assert "secret" not in service.log()


def test_requests_that_gunicorn_refuses_are_lines_too(tmp_path: Path) -> None:
    with (
        collector(tmp_path, WEB_CONCURRENCY="1") as service,
        socket.create_connection(("127.0.0.1", service.port), timeout=WAIT_S) as connection,
    ):
        connection.sendall(b"POST /v1/usage HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n")
        assert connection.recv(65_536).startswith(b"HTTP/1.1 400 ")
        until(lambda: access_lines(service))
        assert access_lines(service)[0]["status"] == 400
        assert all(json.loads(line) for line in service.log().splitlines())


def test_a_request_that_is_refused_is_not_quoted_at_length(tmp_path: Path) -> None:
    with (
        collector(tmp_path, WEB_CONCURRENCY="1") as service,
        socket.create_connection(("127.0.0.1", service.port), timeout=WAIT_S) as connection,
    ):
        connection.sendall(b"a" * 4000 + b"\x1b[31m\r\n\r\n")
        assert connection.recv(65_536).startswith(b"HTTP/1.1 400 ")
        until(lambda: "Invalid request from ip=127.0.0.1" in service.log())
        assert max(map(len, service.log().splitlines())) < 600


@pytest.mark.parametrize(("level", "paths"), [("WARNING", set()), ("DEBUG", {"/v1/usage", "/healthz"})])
def test_the_level_decides_what_is_logged(tmp_path: Path, level: str, paths: set[str]) -> None:
    with collector(tmp_path, WEB_CONCURRENCY="1", LOG_LEVEL=level) as service:
        assert service.post("id-1").status_code == 202
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(WAIT_S) == 0
        assert {line["path"] for line in access_lines(service)} == paths
