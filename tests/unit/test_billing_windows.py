"""Usage in a range and by window over HTTP, on the in-memory tables."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from billing.app import create_app
from metering.memory import MemoryTables
from metering.settings import Settings
from tests.builders import NOW, count, event, shard

if TYPE_CHECKING:
    from flask.testing import FlaskClient

PATH = "/v1/tenants/tenant-123/usage/api_calls"
USED = [
    ("2024-01-13T22:30:00Z", "1"),
    ("2024-01-13T23:30:00Z", "2"),  # the 14th in Berlin
    ("2024-01-14T12:00:00Z", "0.5"),
    ("2024-01-15T10:15:00Z", "4"),
]


def tables_of(*used: tuple[str, str], window_minutes: int = 60) -> MemoryTables:
    tables = MemoryTables()
    tables.window_minutes = window_minutes
    events = (event(timestamp=moment, value=value) for moment, value in used)
    count(tables, *events, window_minutes=window_minutes)
    tables.open_shard(shard(), complete_until=NOW - timedelta(seconds=2), now=NOW)
    return tables


def client_of(tables: MemoryTables, *, now: datetime = NOW) -> FlaskClient:
    settings = Settings.from_environment({"USAGE_WINDOW_MINUTES": str(tables.window_minutes), "MIN_AS_OF_WAIT_MS": "0"})
    return create_app(tables, settings, now=lambda: now).test_client()


@pytest.fixture
def client() -> FlaskClient:
    return client_of(tables_of(*USED))


def asked(client: FlaskClient, path: str = PATH, **parameters: str) -> Any:
    """Return the JSON object, numbers as they were written."""
    answer = client.get(path, query_string=parameters)
    assert answer.status_code == 200, answer.text
    assert answer.headers["Cache-Control"] == "no-store"
    return json.loads(answer.data, parse_float=str, parse_int=str)


def refused(client: FlaskClient, **parameters: str) -> tuple[int, str, str | None]:
    """Return status, code and the parameter at fault."""
    answer = client.get(PATH, query_string=parameters)
    assert answer.content_type == "application/problem+json", answer.text
    assert answer.json is not None
    return answer.status_code, answer.json["code"], answer.json.get("parameter")


def shown(answer: Any) -> list[tuple[str, str]]:
    return [(window["start"], window["usage"]) for window in answer["windows"] if window["usage"] != "0"]


# ── Answers ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_windows_are_the_object_of_the_api(client: FlaskClient) -> None:
    parameters = {"from": "2024-01-14", "to": "2024-01-16", "window": "day", "timezone": "Europe/Berlin"}
    assert asked(client, **parameters) == {
        "tenant_id": "tenant-123",
        "metric": "api_calls",
        "usage": "6.5",
        "events": "3",
        "from": "2024-01-14T00:00:00+01:00",
        "to": "2024-01-16T00:00:00+01:00",
        "timezone": "Europe/Berlin",
        "window": "day",
        "windows": [
            {"start": "2024-01-14T00:00:00+01:00", "end": "2024-01-15T00:00:00+01:00", "usage": "2.5", "events": "2"},
            {"start": "2024-01-15T00:00:00+01:00", "end": "2024-01-16T00:00:00+01:00", "usage": "4", "events": "1"},
        ],
        "next_cursor": None,
        "as_of": "2024-01-15T10:29:58.000Z",
        "lag_ms": "2000",
    }


def test_a_range_without_a_window_is_one_sum(client: FlaskClient) -> None:
    assert asked(client, **{"from": "2024-01-14T01:00:00+02:00", "to": "2024-01-15"}) == {
        "tenant_id": "tenant-123",
        "metric": "api_calls",
        "usage": "2.5",
        "events": "2",
        "from": "2024-01-13T23:00:00+00:00",
        "to": "2024-01-15T00:00:00+00:00",
        "timezone": "UTC",
        "as_of": "2024-01-15T10:29:58.000Z",
        "lag_ms": "2000",
    }


def test_without_a_range_the_answer_is_the_total(client: FlaskClient) -> None:
    total = asked(client)
    assert (total["usage"], total["events"]) == ("7.5", "4")
    assert "from" not in total
    assert asked(client, **{"from": "", "to": "", "window": "", "timezone": "", "cursor": "", "limit": ""}) == total


@pytest.mark.parametrize(
    ("window", "windows"),
    [
        ("hour", [("2024-01-13T22:00:00+00:00", "1"), ("2024-01-13T23:00:00+00:00", "2"),
                  ("2024-01-14T12:00:00+00:00", "0.5"), ("2024-01-15T10:00:00+00:00", "4")]),
        ("day", [("2024-01-13T00:00:00+00:00", "3"), ("2024-01-14T00:00:00+00:00", "0.5"),
                 ("2024-01-15T00:00:00+00:00", "4")]),
        ("month", [("2024-01-01T00:00:00+00:00", "7.5")]),
    ],
)  # fmt: skip
def test_an_open_range_is_from_the_first_events_window_to_that_of_now(
    client: FlaskClient, window: str, windows: list[tuple[str, str]]
) -> None:
    answer = asked(client, window=window)
    assert shown(answer) == windows
    assert answer["from"] == windows[0][0]
    assert answer["to"] == {"hour": "2024-01-15T11:00:00+00:00", "day": "2024-01-16T00:00:00+00:00",
                            "month": "2024-02-01T00:00:00+00:00"}[window]  # fmt: skip
    assert (answer["usage"], answer["events"]) == ("7.5", "4")


def test_an_open_end_includes_a_row_that_is_ahead_of_now() -> None:
    tables = tables_of(("2024-01-15T10:32:00Z", "3"))
    client = client_of(tables, now=datetime(2024, 1, 15, 9, 58, tzinfo=UTC))
    for parameters in ({"window": "hour"}, {"timezone": "UTC"}, {"from": "2024-01-15"}):
        answer = asked(client, **parameters)
        assert (answer["to"], answer["usage"]) == ("2024-01-15T11:00:00+00:00", "3")
    later = client_of(tables, now=datetime(2024, 1, 15, 12, 0, tzinfo=UTC))
    assert asked(later, window="hour")["to"] == "2024-01-15T13:00:00+00:00"


@pytest.mark.parametrize(
    ("parameters", "border"),
    [
        ({"from": "2024-01-15", "to": "2024-01-15"}, "2024-01-15T00:00:00+00:00"),
        ({"from": "2031-01-15"}, "2031-01-15T00:00:00+00:00"),
        ({"to": "2023-06"}, "2023-06-01T00:00:00+00:00"),
    ],
)
@pytest.mark.parametrize("window", ["", "day"])
def test_an_empty_range_is_zeros_and_no_windows(
    client: FlaskClient, parameters: dict[str, str], border: str, window: str
) -> None:
    answer = asked(client, **parameters, window=window)
    assert (answer["from"], answer["to"], answer["usage"], answer["events"]) == (border, border, "0", "0")
    assert answer.get("windows", []) == []


def test_a_range_without_usage_is_zeros_and_an_unknown_counter_is_not_found(client: FlaskClient) -> None:
    answer = asked(client, **{"from": "1999-12-30", "to": "2000-01-02", "window": "day"})
    assert [window["usage"] for window in answer["windows"]] == ["0", "0", "0"]
    for window in ("", "day"):
        for path in ("/v1/tenants/tenant-123/usage/api_call", "/v1/tenants/tenant-12/usage/api_calls"):
            missing = client.get(path, query_string={"from": "2024-01-01", "window": window})
            assert (missing.status_code, missing.get_json()["code"]) == (404, "metric_not_found")
            assert missing.get_json()["as_of"] == "2024-01-15T10:29:58.000Z"


def test_the_first_and_the_last_window_are_cut_off_where_the_range_ends(client: FlaskClient) -> None:
    answer = asked(client, **{"from": "2024-01-13T23:00:00Z", "to": "2024-01-15T10:00:00Z", "window": "day"})
    edges = [(window["start"][8:16], window["end"][8:16], window["usage"]) for window in answer["windows"]]
    assert edges == [("13T23:00", "14T00:00", "2"), ("14T00:00", "15T00:00", "0.5"), ("15T00:00", "15T10:00", "0")]


def test_a_date_stands_for_its_first_moment_and_a_month_for_that_of_its_first_day(client: FlaskClient) -> None:
    zone = {"timezone": "America/New_York"}
    answer = asked(client, **{"from": "2024-01", "to": "2024-01-15"}, **zone)
    assert (answer["from"], answer["to"]) == ("2024-01-01T00:00:00-05:00", "2024-01-15T00:00:00-05:00")
    summer = asked(client, **{"from": "2023-03-12", "to": "2023-03-13", "window": "day"}, **zone)
    assert (summer["windows"][0]["start"], summer["windows"][0]["end"]) == (
        "2023-03-12T00:00:00-05:00",
        "2023-03-13T00:00:00-04:00",
    )


def test_both_hours_of_a_clock_that_goes_back_are_windows() -> None:
    client = client_of(tables_of(("2023-10-29T00:30:00Z", "1"), ("2023-10-29T01:30:00Z", "2")))
    parameters = {"from": "2023-10-29", "to": "2023-10-30", "timezone": "Europe/Berlin"}
    hours = asked(client, **parameters, window="hour")
    assert shown(hours) == [("2023-10-29T02:00:00+02:00", "1"), ("2023-10-29T02:00:00+01:00", "2")]
    assert len(hours["windows"]) == 25
    assert shown(asked(client, **parameters, window="day")) == [("2023-10-29T00:00:00+02:00", "3")]


# ── Rows of other sizes ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("zone", "needs"), [("Asia/Kolkata", 30), ("Asia/Kathmandu", 15), ("Australia/Lord_Howe", 30)])
def test_a_zone_of_half_and_quarter_hours_needs_smaller_rows(zone: str, needs: int) -> None:
    used = ("2023-07-14T18:20:00Z", "1"), ("2023-07-14T18:40:00Z", "2")
    parameters = {"from": "2023-07-14", "to": "2023-07-16", "window": "day", "timezone": zone}
    for size in (60, 30, 15):
        client = client_of(tables_of(*used, window_minutes=size))
        if size <= needs:
            assert asked(client, **parameters)["usage"] == "3"
        else:
            answer = client.get(PATH, query_string=parameters)
            assert answer.get_json()["code"] == "timezone_needs_smaller_windows"
            assert answer.get_json()["window_minutes"] == needs
            assert f"USAGE_WINDOW_MINUTES={needs} would do" in answer.get_json()["detail"]
            without = {name: value for name, value in parameters.items() if name not in {"from", "to"}}
            assert refused(client, **without)[:2] == (400, "timezone_needs_smaller_windows")
    fine = client_of(tables_of(*used, window_minutes=15))
    split = {"Asia/Kolkata": [("14", "1"), ("15", "2")], "Asia/Kathmandu": [("15", "3")],
             "Australia/Lord_Howe": [("15", "3")]}[zone]  # fmt: skip
    assert [(start[8:10], usage) for start, usage in shown(asked(fine, **parameters))] == split


def test_rows_that_were_counted_by_the_hour_are_read_rightly_or_refused_but_never_divided() -> None:
    tables = tables_of(("2023-07-14T18:20:00Z", "1"), ("2023-07-14T20:20:00Z", "2"))
    tables.window_minutes = 30
    count(tables, event(timestamp="2023-07-14T21:40:00Z", value="4"), window_minutes=30, first=9)
    client = client_of(tables)
    parameters = {"from": "2023-07-14", "to": "2023-07-16", "window": "day"}
    assert asked(client, **parameters)["usage"] == "7"
    assert refused(client, **parameters, timezone="Asia/Kolkata") == (400, "range_cuts_rows", None)
    assert refused(client, **{"from": "2023-07-14T20:30:00Z"}) == (400, "range_cuts_rows", None)
    assert asked(client, **{"from": "2023-07-14T21:30:00Z"})["usage"] == "4"


# ── Pages ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def pages_of(
    client: FlaskClient, limit: int, *, between: Callable[[], None] = lambda: None, **parameters: str
) -> list[Any]:
    found = [asked(client, limit=str(limit), **parameters)]
    while found[-1]["next_cursor"]:
        between()
        found.append(asked(client, limit=str(limit), cursor=found[-1]["next_cursor"], **parameters))
    return found


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 60), st.sampled_from(["hour", "day"]), st.sampled_from(["UTC", "Europe/Berlin"]))
def test_pages_of_any_size_hold_each_window_once(limit: int, window: str, zone: str) -> None:
    client = client_of(tables_of(*USED))
    parameters = {"window": window, "timezone": zone}
    whole = asked(client, **parameters)
    pages = pages_of(client, limit, **parameters)
    assert [each for page in pages for each in page["windows"]] == whole["windows"]
    assert sum(Decimal(page["usage"]) for page in pages) == Decimal(whole["usage"])
    assert {(page["from"], page["to"]) for page in pages} == {(whole["from"], whole["to"])}
    assert all(len(page["windows"]) == limit for page in pages[:-1])


def test_a_cursor_survives_what_is_counted_meanwhile() -> None:
    tables = tables_of(*USED)
    client = client_of(tables)

    def more() -> None:
        early = event(timestamp="2024-01-01T00:00:00Z", value="100")
        count(tables, early, event(timestamp="2024-01-15T10:20:00Z", value="1"), first=len(tables.rows) * 10)

    pages = pages_of(client, 1, between=more, window="day", timezone="Europe/Berlin")
    assert [page["windows"][0]["start"][:10] for page in pages] == ["2024-01-13", "2024-01-14", "2024-01-15"]
    assert pages[-1]["windows"][0]["usage"] == "6"


def test_a_year_of_hours_is_one_page_of_ten_thousand() -> None:
    client = client_of(tables_of(*USED))
    year = {"from": "2023", "window": "hour"}
    assert refused(client, **year) == (400, "invalid_time", "from")
    year = {"from": "2023-01", "to": "2024-01", "window": "hour"}
    assert len(asked(client, **year)["windows"]) == 1000
    assert len(asked(client, **year, limit="10000")["windows"]) == 8760
    for limit in ("0", "10001", "-1", "1.5", "x", "٣"):
        assert refused(client, **year, limit=limit) == (400, "invalid_limit", "limit")


RANGE = {"from": "2024-01-01", "to": "2024-02-01", "window": "day", "timezone": "Europe/Berlin"}


def test_a_cursor_belongs_to_its_question(client: FlaskClient) -> None:
    cursor = asked(client, **RANGE, limit="3")["next_cursor"]
    assert asked(client, **RANGE, limit="9", cursor=cursor)["windows"][0]["start"] == "2024-01-04T00:00:00+01:00"
    others = [
        {"from": "2024-01-02"},
        {"to": "2024-02-02"},
        {"window": "hour"},
        {"timezone": "Europe/Paris"},
        {"to": ""},
    ]
    for other in others:
        assert refused(client, **(RANGE | other), cursor=cursor) == (400, "invalid_cursor", "cursor")
    for path in (PATH + "2", PATH.replace("123", "12")):
        assert client.get(path, query_string={**RANGE, "cursor": cursor}).get_json()["code"] == "invalid_cursor"


def test_a_cursor_that_was_tampered_with_is_refused(client: FlaskClient) -> None:
    cursor = asked(client, **RANGE, limit="3")["next_cursor"]
    packed = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
    flipped = (
        base64.urlsafe_b64encode(packed[:at] + bytes([packed[at] ^ 1 << bit]) + packed[at + 1 :]).decode().rstrip("=")
        for at in range(len(packed))
        for bit in (0, 7)
    )
    tampered = [
        *flipped,
        cursor + "A",
        cursor[:-1],
        cursor + "=",
        "x",
        "é",
        "A" * 43,
        "_" * 43,
        "a" * 5000,
        cursor[::-1],
    ]
    for each in tampered:
        assert refused(client, **RANGE, cursor=each) == (400, "invalid_cursor", "cursor"), each


# ── Bad input ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("parameters", "code", "parameter"),
    [
        ({"from": "2024-01-15", "to": "2024-01-14"}, "invalid_range", "from"),
        ({"from": "now"}, "invalid_time", "from"),
        ({"to": "2024-02-30"}, "invalid_time", "to"),
        ({"from": "2024-13"}, "invalid_time", "from"),
        ({"from": "0000-01-01"}, "invalid_time", "from"),
        ({"from": "2024-1-1"}, "invalid_time", "from"),
        ({"from": "20240115"}, "invalid_time", "from"),
        ({"from": "2024-W03"}, "invalid_time", "from"),
        ({"from": "2024-01-15T10:00:00"}, "invalid_time", "from"),
        ({"from": "2024-01-15T10:00:00 01:00"}, "invalid_time", "from"),  # a + that was not encoded
        ({"from": "1705312800"}, "invalid_time", "from"),
        ({"from": "٢٠٢٤-01-15"}, "invalid_time", "from"),
        ({"from": "9" * 5000}, "invalid_time", "from"),
        ({"from": "2024-01-15\n"}, "invalid_time", "from"),
        ({"from": "0001-01-01T00:00:00+23:59"}, "invalid_time", "from"),
        ({"to": "9999-12-31T23:59:59-23:59"}, "invalid_time", "to"),
        ({"from": "2024-01-15T10:20:00Z"}, "unaligned_time", "from"),
        ({"from": "2024-01-15T10:30:00Z"}, "unaligned_time", "from"),
        ({"to": "2024-01-15T10:00:01Z"}, "unaligned_time", "to"),
        ({"to": "2016-12-31T23:59:60Z"}, "unaligned_time", "to"),
        ({"from": "2024-01-15T00:00:00+05:30"}, "unaligned_time", "from"),
        ({"from": "2024-01-15", "timezone": "Asia/Kolkata"}, "timezone_needs_smaller_windows", "timezone"),
        ({"from": "0001-01-01", "timezone": "Europe/Berlin"}, "time_out_of_range", None),
        ({"from": "1880-01-01", "timezone": "Europe/Berlin"}, "timezone_needs_smaller_windows", "timezone"),
        ({"from": "1880-01-01T00:00:00Z", "timezone": "Europe/Berlin"}, "timezone_needs_smaller_windows", "timezone"),
        ({"window": "week"}, "invalid_window", "window"),
        ({"window": "Day"}, "invalid_window", "window"),
        ({"limit": "5"}, "missing_window", "window"),
        ({"cursor": "x", "from": "2024-01-15"}, "missing_window", "window"),
        ({"timezone": "Mars/Olympus"}, "invalid_timezone", "timezone"),
        ({"timezone": "../../etc/passwd"}, "invalid_timezone", "timezone"),
        ({"timezone": "localtime"}, "invalid_timezone", "timezone"),
        ({"timezone": "x" * 300}, "invalid_timezone", "timezone"),
        ({"timezone": "Europe/Berlin\0"}, "invalid_timezone", "timezone"),
        ({"window": "day", "cursor": "bm90IGEgY3Vyc29y"}, "invalid_cursor", "cursor"),
        ({"form": "csv"}, "unknown_parameter", "form"),
    ],
)
def test_what_cannot_be_answered_is_refused_with_its_reason(
    client: FlaskClient, parameters: dict[str, str], code: str, parameter: str | None
) -> None:
    assert refused(client, **parameters) == (400, code, parameter)
    assert len(client.get(PATH, query_string=parameters).data) < 600


def test_a_plus_that_was_not_encoded_is_pointed_out(client: FlaskClient) -> None:
    answer = client.get(f"{PATH}?from=2024-01-15T10:00:00+01:00")
    assert "%2B" in answer.get_json()["detail"]


@pytest.mark.parametrize("window", ["", "hour", "day", "month"])
@pytest.mark.parametrize(
    ("parameters", "usage"),
    [
        ({"from": "0001-01-01", "to": "9999-12-31"}, "7.5"),
        ({"from": "0001-01-01T00:00:00Z", "to": "9999-12-31T23:00:00Z"}, "7.5"),
        ({"from": "9999-12-30", "to": "9999-12-31T23:00:00Z"}, "0"),
        ({"from": "9999-12-31T22:00:00Z"}, "0"),
        ({"to": "0001-01-01T05:00:00Z"}, "0"),
        ({"from": "0001-01-02", "timezone": "Etc/GMT+5"}, "7.5"),
        ({"from": "0001-01-02", "timezone": "Etc/GMT-14"}, "7.5"),
    ],
)
def test_ranges_of_all_time_are_answered_a_page_at_a_time(
    client: FlaskClient, parameters: dict[str, str], usage: str, window: str
) -> None:
    answer = asked(client, **parameters, window=window)
    if not window:
        assert answer["usage"] == usage
    elif parameters["from" if "from" in parameters else "to"].startswith("0001") and "from" in parameters:
        assert len(answer["windows"]) == 1000
        assert answer["next_cursor"]
        assert answer["windows"][0]["start"][:4] == "0001"


def test_an_event_of_year_1_is_in_an_open_range_or_the_zone_is_refused() -> None:
    client = client_of(tables_of(("0001-01-01T00:00:00Z", "3"), *USED))  # what Go sends for a time that was never set
    assert asked(client, timezone="UTC")["usage"] == "10.5"
    assert asked(client, window="month")["windows"][0]["usage"] == "3"
    for zone in ("Etc/GMT+5", "Etc/GMT-5"):
        answer = client.get(PATH, query_string={"window": "day", "timezone": zone, "limit": "1"})
        assert (answer.status_code, answer.get_json().get("code")) in ((200, None), (400, "time_out_of_range"))


@given(st.fixed_dictionaries({}, optional={
    name: st.text(max_size=12) | st.sampled_from(values)
    for name, values in {
        "from": ["0001-01-01", "9999-12-31", "2024-01", "9999-12-31T23:00:00Z", "2024-01-15T10:30:00Z"],
        "to": ["0001-01-01", "9999-12-31", "2024-01-20", "0001-01-01T00:00:00Z"],
        "window": ["hour", "day", "month"],
        "timezone": ["Europe/Berlin", "Etc/GMT+12", "Etc/GMT-14", "Pacific/Apia", "America/St_Johns"],
        "limit": ["1", "7"],
        "cursor": ["A" * 43],
        "format": ["csv", "json"],
        "min_as_of": ["2024-01-15T10:29:58Z", "0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z"],
    }.items()
}))  # fmt: skip
def test_no_question_is_an_unexpected_error(parameters: dict[str, str]) -> None:
    assert ANY.get(PATH, query_string=parameters).status_code in {200, 400, 503}


ANY = client_of(tables_of(*USED, window_minutes=30))
