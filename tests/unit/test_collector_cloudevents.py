"""CloudEvents over HTTP: structured, batched and binary; as usage events, with the source in their identity."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from flask.testing import FlaskClient

from metering.cloudevents import is_binary
from metering.envelopes import decode_record
from metering.events import Event
from metering.memory import MemoryStream
from tests.unit.collector_support import NOW, apps, assert_problem, post, settings_with

ONE = "application/cloudevents+json"
MANY = "application/cloudevents-batch+json"


@pytest.fixture
def stream() -> MemoryStream:
    return MemoryStream()


@pytest.fixture
def client(stream: MemoryStream) -> Iterator[FlaskClient]:
    with apps() as make:
        yield make(stream).test_client()


def cloud_event(**attributes: object) -> dict[str, object]:
    """A valid CloudEvent, with attributes changed; None takes one out."""
    event: dict[str, object] = {
        "specversion": "1.0",
        "id": "req-8f2c",
        "source": "/gateway/eu-1",
        "type": "api_calls",
        "subject": "acme",
        "time": "2024-01-15T10:00:00Z",
        "data": {"value": 10},
        **attributes,
    }
    return {name: value for name, value in event.items() if value is not None}


def held(stream: MemoryStream) -> list[Event]:
    entries = [entry for record in stream.records for entry in decode_record(record.data, arrived_at=NOW).entries]
    assert all(isinstance(entry, Event) for entry in entries)
    return [entry for entry in entries if isinstance(entry, Event)]


def test_an_event_maps_onto_a_usage_event(client: FlaskClient, stream: MemoryStream) -> None:
    response = post(client, json.dumps(cloud_event(data={"value": "1.50"})).encode(), ONE)
    assert (response.status_code, response.json) == (202, {"status": "accepted", "event_id": "req-8f2c"})
    [event] = held(stream)
    assert (event.tenant_id, event.metric, str(event.value)) == ("acme", "api_calls", "1.5")
    assert (event.event_id, event.source) == ("req-8f2c", "/gateway/eu-1")
    assert event.timestamp == "2024-01-15T10:00:00Z"


def test_what_sdks_add_is_let_pass(client: FlaskClient) -> None:
    event = cloud_event(
        datacontenttype="application/json; charset=utf-8",
        dataschema="https://example.com/s",
        traceparent="00-0af7-b9-01",
    )
    assert post(client, json.dumps(event).encode(), ONE).status_code == 202
    assert post(client, json.dumps(cloud_event(datacontenttype="text/json")).encode(), ONE).status_code == 202
    assert post(client, json.dumps(cloud_event(datacontenttype="application/x+json")).encode(), ONE).status_code == 202


def test_without_a_time_the_time_of_receipt_counts(client: FlaskClient, stream: MemoryStream) -> None:
    assert post(client, json.dumps(cloud_event(time=None)).encode(), ONE).status_code == 202
    [event] = held(stream)
    assert (event.timestamp, event.occurred_at) == (None, NOW)


@pytest.mark.parametrize(
    ("attributes", "code", "field"),
    [
        ({"specversion": None}, "missing_field", "specversion"),
        ({"specversion": "0.3"}, "invalid_specversion", "specversion"),
        ({"specversion": 1.0}, "invalid_specversion", "specversion"),
        ({"id": None}, "missing_field", "id"),
        ({"source": None}, "missing_field", "source"),
        ({"type": None}, "missing_field", "type"),
        ({"subject": None}, "missing_field", "subject"),
        ({"data": None}, "missing_field", "data"),
        ({"data": {}}, "missing_field", "data.value"),
        ({"data": 10}, "invalid_data", "data"),
        ({"data": [10]}, "invalid_data", "data"),
        ({"data": {"value": 1, "region": "eu"}}, "unknown_field", "data.region"),
        ({"data_base64": "eyJ2YWx1ZSI6MX0="}, "unknown_field", "data_base64"),
        ({"data": {"value": -1}}, "negative_value", "data.value"),
        ({"data": {"value": True}}, "invalid_value", "data.value"),
        ({"datacontenttype": "application/xml"}, "invalid_data", "datacontenttype"),
        ({"datacontenttype": 5}, "invalid_data", "datacontenttype"),
        ({"subject": "a b"}, "invalid_tenant_id", "subject"),
        ({"type": "a/b"}, "invalid_metric", "type"),
        ({"id": "kinesis:1"}, "invalid_event_id", "id"),
        ({"id": 7}, "invalid_event_id", "id"),
        ({"source": ""}, "invalid_source", "source"),
        ({"source": "x" * 1025}, "invalid_source", "source"),
        ({"time": "yesterday"}, "invalid_timestamp", "time"),
        ({"time": "2024-01-15T12:06:00Z"}, "timestamp_in_future", "time"),
        ({"tiem": "2024-01-15T10:00:00Z"}, "unknown_field", "tiem"),
        ({"tenant_id": "acme"}, "unknown_field", "tenant_id"),
    ],
)
def test_what_breaks_a_rule_is_refused_under_the_name_it_has_in_a_cloud_event(
    client: FlaskClient, stream: MemoryStream, attributes: dict[str, object], code: str, field: str
) -> None:
    event = cloud_event(**attributes)
    assert assert_problem(post(client, json.dumps(event).encode(), ONE), 422, code)["field"] == field
    [result] = post(client, json.dumps([event]).encode(), MANY).get_json(force=True)["results"]
    assert result["code"] == code
    assert stream.records == []


def test_a_batch_answers_for_each(client: FlaskClient, stream: MemoryStream) -> None:
    events = [cloud_event(id="a"), cloud_event(id="b", data={"value": -1}), cloud_event(id="a", source="/other"), 7]
    response = post(client, json.dumps(events).encode(), MANY)
    assert response.status_code == 207
    body: Any = response.json
    assert (body["accepted"], body["rejected"]) == (2, 2)
    assert [result.get("code") for result in body["results"]] == [None, "negative_value", None, "invalid_event"]
    assert [(event.event_id, event.source) for event in held(stream)] == [("a", "/gateway/eu-1"), ("a", "/other")]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [(b"{}", 422, "invalid_event"), (b"[]", 422, "invalid_event"), (b"x", 400, "malformed_json")],
)
def test_what_is_no_batch_is_refused_as_a_whole(client: FlaskClient, body: bytes, status: int, code: str) -> None:
    assert_problem(post(client, body, MANY), status, code)


@pytest.mark.parametrize(("body", "status"), [(b"[]", 422), (b"7", 422), (b"null", 422), (b"", 400), (b"{", 400)])
def test_what_is_no_event_is_refused(client: FlaskClient, body: bytes, status: int) -> None:
    assert_problem(post(client, body, ONE), status, "invalid_event" if status == 422 else "malformed_json")


def binary(**changes: str | None) -> dict[str, str]:
    headers: dict[str, str | None] = {
        "ce-specversion": "1.0",
        "ce-id": "req-8f2c",
        "ce-source": "/gateway/eu-1",
        "Ce-Type": "api_calls",
        "CE-Subject": "acme",
        "ce-time": "2024-01-15T10:00:00Z",
        **{f"ce-{name}": value for name, value in changes.items()},
    }
    return {name: value for name, value in headers.items() if value is not None}


def test_a_header_that_holds_the_prefix_elsewhere_makes_no_cloud_event() -> None:
    assert not is_binary(["HTTP_HOST", "HTTP_X_HTTP_CE_ID", "CONTENT_TYPE"])
    assert is_binary(["HTTP_HOST", "HTTP_CE_ID"])
    assert is_binary(["HTTP_CE_ID"])


def test_binary_mode_takes_attributes_from_headers_and_data_from_the_body(
    client: FlaskClient, stream: MemoryStream
) -> None:
    headers = binary(id='"a%20%C3%A9\\"%22"')
    response = post(client, b'{"value": 10}', "application/json", headers)
    assert (response.status_code, response.json) == (202, {"status": "accepted", "event_id": 'a é""'})
    [event] = held(stream)
    assert (event.tenant_id, event.metric, event.value, event.source) == ("acme", "api_calls", 10, "/gateway/eu-1")


@pytest.mark.parametrize(
    ("headers", "body", "code"),
    [
        (binary(specversion=None), b'{"value": 1}', "missing_field"),
        (binary(id=None), b'{"value": 1}', "missing_field"),
        (binary(id="%FF"), b'{"value": 1}', "invalid_event"),
        (binary(specversion="1.1"), b'{"value": 1}', "invalid_specversion"),
        (binary(tiem="2024-01-15T10:00:00Z"), b'{"value": 1}', "unknown_field"),
        (binary(data="{}"), b'{"value": 1}', "invalid_event"),
        (binary(), b"10", "invalid_data"),
        (binary(), b"null", "missing_field"),
        (binary(), b"[]", "invalid_data"),
        (binary(), b'{"tenant_id": "acme", "metric": "api_calls", "value": 1}', "unknown_field"),
    ],
)
def test_binary_mode_keeps_the_same_rules(client: FlaskClient, headers: dict[str, str], body: bytes, code: str) -> None:
    assert_problem(post(client, body, "application/json", headers), 422, code)


def test_structured_mode_does_not_look_at_headers(client: FlaskClient, stream: MemoryStream) -> None:
    assert post(client, json.dumps(cloud_event()).encode(), ONE, binary(id="other")).status_code == 202
    assert [event.event_id for event in held(stream)] == ["req-8f2c"]


def test_age_is_limited_as_for_other_events(stream: MemoryStream) -> None:
    assert settings_with(EVENT_MAX_AGE_DAYS="1").event_age_days_max == 1
    with apps() as make:
        client = make(stream, EVENT_MAX_AGE_DAYS="1").test_client()
        old = json.dumps(cloud_event(time="2024-01-01T00:00:00Z")).encode()
        assert_problem(post(client, old, ONE), 422, "timestamp_too_old")
