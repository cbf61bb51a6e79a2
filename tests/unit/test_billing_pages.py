"""The list of tenants in pages: each tenant once, in order, and cursors that nobody can make up."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.app import create_app
from billing.parameters import cursor_after
from metering.memory import MemoryTables
from metering.settings import Settings
from tests.builders import NOW

if TYPE_CHECKING:
    from flask.testing import FlaskClient


def client_of(*tenant_ids: str) -> FlaskClient:
    tables = MemoryTables()
    for tenant_id in tenant_ids:
        tables.register_tenant(tenant_id, now=NOW)
    return create_app(tables, Settings.from_environment({}), now=lambda: NOW).test_client()


def test_an_empty_directory_is_an_empty_list() -> None:
    assert client_of().get("/v1/tenants").json == {
        "tenants": [],
        "next_cursor": None,
        "as_of": None,
        "lag_ms": None,
    }


names = st.text(st.characters(categories=["Lu", "Ll", "Lo", "Nd"]), min_size=1, max_size=20)


@given(st.sets(names, max_size=12), st.integers(1, 5))
def test_pages_hold_each_tenant_once_in_order(tenant_ids: set[str], limit: int) -> None:
    client, cursor, listed = client_of(*tenant_ids), "", []
    while True:
        page = client.get(f"/v1/tenants?limit={limit}&cursor={cursor}").json
        assert page is not None
        assert len(page["tenants"]) <= limit
        listed += [tenant["tenant_id"] for tenant in page["tenants"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
        assert page["tenants"]
    assert listed == sorted(tenant_ids, key=str.encode)


def test_a_page_holds_100_unless_it_is_told_otherwise_and_1000_at_most() -> None:
    client = client_of(*(f"tenant-{n:04d}" for n in range(1001)))
    for query, listed in (("", 100), ("?limit=", 100), ("?limit=1", 1), ("?limit=1000", 1000)):
        page = client.get(f"/v1/tenants{query}").json
        assert page is not None
        assert len(page["tenants"]) == listed
        assert page["next_cursor"]


@pytest.mark.parametrize("limit", ["0", "1001", "-1", "1.0", "1e2", "ten", "%2B1", "%201", "٣", "9" * 5000, "null"])
def test_a_limit_out_of_range_is_refused(limit: str) -> None:
    answer = client_of("t").get(f"/v1/tenants?limit={limit}")
    assert answer.json is not None
    assert (answer.status_code, answer.json["code"]) == (400, "invalid_limit")


def made_up(text: bytes) -> str:
    return base64.urlsafe_b64encode(text).rstrip(b"=").decode()


@pytest.mark.parametrize(
    "cursor",
    [
        "null",
        "None",
        "x",
        "t",
        "%FF",
        cursor_after("t") + "=",
        cursor_after("t") + "x",
        cursor_after("t")[:-1],
        made_up(b"t"),
        made_up(b"after:"),
        made_up(b"after:a b"),
        made_up(b"after:\xff"),
        made_up(b"after:" + b"x" * 129),
    ],
)
def test_a_cursor_that_was_not_handed_out_is_refused(cursor: str) -> None:
    answer = client_of("t").get(f"/v1/tenants?cursor={cursor}")
    assert answer.json is not None
    assert (answer.status_code, answer.json["code"]) == (400, "invalid_cursor")


def test_a_parameter_given_twice_is_refused() -> None:
    answer = client_of("t").get("/v1/tenants?limit=1&limit=2")
    assert answer.json is not None
    assert (answer.status_code, answer.json["code"]) == (400, "repeated_parameter")
    assert answer.json["parameter"] == "limit"


def test_cursors_are_safe_in_a_url_as_they_are() -> None:
    client = client_of(*(f"テナント{n}\U0001d4b3" for n in range(3)))
    page = client.get("/v1/tenants?limit=1").json
    assert page is not None
    assert page["next_cursor"].replace("-", "").replace("_", "").isalnum()
