"""What both web services share: problem+json errors, health and readiness.

Errors are RFC 9457 problem details with one extension, `code`, which is stable; `detail` is for people.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from flask import Flask, Response, json, request
from werkzeug.exceptions import HTTPException

from metering.errors import (
    AccessRefusedError,
    InvalidEventError,
    InvalidRangeError,
    MissingResourceError,
    ServiceUnavailableError,
    SetupError,
)

RETRY_AFTER_S = 2
PROBLEM_TYPE = "application/problem+json"

_log = logging.getLogger(__name__)
_CODES = {
    400: "bad_request",
    404: "not_found",
    405: "method_not_allowed",
    411: "length_required",
    413: "too_large",
    415: "unsupported_media_type",
}


class ProblemError(Exception):
    """An error that is answered as it stands: status, code, detail, and extra members of the problem object."""

    def __init__(self, status: int, code: str, detail: str, **members: Any) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.members = members


def problem(status: int, code: str, detail: str, **members: Any) -> Response:
    """Return a problem+json response; 429 and 503 carry Retry-After."""
    body = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "code": code,
        "detail": detail,
        **{name: value for name, value in members.items() if value is not None},
    }
    response = Response(json.dumps(body) + "\n", status=status, content_type=PROBLEM_TYPE)
    if status in {429, 503}:
        response.headers["Retry-After"] = str(RETRY_AFTER_S)
    return response


def add_problems(app: Flask) -> None:
    """Make `app` answer every error as problem+json, those that Flask raises by itself included."""

    @app.errorhandler(ProblemError)
    def _problem(error: ProblemError) -> Response:
        return problem(error.status, error.code, error.detail, **error.members)

    @app.errorhandler(InvalidEventError)
    def _invalid_event(error: InvalidEventError) -> Response:
        return problem(event_status(error), error.code, error.detail, field=error.field)

    @app.errorhandler(InvalidRangeError)
    def _invalid_range(error: InvalidRangeError) -> Response:
        members = {"parameter": error.parameter, "window_minutes": error.window_minutes}
        return problem(400, error.code, error.detail, **members)

    @app.errorhandler(ServiceUnavailableError)
    def _unavailable(error: ServiceUnavailableError) -> Response:
        _log.warning("%s", error)
        return problem(503, "unavailable", "a service that this one needs is not available; try again")

    @app.errorhandler(SetupError)
    def _setup(error: SetupError) -> Response:
        _log.error("%s", error)
        return problem(503, setup_code(error), _setup_detail(error))

    @app.errorhandler(HTTPException)
    def _http(error: HTTPException) -> Response:
        status = error.code or 500
        response = problem(status, _CODES.get(status, "http_error"), error.description or "")
        for name, value in error.get_headers():
            if name.lower() == "allow":
                response.headers[name] = value
        return response

    @app.errorhandler(Exception)
    def _crash(error: Exception) -> Response:
        # The process may go on: a request shares no state that an error could have left half-done.
        _log.exception("unexpected error: %s", error)
        return problem(500, "internal_error", "an unexpected error; it has been logged")


def prefers_html() -> bool:
    """Return whether a page is a better answer to this request than JSON, by its Accept: a browser's says so."""
    return request.accept_mimetypes.best_match([PROBLEM_TYPE, "application/json", "text/html"]) == "text/html"


def add_health(app: Flask, check: Callable[[], None]) -> None:
    """Add /healthz, which says that the process is alive, and /readyz, which says that `check` returned."""

    @app.get("/healthz")
    def healthz() -> dict[str, str]:
        return {"status": "alive"}

    @app.get("/readyz")
    def readyz() -> dict[str, str]:
        check()
        return {"status": "ready"}


def event_status(error: InvalidEventError) -> int:
    """Return the HTTP status of an invalid event: 400 when it is not JSON, 413 too large, 422 when it breaks a rule."""
    return {"malformed_json": 400, "too_large": 413}.get(error.code, 422)


def setup_code(error: SetupError) -> str:
    """Return the code under which an unfit environment is answered."""
    match error:
        case MissingResourceError():
            return f"{error.kind}_missing"
        case AccessRefusedError():
            return "access_refused"
        case _:
            return "not_configured"


def _setup_detail(error: SetupError) -> str:
    # AWS's own words on access may name accounts and roles; they are for the log.
    if isinstance(error, AccessRefusedError):
        return "this service may not use AWS as it needs to; see its log"
    return str(error)
