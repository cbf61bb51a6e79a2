"""A small HTTP server that speaks the collector's batch protocol, remembers what it holds, and can be told to fail."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from metering.errors import InvalidEventError
from metering.events import EVENT_FIELDS, decode_json, parse_event, stream_form

WAIT_S = 20.0
HELD_THEN = frozenset({"lost", "hang", "half", "unknown"})
"""Faults after which the events are held, though the answer does not say so of all of them."""
FAULTS = ("lost", "cut", "hang", "half", "unknown", "some", "503", "429", "500")


@dataclass
class Post:
    """A request that arrived. events: its body, decoded."""

    headers: dict[str, str]
    events: list[dict[str, Any]]
    body_bytes: int


@dataclass
class CollectorTwin:
    """script: what each request meets, in order; None, and after its end: all is well.

    lost: takes the events, closes without an answer; cut: closes at once; hang: takes them, answers too late;
    page: takes them, answers 200 with a page; half: takes them, names the first half; unknown: 503 without results, and
    takes them; some: 503, takes every second one; a number: that status, nothing taken.
    While `gate` is clear, requests wait before they are answered.
    """

    script: list[str | None] = field(default_factory=list)
    retry_after: str = "1"
    body_bytes_max: int = 5 * 1024 * 1024
    posts: list[Post] = field(default_factory=list)
    held: dict[str, list[dict[str, str]]] = field(default_factory=dict)
    gate: threading.Event = field(default_factory=threading.Event)
    hang_over: threading.Event = field(default_factory=threading.Event)
    url: str = ""

    def __post_init__(self) -> None:
        self.gate.set()
        self._lock = threading.Lock()

    def contents(self, event_id: str) -> list[dict[str, str]]:
        """Each different content under which an id is held."""
        return [dict(items) for items in {tuple(sorted(form.items())) for form in self.held.get(event_id, [])}]

    def answer(self, body: bytes, headers: dict[str, str]) -> tuple[int, Any] | None:
        """Return status and body of the answer, or None for none."""
        decoded = gzip.decompress(body) if headers.get("Content-Encoding") == "gzip" else body
        events = decode_json(decoded)
        assert isinstance(events, list)
        with self._lock:
            self.posts.append(Post(headers, events, len(decoded)))
            fault = self.script.pop(0) if self.script else None
        if fault == "cut":
            return None
        if len(decoded) > self.body_bytes_max:
            return 413, {"code": "too_large", "detail": "too large"}
        if fault is not None and fault.isdigit():
            return int(fault), {"code": "told_to", "detail": "as the test wants it"}
        with self._lock:
            results = [self._result(index, raw, fault) for index, raw in enumerate(events)]
        assert self.gate.wait(WAIT_S)
        if fault == "hang":
            assert self.hang_over.wait(WAIT_S)
        return None if fault in {"lost", "hang"} else _whole(results, fault)

    def _result(self, index: int, raw: Any, fault: str | None) -> dict[str, Any]:
        if fault == "some" and index % 2:
            return {"index": index, "status": "unavailable", "held": "no"}
        try:
            form = stream_form(parse_event(raw, now=datetime.now(UTC)))
        except InvalidEventError as error:
            return {"index": index, "status": "rejected", "code": error.code, "detail": error.detail}
        self.held.setdefault(form.get("event_id", ""), []).append(
            {name: form[name] for name in EVENT_FIELDS if name in form}
        )
        return {"index": index, "status": "accepted", "event_id": form.get("event_id", "kinesis:shard:1:0")}


def _whole(results: list[dict[str, Any]], fault: str | None) -> tuple[int, Any]:
    if fault == "page":
        return 200, "<html>Welcome to the network of this hotel</html>"
    if fault == "unknown":
        return 503, {"code": "unavailable", "detail": "no answer from the stream"}
    accepted = sum(result["status"] == "accepted" for result in results)
    rejected = sum(result["status"] == "rejected" for result in results)
    status = 503 if fault == "some" else 422 if not accepted else 207 if rejected else 202
    if fault == "half":
        results = results[: len(results) // 2]
    return status, {"accepted": accepted, "rejected": rejected, "results": results}


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    twin: CollectorTwin

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of connections that clients break."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def do_POST(self) -> None:
        twin = self.server.twin
        body = self.rfile.read(int(self.headers["Content-Length"]))
        answer = twin.answer(body, dict(self.headers)) if self.path == "/v1/usage" else (404, {})
        if answer is None:
            self.close_connection = True
            return
        status, content = answer
        encoded = content.encode() if isinstance(content, str) else json.dumps(content).encode()
        with suppress(OSError):
            self.send_response(status)
            self.send_header("Content-Length", str(len(encoded)))
            if status in {429, 503}:
                self.send_header("Retry-After", twin.retry_after)
            if status in {301, 302, 307, 308}:
                self.send_header("Location", f"{twin.url}/v1/usage")
            self.end_headers()
            self.wfile.write(encoded)

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002 - as the base class names it
        """Write no log."""


@contextmanager
def collector_twin() -> Iterator[CollectorTwin]:
    """Serve a twin on a free port of 127.0.0.1 for the length of the block."""
    server = _Server(("127.0.0.1", 0), _Handler)
    server.twin = CollectorTwin(url=f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server.twin
    finally:
        server.twin.gate.set()
        server.twin.hang_over.set()
        server.shutdown()
        server.server_close()
        thread.join()
