"""The collector under load: how near it comes to what Flask and gunicorn allow, and how far it leaves the old way.

One gunicorn worker, the collector's own settings: one Python process, and so one core at most. What is compared runs
in turns, in one run, and the ratios of neighbours count. The load has the machine's other core, if there are two.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

from bench.http_load import LoadResult, load
from bench.pipeline import Figure
from devstack.tools import kinesis_mock_command
from metering.aws import kinesis_client
from metering.settings import Settings
from operations.provision import make_stream
from tests.local_stack import free_port, running

ROUNDS = 5
ROUND_S = 4.0
CONNECTIONS = 64
STREAM_CONNECTIONS = 256
"""To a stream that takes its time: as many as one worker serves at once."""
BATCH_EVENTS = 500
BATCH_CONNECTIONS = 8
COUNTERS = 100
COUNTERS_FEW = 10
STEADY_S = 600.0
STEADY_REQUESTS_S = 200.0


def collector() -> Iterator[Figure]:
    """Single events and batches, against the ceiling and against one PutRecord for each event."""
    with tempfile.TemporaryDirectory() as folder:
        yield from _against_the_ceiling(Path(folder))
        yield from _against_the_old_way(Path(folder))


def steady() -> Iterator[Figure]:
    """Memory of the collector's worker under a steady load for ten minutes: of its last minute against its second."""
    with tempfile.TemporaryDirectory() as folder, _served(Path(folder), "in_memory") as (port, worker):
        sizes: list[int] = []
        bodies = [*_events(200), _batch(0)]
        load(
            port,
            bodies,
            duration_s=STEADY_S,
            connections=CONNECTIONS,
            requests_s=STEADY_REQUESTS_S,
            meanwhile=lambda: sizes.append(worker.memory_info().rss),
        )
    early, late = sizes[60:120], sizes[-60:]
    yield Figure("memory, second minute", [size / 1e6 for size in early], "MB", "-")
    yield Figure("memory, last minute of ten", [size / 1e6 for size in late], "MB", "flat")
    yield Figure("  last / second", [statistics.median(late) / statistics.median(early)], "x", "about 1")


def _against_the_ceiling(folder: Path) -> Iterator[Figure]:
    bodies, batches = _events(1000), [_batch(number) for number in range(50)]
    ceiling, ours, batched, batch_ceiling, ceiling_us, ours_us, batched_us = [], [], [], [], [], [], []
    with _served(folder, "constant") as (constant, bare), _served(folder, "in_memory") as (in_memory, worker):
        for _ in range(ROUNDS):
            for port, process, rates, costs in (
                (constant, bare, ceiling, ceiling_us),
                (in_memory, worker, ours, ours_us),
            ):
                rate, cost_us = _round_and_cost(port, process, bodies, CONNECTIONS)
                rates.append(rate)
                costs.append(cost_us)
            batch_ceiling.append(_round(constant, batches, BATCH_CONNECTIONS).requests_s * BATCH_EVENTS)
            rate, cost_us = _round_and_cost(in_memory, worker, batches, BATCH_CONNECTIONS)
            batched.append(rate * BATCH_EVENTS)
            batched_us.append(cost_us / BATCH_EVENTS)
        half = statistics.median(ours) / 2
        at_half = load(in_memory, bodies, duration_s=10, connections=CONNECTIONS, requests_s=half)
    yield Figure("single events: a Flask route that returns a constant", ceiling, "/s", "the ceiling")
    yield Figure("single events: the collector, stream in memory", ours, "/s", "-")
    ratios = [100 * mine / limit for mine, limit in zip(ours, ceiling, strict=True)]
    yield Figure("  of the ceiling", ratios, "%", ">= 70 %")
    ratios = [100 * limit / mine for mine, limit in zip(ours_us, ceiling_us, strict=True)]
    yield Figure("  of the ceiling, by the CPU of a request", ratios, "%", "-")
    yield Figure("batches of 500: the ceiling", batch_ceiling, "events/s", "-")
    yield Figure("batches of 500: the collector", batched, "events/s", "-")
    yield Figure("  for each second of its CPU", [1e6 / cost for cost in batched_us], "events/s", ">= 150,000")
    yield Figure(f"at half the most ({half:.0f}/s), p50", [at_half.percentile_s(50) * 1000], "ms", "-")
    yield Figure(f"at half the most ({half:.0f}/s), p99", [at_half.percentile_s(99) * 1000], "ms", "-")


def _against_the_old_way(folder: Path) -> Iterator[Figure]:
    """Few counters, whose events share records, and many: the emulator's time goes by records, not by calls."""
    port = free_port()
    environment = {
        "AWS_ENDPOINT_URL_KINESIS": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": os.environ["AWS_ACCESS_KEY_ID"],
        "AWS_SECRET_ACCESS_KEY": os.environ["AWS_SECRET_ACCESS_KEY"],
    }
    with running(kinesis_mock_command(port, folder / "kinesis", "us-east-1"), port, folder / "kinesis.log"):
        settings = Settings.from_environment(environment)
        make_stream(kinesis_client(settings), settings)
        with (
            _served(folder, "one_put_each", **environment) as (each, _),
            _served(folder, None, **environment) as (shared, _),
        ):
            for counters in (COUNTERS_FEW, COUNTERS):
                bodies = _events(1000, counters)
                old, ours = [], []
                for _ in range(ROUNDS):
                    old.append(_round(each, bodies, STREAM_CONNECTIONS).requests_s)
                    ours.append(_round(shared, bodies, STREAM_CONNECTIONS).requests_s)
                yield Figure(f"kinesis-mock, {counters} counters: one PutRecord for each", old, "/s", "the old way")
                yield Figure(f"kinesis-mock, {counters} counters: the collector", ours, "/s", "-")
                ratios = [mine / theirs for mine, theirs in zip(ours, old, strict=True)]
                yield Figure("  times the old way", ratios, "x", ">= 5 x")


def _round(port: int, bodies: Sequence[bytes], connections: int = CONNECTIONS) -> LoadResult:
    return load(port, bodies, duration_s=ROUND_S, connections=connections)


def _round_and_cost(
    port: int, worker: psutil.Process, bodies: Sequence[bytes], connections: int
) -> tuple[float, float]:
    """Return requests a second, and microseconds of the worker's CPU for each."""
    used_s = _cpu_s(worker)
    result = _round(port, bodies, connections)
    return result.requests_s, (_cpu_s(worker) - used_s) / len(result.latencies_s) * 1e6


def _cpu_s(worker: psutil.Process) -> float:
    times = worker.cpu_times()
    return times.user + times.system


@contextmanager
def _served(folder: Path, app: str | None, **environment: str) -> Iterator[tuple[int, psutil.Process]]:
    """Serve an app of bench/collector_apps.py, or the collector itself; give its port and its one worker."""
    port = free_port()
    log = folder / f"{app}.log"
    arguments = [] if app is None else [f"bench.collector_apps:{app}()"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "collector", *arguments],
            env={
                **{name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ},
                "COLLECTOR_PORT": str(port),
                "WEB_CONCURRENCY": "1",
                "LOG_LEVEL": "WARNING",
                **environment,
            },
            stdout=output,
            stderr=output,
        )
    try:
        worker = _worker(process, port, log)
        load(port, _events(10), duration_s=1, connections=CONNECTIONS)  # its threads start with the first requests
        yield port, worker
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _worker(process: subprocess.Popen[bytes], port: int, log: Path) -> psutil.Process:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        children = psutil.Process(process.pid).children()
        try:
            load(port, _events(1), duration_s=0.01, connections=1)
        except OSError:
            time.sleep(0.1)
        else:
            [worker] = children
            return worker
    raise RuntimeError(f"gunicorn does not serve: {log.read_text(errors='replace')[-2000:]}")


def _event(number: int, counters: int = COUNTERS) -> dict[str, object]:
    return {
        "tenant_id": f"tenant-{number * 7 % counters}",
        "metric": "api_calls",
        "value": number % 13 + 1,
        "timestamp": f"2026-11-01T10:{number // 60 % 60:02}:{number % 60:02}.{number % 1000:03}Z",
        "event_id": f"req-{number:08}",
    }


def _events(count: int, counters: int = COUNTERS) -> list[bytes]:
    return [json.dumps(_event(number, counters)).encode() for number in range(count)]


def _batch(number: int) -> bytes:
    return json.dumps([_event(number * BATCH_EVENTS + each) for each in range(BATCH_EVENTS)]).encode()
