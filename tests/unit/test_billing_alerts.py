"""A tenant's alerts and quotas over HTTP, on the in-memory tables."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from billing.app import create_app
from billing.as_of import AsOf
from billing.quotas import PROGRESS_AGE_S
from billing.webhook import Outcome
from metering.errors import InvalidSettingError
from metering.meters_file import METERS_FILE
from metering.settings import Settings
from tests.builders import NOW, STREAM
from tests.unit.alert_world import DAY, MINUTE, AlertWorld
from tests.unit.openapi_support import KEY, Document, bearer, key_file

if TYPE_CHECKING:
    from flask.testing import FlaskClient

TEXT = """\
timezone: Europe/Berlin
alerts:
  - {name: day-high, metric: api_calls, period: day, thresholds: [10, 20.5]}
quotas:
  - {metric: api_calls, period: month, limit: 30}
  - {tenants: [tenant-2, tenant-3], metric: api_calls, period: day, limit: "0.3"}
  - {tenants: [tenant-2], metric: seats, period: day, limit: 0}
"""
ALERTS, QUOTA = "/v1/tenants/{tenant_id}/alerts", "/v1/tenants/{tenant_id}/quota/{metric}"


@pytest.fixture
def world() -> AlertWorld:
    return AlertWorld(TEXT)


@pytest.fixture
def client_of(tmp_path: Path, world: AlertWorld) -> Callable[..., FlaskClient]:
    def make(text: str = TEXT, **variables: str) -> FlaskClient:
        path = tmp_path / "alerts.yaml"
        path.write_text(text)
        settings = Settings.from_environment({"ALERTS_FILE": str(path), **variables})
        return create_app(world.tables, settings, now=lambda: world.now).test_client()

    return make


@pytest.fixture
def client(client_of: Callable[..., FlaskClient]) -> FlaskClient:
    return client_of()


def alerts(client: FlaskClient, tenant_id: str = "tenant-123", **parameters: str) -> Any:
    answer = client.get(f"/v1/tenants/{tenant_id}/alerts", query_string=parameters)
    Document.of(client.application).assert_documented(answer, ALERTS, "get")
    return json.loads(answer.text, parse_float=str)


def quota(client: FlaskClient, tenant_id: str = "tenant-123", metric: str = "api_calls") -> Any:
    answer = client.get(f"/v1/tenants/{tenant_id}/quota/{metric}")
    Document.of(client.application).assert_documented(answer, QUOTA, "get")
    return json.loads(answer.text, parse_int=Decimal, parse_float=Decimal)


# ── Alerts ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_alert_is_shown_with_what_became_of_it(world: AlertWorld, client: FlaskClient) -> None:
    world.use("12.25")
    world.runner().round()
    world.complete(NOW - MINUTE)
    found = alerts(client)
    (alert,) = found["alerts"]
    assert alert == {
        "id": world.found()[0].crossing.alert_id,
        "name": "day-high",
        "metric": "api_calls",
        "period": "day",
        "start": "2024-01-15T00:00:00+01:00",
        "end": "2024-01-16T00:00:00+01:00",
        "timezone": "Europe/Berlin",
        "threshold": 10,
        "usage": "12.25",
        "crossed_at": "2024-01-15T10:30:00.000Z",
        "crossed_as_of": "2024-01-15T10:30:00.000Z",
        "state": "open",
        "resolved_at": None,
        "delivery": "posted",
        "posted_at": "2024-01-15T10:30:00.000Z",
        "resolution_delivery": None,
        "resolution_posted_at": None,
    }
    assert (found["tenant_id"], found["next_cursor"], found["as_of"]) == (
        "tenant-123",
        None,
        "2024-01-15T10:29:00.000Z",
    )


def test_each_state_of_a_message_is_told(world: AlertWorld, client: FlaskClient) -> None:
    world.use("10")
    world.runner(poster=None).round()
    assert alerts(client)["alerts"][0]["delivery"] is None
    world.go_to(NOW + DAY)
    world.receiver.outcomes = [Outcome.GONE, Outcome.FAILED]
    world.use("10")
    world.runner().round()
    new, old = alerts(client)["alerts"]
    assert {new["delivery"], old["resolution_delivery"]} == {"failed", "pending"}
    assert (new["state"], old["state"], old["resolved_at"]) == ("open", "resolved", "2024-01-16T10:30:00.000Z")


def test_pages_hold_all_alerts_the_open_ones_first(world: AlertWorld, client: FlaskClient) -> None:
    for day in range(4):
        world.go_to(NOW + day * DAY)
        world.use("20.5")
        world.runner().round()
    whole = alerts(client)["alerts"]
    assert [(alert["start"][8:10], alert["threshold"], alert["state"]) for alert in whole[:3]] == [
        ("18", "20.5", "open"), ("18", 10, "open"), ("17", "20.5", "resolved")
    ]  # fmt: skip
    found, cursor = [], ""
    for _ in range(3):
        page = alerts(client, limit="3", cursor=cursor)
        found += page["alerts"]
        cursor = page["next_cursor"]
    assert (found, cursor) == (whole, None)


def test_a_tenant_without_alerts_has_none_and_an_unknown_one_is_not_found(
    world: AlertWorld, client: FlaskClient
) -> None:
    world.use("1")
    assert alerts(client)["alerts"] == []
    assert alerts(client, "nobody")["code"] == "tenant_not_found"
    assert "as_of" in alerts(client, "nobody")


@pytest.mark.parametrize("cursor", ["x", "YWZ0ZXI6dGVuYW50LTEyMw", "YWxlcnRzIGFmdGVyOng", "YWxlcnRzIGFmdGVyOg"])
def test_a_cursor_of_something_else_is_refused(client: FlaskClient, cursor: str) -> None:
    found = alerts(client, cursor=cursor)
    assert (found["status"], found["code"], found["parameter"]) == (400, "invalid_cursor", "cursor")


def test_a_key_reads_its_own_tenants_alone(
    client_of: Callable[..., FlaskClient], world: AlertWorld, tmp_path: Path
) -> None:
    world.use("1")
    world.use("1", tenant_id="tenant-2")
    client = client_of(API_KEYS_FILE=key_file(tmp_path, (KEY, "tenant-2", "read")))
    for path in ("alerts", "quota/api_calls"):
        statuses = [
            client.get(f"/v1/tenants/{tenant_id}/{path}", headers=bearer(KEY)).status_code
            for tenant_id in ("tenant-2", "tenant-123")
        ]
        assert statuses == [200, 403]


# ── Quotas ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_quota_says_what_is_left_of_it(world: AlertWorld, client: FlaskClient) -> None:
    world.use("5", at=datetime.fromisoformat("2023-12-31T22:59:59+00:00"))  # last month in Berlin
    world.use("7", at=datetime.fromisoformat("2023-12-31T23:00:00+00:00"))
    world.use("0.25")
    assert quota(client) == {
        "tenant_id": "tenant-123",
        "metric": "api_calls",
        "limit": Decimal(30),
        "used": Decimal("7.25"),
        "remaining": Decimal("22.75"),
        "exceeded": False,
        "period": "month",
        "start": "2024-01-01T00:00:00+01:00",
        "end": "2024-02-01T00:00:00+01:00",
        "timezone": "Europe/Berlin",
        "as_of": "2024-01-15T10:30:00.000Z",
        "lag_ms": Decimal(0),
    }


@pytest.mark.parametrize(
    ("used", "remaining", "exceeded"),
    [("0.2", "0.1", False), ("0.3", "0", False), ("0.300000001", "0", True), ("999999999999999", "0", True)],
)
def test_the_limit_itself_is_within_and_nothing_is_left_below_zero(
    world: AlertWorld, client: FlaskClient, used: str, remaining: str, *, exceeded: bool
) -> None:
    world.use(used, tenant_id="tenant-2")
    found = quota(client, "tenant-2")
    assert (found["used"], found["remaining"], found["exceeded"]) == (Decimal(used), Decimal(remaining), exceeded)


def test_the_tenants_own_quota_goes_before_that_of_all(client: FlaskClient) -> None:
    limits = {tenant_id: quota(client, tenant_id) for tenant_id in ("tenant-2", "tenant-3", "tenant-4")}
    assert {t: (each["limit"], each["period"], each["used"]) for t, each in limits.items()} == {
        "tenant-2": (Decimal("0.3"), "day", 0),
        "tenant-3": (Decimal("0.3"), "day", 0),
        "tenant-4": (Decimal(30), "month", 0),
    }
    none = quota(client, "tenant-2", "seats")
    assert (none["limit"], none["remaining"], none["exceeded"]) == (0, 0, False)


def test_where_no_quota_is_set_it_is_not_found(client_of: Callable[..., FlaskClient]) -> None:
    assert quota(client_of(), "tenant-4", "seats")["code"] == "quota_not_found"
    alone = client_of("alerts: [{name: a, metric: seats, period: day, thresholds: [1]}]")
    assert quota(alone, "tenant-4", "seats")["code"] == "quota_not_found"


def test_what_is_used_is_by_the_metrics_meter(
    world: AlertWorld, client_of: Callable[..., FlaskClient], tmp_path: Path
) -> None:
    text = "meters: {api_calls: {aggregation: max, unit: call}}"
    (tmp_path / "meters.yaml").write_text(text)
    client = client_of(METERS_FILE=str(tmp_path / "meters.yaml"))
    world.use("5", tenant_id="tenant-4")
    assert quota(client, "tenant-4")["code"] == "aggregation_incomplete"
    world.meters = METERS_FILE.parse(text.encode(), name="f")
    for value in ("3", "5", "4"):
        world.use(value)
    found = quota(client)
    assert (found["used"], found["unit"], found["aggregation"]) == (5, "call", "max")


def test_progress_is_read_before_usage_and_shared_for_a_while(world: AlertWorld) -> None:
    clock_s = 0.0
    reads: list[float] = []
    progress = world.tables.progress

    class Counted(type(world.tables)):  # type: ignore[misc]  # the same tables, which count
        def progress(self, stream: str) -> Any:
            reads.append(clock_s)
            return progress(stream)

    as_of = AsOf(Counted(), STREAM, wait_ms=0, now=lambda: world.now, clock=lambda: clock_s)
    first = as_of.recent(PROGRESS_AGE_S)
    assert first.as_of == NOW
    world.go_to(NOW + MINUTE)
    clock_s = PROGRESS_AGE_S - 0.01
    assert (as_of.recent(PROGRESS_AGE_S).as_of, as_of.recent(PROGRESS_AGE_S).lag_ms) == (NOW, 60_000)
    clock_s = PROGRESS_AGE_S
    assert as_of.recent(PROGRESS_AGE_S).as_of == NOW + MINUTE
    assert reads == [0.0, PROGRESS_AGE_S]


def test_the_overtaking_consumer_takes_nothing_from_what_as_of_promises(
    world: AlertWorld, client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    for name in ("progress", "windows"):
        original = getattr(world.tables, name)

        def noted(*arguments: Any, _name: str = name, _original: Any = original, **named: Any) -> Any:
            order.append(_name)
            return _original(*arguments, **named)

        monkeypatch.setattr(world.tables, name, noted)
    quota(client)
    quota(client)
    assert order == ["progress", "windows", "windows"]


# ── The file ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_file_that_cannot_be_used_stops_the_start(client_of: Callable[..., FlaskClient]) -> None:
    with pytest.raises(
        InvalidSettingError, match=r"^ALERTS_FILE='.*alerts.yaml' can't be used: .*:1:10: missing here: period, limit"
    ):
        client_of("quotas: [{metric: a}]")
    with pytest.raises(InvalidSettingError, match=r"Asia/Kolkata begins or ends .* USAGE_WINDOW_MINUTES=30 would do"):
        client_of(TEXT.replace("Europe/Berlin", "Asia/Kolkata"))
    assert quota(client_of(TEXT.replace("Europe/Berlin", "Asia/Kolkata"), USAGE_WINDOW_MINUTES="30"))["used"] == 0
