"""What was sent, noted by those who send it, before they send it. Thread-safe."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import NamedTuple


class Content(NamedTuple):
    """What makes an event the same event."""

    metric: str
    value: Decimal
    timestamp: str | None


@dataclass(frozen=True)
class KnownEvent:
    """An event and the window that it belongs to, as 2024-01-31T22. event_id None: its value is its own instead."""

    tenant_id: str
    event_id: str | None
    content: Content
    window: str

    @property
    def fields(self) -> dict[str, str]:
        """The event as it stands on the stream, without the time of receipt."""
        named = {
            "tenant_id": self.tenant_id,
            "metric": self.content.metric,
            "value": f"{self.content.value:f}",
            "timestamp": self.content.timestamp,
            "event_id": self.event_id,
        }
        return {name: text for name, text in named.items() if text is not None}


@dataclass(frozen=True)
class Refusal:
    """An event of a malformed record that is to be rejected. index: its place in the record."""

    index: int
    reason: str


Key = tuple[str, str]
"""Tenant and event_id; of an event without one, tenant and value."""


@dataclass
class Known:
    """Everything that any part of a run has sent."""

    events: dict[Key, KnownEvent] = field(default_factory=dict)
    without_id: dict[tuple[str, Decimal], KnownEvent] = field(default_factory=dict)
    conflicts: dict[Key, list[Content]] = field(default_factory=dict)
    malformed: dict[bytes, tuple[Refusal, ...]] = field(default_factory=dict)
    accepted: set[Key] = field(default_factory=set)
    """Events with an id that the stream was said to hold."""
    accepted_without_id: set[tuple[str, Decimal]] = field(default_factory=set)
    voided: set[Key] = field(default_factory=set)
    """Events with an id whose void was asked for."""
    failures: list[str] = field(default_factory=list)
    """What the load met and must never meet."""
    duplicates: int = 0
    posts: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def will_send(self, event: KnownEvent) -> None:
        with self._lock:
            if event.event_id is None:
                self.without_id[event.tenant_id, event.content.value] = event
            else:
                self.events[event.tenant_id, event.event_id] = event

    def was_accepted(self, event: KnownEvent) -> None:
        with self._lock:
            if event.event_id is None:
                self.accepted_without_id.add((event.tenant_id, event.content.value))
            else:
                self.accepted.add((event.tenant_id, event.event_id))

    def any_accepted(self, choose: random.Random) -> Key | None:
        """Return an event with an id, as known so far."""
        with self._lock:
            return choose.choice(sorted(self.accepted)) if self.accepted else None

    def will_void(self, key: Key) -> None:
        with self._lock:
            self.voided.add(key)

    def will_conflict(self, event: KnownEvent) -> None:
        """`event` has the id of a known one that was counted, and other content."""
        assert event.event_id is not None
        with self._lock:
            self.conflicts.setdefault((event.tenant_id, event.event_id), []).append(event.content)

    def will_put_malformed(self, data: bytes, refusals: Iterable[Refusal]) -> None:
        with self._lock:
            self.malformed[data] = tuple(refusals)

    def will_repeat(self) -> None:
        with self._lock:
            self.duplicates += 1

    def posted(self) -> None:
        with self._lock:
            self.posts += 1

    def failed(self, what: str) -> None:
        with self._lock:
            self.failures.append(what)
