"""Invoices over HTTP, on the in-memory tables: JSON, CSV, the page, and what is refused."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from lxml import html
from werkzeug.test import TestResponse

from billing.app import create_app
from billing.openapi_invoices import INVOICE_PATH
from metering.aggregation import Contribution, RowWrite
from metering.errors import InvalidSettingError
from metering.memory import MemoryTables
from metering.rows import total_key, window_key
from metering.settings import Settings
from tests.builders import NOW, at, shard
from tests.unit.openapi_support import KEY, Document, key_file
from tests.unit.plan_files import CHANGE, WHOLE

OVER = datetime(2024, 2, 1, tzinfo=UTC)
Usage = dict[str, str]
Make = Callable[..., FlaskClient]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Return billing with these plans and this usage of tenant-123 in January; by CHANGE, in each of its parts."""

    def made(
        plans: str | None = WHOLE, usage: Usage | None = None, as_of: datetime | None = OVER, **variables: str
    ) -> FlaskClient:
        tables = MemoryTables()
        usage = {"sms": "101"} if usage is None else usage
        for number, (metric, value) in enumerate(usage.items()):
            for day in (2, 20) if plans == CHANGE else (20,):
                added = (Contribution(at(100 * number + day), Decimal(value), 1),)
                for key in (
                    total_key("tenant-123", metric),
                    window_key("tenant-123", metric, datetime(2024, 1, day, 12, tzinfo=UTC), 60),
                ):
                    tables.apply(shard(), RowWrite(key, added), now=NOW)
        tables.open_shard(shard(), complete_until=as_of, now=NOW)
        if plans is not None:
            (tmp_path / "plans.yaml").write_text(plans, encoding="utf-8")
            variables["PLANS_FILE"] = str(tmp_path / "plans.yaml")
        settings = Settings.from_environment(variables)
        return create_app(tables, settings, now=lambda: OVER).test_client()

    return made


def asked(
    client: FlaskClient, query: str = "period=2024-01", tenant: str = "tenant-123", **headers: str
) -> TestResponse:
    return client.get(f"/v1/tenants/{tenant}/invoice?{query}", headers=headers)


def members(answer: TestResponse) -> Any:
    assert answer.status_code == 200, answer.text
    return json.loads(answer.data, parse_float=Decimal)


def refusal(answer: TestResponse) -> tuple[int, str]:
    assert answer.content_type == "application/problem+json"
    assert answer.json is not None
    return answer.status_code, answer.json["code"]


# ── JSON ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_invoice_is_the_object_of_the_api(make: Make) -> None:
    assert members(asked(make(usage={"sms": "101", "storage": "0.5", "fax": "7"}))) == {
        "tenant_id": "tenant-123",
        "period": "2024-01",
        "timezone": "UTC",
        "currency": "EUR",
        "plan": "standard",
        "lines": [
            {"metric": "seats", "model": "per_unit", "usage": 0, "billed": 0, "amount": "0.00", "tiers": []},
            {"metric": "api_calls", "model": "graduated", "usage": 0, "billed": 0, "amount": "0.00", "tiers": []},
            {
                "metric": "sms",
                "model": "volume",
                "usage": 101,
                "billed": 101,
                "amount": "8.08",
                "tiers": [{"up_to": None, "quantity": 101, "unit_price": "0.08", "flat_price": "0", "amount": "8.08"}],
            },
            {
                "metric": "storage",
                "model": "package",
                "usage": Decimal("0.5"),
                "billed": Decimal("0.5"),
                "amount": "5.00",
                "tiers": [{"up_to": None, "quantity": 1, "unit_price": "5.00", "flat_price": "0", "amount": "5"}],
            },
        ],
        "flat_fee": "49.00",
        "minimum_adjustment": "0.00",
        "total": "62.08",
        "unpriced": [{"metric": "fax", "usage": 7}],
        "complete": True,
        "as_of": "2024-02-01T00:00:00.000Z",
        "lag_ms": 0,
    }


def test_a_month_in_which_the_plan_changes_says_which_plan_was_when(make: Make) -> None:
    found = members(asked(make(CHANGE, {"calls": "600", "old": "3"})))
    small = {"plan": "small", "from": "2024-01-01", "to": "2024-01-16"}
    large = {"plan": "large", "from": "2024-01-16", "to": "2024-02-01"}
    assert [{name: line[name] for name in ("plan", "from", "to")} for line in found["lines"]] == [small, small, large]
    assert found["parts"] == [
        {**small, "days": 15, "flat_fee": "4.84", "minimum": "15.00"},
        {**large, "days": 16, "flat_fee": "51.61", "minimum": "0.00"},
    ]
    assert found["unpriced"] == [{"metric": "old", "usage": 3, **large}]
    assert found["plan"] == "large"


def test_every_answer_is_documented(make: Make) -> None:
    described = Document.of(make().application)
    for client in (make(), make(CHANGE, {"calls": "600", "old": "3", "fax": "1"}), make(usage={}), make(None)):
        for query in ("period=2024-01", "period=2024-01&format=csv", "period=2024-01&format=html", "period=1", "x=1"):
            described.assert_documented(asked(client, query), INVOICE_PATH, "get")
    described.assert_documented(asked(make(), tenant="a%20b"), INVOICE_PATH, "get")


@pytest.mark.parametrize(
    ("as_of", "complete"),
    [
        (OVER, True),
        (OVER.replace(year=2025), True),
        (datetime(2024, 1, 31, 23, 59, 59, tzinfo=UTC), False),
        (None, False),
    ],
)
def test_an_invoice_is_complete_once_all_events_of_its_period_are_in(
    make: Make,
    as_of: datetime | None,
    complete: bool,  # noqa: FBT001
) -> None:
    assert members(asked(make(as_of=as_of)))["complete"] is complete


@pytest.mark.parametrize("day", [16, 17, 31])
def test_a_month_in_which_the_plan_changes_is_not_complete_before_its_end(make: Make, day: int) -> None:
    found = members(asked(make(CHANGE, {"calls": "1"}, datetime(2024, 1, day, tzinfo=UTC))))
    assert found["complete"] is False
    assert members(asked(make(CHANGE, {"calls": "1"})))["complete"] is True


def test_the_periods_end_is_that_of_the_plans_zone(make: Make) -> None:
    client = make(f"timezone: America/New_York\n{WHOLE}")
    assert members(asked(client))["complete"] is False
    assert members(asked(client, "period=2023-12"))["complete"] is True


# ── CSV ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_csv_has_a_row_for_each_amount_and_they_add_up(make: Make) -> None:
    answer = asked(make(CHANGE, {"calls": "600", "old": "3"}), "period=2024-01&format=csv")
    assert answer.content_type == "text/csv; charset=utf-8"
    rows = list(csv.DictReader(StringIO(answer.text, newline="")))
    assert [(row["item"], row["metric"], row["plan"]) for row in rows] == [
        ("metric", "calls", "small"),
        ("metric", "old", "small"),
        ("metric", "calls", "large"),
        ("flat_fee", "", "small"),
        ("flat_fee", "", "large"),
        ("minimum_adjustment", "", "large"),
        ("total", "", "large"),
        ("unpriced", "old", "large"),
    ]
    amounts = [Decimal(row["amount"]) for row in rows if row["item"] not in {"total", "unpriced"}]
    (total,) = (row for row in rows if row["item"] == "total")
    assert sum(amounts) == Decimal(total["amount"])
    current = {"complete": "true", "as_of": "2024-02-01T00:00:00.000Z", "lag_ms": "0"}
    always = {"tenant_id": "tenant-123", "period": "2024-01", "timezone": "UTC", "currency": "EUR", **current}
    assert all(row.items() >= always.items() for row in rows)
    assert (rows[0]["usage"], rows[0]["billed"]) == ("600", "116.129032258")
    assert [(row["from"], row["to"]) for row in rows] == [
        *[("2024-01-01", "2024-01-16")] * 2,
        ("2024-01-16", "2024-02-01"),
        ("2024-01-01", "2024-01-16"),
        ("2024-01-16", "2024-02-01"),
        *[("2024-01-01", "2024-02-01")] * 2,
        ("2024-01-16", "2024-02-01"),
    ]


def test_csv_of_what_is_not_known_is_empty(make: Make) -> None:
    (row, *_) = csv.DictReader(StringIO(asked(make(as_of=None), "period=2024-01&format=csv").text))
    assert (row["complete"], row["as_of"], row["lag_ms"]) == ("false", "", "")


# ── The page ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def page(answer: TestResponse) -> Any:
    assert answer.content_type == "text/html; charset=utf-8"
    return html.fromstring(answer.data)


def test_the_page_shows_every_amount(make: Make) -> None:
    found = page(asked(make(usage={"sms": "101", "fax": "7"}), "period=2024-01&format=html"))
    cells = [" ".join(cell.text_content().split()) for cell in found.xpath("//tr/*[1] | //tr/*[last()]")]
    assert dict(zip(cells[::2], cells[1::2], strict=True)) == {
        "Item": "Amount",
        "seats": "0.00",
        "api_calls": "0.00",
        "sms": "8.08",
        "storage": "0.00",
        "Flat fee": "49.00",
        "Up to the minimum": "0.00",
        "Total": "57.08 EUR",
    }
    assert "101 x 0.08" in found.text_content()
    assert [item.text_content() for item in found.xpath("//li")] == ["fax: 7"]
    assert found.xpath("//h1")[0].text_content() == "Invoice 2024-01"


def test_the_page_of_a_month_that_is_not_over_says_so(make: Make) -> None:
    found = page(asked(make(as_of=None), "period=2024-01&format=html"))
    assert found.xpath("//h1")[0].text_content() == "Preview of invoice 2024-01"
    assert "amounts may still change" in found.text_content()
    assert "not known yet" in found.text_content()


def test_the_page_of_a_changed_month_says_which_plan_was_when(make: Make) -> None:
    found = page(asked(make(CHANGE, {"calls": "1", "old": "3"}), "period=2024-01&format=html"))
    named = [item.text_content() for item in found.xpath("//small | //li")]
    assert named.count("small, 2024-01-01 to before 2024-01-16") == 3
    assert named.count("large, 2024-01-16 to before 2024-02-01") == 2
    assert named[-1] == "old: 3 (large, 2024-01-16 to before 2024-02-01)"


def test_html_in_a_name_is_shown_and_does_nothing(make: Make) -> None:
    name = "<script>alert(1)</script>'\"&"
    answer = asked(make(usage={name: "7"}), "period=2024-01&format=html")
    found = page(answer)
    assert found.xpath("//script") == []
    assert [item.text_content() for item in found.xpath("//li")] == [f"{name}: 7"]
    assert asked(make(usage={name: "7"}), "period=2024-01").json["unpriced"][0]["metric"] == name  # type: ignore[index]


def test_the_stylesheet_needs_no_key(make: Make, tmp_path: Path) -> None:
    client = make(API_KEYS_FILE=key_file(tmp_path, (KEY, "*", "read")))
    assert asked(client).status_code == 401
    with client.get("/static/pages.css") as style:
        assert style.status_code == 200
    assert client.get("/static/nothing.css").status_code == 404


def test_the_page_loads_its_stylesheet_and_may_load_nothing_else(make: Make) -> None:
    client = make()
    answer = asked(client, "period=2024-01&format=html")
    policy = answer.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; style-src 'self'; ")
    assert "unsafe" not in policy
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    found = page(answer)
    assert found.xpath("//style | //script | //*[@style] | //img") == []
    loaded = {}
    for link in found.xpath("//link"):
        with client.get(link.get("href")) as file:
            loaded[link.get("rel")] = (file.status_code, file.mimetype)
    assert loaded == {"stylesheet": (200, "text/css"), "icon": (200, "image/svg+xml")}


# ── Formats ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("accept", "query", "media_type"),
    [
        ("*/*", "", "application/json"),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", "", "text/html"),
        ("text/csv", "", "text/csv"),
        ("application/json;q=0.5, text/csv", "", "text/csv"),
        ("text/html", "&format=csv", "text/csv"),
        ("text/csv", "&format=json", "application/json"),
        ("text/csv", "&format=", "text/csv"),
    ],
)
def test_the_format_is_what_the_query_asks_for_or_else_accept(
    make: Make, accept: str, query: str, media_type: str
) -> None:
    answer = asked(make(), f"period=2024-01{query}", Accept=accept)
    assert answer.mimetype == media_type
    assert answer.headers["Vary"] == "Accept"
    assert answer.headers["Cache-Control"] == "no-store"


def test_a_form_that_there_is_not_is_refused(make: Make) -> None:
    assert refusal(asked(make(), Accept="image/png")) == (406, "not_acceptable")


# ── What is refused ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("", "invalid_period"),
        ("period=", "invalid_period"),
        ("period=2024-13", "invalid_period"),
        ("period=0000-01", "invalid_period"),
        ("period=9999-12", "invalid_period"),
        ("period=10000-01", "invalid_period"),
        ("period=%00", "invalid_period"),
        ("period=2024-01&period=2024-02", "repeated_parameter"),
        ("period=2024-01&month=2", "unknown_parameter"),
        ("period=2024-01&format=pdf", "invalid_format"),
    ],
)
def test_a_wrong_parameter_is_refused_by_name(make: Make, query: str, code: str) -> None:
    assert refusal(asked(make(), query)) == (400, code)


def test_who_has_no_events_is_not_found_unless_the_plans_name_them(make: Make) -> None:
    client = make()
    answer = asked(client, tenant="nobody")
    assert refusal(answer) == (404, "tenant_not_found")
    assert answer.json is not None
    assert answer.json["as_of"] == "2024-02-01T00:00:00.000Z"
    assert members(asked(client, tenant="acme"))["plan"] == "enterprise"
    assert refusal(asked(client, tenant="a%20b")) == (422, "invalid_tenant_id")


def test_without_plans_there_are_no_invoices_and_it_says_what_to_set(make: Make) -> None:
    answer = asked(make(None))
    assert refusal(answer) == (404, "no_price_plans")
    assert "PLANS_FILE" in answer.text


def test_an_invoice_that_there_can_not_be_is_waited_for_by_nobody(make: Make) -> None:
    waiting = "period=2024-01&min_as_of=2024-01-31T00:00:00Z"
    assert refusal(asked(make(as_of=None, MIN_AS_OF_WAIT_MS="0"), waiting)) == (503, "as_of_not_reached")
    assert refusal(asked(make(None, as_of=None, MIN_AS_OF_WAIT_MS="0"), waiting)) == (404, "no_price_plans")
    cut = make(f"timezone: Asia/Kolkata\n{WHOLE}", as_of=None, MIN_AS_OF_WAIT_MS="0")
    assert refusal(asked(cut, waiting)) == (400, "timezone_needs_smaller_windows")


def test_a_zone_whose_days_cut_through_windows_is_refused_with_the_reason(make: Make) -> None:
    plans = f"timezone: Asia/Kathmandu\n{WHOLE}"
    answer = asked(make(plans))
    assert refusal(answer) == (400, "timezone_needs_smaller_windows")
    assert answer.json == answer.json | {"window_minutes": 15}
    assert "parameter" not in answer.json  # the zone is not the request's
    assert "USAGE_WINDOW_MINUTES" in answer.text
    assert asked(make(plans, USAGE_WINDOW_MINUTES="15")).status_code == 200
    assert asked(make(f"timezone: Asia/Kolkata\n{WHOLE}", USAGE_WINDOW_MINUTES="30")).status_code == 200


def test_a_zone_is_refused_where_the_last_day_of_a_later_plan_cuts_through_a_window(make: Make) -> None:
    # +11 up to April 7th, +10:30 after it
    client = make(f"timezone: Australia/Lord_Howe\n{CHANGE.replace('2024-01-16', '2024-04-03')}", as_of=None)
    assert refusal(asked(client, "period=2024-04")) == (400, "timezone_needs_smaller_windows")
    assert asked(client, "period=2024-03").status_code == 200
    waiting = "period=2024-04&min_as_of=2024-01-31T00:00:00Z"
    assert refusal(asked(client, waiting)) == (400, "timezone_needs_smaller_windows")


def test_wrong_plans_stop_the_start(make: Make) -> None:
    with pytest.raises(InvalidSettingError, match=r"PLANS_FILE=.*plans\.yaml:5:15: 'EURO' stands here"):
        make(WHOLE.replace("EUR", "EURO"))
