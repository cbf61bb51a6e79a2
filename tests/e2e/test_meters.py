"""max and latest on the real stack: exact under late events, kills and a replay of the whole stream."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

from tests.e2e.parts import Parts, Pipeline
from tests.e2e.processes import METERING, LogFollower, Started, processes_of, ran, until
from tests.e2e.stack import kill
from tests.e2e.tables import Tables
from tests.e2e.truth import COUNTED_S, Load, Truth, assert_counted_exactly

METERS = "meters: {storage.gb: {unit: GB, aggregation: max}, 'sms:out': {aggregation: latest}}"
KILLS = 3
AGAIN_S = 60.0
HOURS = {"from": "2024-01-31T22:00:00Z", "to": "2024-02-01T03:00:00Z"}
"""When the load's events happened, but for those of now."""


@dataclass(frozen=True, order=True)
class Happened:
    """An event on the stream, in the order of the latest. time: of the event; place: shard, sequence number, index."""

    time: datetime
    arrived_at: datetime
    place: tuple[str, int, int]
    value: Decimal


@pytest.fixture
def pipeline(parts: Parts, tmp_path: Path) -> Pipeline:
    found = parts.named("meters")
    path = tmp_path / "meters.yaml"
    path.write_text(METERS)
    found.environment |= {"METERS_FILE": str(path)}
    found.set_up()
    return found


def test_max_and_latest_are_exact_after_kills_and_a_replay_of_the_whole_stream(pipeline: Pipeline) -> None:
    truth = Truth()
    with pipeline.tables() as tables, pipeline.collector() as url:
        with pipeline.consumer() as supervisor:
            with Load(url, truth, name="meters") as load:
                for number in range(KILLS):
                    load.await_events(40)
                    _await_batch(supervisor)
                    kill(_daemon(pipeline) if number % 2 else _record_processor(pipeline))
                load.await_events(40)
            assert_counted_exactly(tables, truth)
        counted, events = _counter_items(tables), _events_by_row(tables)
        for key, item in counted.items():
            _assert_row(key, item, events)
        code, output, errors = ran([METERING, "audit", "--strict"], pipeline.environment)
        assert code == 0, output + errors

        _replay_all(pipeline)
        assert _counter_items(tables) == counted
    with pipeline.billing() as url:
        _assert_billed(url, counted, events)


def _replay_all(pipeline: Pipeline) -> None:
    """Read the stream again from its oldest record on: by another application's leases."""
    pipeline.environment["KCL_APPLICATION"] = "meters-again"
    pipeline.set_up()
    with pipeline.tables() as tables, pipeline.consumer():
        last = {shard: records[-1][0] for shard, records in tables.records().items() if records}
        until(
            lambda: {shard: at for shard, at in tables.checkpoints().items() if shard in last} == last,
            lambda: f"all is read again, {last}: {tables.checkpoints()}",
            timeout_s=COUNTED_S,
        )


# ── What the stream says ─────────────────────────────────────────────────────────────────────────────────────────────


def _events_by_row(tables: Tables) -> dict[tuple[str, str], list[Happened]]:
    """The events that each total and window of a meter with max or latest must be of."""
    rows = defaultdict(list)
    for shard_id, record in _records(tables):
        arrived_at = record["ApproximateArrivalTimestamp"].astimezone(UTC)
        arrived_at = arrived_at.replace(microsecond=arrived_at.microsecond // 1000 * 1000)
        for index, event in enumerate(json.loads(record["Data"])["events"]):
            time = datetime.fromisoformat(event.get("timestamp", event["received_at"])).astimezone(UTC)
            place = (shard_id, int(record["SequenceNumber"]), index)
            happened = Happened(time, arrived_at, place, Decimal(event["value"]))
            for sk in (f"METRIC#{event['metric']}", f"HOUR#{event['metric']}#{time:%Y-%m-%dT%H}"):
                rows[f"TENANT#{event['tenant_id']}", sk].append(happened)
    return rows


def _records(tables: Tables) -> Iterator[tuple[str, Any]]:
    stream = tables.settings.stream
    for shard in tables.kinesis.list_shards(StreamName=stream)["Shards"]:
        iterator: str | None = tables.kinesis.get_shard_iterator(
            StreamName=stream, ShardId=shard["ShardId"], ShardIteratorType="TRIM_HORIZON"
        )["ShardIterator"]
        while iterator:
            page = tables.kinesis.get_records(ShardIterator=iterator)
            yield from ((shard["ShardId"], record) for record in page["Records"])
            iterator = page.get("NextShardIterator") if page["MillisBehindLatest"] or page["Records"] else None


def _counter_items(tables: Tables) -> dict[tuple[str, str], Any]:
    items = tables.items(tables.settings.table)
    return {(item["pk"]["S"], item["sk"]["S"]): item for item in items if item["pk"]["S"].startswith("TENANT#")}


def _assert_row(key: tuple[str, str], item: Any, events: dict[tuple[str, str], list[Happened]]) -> None:
    if "#api_calls" in key[1]:
        assert not item.keys() & {"max", "max_at", "max_events", "latest", "latest_at", "latest_events"}, key
        return
    name = _aggregation(key)
    top = _top(key, events)
    number, index = top.place[1:]
    assert Decimal(item[name]["N"]) == top.value, (key, item, top)
    assert item[f"{name}_at"]["S"].startswith(f"{top.time:%Y-%m-%dT%H:%M:%S.%f}Z#"), (key, item, top)
    assert item[f"{name}_at"]["S"].endswith(f"@{len(str(number)):03d}{number}#{index:05d}"), (key, item, top)
    assert item[f"{name}_events"] == item["events"] == {"N": str(len(events[key]))}, (key, item)


def _aggregation(key: tuple[str, str]) -> str:
    return "max" if "#storage.gb" in key[1] else "latest"


def _top(key: tuple[str, str], events: dict[tuple[str, str], list[Happened]]) -> Happened:
    if _aggregation(key) == "max":
        return max(events[key], key=lambda happened: (happened.value, happened))
    return max(events[key])


def _assert_billed(
    url: str, counted: dict[tuple[str, str], Any], events: dict[tuple[str, str], list[Happened]]
) -> None:
    totals = [key for key in counted if key[1].startswith("METRIC#") and "api_calls" not in key[1]]
    assert totals
    for pk, sk in totals:
        metric = sk.removeprefix("METRIC#")
        path = f"{url}/v1/tenants/{pk.removeprefix('TENANT#')}/usage/{metric}"
        total = requests.get(path, timeout=30).json(parse_float=Decimal, parse_int=Decimal)
        assert total["usage"] == _top((pk, sk), events).value
        assert total["aggregation"] == _aggregation((pk, sk))
        by_hour = requests.get(path, params={**HOURS, "window": "hour"}, timeout=30)
        for window in by_hour.json(parse_float=Decimal, parse_int=Decimal)["windows"]:
            start = datetime.fromisoformat(window["start"])
            row = (pk, f"HOUR#{metric}#{start:%Y-%m-%dT%H}")
            assert window["usage"] == (_top(row, events).value if row in events else 0), (row, window)
        in_range = requests.get(path, params=HOURS, timeout=30).json(parse_float=Decimal, parse_int=Decimal)
        within = [one for one in events[pk, sk] if one.time < datetime(2024, 2, 2, tzinfo=UTC)]
        assert in_range["usage"] == _top((pk, sk), {(pk, sk): within}).value
        assert in_range["events"] == len(within)


# ── Processes ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _await_batch(supervisor: Started) -> None:
    log = LogFollower(supervisor.log)
    until(lambda: log.saw("Received "), "a batch is received", timeout_s=AGAIN_S)


def _daemon(pipeline: Pipeline) -> psutil.Process:
    return next(each for each in processes_of(pipeline.folder) if "java" in each.name())


def _record_processor(pipeline: Pipeline) -> psutil.Process:
    return _daemon(pipeline).children()[0]
