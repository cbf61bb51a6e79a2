"""The pages as they are written, on the in-memory tables; tests/live looks at them in a browser."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from flask.testing import FlaskClient
from lxml import html
from werkzeug.test import TestResponse

from billing.app import create_app
from billing.page_parts import PAGE_HEADERS, grouped, lag_text
from metering.memory import MemoryTables
from metering.settings import Settings
from tests.builders import NOW, count, event, outcome, shard
from tests.live.pages_live_app import HOSTILE, LONG, METERS, PLANS, full_world
from tests.unit.counting_world import EVENT, World
from tests.unit.openapi_support import KEY, key_file

BROWSER = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}
Make = Callable[..., FlaskClient]


def client_of(tables: MemoryTables, **variables: str) -> FlaskClient:
    return create_app(tables, Settings.from_environment(variables), now=lambda: NOW).test_client()


@pytest.fixture(scope="module")
def client() -> FlaskClient:
    return client_of(full_world().tables, PLANS_FILE=str(PLANS), METERS_FILE=str(METERS))


def page(answer: TestResponse, status: int = 200) -> html.HtmlElement:
    assert (answer.status_code, answer.content_type) == (status, "text/html; charset=utf-8"), answer.text
    assert {name: answer.headers[name] for name in PAGE_HEADERS} == PAGE_HEADERS
    assert answer.headers["Cache-Control"] == "no-store"
    found = html.document_fromstring(answer.text)
    assert found.xpath("//style | //script | //*[@style] | //img | //@*[starts-with(name(), 'on')]") == []
    return found


def table(found: html.HtmlElement, section: str) -> list[list[str]]:
    rows = found.xpath(f"//section[@aria-labelledby='{section}']//tbody/tr")
    return [[" ".join(cell.text_content().split()) for cell in row] for row in rows]


def words(found: html.HtmlElement) -> str:
    return " ".join(found.text_content().split())


# ── All tenants ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_tenants_are_listed_with_how_current_they_are(client: FlaskClient) -> None:
    found = page(client.get("/"))
    assert "All events up to 2024-01-15 10:30:00 UTC are counted, 0.0 s behind." in words(found)
    listed = found.xpath("//section[@aria-labelledby='tenants']//li/a")
    assert [link.text for link in listed] == ["acme", "größe:1", *(f"tenant-{n}" for n in range(9)), LONG]
    for link in listed:
        assert client.get(link.get("href")).status_code == 200


def test_the_hours_of_the_last_day_are_those_of_all_shards(client: FlaskClient) -> None:
    hours = table(page(client.get("/")), "hours")
    assert [hours[0][0], hours[-1][0], len(hours)] == ["2024-01-14 11:00", "2024-01-15 10:00", 24]
    assert hours[-2] == ["2024-01-15 09:00", "7"]
    assert "170 events counted" in words(page(client.get("/")))
    assert sum(int(counted) for _, counted in hours) == 170


def test_an_hour_that_is_past_is_not_drawn() -> None:
    tables = MemoryTables()
    tables.open_shard(shard(), complete_until=NOW, now=NOW)
    for hours, number in ((24, 1), (23, 2)):
        then = NOW - timedelta(hours=hours)
        tables.record_progress(shard(), [outcome(number, arrived_at=then)], complete_until=None, now=then)
    hours = table(page(client_of(tables).get("/")), "hours")
    assert [hours[0], sum(int(counted) for _, counted in hours)] == [["2024-01-14 11:00", "1"], 1]


def test_each_shard_tells_its_worker_and_how_far_it_is(client: FlaskClient) -> None:
    assert table(page(client.get("/")), "shards") == [
        ["shardId-000000000000", "none", "0.0 s", "113", "111", "0", "2"],
        ["shardId-000000000001", "none", "0.0 s", "62", "62", "0", "0"],
    ]


def test_shards_that_are_read_to_their_end_come_last() -> None:
    tables = MemoryTables()
    for number in range(3):
        tables.open_shard(shard(number), complete_until=NOW, now=NOW)
    tables.close_shard(shard(0), now=NOW)
    lines = table(page(client_of(tables).get("/")), "shards")
    assert [(line[0][-1], line[1]) for line in lines] == [("1", "none"), ("2", "none"), ("0", "")]


def test_a_lag_of_more_than_a_minute_is_said() -> None:
    tables = MemoryTables()
    tables.open_shard(shard(), complete_until=NOW - timedelta(minutes=62, seconds=5), now=NOW)
    said = words(page(client_of(tables).get("/")))
    assert "09:27:55 UTC are counted, 1 h 2 min behind" in said
    assert "more than a minute" in said


def test_without_any_data_each_part_says_so() -> None:
    found = page(client_of(MemoryTables()).get("/"))
    for said in ("not known yet", "No event of any tenant", "No event was counted", "No consumer has reported"):
        assert said in words(found)
    assert found.xpath("//svg") == []


def test_a_tenant_is_opened_by_its_name(client: FlaskClient) -> None:
    answer = client.get("/", query_string={"tenant": " größe:1 "})
    assert answer.status_code == 303
    assert page(client.get(answer.headers["Location"])).xpath("string(//h1)") == "größe:1"


def test_tenants_come_in_pages_that_each_hold_them_once() -> None:
    tables = MemoryTables()
    names = [f"tenant-{n:03}" for n in range(250)]
    for name in names:
        tables.register_tenant(name, now=NOW)
    client = client_of(tables)
    found, path = [], "/"
    while path:
        shown = page(client.get(path))
        found += [link.text for link in shown.xpath("//section[@aria-labelledby='tenants']//li/a")]
        path = shown.xpath("string(//a[@rel='next']/@href)")
    assert found == names


# ── One tenant ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_month_is_that_of_now_and_its_days_add_up(client: FlaskClient) -> None:
    found = page(client.get("/tenants/acme"))
    assert "50,043.75 <b>calls</b> from 15 events, by day in Europe/Berlin" in words(found)
    days = table(found, "month")
    assert days[0] == ["2024-01-01", "417.25", "1"]
    assert (len(days), days[-1]) == (31, ["2024-01-31", "0", "0"])
    assert found.xpath("string(//svg//g[@class='bar'][1]/title)") == "2024-01-01: 417.25"


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("metric=seats", "9 seats from 15 events"),
        ("metric=storage", "180,000,000,000 GB from 15 events"),
        ("period=2023-12", "0 <b>calls</b> from 0 events"),
        ("timezone=America/St_Johns&period=2024-01", "timezone_needs_smaller_windows"),
        ("period=2024-13", "invalid_period"),
        ("period=0001-01", "invalid_period"),
        ("timezone=Europe/Nowhere", "invalid_timezone"),
        ("metric=nothing", "metric_not_found"),
        ("metric=<b>", "invalid_metric"),
        ("sauce=x", "unknown_parameter"),
        ("period=2024-01&period=2024-02", "repeated_parameter"),
    ],
)
def test_a_month_a_metric_and_a_zone_can_be_chosen(client: FlaskClient, query: str, said: str) -> None:
    answer = client.get(f"/tenants/acme?{query}", headers=BROWSER)
    assert said in words(page(answer, answer.status_code))
    assert answer.status_code == {True: 200, False: 400}[" from " in said] or answer.status_code in {404, 422}


def test_the_days_are_those_of_the_zone() -> None:
    tables = MemoryTables()
    count(tables, event(timestamp="2024-01-15T00:30:00Z", value="7"))
    found = page(client_of(tables).get("/tenants/tenant-123?timezone=America/New_York"))
    days = {day: usage for day, usage, _ in table(found, "month")}
    assert (days["2024-01-14"], days["2024-01-15"]) == ("7", "0")


def test_usage_that_is_not_known_is_no_figure(tmp_path: Path) -> None:
    tables = MemoryTables()
    count(tables, event())  # before the meter was set
    meters = tmp_path / "meters.yaml"
    meters.write_text("meters: {api_calls: {aggregation: max}}")
    found = page(client_of(tables, METERS_FILE=str(meters)).get("/tenants/tenant-123"))
    assert "The usage of this month is not known: some events were counted before" in words(found)
    assert table(found, "totals")[0][:2] == ["api_calls", "not known"]
    assert found.xpath("//svg") == []


def test_the_invoice_is_that_of_the_api(client: FlaskClient) -> None:
    found = page(client.get("/tenants/acme"))
    invoice = client.get("/v1/tenants/acme/invoice?period=2024-01").get_json()
    amounts = [row[-1] for row in table(found, "invoice")]
    assert amounts[:2] == [line["amount"] for line in invoice["lines"][:2]]
    assert invoice["total"] == found.xpath("string(//tfoot//td[@class='number'])").removesuffix(" EUR").replace(",", "")
    assert "Preview of the invoice 2024-01" in words(found)
    assert "Not billed, since the plan has no price for it" in words(found)


@pytest.mark.parametrize(
    ("tenant", "variables", "said"),
    [
        ("tenant-123", {}, "There is none: there are no price plans"),
        ("quiet", {"PLANS_FILE": str(PLANS)}, "No event of this tenant has been counted yet."),
    ],
)
def test_a_page_without_plans_or_without_events_says_so(tenant: str, variables: dict[str, str], said: str) -> None:
    tables = MemoryTables()
    count(tables, event())
    assert said in words(page(client_of(tables, **variables).get(f"/tenants/{tenant}")))


def test_months_lead_to_those_before_and_after(client: FlaskClient) -> None:
    shown = page(client.get("/tenants/acme?metric=seats&timezone=UTC"))
    before = page(client.get(shown.xpath("string(//a[@rel='prev']/@href)")))
    assert "seats in 2023-12" in words(before)
    assert page(client.get("/tenants/acme?period=1970-01")).xpath("//a[@rel='prev']") == []
    assert page(client.get("/tenants/acme?period=9998-12&timezone=UTC")).xpath("//a[@rel='next']") == []


def test_links_to_the_same_figures_work(client: FlaskClient) -> None:
    shown = page(client.get("/tenants/acme?metric=seats"))
    links = {link.text: link.get("href") for link in shown.xpath("//main//a")}
    assert client.get(links["CSV"]).text.count("\r\n") == 32
    assert len(client.get(links["JSON"]).get_json()["windows"]) == 31
    assert page(client.get(links["To print"])).xpath("string(//h1)") == "Preview of invoice 2024-01"


def test_what_producers_write_is_text(client: FlaskClient) -> None:
    rows = table(page(client.get("/tenants/acme")), "rejected")
    assert [row[1] for row in rows] == ["refused api_calls", f"{HOSTILE} {HOSTILE}"]
    assert rows[0][2] == "negative_value: value must not be negative"
    assert table(page(client.get(f"/tenants/{LONG}")), "rejected") == []


@pytest.mark.parametrize(
    ("event_id", "shown"),
    [
        ("\ud800", r"\ud800"),
        ("a\n\u202eb\x00", r"a\n\u202eb\x00"),
        ("é" * 128, "é" * 128),
        ("x" * 100_000, "x" * 128 + "…"),
    ],
)
def test_what_another_producer_put_is_shown_whatever_it_holds(event_id: str, shown: str) -> None:
    world = World()
    world.put(EVENT | {"event_id": event_id, "value": "-1"})
    rows = table(page(client_of(world.tables).get("/tenants/tenant-123")), "rejected")
    assert [row[1] for row in rows] == [f"{shown} api_calls"]


def test_the_newest_rejected_events_are_shown_and_no_more() -> None:
    world = World()
    for n in range(30):
        world.at(NOW + timedelta(seconds=n))
        world.put(EVENT | {"value": "-1", "event_id": f"refused-{n}"}, partition=n % 2 * 40)
    for n in range(250):
        world.put(EVENT | {"value": "-1", "event_id": f"another's-{n}", "tenant_id": "tenant-9"})
    shown = page(client_of(world.tables).get("/tenants/tenant-123"))
    assert [row[1] for row in table(shown, "rejected")] == [f"refused-{n} api_calls" for n in range(29, 9, -1)]
    assert "No event of this tenant has been counted yet." in words(shown)


# ── Errors and keys ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("path", "status"), [("/nowhere", 404), ("/tenants/nobody", 404), ("/tenants/a%20b", 422), ("/?cursor=x", 400)]
)
def test_an_error_is_a_page_for_who_reads_pages_and_json_for_programs(
    client: FlaskClient, path: str, status: int
) -> None:
    answer = client.get(path, headers=BROWSER)
    assert page(answer, status).xpath("//a[@href='/']")
    assert answer.headers["Vary"] == "Accept"
    assert client.get(path).content_type == "application/problem+json"


def test_an_error_of_the_api_is_json_whatever_is_accepted(client: FlaskClient) -> None:
    assert client.get("/v1/tenants/nobody/usage", headers=BROWSER).content_type == "application/problem+json"
    assert client.get("/v1/tenants/nobody/invoice?period=x", headers=BROWSER).content_type.startswith("text/html")


def test_a_key_for_some_tenants_sees_those_and_nothing_of_the_others(tmp_path: Path) -> None:
    client = client_of(full_world().tables, API_KEYS_FILE=key_file(tmp_path, (KEY, "acme", "read")))
    found = page(client.get("/", auth=("", KEY)))
    assert [link.text for link in found.xpath("//section[@aria-labelledby='tenants']//li/a")] == ["acme"]
    assert found.xpath("//section/@aria-labelledby") == ["tenants"]
    assert client.get("/tenants/acme", auth=("", KEY)).status_code == 200
    page(client.get("/tenants/tenant-1", auth=("", KEY), headers=BROWSER), 403)


def test_a_browser_is_asked_for_the_key_and_gets_page_and_stylesheet(tmp_path: Path) -> None:
    client = client_of(full_world().tables, API_KEYS_FILE=key_file(tmp_path, (KEY, "*", "read")))
    asked = client.get("/", headers=BROWSER)
    found = page(asked, 401)
    assert asked.headers["WWW-Authenticate"].startswith("Basic realm=")
    with client.get(found.xpath("string(//link[@rel='stylesheet']/@href)")) as style:
        assert style.status_code == 200
    assert page(client.get("/", auth=("anyone", KEY))).xpath("//svg")


@pytest.mark.parametrize(
    ("value", "text"),
    [("0", "0"), ("1234567.50", "1,234,567.5"), ("1E+4", "10,000"), ("0.000000000001", "0.000000000001")],
)
def test_numbers_are_exact_with_their_thousands_apart(value: str, text: str) -> None:
    assert grouped(Decimal(value)) == text


@pytest.mark.parametrize(
    ("lag_ms", "text"),
    [(None, "not known yet"), (0, "0.0 s"), (9_999, "9.9 s"), (10_000, "10 s"), (60_000, "1 min"),
     (3_725_000, "1 h 2 min"), (86_400_000, "1 day"), (180_000_000, "2 days 2 h")],
)  # fmt: skip
def test_a_lag_is_said_in_its_two_largest_units(lag_ms: int | None, text: str) -> None:
    assert lag_text(lag_ms) == text


def test_a_key_as_a_password_changes_nothing(tmp_path: Path) -> None:
    """A browser sends it along with what another site makes it ask for."""
    client = client_of(full_world().tables, API_KEYS_FILE=key_file(tmp_path, (KEY, "*", "read,void")))
    path, body = "/v1/tenants/acme/events/refused/void", {"by": "ana", "reason": "test"}
    assert client.post(path, json=body, auth=("", KEY)).status_code == 401
    assert client.post(path, json=body, headers={"Authorization": f"Bearer {KEY}"}).status_code == 409


def test_a_page_may_load_its_own_stylesheet_and_icon_and_nothing_else(client: FlaskClient) -> None:
    assert client.get("/").headers["Content-Security-Policy"] == (
        "default-src 'none'; style-src 'self'; img-src 'self'; base-uri 'none'; form-action 'self'; "
        "frame-ancestors 'none'"
    )
