"""Several events in one request: arrays, NDJSON, gzip; each event is told what became of it."""

from __future__ import annotations

import gzip
import io
import json
import tracemalloc
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import EnvironBuilder

from collector import app as collector_app
from collector.bodies import BODY_BYTES_MAX, LINE_BYTES_MAX
from metering.errors import MissingResourceError, StreamUnavailableError
from metering.memory import MemoryStream
from metering.ports import Held, NotHeld, OutgoingRecord
from tests.unit.collector_support import (
    ScriptedSink,
    apps,
    assert_problem,
    encoded,
    event_with,
    post,
    submit,
    until,
    usage,
    values_in,
)

NDJSON = "application/x-ndjson"
THROTTLED = "ProvisionedThroughputExceededException"


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


def batch(*events: dict[str, object]) -> bytes:
    return json.dumps(events).encode()


def lines(*events: dict[str, object]) -> bytes:
    return b"\n".join(encoded(event) for event in events)


def held(stream: MemoryStream) -> list[int]:
    return sorted(value for record in stream.records for value in values_in(record.data))


def results_of(body: str) -> list[dict[str, Any]]:
    results: list[dict[str, Any]] = json.loads(body)["results"]
    assert [result["index"] for result in results] == list(range(len(results)))
    return results


def test_a_batch_is_accepted_with_the_id_or_the_receipt_of_each_event(
    client: FlaskClient, stream: MemoryStream
) -> None:
    events = [usage(value=1, event_id="a-1"), usage(value=2, tenant_id="other"), usage(value=3, event_id='"é\\')]
    response = post(client, batch(*events))
    assert response.status_code == 202
    assert response.content_type == "application/json"
    assert json.loads(response.text) | {"results": None} == {"accepted": 3, "rejected": 0, "results": None}
    places = [
        f"kinesis:{record.shard_id}:{record.sequence_number}:{values_in(record.data).index(2)}"
        for record in stream.records
        if 2 in values_in(record.data)
    ]
    assert [(result["status"], result["event_id"]) for result in results_of(response.text)] == [
        ("accepted", "a-1"),
        ("accepted", places[0]),
        ("accepted", '"é\\'),
    ]
    assert held(stream) == [1, 2, 3]


def test_one_bad_event_costs_no_good_one(client: FlaskClient, stream: MemoryStream) -> None:
    body = batch(usage(value=1), usage(value=-1), usage(value=2), {"tenant_id": "t"}, usage(valeu=3))
    response = post(client, body)
    assert response.status_code == 207
    assert json.loads(response.text)["accepted"] == 2
    assert json.loads(response.text)["rejected"] == 3
    results = results_of(response.text)
    assert [result.get("code") for result in results] == [
        None,
        "negative_value",
        None,
        "missing_field",
        "unknown_field",
    ]
    assert "valeu" in results[4]["detail"]
    assert held(stream) == [1, 2]


def test_a_batch_without_a_good_event_is_422_and_says_why_for_each(client: FlaskClient, stream: MemoryStream) -> None:
    response = post(client, batch(usage(value=-1), usage(metric="a b")))
    body = assert_problem(response, 422, "no_event_accepted")
    assert (body["accepted"], body["rejected"]) == (0, 2)
    assert [result["code"] for result in results_of(response.text)] == ["negative_value", "invalid_metric"]
    assert stream.records == []


def test_elements_that_are_no_objects_are_rejected_one_by_one(client: FlaskClient) -> None:
    response = post(client, b'[%b, 1, null, "x", []]' % encoded(usage()))
    assert response.status_code == 207
    assert [result.get("code") for result in results_of(response.text)] == [None, *["invalid_event"] * 4]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"[]", 422, "invalid_event"),
        (b"[{]", 400, "malformed_json"),
        (b"[" + b",".join([encoded(usage())] * 1001) + b"]", 413, "too_large"),
        (b" \n\t[]", 422, "invalid_event"),
    ],
)
def test_what_is_no_batch_is_refused_as_a_whole(
    client: FlaskClient, stream: MemoryStream, body: bytes, status: int, code: str
) -> None:
    assert_problem(post(client, body), status, code)
    assert stream.records == []


def test_events_of_one_counter_keep_their_order(client: FlaskClient, stream: MemoryStream) -> None:
    post(client, batch(*(usage(value=value) for value in range(1000))))
    assert [value for record in stream.records for value in values_in(record.data)] == list(range(1000))


def test_what_the_stream_does_not_take_is_named_and_the_rest_is_held(app_on: Callable[..., Flask]) -> None:
    sink = ScriptedSink(script=[[None, THROTTLED], *[[THROTTLED]] * 99])
    client = app_on(sink, COLLECTOR_DEADLINE_MS="200").test_client()
    response = post(client, batch(usage(value=1, event_id="a"), usage(value=2, tenant_id="other"), usage(value=-3)))
    body = assert_problem(response, 503, "unavailable")
    assert response.headers["Retry-After"]
    assert (body["accepted"], body["rejected"]) == (1, 1)
    results = results_of(response.text)
    assert {result["status"] for result in results} == {"accepted", "unavailable", "rejected"}
    assert [result["held"] for result in results if result["status"] == "unavailable"] == ["no"]
    accepted = [n for n, result in enumerate(results, 1) if result["status"] == "accepted"]
    assert sink.held_values() == accepted


def test_lost_answers_leave_it_unknown_and_a_missing_stream_is_named(app_on: Callable[..., Flask]) -> None:
    away = app_on(ScriptedSink(script=[StreamUnavailableError("away")] * 99), COLLECTOR_DEADLINE_MS="200")
    response = post(away.test_client(), batch(usage(), usage()))
    assert_problem(response, 503, "unavailable")
    assert [result["held"] for result in results_of(response.text)] == ["unknown", "unknown"]
    missing = app_on(ScriptedSink(script=[MissingResourceError("stream", "usage-events")]))
    response = post(missing.test_client(), batch(usage()))
    assert_problem(response, 503, "stream_missing")
    assert [result["held"] for result in results_of(response.text)] == ["no"]


def test_an_unexpected_error_leaves_it_unknown(app_on: Callable[..., Flask]) -> None:
    response = post(app_on(ScriptedSink(script=[ZeroDivisionError("secret")])).test_client(), batch(usage()))
    assert_problem(response, 503, "unavailable")
    assert "secret" not in response.text
    assert [result["held"] for result in results_of(response.text)] == ["unknown"]


def test_a_call_that_hangs_is_answered_at_the_deadline(
    app_on: Callable[..., Flask], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collector_app, "ANSWER_MARGIN_S", 0.1)
    sink = ScriptedSink()
    sink.gate.clear()
    response = post(app_on(sink, COLLECTOR_DEADLINE_MS="100").test_client(), batch(usage(), usage(value=-1)))
    assert_problem(response, 503, "unavailable")
    assert [result.get("held") for result in results_of(response.text)] == ["unknown", None]
    sink.gate.set()


def test_a_closed_collector_takes_nothing_of_a_batch(app_on: Callable[..., Flask], stream: MemoryStream) -> None:
    app = app_on(stream)
    app.extensions["committer"].close(1.0)
    response = post(app.test_client(), batch(usage()))
    assert_problem(response, 503, "unavailable")
    assert [result["held"] for result in results_of(response.text)] == ["no"]


def test_a_batch_that_would_exceed_what_may_wait_is_429_and_nothing_of_it_is_taken(
    app_on: Callable[..., Flask],
) -> None:
    sink = ScriptedSink()
    sink.gate.clear()
    app = app_on(sink, MAX_PENDING_EVENTS="10")
    waiting = submit(app.extensions["committer"], event_with())
    until(lambda: sink.entered == 1)
    response = post(app.test_client(), batch(*[usage()] * 10))
    assert_problem(response, 429, "too_many_pending")
    assert response.headers["Retry-After"]
    sink.gate.set()
    waiting.result()
    until(lambda: app.extensions["committer"].pending == 0)
    assert post(app.test_client(), batch(*[usage()] * 20)).status_code == 202


# ── NDJSON ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_lines_are_events_and_results_name_their_lines(client: FlaskClient, stream: MemoryStream) -> None:
    body = b"%b\r\n\n  \n%b\nno json\n%b" % tuple(encoded(usage(value=value)) for value in (1, -2, 3))
    response = post(client, body, NDJSON)
    assert response.status_code == 207
    results = results_of(response.text)
    assert [(result["line"], result.get("code")) for result in results] == [
        (1, None), (4, "negative_value"), (5, "malformed_json"), (6, None),
    ]  # fmt: skip
    assert held(stream) == [1, 3]


@pytest.mark.parametrize("body", [b"", b"\n", b" \n\r\n"])
def test_a_body_without_a_line_is_no_batch(client: FlaskClient, body: bytes) -> None:
    assert_problem(post(client, body, NDJSON), 422, "invalid_event")


def test_lines_without_a_good_event_are_422(client: FlaskClient) -> None:
    assert_problem(post(client, lines(usage(value=-1)), NDJSON), 422, "no_event_accepted")


@pytest.mark.parametrize("size", [1, 7, 65_536])
def test_lines_are_the_same_wherever_the_body_is_cut(client: FlaskClient, stream: MemoryStream, size: int) -> None:
    class Dribble(io.BytesIO):
        def read(self, count: int | None = -1) -> bytes:
            return super().read(min(size, count) if count and count > 0 else size)

    body = lines(*(usage(value=value, event_id="é" * value) for value in range(1, 9)))
    response = client.post(
        "/v1/usage",
        content_type=NDJSON,
        input_stream=Dribble(body),
        environ_base={"wsgi.input_terminated": True},
    )
    assert response.status_code == 202
    assert held(stream) == list(range(1, 9))


def test_a_line_that_is_too_long_costs_no_other(client: FlaskClient, stream: MemoryStream) -> None:
    good = encoded(usage(value=1))
    fits = good + b" " * 10 + encoded(usage(value=2)).rjust(LINE_BYTES_MAX)
    response = post(client, b"\n".join([good, b"x" * 3 * LINE_BYTES_MAX, fits, good]), NDJSON)
    assert response.status_code == 207
    codes = [result.get("code") for result in results_of(response.text)]
    assert codes == [None, "too_large", "too_large", None]
    assert held(stream) == [1, 1]


def test_lines_before_the_body_breaks_off_or_is_too_long_are_named_as_accepted(
    client: FlaskClient, stream: MemoryStream
) -> None:
    events = [usage(value=value, event_id=f"id-{value}") for value in range(3000)]
    cut = gzip.compress(lines(*events))[:-20]
    response = post(client, cut, NDJSON, {"Content-Encoding": "gzip"})
    body = assert_problem(response, 400, "bad_request")
    results = results_of(response.text)
    assert body["accepted"] == len(results) == body["lines_read"] >= 1000
    assert [result["event_id"] for result in results] == [f"id-{n}" for n in range(len(results))]
    assert held(stream) == list(range(len(results)))


def test_no_more_lines_are_read_once_the_stream_does_not_take_them(app_on: Callable[..., Flask]) -> None:
    sink = ScriptedSink(script=[[None], *[[THROTTLED]] * 99])
    client = app_on(sink, COLLECTOR_DEADLINE_MS="200").test_client()
    response = post(client, lines(*(usage(value=value) for value in range(3000))), NDJSON)
    body = assert_problem(response, 503, "unavailable")
    assert body["accepted"] == 1000
    assert body["lines_read"] == len(results_of(response.text)) == 2000
    assert sorted(sink.held_values()) == list(range(1000))


def test_memory_does_not_grow_with_the_number_of_lines(app_on: Callable[..., Flask]) -> None:
    class Forgetful(MemoryStream):
        def put(self, records: Sequence[OutgoingRecord]) -> list[Held | NotHeld]:
            answers = super().put(records)
            self.records.clear()
            return answers

    app = app_on(Forgetful())
    line = encoded(usage(event_id="x" * 20)) + b"\n"

    def peak(count: int) -> int:
        """Of a request whose body is made as it is read, and whose answer is dropped as it comes."""
        environ = EnvironBuilder(method="POST", path="/v1/usage", content_type=NDJSON).get_environ()
        environ |= {"wsgi.input": Repeated(line, count), "wsgi.input_terminated": True}
        statuses: list[str] = []
        tracemalloc.start()
        try:
            answer = app.wsgi_app(environ, lambda status, *_: statuses.append(status))
            size = sum(len(piece) for piece in answer)
            answer.close()
            memory = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert statuses == ["202 ACCEPTED"]
        assert size > count * 40
        return memory

    peak(100)
    few = peak(8_000)
    assert peak(40_000) < few + 500_000


class Repeated:
    """A body of one line, again and again, that nobody holds."""

    def __init__(self, line: bytes, count: int) -> None:
        self._line = line
        self._left = count

    def read(self, size: int = -1) -> bytes:
        lines = min(self._left, size // len(self._line))
        self._left -= lines
        return self._line * lines


# ── gzip ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("coding", ["gzip", "GZIP", "x-gzip"])
def test_bodies_may_be_gzip(client: FlaskClient, stream: MemoryStream, coding: str) -> None:
    event = encoded(usage(value=7))
    assert post(client, gzip.compress(event), headers={"Content-Encoding": coding}).status_code == 202
    two = gzip.compress(event + b"\n") + gzip.compress(event)
    assert post(client, two, NDJSON, {"Content-Encoding": coding}).status_code == 202
    assert held(stream) == [7, 7, 7]


@pytest.mark.parametrize("coding", ["deflate", "br", "gzip, gzip", "zstd"])
def test_other_codings_are_not_supported(client: FlaskClient, coding: str) -> None:
    assert_problem(post(client, b"", headers={"Content-Encoding": coding}), 415, "unsupported_media_type")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        encoded(usage()),
        gzip.compress(encoded(usage()))[:-1],
        gzip.compress(encoded(usage())) + b"rubbish",
        zlib.compress(encoded(usage())),
    ],
)
def test_what_is_not_whole_gzip_is_a_bad_request(client: FlaskClient, stream: MemoryStream, body: bytes) -> None:
    assert_problem(post(client, body, headers={"Content-Encoding": "gzip"}), 400, "bad_request")
    assert stream.records == []


@pytest.mark.parametrize("size", [BODY_BYTES_MAX, BODY_BYTES_MAX + 1])
def test_a_gzip_body_may_inflate_to_five_mib_and_no_byte_more(client: FlaskClient, size: int) -> None:
    response = post(client, gzip.compress(encoded(usage()).ljust(size)), headers={"Content-Encoding": "gzip"})
    assert response.status_code == (202 if size == BODY_BYTES_MAX else 413)


def test_a_bomb_costs_no_more_memory_than_the_limit(client: FlaskClient) -> None:
    bomb = zlib.compressobj(wbits=31)
    body = b"".join([*(bomb.compress(b" " * 1_000_000) for _ in range(1000)), bomb.flush()])
    assert len(body) < 2_000_000
    tracemalloc.start()
    try:
        assert_problem(post(client, body, headers={"Content-Encoding": "gzip"}), 413, "too_large")
        assert tracemalloc.get_traced_memory()[1] < 3 * BODY_BYTES_MAX
    finally:
        tracemalloc.stop()
