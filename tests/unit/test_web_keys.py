"""API keys at the edge: who is let in, for which tenants and how often, and that nothing of it gets into a log."""

from __future__ import annotations

import hashlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from billing.app import create_app as billing_app
from metering.api_keys import Scope
from metering.errors import InvalidSettingError
from metering.memory import MemoryTables
from metering.settings import RateLimit, Settings
from metering.web import add_health, add_problems
from metering.web_keys import OPEN_PATHS, KeyRate, add_api_keys, key_tenants, require_tenant, tenant_allowed
from tests.builders import NOW, shard, write
from tests.unit.collector_support import until
from tests.unit.counting_world import EVENT, World

ROOT = Path(__file__).resolve().parents[2]
KEY = "n2Ew1WbCqkTnSmYb5kJxwJbsiX2mD0cQv3sHkq8G7zY"
OTHER_KEY = "0Jx7yXgTj5mVnJfS6oWc1h9tQm3bUe2RkZdLp8aNqXs"
BEARER = {"Authorization": f"Bearer {KEY}"}


def line(key: str = KEY, tenant_id: str = "tenant-123", scopes: str = "read") -> str:
    return f"{hashlib.sha256(key.encode()).hexdigest()} {tenant_id} {scopes}\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "keys"
    file.write_text(line())
    return file


@pytest.fixture
def closed(settings: Settings, file: Path) -> Settings:
    """Settings with keys."""
    return replace(settings, api_keys_file=file)


@pytest.fixture(autouse=True)
def nothing_is_said_of_keys(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """No log record of any test here holds a key, its hash or its header, at any level."""
    caplog.set_level(logging.DEBUG)
    yield
    for record in caplog.records:
        for secret in (KEY, OTHER_KEY, "Bearer", *(line(key).split()[0] for key in (KEY, OTHER_KEY))):
            assert secret not in str(record.__dict__) + record.getMessage()


def app_with(settings: Settings, **scopes: Scope) -> Flask:
    app = Flask("test", static_folder=None)
    add_problems(app)
    add_api_keys(app, settings, scope=Scope.READ, endpoint_scopes=scopes)
    add_health(app, lambda: None)
    app.get("/metrics", endpoint="metrics")(lambda: "metrics")
    app.get("/openapi.json", endpoint="openapi")(lambda: "openapi")

    @app.get("/")
    def index() -> dict[str, Any]:
        tenants = key_tenants()
        return {"own": None if tenants is None else sorted(tenants), "acme": tenant_allowed("acme")}

    @app.get("/tenants/<tenant_id>")
    def of_tenant(tenant_id: str) -> str:
        return tenant_id

    @app.post("/tenants/<tenant_id>/void")
    def void(tenant_id: str) -> str:
        return tenant_id

    @app.get("/crash")
    def crash() -> str:
        raise RuntimeError("a bug")

    @app.get("/acme")
    def acme() -> str:
        require_tenant("acme")
        return "acme"

    return app


def code_of(answer: TestResponse) -> tuple[int, str | None]:
    """Return status and code; a refusal for want of a key names the scheme, as RFC 9110 wants it."""
    assert (answer.headers.get("WWW-Authenticate") == "Bearer") == (answer.status_code == 401)
    if answer.status_code < 400:
        return answer.status_code, None
    assert answer.content_type == "application/problem+json"
    assert answer.json is not None
    assert KEY not in answer.text
    return answer.status_code, answer.json["code"]


UNAUTHORIZED = (401, "unauthorized")

# ── Keys and headers ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_without_a_key_file_everything_is_open(settings: Settings) -> None:
    client = app_with(settings).test_client()
    assert client.get("/").json == {"own": None, "acme": True}
    assert client.get("/acme").status_code == client.get("/tenants/acme").status_code == 200
    assert client.get("/", headers={"Authorization": "Bearer x"}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        BEARER,
        {"Authorization": f"bearer {KEY}"},
        {"Authorization": f"BEARER   {KEY} "},
        {"X-Api-Key": KEY},
        {"x-api-key": f" {KEY} "},
        {"Authorization": "Basic dXNlcjpwYXNz", "X-Api-Key": KEY},
        {"Authorization": f"Bearer {KEY}", "X-Api-Key": "something else"},
    ],
)
def test_a_key_is_let_in(closed: Settings, headers: dict[str, str]) -> None:
    assert code_of(app_with(closed).test_client().get("/", headers=headers)) == (200, None)


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("Authorization", "")],
        [("Authorization", "Bearer")],
        [("Authorization", "Bearer ")],
        [("Authorization", KEY)],
        [("Authorization", f"Bearer{KEY}")],
        [("Authorization", f"Bearer\t{KEY}")],
        [("Authorization", f"Bearer: {KEY}")],
        [("Authorization", f'Bearer "{KEY}"')],
        [("Authorization", f"Bearer {KEY} x")],
        [("Authorization", f"Basic {KEY}")],
        [("Authorization", f"Token {KEY}")],
        [("Authorization", f"Bearer {KEY}\xa0")],
        [("Authorization", f"Bearer {KEY}"), ("Authorization", f"Bearer {KEY}")],
        [("Authorization", f"Bearer {KEY}"), ("Authorization", "Bearer x")],
        [("X-Api-Key", KEY), ("X-Api-Key", KEY)],
        [("X-Api-Key", f"Bearer {KEY}")],
        [("X-Api-Key", "")],
        [("Proxy-Authorization", f"Bearer {KEY}")],
        [("Cookie", f"key={KEY}")],
        [("Authorization", f"Bearer {KEY.lower()}")],
        [("Authorization", f"Bearer {line().split()[0]}")],
        [("Authorization", f"Bearer {OTHER_KEY}")],
        [("Authorization", "Bearer wrong"), ("X-Api-Key", KEY)],
        [("Authorization", "Bearer \xff\xfe\x80")],
        [("Authorization", f"Bearer {KEY * 2500}")],
        [("Authorization", f"Bearer {' ' * 100_000}")],
        [("Authorization", f"{'x' * 100_000} {KEY}")],
    ],
    ids=lambda headers: "; ".join(f"{name}: {value[:24]}" for name, value in headers).encode("unicode_escape").decode(),
)
def test_anything_else_is_not(closed: Settings, headers: list[tuple[str, str]]) -> None:
    client = app_with(closed).test_client()
    for path in ("/", "/tenants/tenant-123", "/unknown", "/healthz/", "//healthz", "/crash", f"/?key={KEY}"):
        assert code_of(client.get(path, headers=headers)) == UNAUTHORIZED
    assert code_of(client.post("/healthz", headers=headers)) == UNAUTHORIZED


def test_a_key_is_the_bytes_that_were_sent(closed: Settings, file: Path) -> None:
    for key in ("ключ-à", "pass wörd", "a,b"):
        file.write_text(line(key), encoding="utf-8")
        sent = key.encode().decode("latin-1")  # as WSGI hands it on
        client = app_with(closed).test_client()
        for headers in ({"Authorization": f"Bearer {sent}"}, {"X-Api-Key": sent}):
            assert code_of(client.get("/", headers=headers)) == (200, None)


@pytest.mark.parametrize("path", sorted(path for path in OPEN_PATHS if "<" not in path))
def test_what_machines_ask_for_needs_no_key(closed: Settings, path: str) -> None:
    client = app_with(closed).test_client()
    for headers in ({}, BEARER, {"Authorization": "Bearer wrong"}):
        assert client.get(path, headers=headers).status_code == 200


def test_an_unknown_path_is_not_found_whatever_the_scope(closed: Settings, file: Path) -> None:
    file.write_text(line(scopes="void"))
    client = app_with(closed).test_client()
    assert code_of(client.get("/unknown", headers=BEARER)) == (404, "not_found")
    assert code_of(client.post("/acme", headers=BEARER)) == (405, "method_not_allowed")
    assert code_of(client.get("/acme", headers=BEARER)) == (403, "forbidden_scope")


def test_a_bug_is_logged_without_the_request(closed: Settings, caplog: pytest.LogCaptureFixture) -> None:
    assert code_of(app_with(closed).test_client().get("/crash", headers=BEARER)) == (500, "internal_error")
    assert "RuntimeError: a bug" in caplog.text  # and see nothing_is_said_of_keys


# ── Scopes and tenants ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("scope", Scope)
def test_an_endpoint_wants_its_own_scope_and_no_other_implies_it(closed: Settings, file: Path, scope: Scope) -> None:
    file.write_text(line(scopes=scope))
    client = app_with(closed, void=Scope.VOID).test_client()
    read = client.get("/tenants/tenant-123", headers=BEARER)
    voided = client.post("/tenants/tenant-123/void", headers=BEARER)
    assert code_of(read) == ((200, None) if scope is Scope.READ else (403, "forbidden_scope"))
    assert code_of(voided) == ((200, None) if scope is Scope.VOID else (403, "forbidden_scope"))
    if scope is Scope.WRITE:
        assert read.json is not None
        assert read.json["scope"] == "read"


def test_a_key_acts_for_the_tenants_of_the_scope_that_is_needed(closed: Settings, file: Path) -> None:
    file.write_text(line(tenant_id="acme") + line(tenant_id="globex", scopes="void") + line(OTHER_KEY, "*"))
    client = app_with(closed, void=Scope.VOID).test_client()
    assert client.get("/", headers=BEARER).json == {"own": ["acme"], "acme": True}
    assert client.get("/", headers={"X-Api-Key": OTHER_KEY}).json == {"own": None, "acme": True}
    assert code_of(client.get("/acme", headers=BEARER)) == (200, None)
    assert code_of(client.get("/tenants/acme", headers=BEARER)) == (200, None)
    for tenant_id in ("globex", "Acme", "acme2", "*", "a%20b"):
        answer = client.get(f"/tenants/{tenant_id}", headers=BEARER)
        assert code_of(answer) == (403, "forbidden_tenant")
    assert code_of(client.post("/tenants/globex/void", headers=BEARER)) == (200, None)
    assert code_of(client.post("/tenants/acme/void", headers=BEARER)) == (403, "forbidden_tenant")
    file.write_text(line(tenant_id="globex"))
    other = app_with(closed).test_client()
    assert other.get("/", headers=BEARER).json == {"own": ["globex"], "acme": False}
    assert code_of(other.get("/acme", headers=BEARER)) == (403, "forbidden_tenant")


def test_an_open_path_acts_for_nobody(closed: Settings) -> None:
    app = Flask("test", static_folder=None)
    add_api_keys(app, closed, scope=Scope.READ)
    app.get("/metrics")(lambda: str(tenant_allowed("tenant-123")))
    assert app.test_client().get("/metrics", headers=BEARER).text == "False"


# ── The file ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_file_that_cannot_be_used_stops_the_start(closed: Settings, file: Path) -> None:
    file.write_text(f"{KEY}\n")
    for create in (app_with, lambda settings: billing_app(MemoryTables(), settings)):
        with pytest.raises(InvalidSettingError, match=r"API_KEYS_FILE=.*line 1"):
            create(closed)


def test_a_change_of_the_file_holds_without_a_restart(closed: Settings, file: Path) -> None:
    client = app_with(closed).test_client()
    assert code_of(client.get("/", headers=BEARER)) == (200, None)
    file.write_text("")
    until(lambda: code_of(client.get("/", headers=BEARER)) == UNAUTHORIZED)


# ── The rate ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def hour_of(closed: Settings, requests: int) -> FlaskClient:
    return app_with(replace(closed, api_key_rate_limit=RateLimit(requests, 3600))).test_client()


def test_a_key_that_asks_too_often_is_told_when_to_come_back(closed: Settings) -> None:
    client = hour_of(closed, 3)
    answers = [client.get("/", headers=BEARER) for _ in range(10)]  # more than two hours' worth, should one end now
    assert [code_of(answer) for answer in answers[:3]] == [(200, None)] * 3
    assert code_of(answers[-1]) == (429, "rate_limited")
    assert 1 <= int(answers[-1].headers["Retry-After"]) <= 3600
    assert client.get("/healthz", headers=BEARER).status_code == 200


def test_each_key_has_its_own_rate_and_a_wrong_one_has_none(closed: Settings, file: Path) -> None:
    file.write_text(line() + line(tenant_id="acme") + line(OTHER_KEY, "*"))
    client = hour_of(closed, 1)
    refused = [client.get("/tenants/acme", headers=BEARER).status_code for _ in range(5)]
    assert (refused[0], refused[-1]) == (200, 429)
    assert client.get("/tenants/tenant-123", headers=BEARER).status_code == 429  # counted by key, not by line
    assert client.get("/", headers={"X-Api-Key": OTHER_KEY}).status_code == 200
    for _ in range(5):
        assert code_of(client.get("/", headers={"X-Api-Key": "wrong"})) == UNAUTHORIZED


def test_a_request_that_the_key_may_not_make_is_counted_too(closed: Settings, file: Path) -> None:
    file.write_text(line(scopes="write"))
    client = hour_of(closed, 1)
    answers = [client.get("/", headers=BEARER).status_code for _ in range(5)]
    assert (answers[0], answers[-1]) == (403, 429)


@pytest.mark.parametrize(("requests", "seconds"), [(1, 1), (3, 60), (100, 1), (1000, 3600)])
@pytest.mark.parametrize("into_the_window", [0.001, 0.25, 0.999])
def test_whoever_waits_as_long_as_told_is_let_in(
    requests: int, seconds: int, into_the_window: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1_700_000_400 // 3600 * 3600 + into_the_window * seconds
    monkeypatch.setattr(time, "time", lambda: now)  # the library asks for it by itself
    rate = KeyRate(RateLimit(requests, seconds))
    for _ in range(5):
        assert rate.retry_after_s("key") is None
        while (wait_s := rate.retry_after_s("key")) is None:
            pass
        assert 1 <= wait_s <= seconds + 1
        now += wait_s


@pytest.fixture
def switching_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def test_a_burst_gets_the_rate_and_not_twice_the_rate_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_700_000_400 // 60 * 60 + 59.9
    monkeypatch.setattr(time, "time", lambda: now)
    rate = KeyRate(RateLimit(100, 60))
    assert sum(rate.retry_after_s("key") is None for _ in range(300)) == 100
    now += 0.2  # another window of the clock
    assert sum(rate.retry_after_s("key") is None for _ in range(300)) <= 1
    now -= 3600
    assert rate.retry_after_s("key") is None  # a clock that is set back shuts nobody out


@pytest.mark.usefixtures("switching_often")
def test_threads_get_the_rate_between_them() -> None:
    # What can go wrong does so at a key's first requests: many keys, then, and all threads at each at the same time.
    threads, keys = 8, 2000
    rate = KeyRate(RateLimit(threads, 10**9))  # no window ends in between
    ready = threading.Barrier(threads, timeout=30)

    def ask() -> int:
        counted = 0
        for key in range(keys):
            ready.wait()
            counted += sum(rate.retry_after_s(str(key)) is None for _ in range(2))
        return counted

    with ThreadPoolExecutor(threads) as pool:
        counted = sum(future.result() for future in [pool.submit(ask) for _ in range(threads)])
    assert counted == threads * keys


# ── Billing ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def tables() -> MemoryTables:
    tables = MemoryTables()
    for tenant_id in ("acme", "globex", "initech", "テナント"):
        tables.register_tenant(tenant_id, now=NOW)
        tables.apply(shard(), write(1, tenant_id=tenant_id, metric="m"), now=NOW)
    return tables


@pytest.fixture
def billing(tables: MemoryTables, closed: Settings, file: Path) -> Callable[..., FlaskClient]:
    """Return a client of billing whose key has these lines."""

    def client(*lines: str) -> FlaskClient:
        file.write_text("".join(lines), encoding="utf-8")
        client = billing_app(tables, closed, now=lambda: NOW).test_client()
        client.environ_base["HTTP_AUTHORIZATION"] = BEARER["Authorization"]
        return client

    return client


def test_every_path_of_billing_needs_a_key_but_the_open_ones(tables: MemoryTables, closed: Settings) -> None:
    app = billing_app(tables, closed)
    client = app.test_client()
    for rule in app.url_map.iter_rules():
        path = "/".join("x" if part.startswith("<") else part for part in rule.rule.split("/"))
        for method in rule.methods or ():
            refused = client.open(path, method=method).status_code == 401
            assert refused == (rule.rule not in OPEN_PATHS), (method, rule)


def test_every_path_of_billing_that_names_a_tenant_is_for_that_tenants_keys(
    billing: Callable[..., FlaskClient],
) -> None:
    client = billing(line(tenant_id="acme", scopes="read,write,void"))
    rules = [rule for rule in client.application.url_map.iter_rules() if "tenant" in "".join(rule.arguments)]
    assert len(rules) >= 3
    for rule in rules:
        path = "/".join("globex" if part.startswith("<") else part for part in rule.rule.split("/"))
        for method in rule.methods or ():
            answer = client.open(path, method=method)
            assert answer.status_code == 403, rule
            assert answer.headers["Cache-Control"] == "no-store"
    assert code_of(client.get("/v1/tenants/globex/usage")) == (403, "forbidden_tenant")
    assert code_of(client.get("/v1/tenants/nobody/usage")) == (403, "forbidden_tenant")  # not: whether it exists
    assert code_of(client.get("/v1/tenants/acme/usage/m")) == (200, None)


def test_a_key_that_sends_events_reads_no_bills(billing: Callable[..., FlaskClient]) -> None:
    client = billing(line(tenant_id="*", scopes="write,void"))
    for path in ("/v1/tenants", "/v1/tenants/acme/usage", "/v1/tenants/acme/usage/m", "/v1/tenants/acme/events/e"):
        assert code_of(client.get(path)) == (403, "forbidden_scope")


def listed(client: FlaskClient, **query: Any) -> tuple[list[str], str | None]:
    answer = client.get("/v1/tenants", query_string=query).json
    assert answer is not None
    return [tenant["tenant_id"] for tenant in answer["tenants"]], answer["next_cursor"]


def test_the_list_of_tenants_holds_those_of_the_key_that_have_been_seen(billing: Callable[..., FlaskClient]) -> None:
    assert listed(billing(line(tenant_id="*")))[0] == ["acme", "globex", "initech", "テナント"]
    assert listed(billing(line(tenant_id="globex"))) == (["globex"], None)
    assert listed(billing(line(tenant_id="never-seen"))) == ([], None)
    everything = line(tenant_id="acme", scopes="write") + line(tenant_id="initech")
    assert listed(billing(everything)) == (["initech"], None)


def test_the_pages_of_a_keys_tenants_hold_each_of_them_once(
    billing: Callable[..., FlaskClient], tables: MemoryTables
) -> None:
    more = [f"tenant-{number}" for number in range(10)] + ["\U0001d4b3", "\uff21"]  # in UTF-16, the other way round
    for tenant_id in more:
        tables.apply(shard(), write(1, tenant_id=tenant_id, metric="m"), now=NOW)
        tables.register_tenant(tenant_id, now=NOW)
    everyone = [tenant_id for tenant_id in listed(billing(line(tenant_id="*")))[0] if tenant_id != "globex"]
    client = billing(*(line(tenant_id=tenant_id) for tenant_id in (*everyone, "absent", "zzz")))
    for limit in (1, 4, 5, len(everyone) - 1, len(everyone)):
        found: list[str] = []
        cursor: str | None = ""
        while cursor is not None:
            page, cursor = listed(client, limit=limit, cursor=cursor)
            assert len(page) == limit or cursor is None
            found += page
        assert found == everyone
    assert listed(client, limit=len(everyone))[1] is None


def test_a_receipt_shows_a_tenants_key_no_rejected_event_that_may_be_anothers(closed: Settings, file: Path) -> None:
    world = World()
    owned = world.put({**EVENT, "value": "-1"})
    unowned = world.put(b"{")
    paths = [
        f"/v1/tenants/tenant-123/events/kinesis:{where.shard_id}:{where.sequence_number}:0"
        for where in (owned, unowned)
    ]

    def statuses() -> list[str]:
        client = billing_app(world.tables, closed, now=lambda: world.now).test_client()
        answers = [client.get(path, headers=BEARER).json for path in paths]
        return [answer["status"] for answer in answers if answer is not None]

    assert statuses() == ["rejected", "unknown"]
    file.write_text(line(tenant_id="*"))
    assert statuses() == ["rejected", "rejected"]


# ── Under gunicorn ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_no_log_line_of_a_service_holds_a_key_or_its_header(file: Path, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path / "log"
    environment = {name: text for name, text in os.environ.items() if not name.startswith(("AWS_", "GUNICORN_"))}
    environment |= {
        "BILLING_PORT": str(port),
        "AWS_ENDPOINT_URL_DYNAMODB": "http://127.0.0.1:1",  # nobody listens there
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "API_KEYS_FILE": str(file),
        "LOG_LEVEL": "DEBUG",
    }
    command = [sys.executable, "-m", "gunicorn", "--config", "python:billing.gunicorn_conf"]
    with log.open("wb") as output:
        service = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output)
    try:
        assert asked(port, service, b"Authorization: Bearer " + KEY.encode()) == b"404"
        assert asked(port, service) == b"401"
        for refused in (
            b"Authorization: Bearer " + OTHER_KEY.encode(),
            b"Authorization: Bearer " + KEY.encode() + b"\r\nAuthorization: Bearer " + KEY.encode(),
            b"X_Api_Key: " + KEY.encode(),
            b"Authorization: Bearer \xff\xfe" + KEY.encode(),
        ):
            assert asked(port, service, refused) == b"401"
        assert asked(port, service, b"Authorization: Bearer " + KEY.encode() * 2500) == b"431"
        for broken in (
            b"Authorization: Bearer \0" + KEY.encode(),
            b"Authorization: Bearer\r\n " + KEY.encode(),
            b"Authorization : Bearer " + KEY.encode(),
            b"Authorization Bearer " + KEY.encode(),
            b"Bearer " + KEY.encode() + b": x",
        ):
            assert asked(port, service, broken) == b"400"
        assert asked(port, service, b"Authorization: Bearer " + KEY.encode(), path=b"/v1/tenants") == b"503"
    finally:
        service.send_signal(signal.SIGTERM)
        assert service.wait(timeout=15) == 0
    text = log.read_text()
    assert len(text.splitlines()) > 20
    for secret in (KEY, OTHER_KEY, "Bearer", line().split()[0]):
        assert secret not in text


def asked(port: int, service: subprocess.Popen[bytes], header: bytes = b"X: y", path: bytes = b"/unknown") -> bytes:
    """Send a request as it stands, as soon as the service listens, and return the answer's status."""
    for _ in range(600):
        assert service.poll() is None, "the service ended"
        try:
            connection = socket.create_connection(("127.0.0.1", port), timeout=30)
        except ConnectionRefusedError:
            time.sleep(0.05)
            continue
        with connection:
            connection.sendall(b"GET " + path + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" + header + b"\r\n\r\n")
            return connection.recv(65_536).split(b" ", 2)[1]
    raise AssertionError("nobody listens")
