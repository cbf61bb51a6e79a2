"""The collector's HTTP side: usage events in, in any of the forms below; 202 once the stream holds them.

    application/json                     one event (object), or up to 1000 (array)
    application/json, Ce-… headers       one CloudEvent, binary mode
    application/cloudevents+json         one CloudEvent, structured mode
    application/cloudevents-batch+json   up to 1000 CloudEvents
    application/x-ndjson                 one event a line, as many as the body's limits allow; taken as they come

One event answers as itself, several by answers.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
from flask import Flask, Response, request

from collector.answers import BatchAnswer
from collector.bodies import BODY_BYTES_MAX, LINE_BYTES_MAX, Line, body_lines, discard_body, whole_body
from collector.committer import GroupCommitter
from collector.metrics import CollectorMetrics
from collector.openapi import openapi_document
from collector.outcomes import EventNotHeldError, TooManyPendingError
from collector.submissions import Submission, receipt
from metering.api_keys import Scope
from metering.cloudevents import cloud_event, cloud_events, from_binary, is_binary
from metering.errors import InvalidEventError
from metering.meters_file import meters_of
from metering.metrics import add_metrics
from metering.openapi import add_openapi
from metering.outgoing import (
    BATCH_EVENTS_MAX,
    OutgoingEvent,
    Rules,
    array,
    array_of_events,
    decode_body,
    lines_of_events,
    one_event,
)
from metering.ports import EventSink, Held
from metering.settings import Settings
from metering.web import ProblemError, add_health, add_problems, problem
from metering.web_keys import add_api_keys, key_tenants, require_tenant

ANSWER_MARGIN_S = 2.0
"""How long after the deadline a request still waits: for the call that was under way when the deadline came."""
CHUNK_BYTES_MAX = 256 * 1024
"""Lines of NDJSON are taken up to this, or BATCH_EVENTS_MAX of them, at a time."""
_JSON = msgspec.json.Encoder()
NDJSON = frozenset({"application/x-ndjson", "application/ndjson"})


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
    Raises InvalidSettingError for an API_KEYS_FILE or a METERS_FILE that can't be used.
    """
    app = _SyncFlask("collector", static_folder=None)
    # One more than the limit: a chunked body that is longer is cut off there without an error (Werkzeug 3.1).
    app.config["MAX_CONTENT_LENGTH"] = BODY_BYTES_MAX + 1
    app.url_map.merge_slashes = False  # /v1//usage is an unknown path, not a redirect with an HTML page
    metrics = CollectorMetrics(add_metrics(app, service="collector"))
    committer = GroupCommitter(sink, settings, metrics=metrics, on_crash=on_crash)
    app.extensions["committer"] = committer
    metrics_taken = meters_of(settings).by_metric.keys() if settings.meters_strict else None
    intake = _Intake(committer, metrics, settings.put_deadline_ms / 1000 + ANSWER_MARGIN_S)

    def check() -> None:
        committer.check()
        sink.check()

    add_problems(app)
    add_api_keys(app, settings, scope=Scope.WRITE)
    app.after_request(discard_body)
    add_health(app, check)
    add_openapi(app, openapi_document(settings))

    @app.post("/v1/usage")
    def post_usage() -> Response:
        rules = Rules(
            now=now(),
            partitions=settings.partitions,
            age_days_max=settings.event_age_days_max,
            metrics=metrics_taken,
        )
        environ = request.environ
        media_type = "application/json" if environ.get("CONTENT_TYPE") == "application/json" else request.mimetype
        if media_type == "application/json" and not is_binary(environ):
            body = whole_body()
            if body.lstrip()[:1] == b"[":
                return intake.several(array_of_events(body, rules))
            return intake.one(lambda: one_event(body, rules))
        if media_type == "application/json":
            body = whole_body()
            return intake.one(lambda: cloud_event(from_binary(request.headers, decode_body(body)), rules))
        if media_type == "application/cloudevents+json":
            body = whole_body()
            return intake.one(lambda: cloud_event(decode_body(body), rules))
        if media_type == "application/cloudevents-batch+json":
            return intake.several(cloud_events(array(whole_body()), rules))
        if media_type in NDJSON:
            return intake.lines(body_lines(), rules)
        raise ProblemError(
            415,
            "unsupported_media_type",
            "Content-Type must be application/json, application/cloudevents+json, application/cloudevents-batch+json "
            "or application/x-ndjson",
        )

    return app


class _SyncFlask(Flask):
    """Flask without a look, several times in each request, whether a view or a hook is a coroutine: none is."""

    def ensure_sync(self, func: Callable[..., Any]) -> Callable[..., Any]:
        return func


class _Intake:
    """Hands events to the committer, waits for their outcome, and answers. wait_s: how long at most, each time."""

    def __init__(self, committer: GroupCommitter, metrics: CollectorMetrics, wait_s: float) -> None:
        self._committer = committer
        self._metrics = metrics
        self._wait_s = wait_s

    def one(self, parse: Callable[[], OutgoingEvent]) -> Response:
        """Answer a request with one event; raises what `parse` does, and ProblemError for another tenant's."""
        try:
            event = parse()
        except InvalidEventError as error:
            self._metrics.events_rejected(error.code)
            raise
        try:
            require_tenant(event.tenant_id)
        except ProblemError as error:
            self._metrics.events_rejected(error.code)
            raise
        try:
            submission = self._committer.submit([event])
        except TooManyPendingError as error:
            return self._too_many(error, 1)
        except EventNotHeldError as error:
            return self._not_held(error)
        submission.wait(self._wait_s)
        if not submission.endings:
            late = (
                "the stream has not answered yet, so it may hold the event or not; send it again with the same event_id"
            )
            return self._not_held(EventNotHeldError(late, maybe_held=True))
        [ending] = submission.endings
        match ending.outcome:
            case Held() as place:
                self._metrics.events_accepted()
                answer = {"status": "accepted", "event_id": event.event_id or receipt(place, ending.first)}
                return Response(_JSON.encode(answer) + b"\n", status=202, content_type="application/json")
            case EventNotHeldError() as not_held:
                return self._not_held(not_held)
            case unexpected:
                self._metrics.events_unavailable()
                raise unexpected

    def several(self, entries: Sequence[OutgoingEvent | InvalidEventError]) -> Response:
        """Answer a request with events that were read at once; none is taken when not all can be."""
        answer = BatchAnswer()
        try:
            self._take(answer, entries)
        except TooManyPendingError as error:
            return self._too_many(error, len(entries))
        return self._answered(answer)

    def lines(self, lines: Iterator[Line], rules: Rules) -> Response:
        """Answer a request with an event a line, which are taken as they come.

        Lines of a body that turns out to be too long, or breaks off, have been taken before: the error says which.
        Once the stream does not take some, no more are read.
        """
        answer = BatchAnswer()
        lines_read = 0
        try:
            for chunk in _chunks(lines):
                lines_read = chunk[-1].number
                try:
                    self._take(answer, _events_of(chunk, rules), [line.number for line in chunk])
                except TooManyPendingError as error:
                    if not answer.events:
                        return self._too_many(error, len(chunk))
                    lines_read = chunk[0].number - 1
                    break
                if answer.unavailable:
                    break
            else:
                if not answer.events:
                    raise InvalidEventError("invalid_event", "a batch holds one event or more")
                return self._answered(answer)
        except ProblemError as error:
            self._count(answer)
            counts = {"accepted": answer.accepted, "rejected": answer.rejected.total()}
            return answer.into(problem(error.status, error.code, error.detail, **counts, lines_read=lines_read))
        return self._answered(answer, lines_read=lines_read)

    def _take(
        self,
        answer: BatchAnswer,
        entries: Sequence[OutgoingEvent | InvalidEventError],
        lines: Sequence[int] | None = None,
    ) -> None:
        """Submit the entries that keep the rules, wait, and add all of them to `answer`."""
        tenants = key_tenants()
        if tenants is not None:
            entries = [_allowed(entry, tenants) for entry in entries]
        kept = [entry for entry in entries if isinstance(entry, OutgoingEvent)]
        submission: Submission | None = None
        if kept:
            try:
                submission = self._committer.submit(kept)
                submission.wait(self._wait_s)
            except EventNotHeldError as error:
                submission = Submission(kept)
                submission.end(range(len(kept)), error)
        answer.add(entries, submission, lines)

    def _answered(self, answer: BatchAnswer, **members: object) -> Response:
        self._count(answer)
        return answer.response(**members)

    def _count(self, answer: BatchAnswer) -> None:
        if answer.accepted:
            self._metrics.events_accepted(answer.accepted)
        for code, events in answer.rejected.items():
            self._metrics.events_rejected(code, events)
        if answer.unavailable:
            self._metrics.events_unavailable(answer.unavailable)

    def _not_held(self, error: EventNotHeldError) -> Response:
        # The committer has logged why, once for all the events that it hit.
        self._metrics.events_unavailable()
        return problem(503, "unavailable", str(error), held="unknown" if error.maybe_held else "no")

    def _too_many(self, error: TooManyPendingError, events: int) -> Response:
        self._metrics.events_unavailable(events, code="too_many_pending")
        return problem(429, "too_many_pending", f"{error}; nothing of this request was taken, send it again later")


def _allowed(entry: OutgoingEvent | InvalidEventError, tenants: frozenset[str]) -> OutgoingEvent | InvalidEventError:
    if isinstance(entry, InvalidEventError) or entry.tenant_id in tenants:
        return entry
    return InvalidEventError("forbidden_tenant", "this API key may not do this for this tenant", "tenant_id")


def _chunks(lines: Iterator[Line]) -> Iterator[list[Line]]:
    """Yield lines together, within BATCH_EVENTS_MAX and about CHUNK_BYTES_MAX."""
    chunk: list[Line] = []
    size = 0
    for line in lines:
        chunk.append(line)
        size += len(line)
        if len(chunk) == BATCH_EVENTS_MAX or size >= CHUNK_BYTES_MAX:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _events_of(chunk: Sequence[Line], rules: Rules) -> Sequence[OutgoingEvent | InvalidEventError]:
    if all(len(line) <= LINE_BYTES_MAX for line in chunk):
        return lines_of_events(chunk, rules)
    too_long = InvalidEventError("too_large", f"a line may have at most {LINE_BYTES_MAX} bytes")
    return [too_long if len(line) > LINE_BYTES_MAX else lines_of_events([line], rules)[0] for line in chunk]
