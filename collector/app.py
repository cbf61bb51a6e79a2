"""The collector's HTTP side: one usage event in, 202 once the stream holds it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime

from flask import Flask, Response, request
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from collector.committer import GroupCommitter
from collector.outcomes import EventNotHeldError, Receipt, TooManyPendingError
from metering.events import Event, decode_json, encode_json, parse_event
from metering.ports import EventSink
from metering.settings import Settings
from metering.web import ProblemError, add_health, add_problems, problem

BODY_BYTES_MAX = 5 * 1024 * 1024
DISCARDED_BYTES_MAX = 2 * BODY_BYTES_MAX
ANSWER_MARGIN_S = 2.0
"""How long after the deadline a request still waits: for the call that was under way when the deadline came."""


def create_app(
    sink: EventSink,
    settings: Settings,
    *,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
    on_crash: Callable[[], None] = lambda: None,
) -> Flask:
    """Return the app, which puts what it accepts on `sink`.

    now: the time of receipt (aware UTC). on_crash: see GroupCommitter.
    Nothing is started or connected until the first request; app.extensions["committer"] is to be closed at the end.
    """
    app = Flask("collector", static_folder=None)
    # One more than the limit: a chunked body that is longer is cut off there without an error (Werkzeug 3.1).
    app.config["MAX_CONTENT_LENGTH"] = BODY_BYTES_MAX + 1
    app.url_map.merge_slashes = False  # //v1/usage is an unknown path, not a redirect with an HTML page
    committer = GroupCommitter(sink, settings, on_crash=on_crash)
    app.extensions["committer"] = committer
    answer_wait_s = settings.put_deadline_ms / 1000 + ANSWER_MARGIN_S

    def check() -> None:
        committer.check()
        sink.check()

    add_problems(app)
    app.after_request(_discard_body)
    add_health(app, check)
    app.register_error_handler(EventNotHeldError, _not_held)
    app.register_error_handler(TooManyPendingError, _too_many_pending)

    @app.post("/v1/usage")
    def post_usage() -> Response:
        _require_json()
        event = parse_event(decode_json(_body()), now=now(), age_days_max=settings.event_age_days_max)
        receipt = _held(committer, event, answer_wait_s)
        answer = {"status": "accepted", "event_id": event.event_id or receipt.text}
        return Response(encode_json(answer) + b"\n", status=202, content_type="application/json")

    return app


def _require_json() -> None:
    """Refuse what is not plain JSON; a charset says nothing, since JSON is UTF-8 (RFC 8259, sections 8.1 and 11)."""
    if request.mimetype != "application/json":
        raise ProblemError(415, "unsupported_media_type", "Content-Type must be application/json")
    coding = request.headers.get("Content-Encoding", "").strip().lower()
    if coding not in {"", "identity"}:
        raise ProblemError(415, "unsupported_media_type", "a body with a Content-Encoding is not supported")


def _body() -> bytes:
    try:
        body = request.get_data(cache=False)
    except RequestEntityTooLarge:
        body = None
    except HTTPException:
        raise
    except Exception as error:
        # A torn connection, a malformed chunk: WSGI (PEP 3333) names no errors for them, each server has its own.
        raise ProblemError(400, "bad_request", "the body could not be read to its end") from error
    if body is None or len(body) > BODY_BYTES_MAX:
        raise ProblemError(413, "too_large", f"a body may have at most {BODY_BYTES_MAX} bytes")
    return body


def _discard_body(response: Response) -> Response:
    """Read what is left of a refused body, within DISCARDED_BYTES_MAX.

    A client that is still sending would meet a closed connection before it looks for the answer.
    """
    if response.status_code >= 400:
        left = DISCARDED_BYTES_MAX
        with suppress(Exception):  # as in _body; the answer stands
            while left > 0 and (piece := request.environ["wsgi.input"].read(min(left, 65_536))):
                left -= len(piece)
    return response


def _held(committer: GroupCommitter, event: Event, wait_s: float) -> Receipt:
    """Return once the stream holds `event`; raises as GroupCommitter.submit and its future do, within `wait_s`."""
    future = committer.submit(event)
    try:
        return future.result(wait_s)
    except TimeoutError as error:
        if future.done() and future.exception() is error:
            raise  # the sink's own, not ours
        raise EventNotHeldError(
            "the stream has not answered yet, so it may hold the event or not; send it again with the same event_id",
            maybe_held=True,
        ) from error


def _not_held(error: EventNotHeldError) -> Response:
    # The committer has logged why, once for all the events that it hit.
    return problem(503, "unavailable", str(error), held="unknown" if error.maybe_held else "no")


def _too_many_pending(error: TooManyPendingError) -> Response:
    return problem(429, "too_many_pending", f"{error}; this one was not taken, send it again later")
