from __future__ import annotations

import io
import json
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from flask import Flask
from flask.testing import FlaskClient

from collector import app as collector_app
from collector.bodies import BODY_BYTES_MAX
from metering.errors import AccessRefusedError, MissingResourceError, StreamUnavailableError
from metering.events import decode_json
from metering.memory import MemoryStream
from tests.unit.collector_support import NOW, WAIT_S, ScriptedSink, apps, assert_problem, encoded, post, until, usage


@pytest.fixture
def app_on() -> Iterator[Callable[..., Flask]]:
    with apps() as make:
        yield make


@pytest.fixture
def stream() -> MemoryStream:
    return MemoryStream()


@pytest.fixture
def client(app_on: Callable[..., Flask], stream: MemoryStream) -> FlaskClient:
    return app_on(stream).test_client()


def test_event_is_accepted_and_stands_on_the_stream_as_it_was_sent(client: FlaskClient, stream: MemoryStream) -> None:
    response = post(client, encoded(usage(event_id="req-8f2c")))
    assert response.status_code == 202
    assert response.content_type == "application/json"
    assert json.loads(response.text) == {"status": "accepted", "event_id": "req-8f2c"}
    (record,) = stream.records
    envelope = json.loads(record.data)
    assert envelope["events"] == [
        {
            "tenant_id": "tenant-123",
            "metric": "api_calls",
            "value": "10",
            "timestamp": "2024-01-15T10:00:00Z",
            "event_id": "req-8f2c",
            "received_at": "2024-01-15T12:00:00.000Z",
        }
    ]
    assert len(envelope["batch_id"]) == 32


def test_event_without_an_id_gets_a_receipt(client: FlaskClient, stream: MemoryStream) -> None:
    response = post(client, encoded(usage(timestamp=None)))
    (record,) = stream.records
    receipt = f"kinesis:{record.shard_id}:{record.sequence_number}:0"
    assert json.loads(response.text) == {"status": "accepted", "event_id": receipt}
    assert "timestamp" not in json.loads(record.data)["events"][0]


@pytest.mark.parametrize(
    ("sent", "held"),
    [
        ("10", "10"),
        ("0", "0"),
        ("-0.0", "0"),
        ("0.1", "0.1"),
        ('"0.1"', "0.1"),
        ("1e2", "100"),
        ("1E-9", "0.000000001"),
        ("999999999999999.999999999", "999999999999999.999999999"),
        ("0.30000000000000000", "0.3"),
    ],
)
def test_value_is_exact(client: FlaskClient, stream: MemoryStream, sent: str, held: str) -> None:
    body = b'{"tenant_id": "t", "metric": "m", "value": %b}' % sent.encode()
    assert post(client, body).status_code == 202
    assert json.loads(stream.records[0].data)["events"][0]["value"] == held


@pytest.mark.parametrize(
    "fields",
    [
        {"tenant_id": "a"},
        {"tenant_id": "x" * 128, "metric": "y" * 128, "event_id": "z" * 128},
        {"tenant_id": "Zürich_7", "metric": "日本.語-:@"},
        {"timestamp": "2024-01-15T12:05:00Z"},
        {"timestamp": "2024-01-15t10:00:00.123456789+02:00"},
        {"timestamp": "1970-01-01T00:00:00Z"},
        {"timestamp": None},
        {"event_id": "an id with spaces, Ümläute and 日本"},
        {"event_id": "KINESIS:no receipt"},
    ],
    ids=repr,
)
def test_what_keeps_the_rules_is_accepted(client: FlaskClient, fields: dict[str, object]) -> None:
    assert post(client, encoded(usage(**fields))).status_code == 202


@pytest.mark.parametrize(
    ("fields", "code", "field"),
    [
        ({"tenant_id": None}, "missing_field", "tenant_id"),
        ({"tenant_id": ""}, "invalid_tenant_id", "tenant_id"),
        ({"tenant_id": "x" * 129}, "invalid_tenant_id", "tenant_id"),
        ({"tenant_id": "a b"}, "invalid_tenant_id", "tenant_id"),
        ({"tenant_id": "a#b"}, "invalid_tenant_id", "tenant_id"),
        ({"tenant_id": "a\n"}, "invalid_tenant_id", "tenant_id"),
        ({"tenant_id": 7}, "invalid_tenant_id", "tenant_id"),
        ({"tenant_id": ["a"]}, "invalid_tenant_id", "tenant_id"),
        ({"tenant_id": "\ud800"}, "invalid_tenant_id", "tenant_id"),
        ({"metric": None}, "missing_field", "metric"),
        ({"metric": "a/b"}, "invalid_metric", "metric"),
        ({"metric": True}, "invalid_metric", "metric"),
        ({"value": None}, "missing_field", "value"),
        ({"value": True}, "invalid_value", "value"),
        ({"value": "ten"}, "invalid_value", "value"),
        ({"value": ""}, "invalid_value", "value"),
        ({"value": " 1"}, "invalid_value", "value"),
        ({"value": "NaN"}, "invalid_value", "value"),
        ({"value": "Infinity"}, "invalid_value", "value"),
        ({"value": "1_000"}, "invalid_value", "value"),
        ({"value": "١٢"}, "invalid_value", "value"),
        ({"value": [1]}, "invalid_value", "value"),
        ({"value": 10**15}, "invalid_value", "value"),
        ({"value": "0.0000000001"}, "invalid_value", "value"),
        ({"value": "1e999999999"}, "invalid_value", "value"),
        ({"value": -1}, "negative_value", "value"),
        ({"value": "-0.000000001"}, "negative_value", "value"),
        ({"timestamp": "2024-01-15"}, "invalid_timestamp", "timestamp"),
        ({"timestamp": "2024-01-15T10:00:00"}, "invalid_timestamp", "timestamp"),
        ({"timestamp": "2024-02-30T10:00:00Z"}, "invalid_timestamp", "timestamp"),
        ({"timestamp": "2024-01-15T24:00:00Z"}, "invalid_timestamp", "timestamp"),
        ({"timestamp": "2024-01-15T10:00:00+25:00"}, "invalid_timestamp", "timestamp"),
        ({"timestamp": "2024-01-15T10:00:00.%sZ" % ("0" * 2000)}, "invalid_timestamp", "timestamp"),
        ({"timestamp": 1705312800}, "invalid_timestamp", "timestamp"),
        ({"timestamp": "2024-01-15T12:05:01Z"}, "timestamp_in_future", "timestamp"),
        ({"event_id": ""}, "invalid_event_id", "event_id"),
        ({"event_id": "x" * 129}, "invalid_event_id", "event_id"),
        ({"event_id": "a\tb"}, "invalid_event_id", "event_id"),
        ({"event_id": "kinesis:shardId-000000000000:1:0"}, "invalid_event_id", "event_id"),
        ({"event_id": 7}, "invalid_event_id", "event_id"),
        ({"event_id": "\udfff"}, "invalid_event_id", "event_id"),
        ({"timestmap": "2024-01-15T10:00:00Z"}, "unknown_field", "timestmap"),
        ({"received_at": "2024-01-15T10:00:00Z"}, "unknown_field", "received_at"),
    ],
    ids=lambda value: repr(value)[:60],
)
def test_what_breaks_a_rule_is_refused_by_its_code(
    client: FlaskClient, stream: MemoryStream, fields: dict[str, object], code: str, field: str
) -> None:
    assert assert_problem(post(client, encoded(usage(**fields))), 422, code)["field"] == field
    assert stream.records == []


def test_null_event_id_is_refused(client: FlaskClient) -> None:
    assert_problem(post(client, b'{"tenant_id":"t","metric":"m","value":1,"event_id":null}'), 422, "invalid_event_id")


def test_old_timestamp_is_refused_only_when_a_limit_is_set(app_on: Callable[..., Flask], stream: MemoryStream) -> None:
    body = encoded(usage(timestamp=(NOW - timedelta(days=30, seconds=1)).isoformat()))
    assert_problem(post(app_on(stream, EVENT_MAX_AGE_DAYS="30").test_client(), body), 422, "timestamp_too_old")
    assert post(app_on(stream, EVENT_MAX_AGE_DAYS="31").test_client(), body).status_code == 202


@pytest.mark.parametrize("body", [b"[]", b'"text"', b"1", b"null", b"true"])
def test_json_that_is_no_object_is_no_event(client: FlaskClient, body: bytes) -> None:
    assert_problem(post(client, body), 422, "invalid_event")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"not json",
        b'{"tenant_id": "t",}',
        b"{'tenant_id': 't'}",
        b'{"value": NaN}',
        b'{"value": -Infinity}',
        b'{"value": 01}',
        b'{"value": 1, "value": 1}',
        b'{"tenant_id": "\xff"}',
        b"\xef\xbb\xbf{}",
        encoded(usage()).decode().encode("utf-16"),
        b"{} {}",
        b"[" * 100_000,
        b'{"a":' * 100_000,
    ],
    ids=lambda body: repr(body[:24]),
)
def test_what_is_not_json_is_malformed(client: FlaskClient, body: bytes) -> None:
    assert_problem(post(client, body), 400, "malformed_json")


def test_long_string_behind_many_brackets_costs_no_memory_beyond_its_own() -> None:
    body = b'[%b"%b"]' % (b"[]," * 40, b"a" * 1_000_000)
    tracemalloc.start()
    try:
        decode_json(body)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "content_type",
    ["application/json", "application/json; charset=utf-8", "Application/JSON;Charset=UTF-8", "application/json ; x=y"],
)
def test_json_is_taken_with_any_parameters_and_case(client: FlaskClient, content_type: str) -> None:
    assert post(client, encoded(usage()), content_type).status_code == 202


@pytest.mark.parametrize(
    "content_type",
    [
        None,
        "",
        "text/plain",
        "text/json",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/jsonp",
        "application/cloudevents+xml",
        "application/json-seq",
        "application/jsonl",
    ],
)
def test_other_content_types_are_not_supported(client: FlaskClient, content_type: str | None) -> None:
    assert_problem(post(client, encoded(usage()), content_type), 415, "unsupported_media_type")


def test_a_body_that_ends_before_its_length_is_not_taken_as_whole(client: FlaskClient) -> None:
    body = encoded(usage())
    environ = {"wsgi.input": io.BytesIO(body), "CONTENT_LENGTH": str(len(body) + 1)}
    response = client.post("/v1/usage", content_type="application/json", environ_overrides=environ)
    assert_problem(response, 400, "bad_request")


@pytest.mark.parametrize("chunked", [False, True])
def test_body_may_have_five_mib_and_no_byte_more(client: FlaskClient, *, chunked: bool) -> None:
    event = encoded(usage())
    for size, status in ((BODY_BYTES_MAX, 202), (BODY_BYTES_MAX + 1, 413)):
        body = event + b" " * (size - len(event))
        options = {"input_stream": io.BytesIO(body), "environ_base": {"wsgi.input_terminated": True}}
        response = client.post("/v1/usage", content_type="application/json", **(options if chunked else {"data": body}))
        if status == 413:
            assert_problem(response, 413, "too_large")
        else:
            assert response.status_code == status


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/", 404, "not_found"),
        ("POST", "/v1/usage/", 404, "not_found"),
        ("POST", "//v1/usage", 404, "not_found"),
        ("POST", "/v1/events", 404, "not_found"),
        ("GET", "/static/x", 404, "not_found"),
        ("GET", "/v1/usage", 405, "method_not_allowed"),
        ("PUT", "/v1/usage", 405, "method_not_allowed"),
        ("DELETE", "/v1/usage", 405, "method_not_allowed"),
        ("POST", "/healthz", 405, "method_not_allowed"),
    ],
)
def test_unknown_paths_and_methods_are_problems_too(
    client: FlaskClient, method: str, path: str, status: int, code: str
) -> None:
    response = client.open(path, method=method)
    assert_problem(response, status, code)
    assert ("Allow" in response.headers) == (status == 405)


def test_health_and_readiness(app_on: Callable[..., Flask]) -> None:
    class AwaySink(ScriptedSink):
        def check(self) -> None:
            raise StreamUnavailableError("away")

    assert app_on(ScriptedSink()).test_client().get("/readyz").status_code == 200
    client = app_on(AwaySink()).test_client()
    assert client.get("/healthz").status_code == 200
    assert_problem(client.get("/readyz"), 503, "unavailable")


def test_closed_collector_is_not_ready_and_takes_nothing(app_on: Callable[..., Flask], stream: MemoryStream) -> None:
    app = app_on(stream)
    app.extensions["committer"].close(WAIT_S)
    client = app.test_client()
    assert_problem(client.get("/readyz"), 503, "unavailable")
    assert assert_problem(post(client, encoded(usage())), 503, "unavailable")["held"] == "no"
    assert client.get("/healthz").status_code == 200


def test_answer_comes_only_when_the_stream_holds_the_event(app_on: Callable[..., Flask]) -> None:
    sink = ScriptedSink()
    sink.gate.clear()
    client = app_on(sink).test_client()
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(post, client, encoded(usage()))
        until(lambda: sink.entered == 1)
        assert not answer.done()
        sink.gate.set()
        assert answer.result(WAIT_S).status_code == 202


def test_stream_that_stays_away_is_answered_503_at_the_deadline(app_on: Callable[..., Flask]) -> None:
    client = app_on(
        ScriptedSink(script=[StreamUnavailableError("away")] * 99), COLLECTOR_DEADLINE_MS="200"
    ).test_client()
    assert assert_problem(post(client, encoded(usage())), 503, "unavailable")["held"] == "unknown"


def test_stream_that_throttles_on_is_answered_503_and_the_event_is_not_held(app_on: Callable[..., Flask]) -> None:
    sink = ScriptedSink(script=[["ProvisionedThroughputExceededException"]] * 99)
    client = app_on(sink, COLLECTOR_DEADLINE_MS="200").test_client()
    assert assert_problem(post(client, encoded(usage())), 503, "unavailable")["held"] == "no"
    assert sink.stream.records == []


def test_request_does_not_wait_longer_than_the_deadline_for_a_call_that_hangs(
    app_on: Callable[..., Flask], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collector_app, "ANSWER_MARGIN_S", 0.1)
    sink = ScriptedSink()
    sink.gate.clear()
    client = app_on(sink, COLLECTOR_DEADLINE_MS="100").test_client()
    began = time.monotonic()
    assert assert_problem(post(client, encoded(usage())), 503, "unavailable")["held"] == "unknown"
    assert time.monotonic() - began < 2
    sink.gate.set()


def test_missing_stream_and_refused_access_are_named(app_on: Callable[..., Flask]) -> None:
    sink = ScriptedSink(script=[MissingResourceError("stream", "usage-events"), AccessRefusedError("account 1234")])
    client = app_on(sink).test_client()
    missing = assert_problem(post(client, encoded(usage())), 503, "stream_missing")
    assert "metering setup" in str(missing["detail"])
    refused = assert_problem(post(client, encoded(usage())), 503, "access_refused")
    assert "1234" not in str(refused["detail"])


def test_unexpected_error_is_500_and_the_next_event_is_taken(app_on: Callable[..., Flask]) -> None:
    client = app_on(ScriptedSink(script=[ZeroDivisionError("secret")])).test_client()
    assert "secret" not in str(assert_problem(post(client, encoded(usage())), 500, "internal_error"))
    assert post(client, encoded(usage())).status_code == 202


def test_timeout_of_the_sink_itself_is_not_taken_for_ours(app_on: Callable[..., Flask]) -> None:
    client = app_on(ScriptedSink(script=[TimeoutError("a bug")])).test_client()
    assert_problem(post(client, encoded(usage())), 500, "internal_error")


def test_more_pending_events_than_allowed_are_429_at_once(app_on: Callable[..., Flask]) -> None:
    sink = ScriptedSink()
    sink.gate.clear()
    app = app_on(sink, MAX_PENDING_EVENTS="2")
    answers: list[int] = []

    def send() -> None:
        answers.append(post(app.test_client(), encoded(usage())).status_code)

    threads = [threading.Thread(target=send) for _ in range(2)]
    for thread in threads:
        thread.start()
    until(lambda: app.extensions["committer"].pending == 2)
    assert_problem(post(app.test_client(), encoded(usage())), 429, "too_many_pending")
    sink.gate.set()
    for thread in threads:
        thread.join(WAIT_S)
    assert answers == [202, 202]
    assert post(app.test_client(), encoded(usage())).status_code == 202
