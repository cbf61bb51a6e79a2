"""JSON or CSV: which one is answered, and that CSV holds the same figures."""

from __future__ import annotations

import csv
import io
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from billing.app import create_app
from metering.memory import MemoryTables
from metering.settings import Settings
from tests.builders import NOW, count, event, shard

if TYPE_CHECKING:
    from flask.testing import FlaskClient
    from werkzeug.test import TestResponse

TOTALS = "/v1/tenants/tenant-123/usage"
TOTAL = f"{TOTALS}/api_calls"


def client_of(*metrics: str, fresh: bool = True) -> FlaskClient:
    tables = MemoryTables()
    for number, metric in enumerate(metrics):
        count(tables, event(metric=metric, value="999999999999999.999999999"), first=number)
    if fresh:
        tables.open_shard(shard(), complete_until=NOW - timedelta(seconds=2), now=NOW)
    return create_app(tables, Settings.from_environment({}), now=lambda: NOW).test_client()


@pytest.fixture
def client() -> FlaskClient:
    return client_of("api_calls", "storage")


def lines(answer: TestResponse) -> list[list[str]]:
    assert answer.status_code == 200, answer.text
    assert answer.mimetype == "text/csv"
    assert answer.text.count("\r\n") == answer.text.count("\n")
    return list(csv.reader(io.StringIO(answer.text, newline="")))


def test_totals_and_a_total_are_a_line_each(client: FlaskClient) -> None:
    names = ["tenant_id", "metric", "usage", "events", "last_updated"]
    api_calls = ["tenant-123", "api_calls", "999999999999999.999999999", "1", "2024-01-15T10:30:00.000Z"]
    storage = ["tenant-123", "storage", *api_calls[2:]]
    assert lines(client.get(f"{TOTALS}?format=csv")) == [names, api_calls, storage]
    assert lines(client.get(f"{TOTAL}?format=csv")) == [names, api_calls]


def test_windows_are_a_line_each_and_a_range_is_one(client: FlaskClient) -> None:
    names = ["tenant_id", "metric", "start", "end", "usage", "events"]
    asked = f"{TOTAL}?from=2024-01-14&to=2024-01-17&timezone=Europe/Berlin&format=csv"
    days = [f"2024-01-{day}T00:00:00+01:00" for day in (14, 15, 16, 17)]
    usage = ["999999999999999.999999999", "1"]
    assert lines(client.get(f"{asked}&window=day")) == [
        names,
        ["tenant-123", "api_calls", *days[:2], "0", "0"],
        ["tenant-123", "api_calls", *days[1:3], *usage],
        ["tenant-123", "api_calls", *days[2:], "0", "0"],
    ]
    assert lines(client.get(asked)) == [names, ["tenant-123", "api_calls", days[0], days[3], *usage]]
    empty = client.get(f"{TOTAL}?from=2024-01-14&to=2024-01-14&format=csv")
    assert lines(empty)[1:] == [["tenant-123", "api_calls", *["2024-01-14T00:00:00+00:00"] * 2, "0", "0"]]
    assert lines(client.get(f"{TOTAL}?from=2024-01-14&to=2024-01-14&window=day&format=csv")) == [names]


def test_what_is_said_once_of_an_answer_is_a_header(client: FlaskClient) -> None:
    asked = f"{TOTAL}?from=2024-01-14&to=2024-01-17&window=day&limit=2"
    first = client.get(f"{asked}&format=csv")
    assert (first.headers["As-Of"], first.headers["Lag-Ms"]) == ("2024-01-15T10:29:58.000Z", "2000")
    cursor = first.headers["Next-Cursor"]
    assert cursor == client.get(asked).get_json()["next_cursor"]
    last = client.get(f"{asked}&format=csv&cursor={cursor}")
    assert len(lines(last)) == 2
    assert "Next-Cursor" not in last.headers
    unknown = client_of("api_calls", fresh=False).get(f"{TOTAL}?format=csv")
    assert {"As-Of", "Lag-Ms"} & set(unknown.headers.keys()) == set()


@pytest.mark.parametrize(
    ("accept", "mimetype"),
    [
        (None, "application/json"),
        ("*/*", "application/json"),
        ("application/json", "application/json"),
        ("text/csv", "text/csv"),
        ("text/*", "text/csv"),
        ("text/csv;q=0.5, application/json;q=0.4", "text/csv"),
        ("text/csv;q=0.5, */*;q=0.9", "application/json"),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", "application/json"),
        ("application/json;q=0, */*", "text/csv"),
    ],
)
@pytest.mark.parametrize("path", [TOTALS, TOTAL, f"{TOTAL}?window=day"])
def test_accept_decides_and_json_goes_first(client: FlaskClient, path: str, accept: str | None, mimetype: str) -> None:
    answer = client.get(path, headers={"Accept": accept} if accept else {})
    assert (answer.status_code, answer.mimetype) == (200, mimetype)


def test_an_accept_that_allows_neither_is_not_acceptable_unless_a_format_is_named(client: FlaskClient) -> None:
    for accept in ("application/xml", "text/csv;q=0", "image/png, text/html"):
        answer = client.get(TOTAL, headers={"Accept": accept})
        assert (answer.status_code, answer.get_json()["code"]) == (406, "not_acceptable")
        assert client.get(f"{TOTAL}?format=json", headers={"Accept": accept}).status_code == 200
    assert client.get(f"{TOTAL}?format=csv", headers={"Accept": "application/json"}).mimetype == "text/csv"
    assert client.get(f"{TOTAL}?format=xml").get_json()["code"] == "invalid_format"


def test_errors_are_json_in_either_form(client: FlaskClient) -> None:
    answer = client.get(f"{TOTALS}/sms?format=csv")
    assert (answer.status_code, answer.content_type) == (404, "application/problem+json")


def test_a_name_stands_as_it_is() -> None:
    metrics = ["-1", "@A1", "テナント", "a:b"]
    answer = client_of(*metrics).get(f"{TOTALS}?format=csv")
    assert [line[1] for line in lines(answer)[1:]] == sorted(metrics, key=str.encode)
