"""What was sent, and what the tables must therefore hold: recorded by those who send, compared row by row."""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from types import TracebackType
from typing import Self

import requests

from tests.e2e.processes import until
from tests.e2e.tables import Rows, Tables

TENANT_PREFIX = "e2e-"
"""Tenants of the tests; no other tenant begins like this."""
METRICS = ("api_calls", "storage.gb", "sms:out")
VALUES = ("1", "10", "0", "2.5", "0.1", "0.000000001", "123456789012345.123456789", "1e3", "7.0", "99999.99")
COUNTED_S = 90.0
ANSWER_S = 30.0


@dataclass(frozen=True)
class Sent:
    """An event that was answered 202 at held_at. receipt: the answer's event_id."""

    tenant_id: str
    metric: str
    value: Decimal
    occurred_at: datetime
    held_at: datetime
    receipt: str


class Truth:
    """All events that one pipeline holds; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sent: list[Sent] = []

    def add(self, sent: Sent) -> None:
        with self._lock:
            self._sent.append(sent)

    def sent(self) -> list[Sent]:
        with self._lock:
            return list(self._sent)

    def rows(self) -> Rows:
        """The totals and windows that these events make."""
        usage: dict[tuple[str, str], Decimal] = defaultdict(Decimal)
        events: Counter[tuple[str, str]] = Counter()
        for sent in self.sent():
            window = sent.occurred_at.astimezone(UTC).strftime("%Y-%m-%dT%H")
            for sk in (f"METRIC#{sent.metric}", f"HOUR#{sent.metric}#{window}"):
                key = (f"TENANT#{sent.tenant_id}", sk)
                usage[key] += sent.value
                events[key] += 1
        return {key: (usage[key], events[key]) for key in usage}


def await_as_of(billing_url: str, truth: Truth) -> None:
    """Wait until billing says that all that was sent is in: as_of goes on though shards have ended."""
    sent = truth.sent()
    last_held_at = max(event.held_at for event in sent)
    url = f"{billing_url}/v1/tenants/{sent[0].tenant_id}/usage"

    def passed() -> bool:
        as_of = requests.get(url, timeout=30).json().get("as_of")
        return as_of is not None and datetime.fromisoformat(as_of) > last_held_at

    until(passed, f"as_of passes {last_held_at}", timeout_s=COUNTED_S)


def assert_counted_exactly(tables: Tables, truth: Truth) -> None:
    """Wait until the tables hold as many events as were sent and say that they are complete; then compare all rows.

    Nothing may be missing, surplus or different, in totals, windows, directory, progress rows, and receipts.
    """
    sent = truth.sent()
    until(
        lambda: _events(tables) >= len(sent),
        lambda: f"{len(sent)} events are counted, there are {_events(tables)}",
        timeout_s=COUNTED_S,
    )
    last_held_at = max(event.held_at for event in sent)
    until(
        lambda: all(
            p.complete_until and p.complete_until > last_held_at for p in tables.progress().values() if not p.closed
        ),
        lambda: f"as_of passes {last_held_at}: {tables.progress()}",
        timeout_s=COUNTED_S,
    )
    wanted = truth.rows()
    found = {key: row for key, row in tables.rows().items() if key[0].startswith(f"TENANT#{TENANT_PREFIX}")}
    wrong = {key: (wanted.get(key), found.get(key)) for key in wanted.keys() | found.keys()}
    wrong = {key: pair for key, pair in wrong.items() if pair[0] != pair[1]}
    assert not wrong, (
        f"{len(wrong)} of {len(wanted)} rows differ, key: (sent, found): {dict(sorted(wrong.items())[:8])}"
    )
    assert {event.tenant_id for event in sent} <= tables.directory()
    assert_progress_agrees(tables)
    assert_receipts_agree(tables, sent)


def assert_progress_agrees(tables: Tables) -> None:
    """Progress rows agree with the stream, with the rows, with the rejected table, and in themselves."""
    progress, records = tables.progress(), tables.records()
    assert progress.keys() == records.keys()
    for shard in progress.values():
        assert shard.events == shard.counted + shard.duplicates + shard.rejected, shard
        assert shard.records == len(records[shard.shard_id]), shard
        last = records[shard.shard_id][-1][0] if records[shard.shard_id] else ""
        assert shard.position == (f"{len(last):03d}{last}" if last else ""), shard
    counted = sum(shard.counted for shard in progress.values())
    assert counted == tables.counted("METRIC#")
    assert counted == tables.counted("HOUR#")
    assert sum(shard.rejected for shard in progress.values()) == len(tables.rejected())


def assert_receipts_agree(tables: Tables, sent: Iterable[Sent]) -> None:
    """Each receipt names the place in the stream where the event is."""
    places = {
        f"kinesis:{shard_id}:{number}:": data
        for shard_id, records in tables.records().items()
        for number, data in records
    }
    for event in sent:
        if event.receipt.startswith("kinesis:"):
            place, _, index = event.receipt.rpartition(":")
            held = json.loads(places[place + ":"], parse_float=Decimal)["events"][int(index)]
            assert (held["tenant_id"], held["metric"]) == (event.tenant_id, event.metric)
            assert Decimal(held["value"]) == event.value


def _events(tables: Tables) -> int:
    rows = tables.rows().items()
    return sum(n for (pk, sk), (_, n) in rows if sk.startswith("METRIC#") and pk.startswith(f"TENANT#{TENANT_PREFIX}"))


class Load:
    """Posts events of many kinds from several threads until the end of the block; every one must be answered 202.

    events_s: events a second, all threads together. tenants: how many; each has all METRICS.
    """

    def __init__(
        self, url: str, truth: Truth, *, name: str, events_s: float = 80.0, threads: int = 6, tenants: int = 12
    ) -> None:
        self._url = f"{url}/v1/usage"
        self._truth = truth
        self._name = name
        self._interval_s = threads / events_s
        self._tenants = [f"{TENANT_PREFIX}{name}-{number}" for number in range(tenants - 1)]
        self._tenants.append(f"{TENANT_PREFIX}{name}-Müller@Søndergård")
        self._stop = threading.Event()
        self._failures: list[str] = []
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(threads)]
        self.answered = 0

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        if error is None:
            assert not self._failures, f"{len(self._failures)} events were not accepted: {self._failures[:3]}"

    def await_events(self, count: int) -> None:
        """Wait until `count` more events have been answered."""
        goal = self.answered + count
        until(lambda: self.answered >= goal or self._failures, f"{count} more events are accepted")

    def _run(self, number: int) -> None:
        choose = random.Random(f"{self._name} {number}")  # noqa: S311 - the same load each time
        due_at = time.monotonic() + choose.random() * self._interval_s
        count = 0
        with requests.Session() as session:
            while not self._stop.wait(max(0.0, due_at - time.monotonic())):
                due_at += self._interval_s
                event_id = f"{self._name}-{number}-{count}" if choose.random() < 0.5 else None
                try:
                    sent = post(session, self._url, choose, choose.choice(self._tenants), event_id)
                except (requests.RequestException, AssertionError) as error:
                    self._failures.append(repr(error))
                    return
                self._truth.add(sent)
                self.answered += 1  # threads may miss one: it only paces the test
                count += 1


def post(session: requests.Session, url: str, choose: random.Random, tenant_id: str, event_id: str | None) -> Sent:
    """Post one event of random content; fail unless it is answered 202."""
    metric, value = choose.choice(METRICS), choose.choice(VALUES)
    occurred_at, timestamp = _time(choose)
    fields = {"tenant_id": tenant_id, "metric": metric, "timestamp": timestamp, "event_id": event_id}
    text = json.dumps({name: field for name, field in fields.items() if field is not None})
    number = value if choose.random() < 0.5 else json.dumps(value)  # a JSON number, or a decimal string
    body = f'{text[:-1]}, "value": {number}}}'
    answer = session.post(url, data=body.encode(), headers={"Content-Type": "application/json"}, timeout=ANSWER_S)
    held_at = datetime.now(UTC)
    assert answer.status_code == 202, f"{answer.status_code} {answer.text}"
    receipt = answer.json()["event_id"]
    assert receipt == event_id if event_id else receipt.startswith("kinesis:")
    return Sent(tenant_id, metric, Decimal(value), occurred_at, held_at, receipt)


def _time(choose: random.Random) -> tuple[datetime, str | None]:
    """A time of some window, with its text; or now, with none, unless the hour is about to end."""
    now = datetime.now(UTC)
    if choose.random() < 0.2 and now.minute < 59:
        return now, None
    start = datetime(2024, 1, 31, 22, tzinfo=UTC) + timedelta(hours=choose.randrange(4))
    moment = start + choose.choice([timedelta(0), timedelta(minutes=30), timedelta(hours=1, microseconds=-1)])
    zone = choose.choice(["Z", "+05:30", "-08:00"])
    if zone == "Z":
        return moment, moment.replace(tzinfo=None).isoformat() + "Z"
    offset = timedelta(hours=int(zone[:3]), minutes=int(zone[0] + zone[4:]))
    return moment, (moment + offset).replace(tzinfo=None).isoformat() + zone
