"""What the services answer is in their OpenAPI documents, to the last member: what goes well and what goes wrong."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from werkzeug.test import TestResponse

from billing.app import create_app as billing_app
from collector.openapi import CLOUD_EVENT, EVENT
from metering.errors import AccessRefusedError, MissingResourceError, SetupError, StreamUnavailableError
from metering.memory import MemoryStream, MemoryTables
from metering.openapi import unavailable_codes
from metering.settings import Settings
from tests.live.billing_live_app import world
from tests.unit.collector_support import ScriptedSink, apps, encoded, event_with, settings_with, submit, until
from tests.unit.openapi_support import KEY, USAGE, Document, bearer, key_file

READER, STRANGER = "b" * 43, "c" * 43
TOTAL = "/v1/tenants/{tenant_id}/usage/{metric}"
API_CALLS = "/v1/tenants/tenant-123/usage/api_calls"


@pytest.fixture
def make() -> Iterator[Callable[..., Flask]]:
    with apps() as make:
        yield make


@pytest.fixture
def collector(make: Callable[..., Flask]) -> Flask:
    return make(MemoryStream())


@pytest.fixture
def billing() -> Flask:
    return billing_app(world().tables, settings_with(MIN_AS_OF_WAIT_MS="0"))


ONE = encoded(EVENT)
BAD = encoded(EVENT | {"value": -1})
NDJSON = "application/x-ndjson"


@pytest.mark.parametrize(
    ("body", "media_type", "status"),
    [
        (BAD, "application/json", 422),
        (b"[]", "application/json", 422),
        (b"[%b,%b]" % (ONE, BAD), "application/json", 207),
        (b"[%b]" % BAD, "application/json", 422),
        (b"{", "application/json", 400),
        (b"[%b]" % b",".join([ONE] * 1001), "application/json", 413),
        (b" " * 6_000_000, "application/json", 413),
        (ONE, "text/plain", 415),
        (b"%b\n%b\nno json" % (ONE, BAD), NDJSON, 207),
        (b"%b\n%b" % (ONE, b" " * 6_000_000), NDJSON, 413),
        (b"", NDJSON, 422),
        (json.dumps(CLOUD_EVENT | {"time": "now"}).encode(), "application/cloudevents+json", 422),
        (json.dumps([CLOUD_EVENT, 1]).encode(), "application/cloudevents-batch+json", 207),
    ],
)
def test_what_is_wrong_is_answered_as_documented(collector: Flask, body: bytes, media_type: str, status: int) -> None:
    answer = collector.test_client().post(USAGE, data=body, content_type=media_type)
    assert answer.status_code == status
    Document.of(collector).assert_documented(answer, USAGE)


@pytest.mark.parametrize("media_type", ["application/json", NDJSON])
def test_bodies_that_break_off_or_are_coded_otherwise_are_answered_as_documented(
    collector: Flask, media_type: str
) -> None:
    cut = gzip.compress(b"\n".join([ONE] * 2000))[:-20]
    for body, coding, status in ((cut, "gzip", 400), (ONE, "br", 415)):
        answer = collector.test_client().post(
            USAGE, data=body, content_type=media_type, headers={"Content-Encoding": coding}
        )
        assert answer.status_code == status
        Document.of(collector).assert_documented(answer, USAGE)


@pytest.mark.parametrize(
    "failure",
    [
        StreamUnavailableError("away"),
        MissingResourceError("stream", "usage-events"),
        AccessRefusedError("no"),
        SetupError("no"),
    ],
)
@pytest.mark.parametrize(
    ("body", "media_type"),
    [(ONE, "application/json"), (b"[%b,%b]" % (ONE, BAD), "application/json"), (b"%b\n%b" % (ONE, BAD), NDJSON)],
)
def test_a_stream_that_takes_nothing_is_answered_as_documented(
    make: Callable[..., Flask], failure: Exception, body: bytes, media_type: str
) -> None:
    app = make(ScriptedSink(script=[failure] * 99), COLLECTOR_DEADLINE_MS="100")
    answer = app.test_client().post(USAGE, data=body, content_type=media_type)
    assert answer.status_code == 503
    Document.of(app).assert_documented(answer, USAGE)


def test_too_many_waiting_events_are_answered_as_documented(make: Callable[..., Flask]) -> None:
    sink = ScriptedSink()
    sink.gate.clear()
    app = make(sink, MAX_PENDING_EVENTS="1")
    waiting = submit(app.extensions["committer"], event_with())
    until(lambda: sink.entered == 1)
    answers = [app.test_client().post(USAGE, data=b"[%b]" % ONE, content_type="application/json") for _ in range(2)]
    sink.gate.set()
    waiting.result()
    assert [answer.status_code for answer in answers] == [429, 429]
    Document.of(app).assert_documented(answers[0], USAGE)


def test_keys_are_answered_as_documented(make: Callable[..., Flask], tmp_path: Path) -> None:
    keys = key_file(tmp_path, (KEY, "tenant-123", "read,write"), (READER, "*", "void"))
    environment = {"API_KEYS_FILE": keys, "API_KEY_RATE_LIMIT": "3/hour"}
    collector = make(MemoryStream(), **environment)
    billing = billing_app(world().tables, settings_with(**environment))
    other = encoded(EVENT | {"tenant_id": "other"})

    def sent(key: str, body: bytes = ONE) -> TestResponse:
        return collector.test_client().post(USAGE, data=body, headers=bearer(key), content_type="application/json")

    answers = [
        sent(STRANGER),
        sent(READER),
        sent(KEY, other),
        sent(KEY, b"[%b,%b]" % (ONE, other)),
        sent(KEY),
        sent(KEY),
    ]
    assert [answer.status_code for answer in answers] == [401, 403, 403, 207, 202, 429]
    for answer in answers:
        Document.of(collector).assert_documented(answer, USAGE)
    for key, tenant_id, status in ((STRANGER, "x", 401), (READER, "x", 403), (KEY, "x", 403), (KEY, "tenant-123", 200)):
        answer = billing.test_client().get(f"/v1/tenants/{tenant_id}/usage/api_calls", headers=bearer(key))
        assert answer.status_code == status
        Document.of(billing).assert_documented(answer, TOTAL, "get")


@pytest.mark.parametrize(
    ("path", "sent", "status"),
    [
        ("/v1/tenants", "/v1/tenants?limit=0", 400),
        ("/v1/tenants", "/v1/tenants?limit=&cursor=", 200),
        ("/v1/tenants", "/v1/tenants?cursor=x", 400),
        ("/v1/tenants", "/v1/tenants?limit=1&limit=2", 400),
        ("/v1/tenants/{tenant_id}/usage", "/v1/tenants/x/usage", 404),
        ("/v1/tenants/{tenant_id}/usage", "/v1/tenants/a b/usage", 422),
        ("/v1/tenants/{tenant_id}/usage", "/v1/tenants/x/usage?form=csv", 400),
        ("/v1/tenants/{tenant_id}/usage", "/v1/tenants/tenant-123/usage?format=csv", 200),
        ("/v1/tenants/{tenant_id}/usage", "/v1/tenants/tenant-123/usage?format=xml", 400),
        (TOTAL, "/v1/tenants/tenant-123/usage/sms", 404),
        (TOTAL, f"{API_CALLS}?from=2024-01-15", 200),
        (TOTAL, f"{API_CALLS}?from=2024-01&window=day&timezone=Europe/Berlin&limit=3", 200),
        (TOTAL, f"{API_CALLS}?from=2024-01&window=day&format=csv&limit=3", 200),
        (TOTAL, f"{API_CALLS}?from=2024-01-15&timezone=Asia/Kolkata", 400),
        (TOTAL, f"{API_CALLS}?from=2024-01-15T10:20:00Z", 400),
        (TOTAL, f"{API_CALLS}?from=x", 400),
        (TOTAL, f"{API_CALLS}?window=day&cursor=x", 400),
        (TOTAL, f"{API_CALLS}?min_as_of=2024-01-15T10:00:00Z", 200),
        (TOTAL, f"{API_CALLS}?min_as_of=2024-01-15T10:40:00Z", 503),
        (TOTAL, f"{API_CALLS}?min_as_of=9999-01-15T10:40:00Z", 400),
        (TOTAL, "/v1/tenants/tenant-123/usage/a b", 422),
        ("/v1/tenants/{tenant_id}/events/{event_id}", "/v1/tenants/tenant-123/events/refused", 200),
        ("/v1/tenants/{tenant_id}/events/{event_id}", "/v1/tenants/tenant-123/events/nobody?source=/a", 200),
        ("/v1/tenants/{tenant_id}/events/{event_id}", "/v1/tenants/tenant-123/events/kinesis:x:1:0", 200),
        ("/v1/tenants/{tenant_id}/events/{event_id}", "/v1/tenants/tenant-123/events/kinesis:x:1:0?source=/a", 400),
        ("/v1/tenants/{tenant_id}/events/{event_id}", "/v1/tenants/tenant-123/events/kinesis:x", 422),
    ],
)
def test_billing_answers_as_documented(billing: Flask, path: str, sent: str, status: int) -> None:
    answer = billing.test_client().get(sent)
    assert answer.status_code == status, answer.text
    Document.of(billing).assert_documented(answer, path, "get")


def test_what_is_neither_json_nor_csv_is_answered_as_documented(billing: Flask) -> None:
    for path, sent in (("/v1/tenants/{tenant_id}/usage", API_CALLS.rpartition("/")[0]), (TOTAL, API_CALLS)):
        answer = billing.test_client().get(sent, headers={"Accept": "text/html"})
        assert answer.status_code == 406
        Document.of(billing).assert_documented(answer, path, "get")


@pytest.mark.parametrize(
    ("event", "body", "media_type", "status"),
    [
        ("req-8f2c", b'{"by": "ana", "reason": "test"}', "application/json", 200),
        ("nobody", b'{"by": "ana", "reason": "test"}', "application/json", 404),
        ("refused", b'{"by": "ana", "reason": "test"}', "application/json", 409),
        ("kinesis:x:1:0", b'{"by": "ana", "reason": "test"}', "application/json", 409),
        ("req-8f2c?sauce=x", b'{"by": "ana", "reason": "test"}', "application/json", 400),
        ("req-8f2c", b"{", "application/json", 400),
        ("req-8f2c", b'{"by": "ana"}', "application/json", 422),
        ("req-8f2c", b"by=ana", "application/x-www-form-urlencoded", 415),
        ("req-8f2c", b" " * 9000, "application/json", 413),
    ],
)
def test_voids_are_answered_as_documented(
    billing: Flask, event: str, body: bytes, media_type: str, status: int
) -> None:
    path, _, query = event.partition("?")
    answer = billing.test_client().post(
        f"/v1/tenants/tenant-123/events/{path}/void", data=body, content_type=media_type, query_string=query
    )
    assert answer.status_code == status, answer.text
    Document.of(billing).assert_documented(answer, "/v1/tenants/{tenant_id}/events/{event_id}/void")


def test_every_receipt_of_the_world_is_answered_as_documented(settings: Settings) -> None:
    known = world()
    billing = billing_app(known.tables, settings)
    statuses = set()
    for record in known.stream.records:
        receipt = f"kinesis:{record.shard_id}:{record.sequence_number}:0"
        answer = billing.test_client().get(f"/v1/tenants/tenant-123/events/{receipt}")
        statuses.add(answer.get_json()["status"])
        Document.of(billing).assert_documented(answer, "/v1/tenants/{tenant_id}/events/{event_id}", "get")
    assert statuses == {"counted", "rejected"}


def test_a_missing_table_is_answered_as_documented(settings: Settings) -> None:
    class Missing(MemoryTables):
        def progress(self, stream: str) -> Any:
            raise MissingResourceError("table", "usage-aggregator")

        def check(self) -> None:
            raise MissingResourceError("table", "usage-aggregator")

    app = billing_app(Missing(), settings)
    for path, sent in (("/readyz", "/readyz"), (TOTAL, "/v1/tenants/a/usage/b")):
        answer = app.test_client().get(sent)
        assert answer.get_json()["code"] in unavailable_codes("table")
        Document.of(app).assert_documented(answer, path, "get")
