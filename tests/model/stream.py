"""The stream of one world: shards, perhaps a reshard, and records whose events come again in every way they can."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from random import Random
from typing import Any

from consumer.decoding import ReceivedRecord
from metering.events import time_text
from tests.builders import NOW

SHAPES = (
    ((), ()),
    ((), (0,), (0,)),
    ((), (), (0, 1)),
    ((), (), (0,), (0,)),
    ((), (), (1,), (1,)),
)
"""Each shard's parents: none, a split or a merge."""
FIRST_NUMBERS = (7, 96, 995)
"""Sequence numbers start here, in each shard anew: they cross a power of ten, where string order alone is wrong."""
METRICS = ("calls", "jobs", "seats")


@dataclass(frozen=True, slots=True)
class Entry:
    """An event as a client sent it; a negative value makes it invalid."""

    tenant_id: str
    metric: str
    value: int
    timestamp: str | None
    event_id: str | None
    received_at: datetime | None

    @property
    def valid(self) -> bool:
        return self.value >= 0

    def fields(self) -> dict[str, Any]:
        received_at = None if self.received_at is None else time_text(self.received_at)
        optional = {"timestamp": self.timestamp, "event_id": self.event_id, "received_at": received_at}
        return {
            "tenant_id": self.tenant_id,
            "metric": self.metric,
            "value": str(self.value),
            **{name: value for name, value in optional.items() if value is not None},
        }


@dataclass(frozen=True, slots=True)
class Record:
    """What one sequence number holds. batch_id: None for a bare event; no entries: nothing that can be decoded."""

    shard: int
    number: int
    arrived_at: datetime
    batch_id: str | None
    entries: tuple[Entry, ...]

    @property
    def position(self) -> str:
        return f"{len(str(self.number)):03d}{self.number}"

    def received(self) -> ReceivedRecord:
        return ReceivedRecord(str(self.number), self._data(), self.arrived_at)

    def _data(self) -> bytes:
        events = [entry.fields() for entry in self.entries]
        if not events:
            return b"\xff rubbish"
        content = events[0] if self.batch_id is None else {"batch_id": self.batch_id, "events": events}
        return json.dumps(content).encode()


@dataclass(frozen=True, slots=True)
class StreamShard:
    """A shard with all that it will ever hold."""

    number: int
    parents: tuple[int, ...]
    records: tuple[Record, ...]


@dataclass
class _Sender:
    """Sends records, and remembers what it sent, so that it can come again."""

    random: Random
    sent: int = 0
    ids: int = 0
    events: list[Entry] = field(default_factory=list)
    batches: list[Record] = field(default_factory=list)

    def record(self, shard: int, number: int) -> Record:
        self.sent += 1
        arrived_at = NOW + timedelta(minutes=7 * self.sent)
        kind = self.random.choice(("batch", "batch", "batch", "bare", "again", "again", "other batch", "rubbish"))
        match kind:
            case "rubbish":
                return Record(shard, number, arrived_at, None, ())
            case "bare":
                return Record(shard, number, arrived_at, None, (self._entry(arrived_at),))
            case "again" if self.batches:
                return replace(self.random.choice(self.batches), shard=shard, number=number, arrived_at=arrived_at)
        entries = tuple(self._entry(arrived_at) for _ in range(self.random.randrange(1, 4)))
        batch_id = f"b-{self.sent}"
        if kind == "other batch" and self.batches:
            batch_id = self.random.choice(self.batches).batch_id or batch_id
        record = Record(shard, number, arrived_at, batch_id, entries)
        self.batches.append(record)
        return record

    def _entry(self, arrived_at: datetime) -> Entry:
        kind = self.random.choice(("new", "new", "no id", "no id", "again", "again", "conflict", "invalid"))
        received_at = arrived_at - timedelta(seconds=2) if self.random.randrange(2) else None
        if kind in {"again", "conflict"} and self.events:
            before = replace(self.random.choice(self.events), received_at=received_at)
            return before if kind == "again" else self._other(before)
        event = Entry(
            tenant_id=self.random.choice(("acme", "globex")),
            metric=self.random.choice(METRICS),
            value=self.random.randrange(1, 1000),
            timestamp=self.random.choice((None, "2024-01-15T08:15:00Z", "2024-01-15T09:59:59Z")),
            event_id=None,
            received_at=received_at,
        )
        if kind == "no id":
            return event
        if kind == "invalid":
            return replace(event, value=-event.value, event_id=self.random.choice((None, "e-1")))
        self.ids += 1
        event = replace(event, event_id=f"e-{self.ids}")
        self.events.append(event)
        return event

    def _other(self, event: Entry) -> Entry:
        match self.random.randrange(3):
            case 0:
                return replace(event, value=event.value + 1000)
            case 1:
                return replace(event, metric=METRICS[(METRICS.index(event.metric) + 1) % len(METRICS)])
        return replace(event, timestamp="2024-01-15T07:00:00Z")


def random_stream(random: Random) -> list[StreamShard]:
    """Return 2 to 4 shards of 2 to 5 records each."""
    sender = _Sender(random)
    shards = []
    for shard, parents in enumerate(random.choice(SHAPES)):
        number = random.choice(FIRST_NUMBERS)
        records = []
        for _ in range(random.randrange(2, 6)):
            records.append(sender.record(shard, number))
            number += random.randrange(1, 3)
        shards.append(StreamShard(shard, parents, tuple(records)))
    return shards
