"""Exports under the gunicorn that serves billing: streamed at the client's pace, and known to be whole or not."""

from __future__ import annotations

import csv
import http.client
import io
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import requests

from billing.checksum import NotWholeError, whole_rows
from billing.export import EXPORTS_MAX
from devstack.tools import dynamodb_local_command
from metering.aws import dynamodb_client
from metering.dynamodb import DynamoCounterStore
from metering.settings import Settings
from operations.local import ACCESS_KEY
from operations.provision import make_tables, tables
from tests.builders import shard
from tests.counter_rows import tenant_items, write_items
from tests.live.test_collector_live import BOOT_S, LiveCollector, free_port, gunicorn
from tests.local_stack import running
from tests.unit.collector_support import WAIT_S, until

PATH = "/v1/export?period=2024-01&format=csv"
TENANTS = 2_000
MANY = 40_000
"""More rows than the kernel holds for a client that does not read: some 10 MB."""


@contextmanager
def billing(tmp_path: Path, *arguments: str, **environment: str) -> Iterator[LiveCollector]:
    port, log = free_port(), tmp_path / "billing.log"
    own = ("--config", "python:billing.gunicorn_conf", *arguments, "tests.live.export_live_app:create()")
    with gunicorn(log, *own, port=port, BILLING_PORT=str(port), **environment) as process:
        live = LiveCollector(process, port, log)
        until(live.alive, BOOT_S)
        yield live


def asked(live: LiveCollector, *, http_version: str = "1.1") -> socket.socket:
    """Ask for an export, and read nothing of it."""
    connection = socket.create_connection(("127.0.0.1", live.port), timeout=WAIT_S)
    connection.sendall(f"GET {PATH} HTTP/{http_version}\r\nHost: x\r\n\r\n".encode())
    return connection


def exported(live: LiveCollector) -> requests.Response:
    return requests.get(f"http://127.0.0.1:{live.port}{PATH}", timeout=60)


def tenants_read(live: LiveCollector) -> int:
    return int(requests.get(f"http://127.0.0.1:{live.port}/read", timeout=WAIT_S).json()["read"])


def stands_still(live: LiveCollector) -> bool:
    before = tenants_read(live)
    time.sleep(0.3)
    return before == tenants_read(live) > 0


def test_a_client_that_does_not_read_holds_the_reading_and_then_gets_all(tmp_path: Path) -> None:
    with billing(tmp_path, EXPORT_TENANTS=str(MANY)) as live, asked(live) as connection:
        until(lambda: stands_still(live))
        held = tenants_read(live)
        assert held < MANY * 0.8, held
        response = http.client.HTTPResponse(connection)
        response.begin()
        assert response.getheader("Transfer-Encoding") == "chunked"
        whole = response.read()
        assert whole_rows(io.BytesIO(whole)) == MANY == tenants_read(live)
        assert "Traceback" not in live.log()


def test_exports_whose_clients_are_gone_or_read_nothing_end_and_make_room(tmp_path: Path) -> None:
    worker = ("--worker-class", "tests.live.slow_live_app.HastyWorker")
    with billing(tmp_path, *worker, EXPORT_TENANTS=str(MANY * 100)) as live, ExitStack() as stack:
        workers = live.workers()
        for _ in range(EXPORTS_MAX):
            stack.enter_context(asked(live))
        until(lambda: exported_status(live) == 503)
        until(lambda: exported_status(live) == 200)  # they read nothing
        for _ in range(EXPORTS_MAX):
            with asked(live) as connection:
                assert connection.recv(1000)
        until(lambda: exported_status(live) == 200)  # they are gone
        until(lambda: stands_still(live))  # and so is the one that was asked for the sake of its status
        assert live.workers() == workers
        assert "Traceback" not in live.log()


def exported_status(live: LiveCollector) -> int:
    """Ask for an export, and leave when it has begun."""
    with requests.get(f"http://127.0.0.1:{live.port}{PATH}", timeout=WAIT_S, stream=True) as answer:
        return answer.status_code


@pytest.mark.parametrize("http_version", ["1.1", "1.0"])
def test_a_reading_that_fails_midway_breaks_off_without_the_last_line(tmp_path: Path, http_version: str) -> None:
    with billing(tmp_path, EXPORT_TENANTS="3000", EXPORT_FAILS="2000") as live:
        with asked(live, http_version=http_version) as connection:
            response = http.client.HTTPResponse(connection)
            response.begin()
            assert response.status == 200
            received = _all_that_comes(response)
        assert received.count(b"\r\n") > 1000
        with pytest.raises(NotWholeError):
            whole_rows(io.BytesIO(received))
        assert live.alive()
        messages = [line["message"] for line in live.lines()]
        assert messages.count("an export broke off: the table is away") == 1
        assert "Traceback" not in live.log()


def test_an_export_of_dynamodb_is_what_usage_is_and_ends_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(variable, ACCESS_KEY)
    with ExitStack() as dynamodb, ExitStack() as stack:
        settings = dynamodb.enter_context(filled_dynamodb(tmp_path))
        live = stack.enter_context(real_billing(tmp_path, str(settings.dynamodb_endpoint)))
        whole = exported(live)
        assert whole.headers["As-Of"] == "2024-01-03T00:00:00.000Z"
        assert whole_rows(io.BytesIO(whole.content)) == TENANTS
        rows = list(csv.reader(io.StringIO(whole.text, newline="")))[1:-1]
        assert [row[0] for row in rows] == sorted(f"tenant-{number}" for number in range(TENANTS))
        assert {tuple(row[1:]) for row in rows} == {("api_calls", "7919.5", "3")}
        url = f"http://127.0.0.1:{live.port}/v1/tenants/tenant-7/usage/api_calls?from=2024-01&to=2024-02"
        assert '"usage":7919.5,"events":3' in requests.get(url, timeout=WAIT_S).text

        with asked(live) as connection:
            response = http.client.HTTPResponse(connection)
            response.begin()
            dynamodb.close()
            received = _all_that_comes(response)
        with pytest.raises(NotWholeError):
            whole_rows(io.BytesIO(received))
        until(lambda: "an export broke off: the table 'usage-aggregator' can't be reached" in live.log())
        assert exported(live).json()["code"] == "unavailable"  # and not half a file, when nothing has been read
        assert "Traceback" not in live.log()


@contextmanager
def filled_dynamodb(tmp_path: Path) -> Iterator[Settings]:
    """A DynamoDB Local with TENANTS tenants that have two hours each; an export of them takes some seconds."""
    port, start = free_port(), datetime(2024, 1, 1, tzinfo=UTC)
    memory = Path("/dev/shm")  # noqa: S108 - a folder of its own within it; thousands of rows take their time on a disk
    with (
        tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else tmp_path) as folder,
        running(dynamodb_local_command(port, Path(folder)), port, tmp_path / "dynamodb.log") as endpoint,
    ):
        settings = replace(Settings.from_environment({}), dynamodb_endpoint=endpoint)
        with closing(dynamodb_client(settings, connections_max=16)) as client:
            make_tables(client, tables(settings)[:3])
            tenant_ids = (f"tenant-{number}" for number in range(TENANTS))
            items = (tenant_items(tenant_id, ["api_calls"], start, 2) for tenant_id in tenant_ids)
            write_items(client, settings.table, chain.from_iterable(items))
            store = DynamoCounterStore(client, table=settings.table, rejected_table="-", rejected_ttl_days=1)
            store.open_shard(shard(), complete_until=start + timedelta(days=2), now=start)
        yield settings


@contextmanager
def real_billing(tmp_path: Path, endpoint: str) -> Iterator[LiveCollector]:
    port, log = free_port(), tmp_path / "billing.log"
    environment = {
        "BILLING_PORT": str(port),
        "AWS_ENDPOINT_URL_DYNAMODB": endpoint,
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": ACCESS_KEY,
    }
    with gunicorn(log, "--config", "python:billing.gunicorn_conf", port=port, **environment) as process:
        live = LiveCollector(process, port, log)
        until(live.alive, BOOT_S)
        yield live


def _all_that_comes(response: Any) -> bytes:
    try:
        whole = bytes(response.read())
    except http.client.IncompleteRead as error:
        assert response.version == 11
        return error.partial
    assert response.version == 10  # its end is the connection's: nothing but the last line tells
    return whole
