"""Billing over HTTP, on the in-memory tables: what is answered, and what is refused."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest

from billing.app import create_app
from metering.errors import MissingResourceError, StoreUnavailableError
from metering.memory import MemoryTables
from metering.settings import Settings
from tests.builders import NOW, event, outcome, shard, write
from tests.builders import count as count_events
from tests.unit.plan_files import WHOLE

if TYPE_CHECKING:
    from flask.testing import FlaskClient
    from werkzeug.test import TestResponse


@pytest.fixture
def tables() -> MemoryTables:
    return MemoryTables()


@pytest.fixture
def client(tables: MemoryTables, settings: Settings) -> FlaskClient:
    return create_app(tables, settings, now=lambda: NOW).test_client()


def count(tables: MemoryTables, tenant_id: str, metric: str, *usages: str) -> None:
    """Count events of these usages as the consumer would, one record each."""
    tables.register_tenant(tenant_id, now=NOW)
    for number, usage in enumerate(usages):
        tables.apply(shard(), write(number, tenant_id=tenant_id, metric=metric, usage=usage), now=NOW)


def members(answer: TestResponse) -> Any:
    """Return the JSON object, numbers as they were written."""
    assert answer.status_code == 200, answer.text
    assert answer.content_type == "application/json"
    assert answer.headers["Cache-Control"] == "no-store"
    return json.loads(answer.data, parse_float=str, parse_int=str)


def refusal(answer: TestResponse) -> tuple[int, str]:
    assert answer.content_type == "application/problem+json"
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.json is not None
    return answer.status_code, answer.json["code"]


def test_a_total_is_the_object_of_the_api(client: FlaskClient, tables: MemoryTables) -> None:
    count(tables, "tenant-123", "api_calls", "10")
    tables.open_shard(shard(), complete_until=NOW - timedelta(seconds=2), now=NOW)
    answer = client.get("/v1/tenants/tenant-123/usage/api_calls")
    assert answer.status_code == 200
    assert answer.json == {
        "tenant_id": "tenant-123",
        "metric": "api_calls",
        "usage": 10,
        "events": 1,
        "last_updated": "2024-01-15T10:30:00.000Z",
        "as_of": "2024-01-15T10:29:58.000Z",
        "lag_ms": 2000,
    }


def test_as_of_and_lag_are_null_while_nothing_is_known(client: FlaskClient, tables: MemoryTables) -> None:
    count(tables, "tenant-123", "api_calls", "10")
    answer = members(client.get("/v1/tenants/tenant-123/usage/api_calls"))
    assert (answer["as_of"], answer["lag_ms"]) == (None, None)


@pytest.mark.parametrize(
    ("usages", "text"),
    [
        (["0.1", "0.2"], "0.3"),
        (["999999999999999.999999999"], "999999999999999.999999999"),
        (["999999999999999.999999999"] * 10, "9999999999999999.99999999"),
        (["1E+14"], "100000000000000"),
        (["1E-9"], "0.000000001"),
        (["2.50"], "2.5"),
        (["0"], "0"),
        (["9007199254740993"], "9007199254740993"),  # 2**53 + 1, the first whole number that a float has not
    ],
)
def test_usage_is_exact_and_plain_to_the_last_digit(
    client: FlaskClient, tables: MemoryTables, usages: list[str], text: str
) -> None:
    count(tables, "tenant-123", "api_calls", *usages)
    answer = client.get("/v1/tenants/tenant-123/usage/api_calls")
    assert f'"usage":{text},' in answer.text
    assert json.loads(answer.data, parse_float=Decimal)["usage"] == sum(map(Decimal, usages))
    assert f'"usage":{text},' in client.get("/v1/tenants/tenant-123/usage").text


def test_all_totals_of_a_tenant_come_in_order_and_only_its_own(client: FlaskClient, tables: MemoryTables) -> None:
    count(tables, "tenant-123", "storage", "0.5")
    count(tables, "tenant-123", "api_calls", "1", "2")
    count(tables, "tenant-1234", "api_calls", "7")
    assert members(client.get("/v1/tenants/tenant-123/usage")) == {
        "tenant_id": "tenant-123",
        "totals": [
            {"metric": "api_calls", "usage": "3", "events": "2", "last_updated": "2024-01-15T10:30:00.000Z"},
            {"metric": "storage", "usage": "0.5", "events": "1", "last_updated": "2024-01-15T10:30:00.000Z"},
        ],
        "as_of": None,
        "lag_ms": None,
    }


def test_a_tenant_never_seen_is_not_found_and_owes_not_nothing(client: FlaskClient, tables: MemoryTables) -> None:
    count(tables, "tenant-123", "api_calls", "1")
    assert refusal(client.get("/v1/tenants/tenant-12/usage")) == (404, "tenant_not_found")
    assert refusal(client.get("/v1/tenants/tenant-123/usage/api_call")) == (404, "metric_not_found")
    assert refusal(client.get("/v1/tenants/tenant-12/usage/api_calls")) == (404, "metric_not_found")


def test_not_found_says_as_of_when(client: FlaskClient, tables: MemoryTables) -> None:
    tables.open_shard(shard(), complete_until=NOW - timedelta(seconds=2), now=NOW)
    answer = client.get("/v1/tenants/tenant-123/usage/api_calls").json
    assert answer is not None
    assert (answer["as_of"], answer["lag_ms"]) == ("2024-01-15T10:29:58.000Z", 2000)


@pytest.mark.parametrize("name", ["テナント", "арендатор", "a.b_c-d:e@f", "٣", "x" * 128, "\U0001d4b3" * 128, "usage"])
def test_names_of_any_script_are_asked_for_percent_encoded(
    client: FlaskClient, tables: MemoryTables, name: str
) -> None:
    count(tables, name, name, "10")
    answer = members(client.get(f"/v1/tenants/{quote(name, safe='')}/usage/{quote(name, safe='')}"))
    assert (answer["tenant_id"], answer["metric"], answer["usage"]) == (name, name, "10")
    assert members(client.get("/v1/tenants"))["tenants"] == [{"tenant_id": name}]


@pytest.mark.parametrize("name", ["a%20b", "a%23b", "x" * 129, "%00", "%FF", "%ED%A0%80", "%F0%9F%98%80", "%25"])
def test_a_name_that_no_event_can_have_has_the_code_of_the_events_rule(client: FlaskClient, name: str) -> None:
    assert refusal(client.get(f"/v1/tenants/{name}/usage")) == (422, "invalid_tenant_id")
    assert refusal(client.get(f"/v1/tenants/{name}/usage/m")) == (422, "invalid_tenant_id")
    assert refusal(client.get(f"/v1/tenants/t/usage/{name}")) == (422, "invalid_metric")


@pytest.mark.parametrize(
    "path",
    [
        "/tenants",
        "/tenants/",
        "/v1",
        "/v1/tenants/",
        "/v1/tenants//usage",
        "/v1/tenants/t/usage/",
        "/v1/tenants/t/usage/a%2Fb",
    ],
)
def test_other_paths_are_not_found(client: FlaskClient, path: str) -> None:
    assert refusal(client.get(path)) == (404, "not_found")


@pytest.mark.parametrize("path", ["/v1/tenants", "/v1/tenants/t/usage", "/v1/tenants/t/usage/m"])
def test_billing_only_reads(client: FlaskClient, path: str) -> None:
    for method in (client.post, client.put, client.delete, client.patch):
        assert refusal(method(path)) == (405, "method_not_allowed")


@pytest.mark.parametrize("path", ["/v1/tenants", "/v1/tenants/tenant-123/usage", "/v1/tenants/tenant-123/usage/m"])
def test_an_unknown_parameter_is_named_and_refused(client: FlaskClient, tables: MemoryTables, path: str) -> None:
    count(tables, "tenant-123", "m", "1")
    answer = client.get(f"{path}?form=2024-01-01T00:00:00Z")
    assert refusal(answer) == (400, "unknown_parameter")
    assert answer.json is not None
    assert answer.json["parameter"] == "form"
    assert "'form'" in answer.json["detail"]
    assert refusal(client.get(f"{path}?%FF=1")) == (400, "unknown_parameter")
    assert refusal(client.get(f"{path}?Limit=1")) == (400, "unknown_parameter")


class FailingTables(MemoryTables):
    """Tables of which every read fails."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def progress(self, stream: str) -> Any:
        raise self.error

    def check(self) -> None:
        raise self.error


def test_a_table_that_is_away_or_missing_is_a_problem_and_not_an_empty_bill(settings: Settings) -> None:
    paths = ("/readyz", "/v1/tenants", "/v1/tenants/t/usage", "/v1/tenants/t/usage/m")
    away = create_app(FailingTables(StoreUnavailableError("away")), settings).test_client()
    missing = create_app(FailingTables(MissingResourceError("table", "usage")), settings).test_client()
    for path in paths:
        assert refusal(away.get(path)) == (503, "unavailable")
        assert refusal(missing.get(path)) == (503, "table_missing")
    assert away.get("/healthz").json == {"status": "alive"}


class OvertakenTables(MemoryTables):
    """Tables in which the consumer counts three events, and says so, right after one of the reads."""

    def __init__(self, overtaken_at: int = 1) -> None:
        super().__init__()
        self.reads = 0
        self.overtaken_at = overtaken_at

    def _consumer_overtakes(self) -> None:
        self.reads += 1
        if self.reads == self.overtaken_at:
            self.register_tenant("tenant-9", now=NOW)
            count_events(self, event(), event(metric="sms", value="7"), event(tenant_id="tenant-9"), first=2)
            self.record_progress(shard(), [outcome(2), outcome(3), outcome(4)], complete_until=NOW, now=NOW)

    def progress(self, stream: str) -> Any:
        found = super().progress(stream)
        self._consumer_overtakes()
        return found

    def total(self, tenant_id: str, metric: str) -> Any:
        found = super().total(tenant_id, metric)
        self._consumer_overtakes()
        return found

    def totals(self, tenant_id: str) -> Any:
        found = super().totals(tenant_id)
        self._consumer_overtakes()
        return found

    def windows(self, tenant_id: str, metric: str, *, start: datetime, end: datetime, at_once: bool = False) -> Any:
        found = list(super().windows(tenant_id, metric, start=start, end=end))
        self._consumer_overtakes()
        return iter(found)

    def tenants(self, *, limit: int, after: str | None) -> Any:
        found = super().tenants(limit=limit, after=after)
        self._consumer_overtakes()
        return found


@pytest.mark.parametrize(
    ("path", "marks"),
    [
        ("", {"tenant-9"}),
        ("/tenant-123/usage", {"'usage': '20'", "'usage': '7'"}),
        ("/tenant-123/usage/api_calls", {"'usage': '20'"}),
        ("/tenant-123/usage/api_calls?from=2024-01&to=2024-02", {"'usage': '20'"}),
        ("/tenant-123/usage/api_calls?from=2024-01&to=2024-02&window=month", {"'usage': '20'"}),
        ("/tenant-123/invoice?period=2024-01", {"'usage': '20'", "'usage': '7'"}),
    ],
)
def test_as_of_never_speaks_of_an_event_that_the_answer_lacks(tmp_path: Path, path: str, marks: set[str]) -> None:
    plans = tmp_path / "plans.yaml"
    plans.write_text(WHOLE, encoding="utf-8")
    settings = Settings.from_environment({"PLANS_FILE": str(plans)})
    tables = OvertakenTables()
    tables.register_tenant("tenant-123", now=NOW)
    count_events(tables, event(), first=1)
    tables.open_shard(shard(), complete_until=NOW - timedelta(minutes=1), now=NOW)
    answer = members(create_app(tables, settings, now=lambda: NOW).test_client().get(f"/v1/tenants{path}"))
    assert tables.reads >= 2
    has_it = all(mark in str(answer) for mark in marks)
    assert has_it or answer["as_of"] < "2024-01-15T10:30:00.000Z"


@pytest.mark.parametrize("overtaken_at", [1, 2, 3, 4])
def test_as_of_never_speaks_of_an_event_that_an_export_lacks(overtaken_at: int) -> None:
    tables = OvertakenTables(overtaken_at)
    tables.register_tenant("tenant-123", now=NOW)
    count_events(tables, event(), first=1)
    tables.open_shard(shard(), complete_until=NOW - timedelta(minutes=1), now=NOW)
    client = create_app(tables, Settings.from_environment({}), now=lambda: NOW).test_client()
    answer = client.get("/v1/export?period=2024-01")
    marks = ('"api_calls","usage":20,', '"sms","usage":7,', '"tenant-9"')
    assert all(mark in answer.text for mark in marks) or answer.headers["As-Of"] < "2024-01-15T10:30:00.000Z"
    assert tables.reads >= overtaken_at


@pytest.mark.parametrize(
    ("path", "marks"), [("/", {">tenant-9<"}), ("/tenants/tenant-123", {">20<", ">7<", "<strong>20</strong>"})]
)
def test_as_of_never_speaks_of_an_event_that_the_page_lacks(path: str, marks: set[str]) -> None:
    tables = OvertakenTables()
    tables.register_tenant("tenant-123", now=NOW)
    count_events(tables, event(), first=1)
    tables.open_shard(shard(), complete_until=NOW - timedelta(minutes=1), now=NOW)
    answer = create_app(tables, Settings.from_environment({}), now=lambda: NOW).test_client().get(path).text
    assert tables.reads >= 2
    assert all(mark in answer for mark in marks) or "10:29:00 UTC</strong>" in answer
