"""From events to an invoice on the real stack: usage by local day, the month's invoice, and who reads which shard."""

from __future__ import annotations

import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.e2e.processes import until
from tests.e2e.stack import Stack

PLANS = """
timezone: Europe/Berlin
default_plan: standard
plans:
  standard:
    currency: EUR
    flat_fee: 49
    metrics: {api_calls: {model: graduated, free: 1000, tiers: [{up_to: 10000, unit_price: 0.01}, {unit_price: 0.005}]}}
"""
EVENTS = {
    "2023-12-31T22:59:59Z": "7",  # December still, in Berlin too
    "2023-12-31T23:00:00Z": "12000.5",  # January begins in Berlin
    "2024-01-15T10:00:00Z": "344.5",
    "2024-01-31T23:00:00Z": "9",  # February
}
HOUR = re.compile(r'<th scope="row">[-0-9]{10} [0-9]{2}:00</th><td class="number">([0-9]+)</td>')


@pytest.mark.e2e
def test_a_month_of_events_becomes_an_invoice_that_can_be_checked(tmp_path: Path) -> None:
    plans = tmp_path / "plans.yaml"
    plans.write_text(PLANS, encoding="utf-8")
    stack = Stack(tmp_path, PLANS_FILE=str(plans))
    try:
        stack.start()
        tenant = f"{stack.billing_url}/v1/tenants/globex"
        batch = [
            {"tenant_id": "globex", "metric": "api_calls", "value": value, "timestamp": at, "event_id": at}
            for at, value in EVENTS.items()
        ]
        assert requests.post(f"{stack.collector_url}/v1/usage", json=batch, timeout=30).status_code == 202
        until(lambda: requests.get(f"{tenant}/usage/api_calls", timeout=10).ok, "the total is there")
        until(lambda: told(f"{tenant}/usage/api_calls")["events"] == len(EVENTS), "all events are counted")

        # A total is written before its windows: as_of says when both are.
        accepted_at = told(f"{tenant}/usage/api_calls")["last_updated"]
        january = f"from=2024-01&to=2024-02&window=day&timezone=Europe/Berlin&min_as_of={accepted_at}"
        days = told(f"{tenant}/usage/api_calls?{january}")
        assert (len(days["windows"]), days["usage"], days["events"]) == (31, Decimal(12345), 2)
        first = days["windows"][0]
        assert (first["start"], first["usage"]) == ("2024-01-01T00:00:00+01:00", Decimal("12000.5"))

        invoice = told(f"{tenant}/invoice?period=2024-01&min_as_of={accepted_at}")
        assert {name: invoice[name] for name in ("total", "flat_fee", "currency", "complete")} == {
            "total": "155.72", "flat_fee": "49.00", "currency": "EUR", "complete": True
        }  # fmt: skip
        assert invoice["as_of"] >= accepted_at
        assert [(line["usage"], line["billed"], line["amount"]) for line in invoice["lines"]] == [
            (12345, 11345, "106.72")
        ]
        page = requests.get(f"{tenant}/invoice?period=2024-01", headers={"Accept": "text/html"}, timeout=10)
        assert "155.72 EUR" in page.text
        assert "default-src 'none'" in page.headers["Content-Security-Policy"]

        shards = told(f"{stack.billing_url}/v1/status")["shards"]
        counted = sum(shard["counted"] for shard in shards)
        assert counted >= len(EVENTS)
        assert all(shard["owner"] for shard in shards)

        home = requests.get(stack.billing_url, timeout=10).text
        assert " events counted, by the hour (UTC) in which they arrived" in home
        assert all(f"<td>{shard['owner']}</td>" in home for shard in shards)
        assert sum(map(int, HOUR.findall(home))) >= counted
        month = requests.get(f"{stack.billing_url}/tenants/globex?period=2024-01", timeout=10)
        assert "<strong>12,345</strong> from 2 events, by day in Europe/Berlin" in month.text
        assert "155.72 EUR" in month.text
    finally:
        stack.close()


def told(url: str) -> Any:
    answer = requests.get(url, timeout=30)
    assert answer.status_code == 200, answer.text
    return answer.json(parse_float=Decimal)
