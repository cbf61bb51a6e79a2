"""A table of requests at the edge of what is allowed, and beyond, against a live collector under gunicorn."""

from __future__ import annotations

import gzip
import http.client
import json
import socket
import tomllib
from collections.abc import Iterable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import requests

from collector.openapi import RULE_CODES
from metering.events import time_text
from tests.live.test_collector_live import LiveCollector, collector
from tests.live.test_metrics import samples
from tests.unit.collector_support import WAIT_S, assert_problem

TABLE = tomllib.loads(Path(__file__).with_name("bad_inputs.toml").read_text(encoding="utf-8"))
AGE_DAYS_MAX = "36500"
CHUNK_BYTES = 64 * 1024
ANSWER_BYTES_MAX = 2048
"""Of one problem: an answer never gives back much of what was sent."""


@dataclass(frozen=True, kw_only=True)
class Input:
    """One line of the table, with what its group says; see bad_inputs.toml."""

    name: str
    status: int
    method: str = "POST"
    path: str = "/v1/usage"
    content_type: str | None = None
    headers: list[tuple[str, str]] = field(default_factory=list)
    chunked: bool = False
    before: Any = ""
    body: Any = ""
    after: Any = ""
    code: str | None = None
    field: str | None = None
    accepted: int | None = None
    codes: list[str] | None = None

    def events_held(self) -> int:
        if self.accepted is not None:
            return self.accepted
        return int(self.status == 202) if self.codes is None else self.codes.count("")


@dataclass(frozen=True, kw_only=True)
class RawInput:
    """What goes over the wire as it stands."""

    name: str
    send: Any
    status: int = 400
    code: str = "bad_request"
    cut: bool = False


@dataclass(frozen=True)
class Answer:
    """As assert_problem reads one."""

    status_code: int
    headers: Mapping[str, str]
    text: str

    @property
    def content_type(self) -> str | None:
        return self.headers.get("Content-Type")


def inputs() -> list[Input]:
    found = []
    for group in TABLE["group"]:
        shared = {key: value for key, value in group.items() if key not in {"name", "inputs"}}
        found += [Input(**{**shared, **one, "name": f"{group['name']}: {one['name']}"}) for one in group["inputs"]]
    return found


INPUTS = inputs()
RAW_INPUTS = [RawInput(**one) for one in TABLE["raw"]]


def content(*pieces: Any) -> bytes:
    """Put the pieces of a body together."""
    whole = bytearray()
    for piece in pieces:
        match piece:
            case str():
                whole += piece.encode()
            case list():
                for part in piece:
                    if isinstance(part, dict) and "pad_to" in part:
                        whole += b" " * (part["pad_to"] - len(whole))
                    else:
                        whole += content(part)
            case {"hex": digits}:
                whole += bytes.fromhex(digits)
            case {"times": times, "of": part}:
                whole += content(part) * times
            case {"ahead_s": seconds}:
                whole += time_text(datetime.now(UTC) + timedelta(seconds=seconds)).encode()
            case {"gzip": part}:
                packed = gzip.compress(content(part), mtime=0)
                whole += packed[: len(packed) - piece.get("drop", 0)]
            case _:
                raise AssertionError(f"there is no such piece: {piece!r}")
    return bytes(whole)


def send(port: int, given: Input) -> Answer:
    """Send a request as it is in the table: http.client adds a Host, and nothing else."""
    body = content(given.before, given.body, given.after)
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT_S)) as connection:
        connection.putrequest(given.method, given.path, skip_accept_encoding=True)
        if given.content_type is not None:
            connection.putheader("Content-Type", given.content_type)
        for name, value in given.headers:
            connection.putheader(name, value)
        if given.chunked:
            connection.putheader("Transfer-Encoding", "chunked")
            connection.endheaders(map(partial(_chunk, body), range(0, len(body), CHUNK_BYTES)), encode_chunked=True)
        else:
            connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
        response = connection.getresponse()
        return Answer(response.status, response.headers, response.read().decode())


def _chunk(body: bytes, start: int) -> bytes:
    return body[start : start + CHUNK_BYTES]


def assert_answered(given: Input, answer: Answer) -> None:
    assert answer.status_code == given.status, answer.text[:500]
    if given.status >= 400:
        assert given.code is not None
        body: Any = assert_problem(answer, given.status, given.code)
        assert given.codes is not None or len(answer.text) <= ANSWER_BYTES_MAX
        if given.field is not None:
            assert body.get("field") == given.field, answer.text
        if given.code == "method_not_allowed":
            assert answer.headers["Allow"]
    else:
        assert answer.content_type == "application/json"
        body = json.loads(answer.text)
    if "results" in body:
        results = body["results"]
        assert [result["index"] for result in results] == list(range(len(results)))
        codes = [result.get("code", "") for result in results]
        assert codes == (given.codes if given.codes is not None else [""] * given.events_held())
        assert (body["accepted"], body["rejected"]) == (given.events_held(), len(codes) - given.events_held())
    else:
        assert given.codes is None, answer.text
        assert ("event_id" in body) == (given.status == 202)


def exchange(port: int, given: RawInput) -> bytes:
    """Send bytes as they are, and return all that comes until the service closes."""
    received = b""
    with socket.create_connection(("127.0.0.1", port), timeout=WAIT_S) as connection:
        with suppress(ConnectionError):  # it may close while this still sends
            connection.sendall(content(given.send))
            if given.cut:
                connection.shutdown(socket.SHUT_WR)
        while piece := connection.recv(65_536):
            received += piece
    return received


def assert_refused(given: RawInput, received: bytes) -> None:
    # And not a second answer, to a request hidden in the first.
    assert received.count(b"HTTP/1.1 ") == 1, received[:500]
    head, _, body = received.partition(b"\r\n\r\n")
    status_line, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.title(): value for name, _, value in (line.partition(": ") for line in lines)}
    assert_problem(Answer(int(status_line.split()[1]), headers, body.decode()), given.status, given.code)
    assert int(headers["Content-Length"]) == len(body) <= ANSWER_BYTES_MAX
    assert headers["Connection"] == "close"


def assert_unharmed(live: LiveCollector, workers: set[int], held: int) -> None:
    """No worker was replaced, nothing was logged as an error, and the stream holds what was answered accepted."""
    assert live.workers() == workers
    assert [line for line in live.lines() if line["level"] in {"ERROR", "CRITICAL"}] == []
    metrics = requests.get(f"http://127.0.0.1:{live.port}/metrics", timeout=WAIT_S).text
    by_outcome = samples(metrics, "metering_events_total")
    assert by_outcome["", "accepted"] == held
    assert not [labels for labels in by_outcome if labels[1] == "unavailable"]


def differences(found: Iterable[tuple[str, AssertionError]]) -> str:
    return "\n".join(f"{name}: {error}" for name, error in found)


def test_each_input_is_answered_as_the_table_says_and_the_service_goes_on(tmp_path: Path) -> None:
    wrong: list[tuple[str, AssertionError]] = []
    with collector(tmp_path, WEB_CONCURRENCY="1", EVENT_MAX_AGE_DAYS=AGE_DAYS_MAX) as live:
        workers = live.workers()
        for number, given in enumerate(INPUTS):
            try:
                assert_answered(given, send(live.port, given))
                assert live.post(f"alive-{number}").status_code == 202
            except AssertionError as error:
                wrong.append((given.name, error))
        assert not wrong, differences(wrong)
        assert_unharmed(live, workers, sum(given.events_held() for given in INPUTS) + len(INPUTS))


def test_what_is_no_http_is_refused_and_the_service_goes_on(tmp_path: Path) -> None:
    wrong: list[tuple[str, AssertionError]] = []
    with collector(tmp_path, WEB_CONCURRENCY="1") as live:
        workers = live.workers()
        for number, given in enumerate(RAW_INPUTS):
            try:
                assert_refused(given, exchange(live.port, given))
                assert live.post(f"alive-{number}").status_code == 202
            except AssertionError as error:
                wrong.append((given.name, error))
        assert not wrong, differences(wrong)
        assert_unharmed(live, workers, len(RAW_INPUTS))


def test_the_table_is_large_and_holds_every_code() -> None:
    assert len(INPUTS) >= 150
    assert len({given.name for given in INPUTS}) == len(INPUTS)
    assert sum(given.status in {202, 207} for given in INPUTS) >= 50
    of_requests = {given.code for given in INPUTS if given.code}
    of_events = {code for given in INPUTS for code in given.codes or () if code}
    without_meters = RULE_CODES - {"unknown_metric"}  # METERS_STRICT alone gives it: unit/test_collector_meters.py
    assert of_requests >= without_meters | {
        "malformed_json", "too_large", "unsupported_media_type", "not_found", "method_not_allowed", "bad_request",
        "no_event_accepted",
    }  # fmt: skip
    assert of_events >= {"malformed_json", "too_large", "invalid_event", "negative_value"}
