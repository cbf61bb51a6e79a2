"""The collector in front of a real stream: every format ends in the totals, and an answer is kept whatever fails."""

from __future__ import annotations

import gzip
import json
import os
import random
import signal
import threading
import time
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any
from uuid import uuid4

import psutil
import requests

from tests.e2e.gate import Gate
from tests.e2e.parts import Parts
from tests.e2e.processes import until
from tests.e2e.tables import Tables

AWAY_S = float(os.environ.get("AWAY_S", "10"))
"""How long Kinesis is away."""
CLIENTS = 4
TIME = "2024-01-15T10:00:00Z"


def usage(tenant_id: str, value: object, event_id: str | None = None) -> dict[str, object]:
    event: dict[str, object] = {"tenant_id": tenant_id, "metric": "api_calls", "value": value, "timestamp": TIME}
    return event if event_id is None else {**event, "event_id": event_id}


def cloud_event(tenant_id: str, value: object, event_id: str, source: str = "/gateway") -> dict[str, object]:
    return {
        "specversion": "1.0",
        "id": event_id,
        "source": source,
        "type": "api_calls",
        "subject": tenant_id,
        "time": TIME,
        "data": {"value": value},
    }


def test_every_format_ends_in_the_totals_once_however_often_it_is_sent(parts: Parts) -> None:
    pipeline = parts.named("formats")
    pipeline.set_up()
    many = [usage("array", n, f"a-{n}") for n in range(200)]
    lines = b"\n".join(json.dumps(usage("lines", "0.5", f"l-{n}")).encode() for n in range(300))
    binary = {name: str(value) for name, value in cloud_event("cloud", 0, "c-3").items() if name != "data"}
    requests_of: list[tuple[str, bytes, dict[str, str]]] = [
        ("application/json", json.dumps(usage("single", 7, "s-1")).encode(), {}),
        ("application/json", json.dumps(many).encode(), {}),
        ("application/x-ndjson", gzip.compress(lines), {"Content-Encoding": "gzip"}),
        ("application/cloudevents+json", json.dumps(cloud_event("cloud", 1, "c-1")).encode(), {}),
        (
            "application/cloudevents-batch+json",
            json.dumps([cloud_event("cloud", 2, "c-2"), cloud_event("cloud", 4, "c-2", "/other")]).encode(),
            {},
        ),
        ("application/json", b'{"value": 8}', {f"ce-{name}": value for name, value in binary.items()}),
    ]
    wanted = {"single": (7, 1), "array": (19_900, 200), "lines": (150, 300), "cloud": (15, 4)}
    with pipeline.tables() as tables, pipeline.collector() as url, pipeline.consumer():
        for _ in range(2):
            for media_type, body, headers in requests_of:
                answer = requests.post(
                    f"{url}/v1/usage", data=body, headers={"Content-Type": media_type, **headers}, timeout=60
                )
                assert answer.status_code == 202, answer.text
        sent = 2 * sum(events for _, events in wanted.values())
        until(
            lambda: sum(shard.events for shard in tables.progress().values()) >= sent,
            "all that was sent is accounted for",
            timeout_s=120,
        )
        totals = {pk: row for (pk, sk), row in tables.rows().items() if sk.startswith("METRIC#")}
        assert totals == {f"TENANT#{name}": (Decimal(value), events) for name, (value, events) in wanted.items()}
        assert sum(shard.duplicates for shard in tables.progress().values()) == sent // 2


@dataclass
class Verdicts:
    """What clients were told of their events, by event_id."""

    accepted: set[str] = field(default_factory=set)
    not_held: set[str] = field(default_factory=set)
    unknown: set[str] = field(default_factory=set)
    statuses: list[int] = field(default_factory=list)


class Clients:
    """Threads that post single events, arrays and NDJSON until the end of the block, each event once."""

    def __init__(self, url: str) -> None:
        self.verdicts = Verdicts()
        self._url = f"{url}/v1/usage"
        self._end = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(CLIENTS)]

    def __enter__(self) -> Verdicts:
        for thread in self._threads:
            thread.start()
        return self.verdicts

    def __exit__(self, *_: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join(60)

    def _run(self, number: int) -> None:
        choose = random.Random(number)  # noqa: S311 - which events, not a secret
        with requests.Session() as session:
            while not self._end.is_set():
                ids = [uuid4().hex for _ in range(choose.choice([1, 20, 300]))]
                events = [usage(f"tenant-{choose.randrange(40)}", 1, event_id) for event_id in ids]
                self._post(session, ids, events, ndjson=choose.random() < 0.3)

    def _post(
        self, session: requests.Session, ids: list[str], events: list[dict[str, object]], *, ndjson: bool
    ) -> None:
        if ndjson:
            body, media_type = "\n".join(map(json.dumps, events)), "application/x-ndjson"
        else:
            body, media_type = json.dumps(events if len(events) > 1 else events[0]), "application/json"
        try:
            answer = session.post(self._url, data=body, headers={"Content-Type": media_type}, timeout=60)
        except requests.RequestException:
            self.verdicts.unknown |= set(ids)
            time.sleep(0.05)
            return
        self.verdicts.statuses.append(answer.status_code)
        told: Any = answer.json()
        results = told.get("results")
        if results is None:
            results = [{"index": 0, "status": told["status"], "held": told.get("held")}] if len(ids) == 1 else []
        for result in results:
            self._note(ids[result["index"]], result)
        if answer.status_code == 429:
            self.verdicts.not_held |= set(ids)
            time.sleep(0.2)

    def _note(self, event_id: str, result: dict[str, Any]) -> None:
        if result["status"] == "accepted":
            self.verdicts.accepted.add(event_id)
        elif result.get("held") == "no":
            self.verdicts.not_held.add(event_id)
        else:
            self.verdicts.unknown.add(event_id)


def held(tables: Tables) -> set[str]:
    """The ids of all events that the stream holds."""
    records = [data for records in tables.records().values() for _, data in records]
    return {event["event_id"] for data in records for event in json.loads(data)["events"]}


def assert_kept(tables: Tables, verdicts: Verdicts) -> None:
    on_stream = held(tables)
    assert verdicts.accepted <= on_stream, f"{len(verdicts.accepted - on_stream)} accepted, and not held"
    assert not verdicts.not_held & on_stream, f"{len(verdicts.not_held & on_stream)} held, and answered as not"


def test_a_stream_that_is_away_costs_no_accepted_event_and_the_collector_recovers_by_itself(parts: Parts) -> None:
    pipeline = parts.named("away")
    pipeline.set_up()
    with Gate(pipeline.environment["AWS_ENDPOINT_URL_KINESIS"]) as gate, pipeline.tables() as tables:
        pipeline.environment |= {"AWS_ENDPOINT_URL_KINESIS": gate.url, "COLLECTOR_DEADLINE_MS": "2000"}
        with pipeline.collector() as url, Clients(url) as verdicts:
            until(lambda: len(verdicts.accepted) > 500, "events are accepted")
            gate.shut()
            until(lambda: 503 in verdicts.statuses, "events are refused")
            before = len(verdicts.accepted)
            away_until = time.monotonic() + AWAY_S
            until(lambda: time.monotonic() > away_until, "the time is over", timeout_s=AWAY_S + 10)
            assert len(verdicts.accepted) == before
            assert set(verdicts.statuses) <= {202, 503, 429}
            gate.open()
            until(lambda: len(verdicts.accepted) > before + 500, "events are accepted again")
        assert_kept(tables, verdicts)


def test_a_killed_worker_and_a_graceful_stop_cost_no_accepted_event(parts: Parts) -> None:
    pipeline = parts.named("killed")
    pipeline.set_up()
    with pipeline.tables() as tables:
        with pipeline.collector() as url, Clients(url) as verdicts:
            [master] = [
                process
                for process in psutil.Process().children(recursive=True)
                if process.environ().get("COLLECTOR_PORT") == url.rsplit(":", 1)[1]
                and process.parent() == psutil.Process()
            ]
            for _ in range(3):
                before = len(verdicts.accepted)
                until(lambda before=before: len(verdicts.accepted) > before + 500, "events are accepted")  # type: ignore[misc]
                for worker in master.children():
                    worker.send_signal(signal.SIGKILL)
            before = len(verdicts.accepted)
            until(lambda: len(verdicts.accepted) > before + 500, "events are accepted again")
            master.send_signal(signal.SIGTERM)
            until(lambda: not master.is_running() or master.status() == psutil.STATUS_ZOMBIE, "it stops")
        assert verdicts.unknown
        assert_kept(tables, verdicts)
