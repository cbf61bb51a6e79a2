"""A table of questions at the edge of what is allowed, and beyond, against a live billing on DynamoDB Local."""

from __future__ import annotations

import http.client
import json
import tempfile
import tomllib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import chain, product
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from billing.ranges import AskedRange, _cursor
from devstack.tools import dynamodb_local_command
from metering.aws import dynamodb_client
from metering.dynamodb import DynamoCounterStore
from metering.local_time import Period, Span, zone_named
from metering.settings import Settings
from operations.local import ACCESS_KEY
from operations.provision import make_tables, tables
from tests.builders import shard
from tests.counter_rows import tenant_items, write_items
from tests.live.test_bad_inputs_live import ANSWER_BYTES_MAX, Answer, content
from tests.live.test_collector_live import BOOT_S, LiveCollector, gunicorn
from tests.local_stack import free_port, running
from tests.unit.collector_support import assert_problem, until

TABLE = tomllib.loads(Path(__file__).with_name("billing_bad_inputs.toml").read_text(encoding="utf-8"))
PLANS = Path(__file__).with_name("plans.yaml")
START = datetime(2024, 1, 1, tzinfo=UTC)
METRICS = ("api_calls", "storage", "テナント")
OTHERS = 10_000
FORGED = 0
ANSWER_S = 20.0
"""For the slowest of them, on a machine that has much else to do; the service itself knows no such limit."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """One line of the table, with what its group says; see billing_bad_inputs.toml."""

    name: str
    status: int
    path: Any
    query: Any = ""
    method: str = "GET"
    headers: list[tuple[str, str]] = field(default_factory=list)
    content_type: str = ""
    body: Any = ""
    code: str | None = None
    at: str | None = None
    has: str | None = None


def questions() -> list[Question]:
    found = []
    for group in TABLE["group"]:
        shared = {key: value for key, value in group.items() if key not in {"name", "inputs"}}
        found += [Question(**{**shared, **one, "name": f"{group['name']}: {one['name']}"}) for one in group["inputs"]]
    return found


QUESTIONS = questions()


@contextmanager
def billing(tmp_path: Path) -> Iterator[LiveCollector]:
    """Billing as it is started, on a DynamoDB Local that holds what the table says."""
    dynamodb_port, port, log = free_port(), free_port(), tmp_path / "billing.log"
    memory = Path("/dev/shm")  # noqa: S108 - a folder of its own within it; 10,000 rows take their time on a disk
    with (
        tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else tmp_path) as folder,
        running(
            dynamodb_local_command(dynamodb_port, Path(folder)), dynamodb_port, tmp_path / "dynamodb.log"
        ) as endpoint,
    ):
        _fill(replace(Settings.from_environment({}), dynamodb_endpoint=endpoint))
        environment = {
            "BILLING_PORT": str(port),
            "AWS_ENDPOINT_URL_DYNAMODB": endpoint,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": ACCESS_KEY,
            "PLANS_FILE": str(PLANS),
        }
        with gunicorn(log, "--config", "python:billing.gunicorn_conf", port=port, **environment) as process:
            live = LiveCollector(process, port, log)
            until(live.alive, BOOT_S)
            yield live


def _fill(settings: Settings) -> None:
    with closing(dynamodb_client(settings, connections_max=16)) as client:
        make_tables(client, tables(settings)[:3])
        others = (tenant_items(f"other-{number}", (), START, 0) for number in range(OTHERS))
        items = chain(tenant_items("tenant-123", METRICS, START, 24), *others)
        write_items(client, settings.table, items)
        store = DynamoCounterStore(client, table=settings.table, rejected_table="-", rejected_ttl_days=1)
        store.open_shard(shard(), complete_until=START + timedelta(days=1), now=START)


def ask(port: int, asked: Question) -> Answer:
    query = content(asked.query).decode()
    target = content(asked.path).decode() + (f"?{query}" if query else "")
    body = content(asked.body)
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_S)) as connection:
        connection.putrequest(asked.method, target, skip_accept_encoding=True)
        for name, value in asked.headers:
            connection.putheader(name, value.encode())
        if asked.content_type:
            connection.putheader("Content-Type", asked.content_type)
        connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        response = connection.getresponse()
        return Answer(response.status, response.headers, response.read().decode())


def assert_answered(asked: Question, answer: Answer) -> None:
    if asked.status == FORGED:
        # Whoever forges one may get an odd range of what they may read anyway; what is odd is no crash.
        assert answer.status_code in {200, 400}, f"{answer.status_code} {answer.text[:300]}"
        return
    assert answer.status_code == asked.status, f"{answer.status_code} {answer.text[:300]}"
    if asked.status >= 400:
        assert asked.code is not None
        body = assert_problem(answer, asked.status, asked.code)
        assert len(answer.text) <= ANSWER_BYTES_MAX
        if asked.at is not None:
            assert asked.at in (body.get("parameter"), body.get("field")), answer.text
    elif answer.headers["Content-Type"] == "application/json":
        json.loads(answer.text)
    if asked.has is not None:
        assert asked.has in answer.text, answer.text[:300]


def assert_unharmed(live: LiveCollector, workers: set[int]) -> None:
    assert live.workers() == workers
    assert [line for line in live.lines() if line["level"] in {"ERROR", "CRITICAL"}] == []


def test_each_question_is_answered_as_the_table_says_and_the_service_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(variable, ACCESS_KEY)
    wrong: list[str] = []
    with billing(tmp_path) as live:
        workers = live.workers()
        for asked in [*QUESTIONS, *forged_cursors()]:
            try:
                assert_answered(asked, ask(live.port, asked))
                assert live.alive()
            except (AssertionError, OSError, ValueError, http.client.HTTPException) as error:
                wrong.append(f"{asked.name}: {type(error).__name__} {error}")
        assert wrong == []
        assert_unharmed(live, workers)


def forged_cursors() -> Iterator[Question]:
    """Yield cursors whose digest is right and whose range nobody has asked for: their makers know how it is made."""
    names = ("tenant-123", "api_calls", "", "", "hour", "Europe/Berlin")
    asked = AskedRange(None, None, Period.HOUR, zone_named("Europe/Berlin"), names)
    first, last = datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, tzinfo=UTC)
    ends = [first, START, START + timedelta(minutes=7), last]
    for number, (start, end, after) in enumerate(product(ends, repeat=3)):
        cursor = _cursor(asked, Span(start, end), after)
        yield Question(
            name=f"a forged cursor {number}: {start} {end} {after}",
            status=FORGED,
            path="/v1/tenants/tenant-123/usage/api_calls",
            query=f"window=hour&timezone=Europe/Berlin&limit=100&cursor={quote(cursor)}",
        )


def test_the_table_is_large_and_holds_every_route() -> None:
    assert len(QUESTIONS) >= 200
    assert len({asked.name for asked in QUESTIONS}) == len(QUESTIONS)
    paths = [content(asked.path).decode() for asked in QUESTIONS]
    routes = ("/usage", "/usage/", "/invoice", "/events/", "/void", "/alerts", "/quota/", "/v1/export", "/v1/status")
    for route in (*routes, "/v1/meters", "/tenants/tenant-123", "/static/"):
        assert any(route in path for path in paths)
