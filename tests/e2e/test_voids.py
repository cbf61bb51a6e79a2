"""Voids on the real stack: out of total, window and audit once, whatever is asked again, sent again or read again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import pytest
import requests

from tests.e2e.parts import Parts, Pipeline
from tests.e2e.processes import METERING, json_lines, ran, until
from tests.e2e.tables import Tables

TENANT = "voided-tenant"
TIMED = {
    "tenant_id": TENANT,
    "metric": "calls",
    "value": "2.5",
    "timestamp": "2024-01-15T10:00:00Z",
    "event_id": "timed",
}
UNTIMED = {"tenant_id": TENANT, "metric": "calls", "value": "4", "event_id": "untimed"}
KEPT = {**TIMED, "value": "8", "event_id": "kept"}
COUNTED_S = 90.0


@dataclass
class Voided:
    """A pipeline, and the URLs of its collector and its billing."""

    pipeline: Pipeline
    tables: Tables
    collector_url: str
    billing_url: str

    def post(self, *events: dict[str, str]) -> None:
        answer = requests.post(f"{self.collector_url}/v1/usage", json=list(events), timeout=30)
        assert answer.status_code == 202, answer.text

    def get(self, path: str) -> Any:
        answer = requests.get(f"{self.billing_url}/v1/tenants/{TENANT}{path}", timeout=30)
        assert answer.status_code == 200, answer.text
        return json.loads(answer.text, parse_float=Decimal)

    def void(self, event_id: str, by: str = "ana") -> requests.Response:
        path = f"/v1/tenants/{TENANT}/events/{event_id}/void"
        return requests.post(self.billing_url + path, json={"by": by, "reason": "a test"}, timeout=30)

    def await_event(self, event_id: str, **wanted: Any) -> None:
        until(
            lambda: wanted.items() <= self.get(f"/events/{event_id}").items(),
            lambda: f"{event_id} is {wanted}: {self.get(f'/events/{event_id}')}",
            timeout_s=COUNTED_S,
        )

    def sums(self) -> dict[str, tuple[Decimal, int]]:
        return {sk: row for (pk, sk), row in self.tables.rows().items() if pk == f"TENANT#{TENANT}"}

    def assert_audit_finds(self, *lines: str) -> None:
        code, output, errors = ran([METERING, "audit", "--strict"], self.pipeline.environment)
        assert code == 0, output + errors
        assert set(lines) <= set(output.splitlines()), output


@pytest.fixture
def voided(parts: Parts) -> Iterator[Voided]:
    pipeline = parts.named("voids")
    pipeline.set_up()
    with pipeline.tables() as tables, pipeline.collector() as collector_url, pipeline.billing() as billing_url:
        yield Voided(pipeline, tables, collector_url, billing_url)


def test_a_void_holds_against_itself_retries_and_a_replay_of_the_whole_stream(voided: Voided) -> None:
    pipeline, total = voided.pipeline, f"TENANT#{TENANT} METRIC#calls"
    with pipeline.worker("first"):
        voided.post(TIMED, UNTIMED, KEPT)
        for event in (TIMED, UNTIMED, KEPT):
            voided.await_event(event["event_id"], status="counted")
        [now] = voided.sums().keys() - {"METRIC#calls", "HOUR#calls#2024-01-15T10"}
        assert voided.sums()["METRIC#calls"] == (Decimal("14.5"), 3)

        first = voided.void("timed")
        assert first.status_code == 200, first.text
        assert (first.json()["status"], first.json()["voided_by"]) == ("voided", "ana")
        second = voided.void("timed", by="bob")
        for name in ("voided_at", "voided_by", "void_reason"):
            assert second.json()[name] == first.json()[name]
        assert voided.void("untimed").status_code == 200
        assert voided.void("nobody").json()["code"] == "event_not_found"
        left = {
            "METRIC#calls": (Decimal(8), 1),
            "HOUR#calls#2024-01-15T10": (Decimal(8), 1),
            now: (Decimal(0), 0),
        }
        assert voided.sums() == left
        assert voided.get("/usage/calls")["usage"] == 8
        voided.assert_audit_finds(f"voided: 2 event(s), usage 6.5, of {total}")

        voided.post(TIMED)
        voided.await_event("timed", status="voided", duplicates=1)
        assert voided.sums() == left

    for item in voided.tables.items(voided.tables.settings.kcl_application):
        key = {"leaseKey": item["leaseKey"]}
        voided.tables.dynamodb.delete_item(TableName=voided.tables.settings.kcl_application, Key=key)
    with pipeline.worker("first") as again:  # from the oldest record on
        voided.post({**KEPT, "event_id": "last", "value": "1"})
        voided.await_event("last", status="counted")
        replays = [line for line in json_lines(again.supervisor.log) if line.get("replay")]
        assert now in {line["message"].rpartition("sk=")[2] for line in replays}
        assert voided.sums() == {
            "METRIC#calls": (Decimal(9), 2),
            "HOUR#calls#2024-01-15T10": (Decimal(9), 2),
            now: (Decimal(0), 0),
        }
        voided.await_event("timed", status="voided", duplicates=1)
        assert voided.void("timed").json()["voided_at"] == first.json()["voided_at"]
        voided.assert_audit_finds(f"voided: 2 event(s), usage 6.5, of {total}", "no difference")
