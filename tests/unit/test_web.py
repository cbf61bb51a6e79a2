"""What both services answer when something is wrong: problem+json, always, with a code that is stable."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest
from flask import Flask, abort

from metering.errors import (
    AccessRefusedError,
    InvalidEventError,
    InvalidSettingError,
    MissingResourceError,
    StoreUnavailableError,
    StreamUnavailableError,
)
from metering.web import ProblemError, add_health, add_problems, problem

if TYPE_CHECKING:
    from flask.testing import FlaskClient
    from werkzeug.test import TestResponse


def client_of(error: Exception | None = None) -> FlaskClient:
    """Return a client of an app whose `/` and readiness raise `error`."""

    def fail() -> str:
        if error is not None:
            raise error
        return "fine"

    app = Flask("test", static_folder=None)
    add_problems(app)

    def check() -> None:
        fail()

    add_health(app, check)
    app.get("/")(fail)
    app.get("/gone")(lambda: abort(410))
    return app.test_client()


def code_of(answer: TestResponse) -> tuple[int, str]:
    assert answer.content_type == "application/problem+json"
    assert answer.json is not None
    assert answer.json["status"] == answer.status_code
    assert {"type", "title", "detail"} <= answer.json.keys()
    return answer.status_code, answer.json["code"]


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (InvalidEventError("malformed_json", "the body is not JSON"), 400, "malformed_json"),
        (InvalidEventError("invalid_value", "value must be …", "value"), 422, "invalid_value"),
        (StoreUnavailableError("throttled"), 503, "unavailable"),
        (StreamUnavailableError("away"), 503, "unavailable"),
        (MissingResourceError("table", "usage-aggregator"), 503, "table_missing"),
        (MissingResourceError("stream", "usage-events"), 503, "stream_missing"),
        (AccessRefusedError("refused"), 503, "access_refused"),
        (InvalidSettingError("X", "y", "allowed: z"), 503, "not_configured"),
        (ProblemError(404, "tenant_not_found", "never seen"), 404, "tenant_not_found"),
        (RuntimeError("a bug"), 500, "internal_error"),
    ],
)
def test_every_error_has_a_status_and_a_code(error: Exception, status: int, code: str) -> None:
    answer = client_of(error).get("/")
    assert code_of(answer) == (status, code)
    assert ("Retry-After" in answer.headers) == (status == 503)


def test_unknown_paths_and_methods_are_problems_too() -> None:
    client = client_of()
    assert code_of(client.get("/nothing")) == (404, "not_found")
    refused = client.post("/")
    assert code_of(refused) == (405, "method_not_allowed")
    assert "GET" in refused.headers["Allow"]
    assert code_of(client.get("/gone")) == (410, "http_error")


def test_a_missing_table_says_what_makes_it() -> None:
    answer = client_of(MissingResourceError("table", "usage-aggregator")).get("/")
    assert answer.json is not None
    assert answer.json["detail"] == "the table 'usage-aggregator' does not exist: `metering setup` makes it"


def test_what_aws_says_of_accounts_goes_to_the_log_only(caplog: pytest.LogCaptureFixture) -> None:
    answer = client_of(AccessRefusedError("arn:aws:iam::123456789012:role/billing may not")).get("/")
    assert "123456789012" not in answer.text
    assert "123456789012" in caplog.text


def test_a_bug_tells_the_client_nothing_and_the_log_all(caplog: pytest.LogCaptureFixture) -> None:
    answer = client_of(RuntimeError("secret")).get("/")
    assert "secret" not in answer.text
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert record.exc_info is not None


def test_members_that_are_none_are_left_out() -> None:
    with Flask("test").test_request_context():
        assert problem(400, "code", "detail", field=None, index=0).json == {
            "type": "about:blank",
            "title": "Bad Request",
            "status": 400,
            "code": "code",
            "detail": "detail",
            "index": 0,
        }


def test_health_is_alive_even_when_the_service_is_not_ready() -> None:
    assert client_of().get("/readyz").json == {"status": "ready"}
    away = client_of(StoreUnavailableError("away"))
    assert away.get("/healthz").json == {"status": "alive"}
    assert code_of(away.get("/readyz")) == (503, "unavailable")
