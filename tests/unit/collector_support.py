"""What the collector's tests share: settings, events, and sinks that fail, wait and remember."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal

from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from collector.app import create_app
from collector.committer import GroupCommitter
from collector.submissions import Submission, receipt
from metering.events import Event
from metering.memory import MemoryStream
from metering.outgoing import outgoing
from metering.ports import EventSink, Held, NotHeld, OutgoingRecord
from metering.settings import Settings

PROBLEM = "application/problem+json"
NOW = datetime(2024, 1, 15, 12, 0, tzinfo=UTC)
WAIT_S = 10.0
PARTITIONS = 64


def settings_with(**environment: str) -> Settings:
    return Settings.from_environment({"COLLECTOR_LINGER_MS": "0", **environment})


def event_with(
    tenant_id: str = "tenant-123", metric: str = "api_calls", value: int = 1, event_id: str | None = None
) -> Event:
    return Event(
        tenant_id=tenant_id,
        metric=metric,
        value=Decimal(value),
        timestamp=None,
        event_id=event_id,
        received_at=NOW,
        occurred_at=NOW,
    )


class Sent:
    """One submitted event, as a test waits for it."""

    def __init__(self, submission: Submission, index: int = 0) -> None:
        self.submission = submission
        self.index = index

    def ends(self) -> int:
        """How often it has ended."""
        return sum(self.index in ending.indexes for ending in tuple(self.submission.endings))

    def exception(self) -> Exception | None:
        assert self.submission.wait(WAIT_S)
        return next(
            (
                ending.outcome
                for ending in self.submission.endings
                if self.index in ending.indexes and isinstance(ending.outcome, Exception)
            ),
            None,
        )

    def result(self) -> tuple[str, str, int]:
        """Shard, sequence number and index of where the stream holds it; raises what it ended with otherwise."""
        error = self.exception()
        if error is not None:
            raise error
        [ending] = [ending for ending in self.submission.endings if self.index in ending.indexes]
        assert isinstance(ending.outcome, Held)
        index = ending.first + list(ending.indexes).index(self.index)
        place = ending.outcome
        assert receipt(place, index) == f"kinesis:{place.shard_id}:{place.sequence_number}:{index}"
        return place.shard_id, place.sequence_number, index


def submit(committer: GroupCommitter, event: Event) -> Sent:
    return Sent(committer.submit([outgoing(event, PARTITIONS)]))


def values_in(data: bytes) -> list[int]:
    """The values of a record's events, by which tests tell events apart."""
    return [int(event["value"]) for event in json.loads(data)["events"]]


def until(condition: Callable[[], object], timeout_s: float = WAIT_S) -> None:
    """Wait until `condition` holds; fail after `timeout_s`."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.002)


@dataclass
class ScriptedSink:
    """Remembers every call; `script` says what each of them meets, in order, and then all goes well.

    A script's entry is an exception to raise, or an error code or None for each record. With lost=True a call that
    raises StreamUnavailableError has put its records all the same.
    While `gate` is clear, calls wait; `entered` counts those that have begun.
    """

    script: list[BaseException | list[str | None]] = field(default_factory=list)
    lost: bool = False
    stream: MemoryStream = field(default_factory=MemoryStream)
    calls: list[list[OutgoingRecord]] = field(default_factory=list)
    gate: threading.Event = field(default_factory=threading.Event)
    entered: int = 0

    def __post_init__(self) -> None:
        self.gate.set()

    def put(self, records: Sequence[OutgoingRecord]) -> list[Held | NotHeld]:
        self.entered += 1
        self.calls.append(list(records))
        assert self.gate.wait(WAIT_S)
        step = self.script.pop(0) if self.script else None
        if isinstance(step, BaseException):
            if self.lost:
                self.stream.put(records)
            raise step
        if step is not None:
            self.stream.failures.append(step)
        return self.stream.put(records)

    def check(self) -> None:
        self.stream.check()

    def held_values(self) -> list[int]:
        return [value for record in self.stream.records for value in values_in(record.data)]


def usage(**fields: object) -> dict[str, object]:
    """A valid event as a client sends it, with `fields` changed; None takes one out."""
    event: dict[str, object] = {"tenant_id": "tenant-123", "metric": "api_calls", "value": 10}
    event |= {"timestamp": "2024-01-15T10:00:00Z", **fields}
    return {name: value for name, value in event.items() if value is not None}


def encoded(event: Mapping[str, object]) -> bytes:
    return json.dumps(event).encode()


@contextmanager
def apps() -> Iterator[Callable[..., Flask]]:
    """Give what makes collectors of a sink and an environment; each is closed at the end, with nothing left waiting."""
    made: list[Flask] = []

    def make(sink: EventSink, **environment: str) -> Flask:
        made.append(create_app(sink, settings_with(**environment), now=lambda: NOW))
        return made[-1]

    yield make
    for app in made:
        assert app.extensions["committer"].close(WAIT_S)


def post(
    client: FlaskClient,
    body: bytes,
    content_type: str | None = "application/json",
    headers: Mapping[str, str] | None = None,
) -> TestResponse:
    return client.post("/v1/usage", data=body, content_type=content_type, headers=headers)


def assert_problem(response: TestResponse, status: int, code: str) -> dict[str, object]:
    assert response.status_code == status, response.text
    assert response.content_type == PROBLEM
    body = json.loads(response.text)
    assert (body["status"], body["code"], body["type"]) == (status, code, "about:blank")
    assert body["title"]
    assert body["detail"]
    assert ("Retry-After" in response.headers) == (status in {429, 503})
    return body
