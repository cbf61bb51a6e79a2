"""METERS_STRICT: what has no meter is refused, event by event, in every form that the collector takes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from collector.openapi import CLOUD_EVENT
from metering.envelopes import decode_record
from metering.memory import MemoryStream
from tests.unit.collector_support import NOW, apps, assert_problem, post

if TYPE_CHECKING:
    from pathlib import Path

    from flask import Flask
    from flask.testing import FlaskClient

EVENT = {"tenant_id": "acme", "metric": "seats", "value": 10}
UNKNOWN = {**EVENT, "metric": "chairs"}
CLOUD = "application/cloudevents+json"


@pytest.fixture
def app_on(tmp_path: Path) -> Iterator[Callable[..., Flask]]:
    path = tmp_path / "meters.yaml"
    path.write_text("meters: {seats: {aggregation: max}, テナント: {}}")
    with apps() as make:
        yield lambda sink, strict="on": make(sink, METERS_FILE=str(path), METERS_STRICT=strict)


@pytest.fixture
def stream() -> MemoryStream:
    return MemoryStream()


@pytest.fixture
def client(app_on: Callable[..., Flask], stream: MemoryStream) -> FlaskClient:
    return app_on(stream).test_client()


def body(content: object) -> bytes:
    return json.dumps(content, ensure_ascii=False).encode()


def test_a_metric_with_a_meter_is_taken(client: FlaskClient) -> None:
    assert post(client, body(EVENT)).status_code == 202
    assert post(client, body({**EVENT, "metric": "テナント"})).status_code == 202


@pytest.mark.parametrize("extra", [{}, {"event_id": "a-1"}, {"value": "1e1"}])  # the last one takes the slow way
def test_a_metric_without_one_is_refused_and_nothing_is_put(
    client: FlaskClient, stream: MemoryStream, extra: dict[str, Any]
) -> None:
    answer = post(client, body({**UNKNOWN, **extra}))
    assert_problem(answer, 422, "unknown_metric")
    assert answer.json is not None
    assert answer.json["field"] == "metric"
    assert "'chairs'" in answer.json["detail"]
    assert stream.records == []


def test_a_cloud_event_is_refused_by_its_own_names(client: FlaskClient) -> None:
    answer = post(client, body({**CLOUD_EVENT, "type": "chairs", "time": "2024-01-01T00:00:00Z"}), CLOUD)
    assert_problem(answer, 422, "unknown_metric")
    assert answer.json is not None
    assert answer.json["field"] == "type"


@pytest.mark.parametrize(
    ("content", "media_type"),
    [
        (body([EVENT, UNKNOWN, EVENT]), "application/json"),
        (b"\n".join(map(body, [EVENT, UNKNOWN, EVENT])), "application/x-ndjson"),
    ],
)
def test_of_several_it_alone_is_refused(
    client: FlaskClient, stream: MemoryStream, content: bytes, media_type: str
) -> None:
    answer = post(client, content, media_type)
    assert answer.status_code == 207
    assert answer.json is not None
    assert [result["status"] for result in answer.json["results"]] == ["accepted", "rejected", "accepted"]
    assert answer.json["results"][1]["code"] == "unknown_metric"
    held = [entry for record in stream.records for entry in decode_record(record.data, arrived_at=NOW).entries]
    assert len(held) == 2


def test_another_rule_that_it_breaks_comes_first(client: FlaskClient) -> None:
    assert_problem(post(client, body({**UNKNOWN, "value": -1})), 422, "negative_value")


def test_without_strict_every_metric_is_taken(app_on: Callable[..., Flask]) -> None:
    assert post(app_on(MemoryStream(), "off").test_client(), body(UNKNOWN)).status_code == 202
