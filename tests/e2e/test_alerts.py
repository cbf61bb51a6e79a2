"""Alerts on the real stack: from an event at the collector to a signed message at a receiver."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import requests

from metering.alerts import Kind
from tests.alert_receiver import SECRET, receiving
from tests.e2e.parts import Parts
from tests.e2e.processes import METERING, ran, started, until

TENANT = "alerted-tenant"
TEXT = """\
timezone: Europe/Berlin
alerts: [{name: calls-high, metric: calls, period: month, thresholds: [5, 10]}]
quotas: [{metric: calls, period: month, limit: 8}]
"""
TOLD_S = 120.0


def test_an_event_that_crosses_a_threshold_is_told_to_the_webhook_and_exceeds_the_quota(
    parts: Parts, tmp_path: Path
) -> None:
    pipeline = parts.named("alerts")
    path = tmp_path / "alerts.yaml"
    path.write_text(TEXT)
    pipeline.environment |= {"ALERTS_FILE": str(path), "ALERTS_INTERVAL_S": "1", "ALERTS_WEBHOOK_SECRET": SECRET}
    pipeline.set_up()
    with receiving() as receiver, pipeline.collector() as collector_url, pipeline.billing() as billing_url:
        pipeline.environment |= {"ALERTS_WEBHOOK_URL": receiver.url}
        with pipeline.consumer(), started([METERING, "alerts", "run"], pipeline.environment, tmp_path / "alerts.log"):
            for number, value in enumerate(("4.5", "4", "7")):
                event = {"tenant_id": TENANT, "metric": "calls", "value": value, "event_id": f"req-{number}"}
                event |= {"timestamp": datetime.now(UTC).isoformat()}
                answer = requests.post(f"{collector_url}/v1/usage", json=event, timeout=30)
                assert answer.status_code == 202, answer.text
            until(lambda: len(receiver.taken()) == 2, lambda: f"both are told: {receiver.ids()}", timeout_s=TOLD_S)
            url = f"{billing_url}/v1/tenants/{TENANT}"
            listed = requests.get(f"{url}/alerts", timeout=30).json(parse_float=Decimal)["alerts"]
            quota = requests.get(f"{url}/quota/calls", timeout=30).json(parse_float=Decimal)
    assert all(post.signed for post in receiver.posts)
    told = {post.message_id: post.content["data"] for post in receiver.posts}
    assert set(told) == {f"{alert['id']}_{Kind.CROSSED}" for alert in listed}
    assert {alert["threshold"] for alert in listed} == {5, 10}
    for alert in listed:
        data = told[f"{alert['id']}_{Kind.CROSSED}"]
        assert data.pop("tenant_id") == TENANT
        assert data.items() <= {**alert, "usage": float(alert["usage"])}.items()
        assert alert["usage"] >= alert["threshold"]
    assert (quota["used"], quota["remaining"], quota["exceeded"]) == (Decimal("15.5"), 0, True)
    code, output, errors = ran([METERING, "audit", "--strict"], pipeline.environment)
    assert code == 0, output + errors
