"""Usage by meters over HTTP: totals, windows and ranges of each aggregation, what is not known, and the list."""

from __future__ import annotations

import json
from dataclasses import replace
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest

from billing.app import create_app
from billing.freshness import Freshness
from billing.meters import Measures, usage_in_range
from billing.openapi_invoices import INVOICE_PATH
from metering.local_time import Span
from metering.memory import MemoryTables
from metering.meters_file import METERS_FILE
from metering.settings import Settings
from metering.web import ProblemError
from tests.builders import NOW, count, event, shard
from tests.unit.openapi_support import Document

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

    from flask.testing import FlaskClient

METERS = """\
meters:
  seats: {unit: seat, aggregation: max, description: "Seats <in use>"}
  disk: {unit: GB, aggregation: latest}
  jobs: {aggregation: count}
  api_calls: {unit: call}
"""
USED = [
    ("2024-01-14T22:00:00Z", "9"),
    ("2024-01-14T22:30:00Z", "10.5"),
    ("2024-01-15T10:20:00Z", "7"),
    ("2024-01-15T10:10:00Z", "8"),  # late
    ("2024-01-15T09:00:00Z", "3"),
]
EXPECTED = {"seats": ("10.5", "seat", "max"), "disk": ("7", "GB", "latest"), "jobs": ("5", None, "count"),
            "api_calls": ("37.5", "call", "sum"), "clicks": ("37.5", None, "sum")}  # fmt: skip


def used(metric: str, *pairs: tuple[str, str]) -> list[Any]:
    return [event(metric=metric, timestamp=moment, value=value) for moment, value in pairs or USED]


def tables_of(*metrics: str) -> MemoryTables:
    tables = MemoryTables()
    meters = METERS_FILE.parse(METERS.encode(), name="f")
    for metric in metrics:
        count(tables, *used(metric), meters=meters)
    return tables


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    path = tmp_path / "meters.yaml"
    path.write_text(METERS)
    return Settings.from_environment({"METERS_FILE": str(path)})


@pytest.fixture
def tables() -> MemoryTables:
    return tables_of(*EXPECTED)


@pytest.fixture
def client(tables: MemoryTables, settings: Settings) -> FlaskClient:
    return create_app(tables, settings, now=lambda: NOW).test_client()


def asked(client: FlaskClient, path: str, **parameters: str) -> Any:
    answer = client.get(f"/v1/tenants/tenant-123/usage{path}", query_string=parameters)
    assert answer.status_code == 200, answer.text
    return json.loads(answer.data, parse_float=str, parse_int=str)


def lines(client: FlaskClient, path: str, **parameters: str) -> list[str]:
    answer = client.get(f"/v1/tenants/tenant-123/usage{path}", query_string={**parameters, "format": "csv"})
    assert answer.status_code == 200, answer.text
    return answer.text.splitlines()


@pytest.mark.parametrize("metric", EXPECTED)
def test_a_total_is_that_of_its_meter_and_says_so(client: FlaskClient, metric: str) -> None:
    found = asked(client, f"/{metric}")
    assert (found["usage"], found["unit"], found["aggregation"], found["events"]) == (*EXPECTED[metric], "5")
    assert list(found) == [
        "tenant_id", "metric", "usage", "unit", "aggregation", "events", "last_updated", "as_of", "lag_ms"
    ]  # fmt: skip


def test_all_totals_are_those_of_their_meters(client: FlaskClient) -> None:
    totals = {total["metric"]: total for total in asked(client, "")["totals"]}
    assert {metric: (t["usage"], t["unit"], t["aggregation"]) for metric, t in totals.items()} == EXPECTED


@pytest.mark.parametrize(
    ("metric", "by_day", "whole"),
    [("seats", ["10.5", "8"], "10.5"), ("disk", ["10.5", "7"], "7"), ("jobs", ["2", "3"], "5"),
     ("api_calls", ["19.5", "18"], "37.5"), ("clicks", ["19.5", "18"], "37.5")],
)  # fmt: skip
def test_windows_and_ranges_are_those_of_their_meters(
    client: FlaskClient, metric: str, by_day: list[str], whole: str
) -> None:
    span = {"from": "2024-01-14", "to": "2024-01-17"}
    days = asked(client, f"/{metric}", window="day", **span)
    assert [window["usage"] for window in days["windows"]] == [*by_day, "0"]
    assert (days["usage"], days["events"]) == (whole, "5")
    assert (days["unit"], days["aggregation"]) == EXPECTED[metric][1:]
    assert asked(client, f"/{metric}", **span)["usage"] == whole
    assert asked(client, f"/{metric}", **{**span, "to": "2024-01-15"})["usage"] == by_day[0]
    assert asked(client, f"/{metric}", **{**span, "from": "2024-01-15"})["usage"] == by_day[1]


def test_a_window_is_cut_by_local_days_whatever_the_aggregation(client: FlaskClient) -> None:
    # 22:00 and 22:30 are of the 15th there.
    days = asked(client, "/seats", window="day", timezone="Asia/Tokyo", **{"from": "2024-01-15", "to": "2024-01-16"})
    assert [window["usage"] for window in days["windows"]] == ["10.5"]


def test_csv_has_the_same_usage_and_says_unit_and_aggregation_at_its_end(client: FlaskClient) -> None:
    updated = "2024-01-15T10:30:00.000Z"
    assert lines(client, "/seats") == [
        "tenant_id,metric,usage,events,last_updated,unit,aggregation",
        f"tenant-123,seats,10.5,5,{updated},seat,max",
    ]
    assert f"tenant-123,clicks,37.5,5,{updated},,sum" in lines(client, "")
    head, first, *_ = lines(client, "/disk", window="day", **{"from": "2024-01-14", "to": "2024-01-17"})
    assert head == "tenant_id,metric,start,end,usage,events,unit,aggregation"
    assert first.endswith(",10.5,2,GB,latest")
    empty = lines(client, "/disk", **{"from": "2024-01-14", "to": "2024-01-14"})
    assert empty[1].endswith(",0,0,GB,latest")


def test_without_a_file_answers_are_as_they_always_were(tables: MemoryTables) -> None:
    client = create_app(tables, Settings.from_environment({}), now=lambda: NOW).test_client()
    assert asked(client, "/seats")["usage"] == "37.5"
    assert not {"unit", "aggregation"} & asked(client, "/seats").keys()
    assert not {"unit", "aggregation"} & asked(client, "/seats", window="day").keys()
    assert lines(client, "/seats")[0] == "tenant_id,metric,usage,events,last_updated"
    assert client.get("/v1/meters").json == {"meters": []}


def test_a_range_without_usage_is_zero_and_an_unknown_metric_is_not_found(client: FlaskClient) -> None:
    for metric in EXPECTED:
        assert asked(client, f"/{metric}", **{"from": "2023-01-01", "to": "2023-02-01"})["usage"] == "0"
    assert client.get("/v1/tenants/tenant-123/usage/sms").status_code == 404


# ── What is not known ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def mixed(settings: Settings) -> FlaskClient:
    """Seats were summed once: three events of the 14th and the first of the 15th, two of them in one window."""
    tables = MemoryTables()
    before = used("seats", *USED[:2], ("2024-01-15T08:00:00Z", "99"))
    after = used("seats", ("2024-01-15T08:59:00Z", "4"), ("2024-01-15T09:00:00Z", "6"), ("2024-01-15T10:00:00Z", "5"))
    count(tables, *before)
    count(tables, *after, first=len(before), meters=METERS_FILE.parse(METERS.encode(), name="f"))
    count(tables, *used("api_calls"))
    tables.open_shard(shard(), complete_until=NOW, now=NOW)
    return create_app(tables, settings, now=lambda: NOW).test_client()


def refused(client: FlaskClient, path: str, **parameters: str) -> Any:
    answer = client.get(f"/v1/tenants/tenant-123/usage{path}", query_string=parameters)
    assert answer.status_code == 409, answer.text
    assert answer.content_type == "application/problem+json"
    assert answer.json is not None
    assert answer.json["code"] == "aggregation_incomplete"
    assert "as_of" in answer.json
    return answer.json


def test_a_total_with_events_from_before_its_meter_is_refused(mixed: FlaskClient) -> None:
    assert "seats was aggregated as max" in refused(mixed, "/seats")["detail"]
    refused(mixed, "/seats", format="csv")


def test_among_other_totals_it_is_null_and_costs_them_nothing(mixed: FlaskClient) -> None:
    totals = {total["metric"]: total for total in asked(mixed, "")["totals"]}
    assert (totals["seats"]["usage"], totals["seats"]["events"]) == (None, "6")
    assert totals["api_calls"]["usage"] == "37.5"
    assert "tenant-123,seats,,6,2024-01-15T10:30:00.000Z,seat,max" in lines(mixed, "")


def test_a_range_is_refused_as_far_as_it_is_not_known_and_says_from_where_it_is(mixed: FlaskClient) -> None:
    for asked_for in ({}, {"window": "day"}, {"window": "hour"}):
        found = refused(mixed, "/seats", **{"from": "2024-01-14", "to": "2024-01-16"}, **asked_for)
        assert found["complete_from"] == "2024-01-15T09:00:00.000Z"
    known = asked(mixed, "/seats", window="hour", **{"from": found["complete_from"], "to": "2024-01-15T11:00:00Z"})
    assert (known["usage"], [window["usage"] for window in known["windows"]]) == ("6", ["6", "5"])
    assert asked(mixed, "/seats", **{"from": "2024-01-16", "to": "2024-01-17"})["usage"] == "0"


def test_from_where_a_range_is_known_is_said_of_all_of_it_and_not_of_the_page(settings: Settings) -> None:
    tables, meters = MemoryTables(), METERS_FILE.parse(METERS.encode(), name="f")
    for first, hour in enumerate(("14T22", "14T23", "15T08", "15T09")):  # the meter came, went and came again
        found = used("seats", (f"2024-01-{hour}:00:00Z", "9"))
        if first % 2:
            count(tables, *found, first=first, meters=meters)
        else:
            count(tables, *found, first=first)
    tables.open_shard(shard(), complete_until=NOW, now=NOW)
    client = create_app(tables, settings, now=lambda: NOW).test_client()
    span = {"from": "2024-01-14T22:00:00Z", "to": "2024-01-15T12:00:00Z"}
    for asked_for in ({}, {"window": "hour"}, {"window": "hour", "limit": "2"}):
        assert refused(client, "/seats", **span, **asked_for)["complete_from"] == "2024-01-15T09:00:00.000Z"


def test_a_count_is_known_whatever_was_before(tmp_path: Path) -> None:
    path = tmp_path / "other.yaml"
    path.write_text("meters: {seats: {aggregation: count}}")
    tables = MemoryTables()
    count(tables, *used("seats"))
    client = create_app(tables, Settings.from_environment({"METERS_FILE": str(path)}), now=lambda: NOW).test_client()
    assert asked(client, "/seats")["usage"] == "5"


# ── For others that bill ─────────────────────────────────────────────────────────────────────────────────────────────


def moments(*days: int) -> list[datetime]:
    return [NOW.replace(day=day, hour=0, minute=0) for day in days]


@pytest.mark.parametrize("metric", EXPECTED)
def test_usage_within_a_time_is_read_by_meter(tables: MemoryTables, metric: str) -> None:
    measures = Measures(METERS_FILE.parse(METERS.encode(), name="f"))

    def read(tenant_id: str, start: int, end: int, measures: Measures = measures) -> Decimal:
        return usage_in_range(tables, measures, Freshness(NOW, 0), (tenant_id, metric), Span(*moments(start, end)))

    assert read("tenant-123", 14, 16) == Decimal(EXPECTED[metric][0])
    assert read("tenant-123", 16, 17) == 0
    assert read("nobody", 14, 16) == 0
    assert read("tenant-123", 14, 16, Measures(None)) == Decimal("37.5")


def test_usage_that_is_not_known_is_no_number() -> None:
    tables = MemoryTables()
    count(tables, *used("seats"))
    measures = Measures(METERS_FILE.parse(METERS.encode(), name="f"))
    with pytest.raises(ProblemError) as caught:
        usage_in_range(tables, measures, Freshness(NOW, 0), ("tenant-123", "seats"), Span(*moments(14, 16)))
    assert (caught.value.status, caught.value.code) == (409, "aggregation_incomplete")
    assert caught.value.members["as_of"]


# ── Invoices ─────────────────────────────────────────────────────────────────────────────────────────────────────────

PLANS = """\
default_plan: [{plan: small}, {plan: large, from: 2024-01-15}]
plans:
  small: {currency: EUR, metrics: {
    seats: {model: per_unit, unit_price: 31}, disk: {model: per_unit, unit_price: 31},
    jobs: {model: per_unit, unit_price: 31}, api_calls: {model: per_unit, unit_price: 31}}}
  large: {currency: EUR, metrics: {seats: {model: per_unit, unit_price: 31}, jobs: {model: per_unit, unit_price: 31}}}
"""


def billing_with_plans(tables: MemoryTables, settings: Settings, folder: Path) -> FlaskClient:
    (folder / "plans.yaml").write_text(PLANS)
    settings = replace(settings, plans_file=folder / "plans.yaml")
    return create_app(tables, settings, now=lambda: NOW).test_client()


def test_invoices_read_usage_by_its_meter(settings: Settings, tmp_path: Path) -> None:
    client = billing_with_plans(tables_of(*EXPECTED), settings, tmp_path)
    answer = client.get("/v1/tenants/tenant-123/invoice?period=2024-01")
    assert answer.json is not None
    lines = [(line["metric"], line["usage"], line["amount"], line.get("share")) for line in answer.json["lines"]]
    assert lines == [
        ("seats", 10.5, "147.00", {"days": 14, "of": 31}),
        ("disk", 10.5, "147.00", {"days": 14, "of": 31}),
        ("jobs", 2, "62.00", None),
        ("api_calls", 19.5, "604.50", None),
        ("seats", 8, "136.00", {"days": 17, "of": 31}),
        ("jobs", 3, "93.00", None),
    ]
    Document.of(client.application).assert_documented(answer, INVOICE_PATH, "get")
    page = client.get("/v1/tenants/tenant-123/invoice?period=2024-01&format=html").text
    assert page.count("for 14 of 31 days") == 2


def test_there_is_no_invoice_of_usage_that_is_not_known(settings: Settings, tmp_path: Path) -> None:
    tables = MemoryTables()
    count(tables, *used("seats"))
    client = billing_with_plans(tables, settings, tmp_path)
    answer = client.get("/v1/tenants/tenant-123/invoice?period=2024-01")
    assert answer.json is not None
    assert (answer.status_code, answer.json["code"]) == (409, "aggregation_incomplete")
    assert answer.json["complete_from"] == "2024-01-14T23:00:00.000Z"
    Document.of(client.application).assert_documented(answer, INVOICE_PATH, "get")


# ── The list ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_meters_are_listed_in_the_order_of_the_file(client: FlaskClient) -> None:
    answer = client.get("/v1/meters")
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.json == {
        "meters": [
            {"metric": "seats", "unit": "seat", "description": "Seats <in use>", "aggregation": "max"},
            {"metric": "disk", "unit": "GB", "description": None, "aggregation": "latest"},
            {"metric": "jobs", "unit": None, "description": None, "aggregation": "count"},
            {"metric": "api_calls", "unit": "call", "description": None, "aggregation": "sum"},
        ]
    }
    assert client.get("/v1/meters?x=1").status_code == 400
