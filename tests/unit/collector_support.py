"""What the collector's tests share: settings, events, and sinks that fail, wait and remember."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal

from metering.events import Event
from metering.memory import MemoryStream
from metering.ports import Held, NotHeld, OutgoingRecord
from metering.settings import Settings

NOW = datetime(2024, 1, 15, 12, 0, tzinfo=UTC)
WAIT_S = 10.0


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
