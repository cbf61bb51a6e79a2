"""What a question to billing takes, and that it takes no longer with more tenants; the table is DynamoDB Local's.

And an export, which takes as long as there are tenants, and no more memory.

Billing is served as it is everywhere: its own gunicorn, which has the machine's cores together with DynamoDB Local and
with whoever asks. The table lies in memory where there is such a place, for the sake of the loading alone.
"""

from __future__ import annotations

import http.client
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import boto3
import psutil

from bench.pipeline import Figure
from billing.checksum import whole_rows
from devstack.tools import dynamodb_local_command
from metering.aws import dynamodb_client
from metering.dynamodb import DynamoCounterStore
from metering.dynamodb_windows import DynamoWindowReader
from metering.events import time_text
from metering.local_time import Period, spans, zone_named
from metering.ports import ShardRef
from metering.settings import Settings
from metering.windows import usage_of
from operations.provision import make_tables, tables
from tests.counter_rows import LOADERS, tenant_items, write_items
from tests.local_stack import free_port, running

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

TENANTS = (1, 100, 10_000)
ROWS_OF_OTHERS = 75
"""Hours with usage of each tenant but the one that is asked about, which has a whole year of them."""
YEAR = (datetime(2024, 1, 1, tzinfo=UTC), datetime(2025, 1, 1, tzinfo=UTC))
_USAGE = "/v1/tenants/tenant-0/usage/api_calls"
ASKED = {
    "a year by day, Europe/Berlin": (
        f"{_USAGE}?from=2024-01-01&to=2025-01-01&window=day&timezone=Europe/Berlin",
        "p50 <= 40 ms",
    ),
    "a year by day, UTC": (f"{_USAGE}?from=2024-01-01&to=2025-01-01&window=day", "p50 <= 40 ms"),
    "a month by hour, Europe/Berlin": (
        f"{_USAGE}?from=2024-07&to=2024-08&window=hour&timezone=Europe/Berlin",
        "p50 <= 15 ms",
    ),
    "an invoice of 10 metrics": ("/v1/tenants/invoiced/invoice?period=2024-01", "p50 <= 100 ms"),
}
INVOICED = tuple(f"metric-{number}" for number in range(10))
"""Each has usage in every hour of January."""
PRICE = "{model: graduated, free: 1000, tiers: [{up_to: 10000, unit_price: '0.01'}, {unit_price: '0.005'}]}"
PLANS = "\n  ".join(
    ["default_plan: standard\nplans: {standard: {currency: EUR, flat_fee: '49.00', minimum: '0', metrics: {"]
    + [f"{metric}: {PRICE}," for metric in INVOICED]
    + ["}}}\n"]
)
EXPORT = "/v1/export?period=2024-01&format=csv"
WARM_UP = 60
REQUESTS = 200
ROUNDS = 40


def billing() -> Iterator[Figure]:
    """Service time of a metric's usage by window at several numbers of tenants, and of its parts."""
    memory = Path("/dev/shm")  # noqa: S108 - the bench's own folder within it
    with (
        tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder,
        _dynamodb(Path(folder)) as settings,
        closing(dynamodb_client(settings, connections_max=2 * LOADERS)) as client,
    ):
        make_tables(client, tables(settings)[:3])
        _open_shards(client, settings)
        (Path(folder) / "plans.yaml").write_text(PLANS)
        write_items(client, settings.table, tenant_items("invoiced", INVOICED, YEAR[0], 31 * 24))
        yield from _against_botocore(client, settings)
        quickest: dict[str, list[float]] = {}
        peaks: list[float] = []
        loaded = 0
        for tenants in TENANTS:
            _load(client, settings, range(loaded, tenants))
            loaded = tenants
            with _served(settings, Path(folder)) as (port, worker):
                for what, (path, target) in ASKED.items():
                    _latencies_ms(port, path, WARM_UP)
                    cpu_s = _cpu_s(worker)
                    latencies_ms = sorted(_latencies_ms(port, path, REQUESTS))
                    cpu_ms = (_cpu_s(worker) - cpu_s) * 1000 / REQUESTS
                    quickest.setdefault(what, []).append(latencies_ms[REQUESTS // 10])
                    yield Figure(f"{what}; {tenants} tenants", latencies_ms, "ms", target)
                    yield Figure("  p99", [latencies_ms[REQUESTS * 99 // 100]], "ms", "-")
                    yield Figure("  CPU of billing's worker for each", [cpu_ms], "ms", "-")
            with _served(settings, Path(folder)) as (port, worker):
                yield from _exported(port, worker, tenants, peaks)
        yield Figure(f"export: peak memory, {TENANTS[-1]} / {TENANTS[-2]} tenants", [peaks[-1] / peaks[-2]], "x", "1")
        for what, found in quickest.items():
            # What else runs on the machine only makes a request slower: the quickest tenth tells most of our own.
            ratio = found[-1] / found[0]
            yield Figure(f"{what}: the quickest tenth, {TENANTS[-1]} / 1", [ratio], "x", "about 1")


def _against_botocore(client: DynamoDBClient, settings: Settings) -> Iterator[Figure]:
    """Read and sum a year of hours, in this process, in turns: botocore's way of reading answers, and ours."""
    _load(client, settings, range(1))
    days = list(spans(*YEAR, Period.DAY, zone_named("Europe/Berlin")))
    plain = boto3.session.Session(region_name=settings.region).client(
        "dynamodb", endpoint_url=settings.dynamodb_endpoint
    )
    with ThreadPoolExecutor(4) as executor, closing(plain):
        readers = {
            "botocore's parser": DynamoWindowReader(plain, table=settings.table, window_minutes=60),
            "our parser": DynamoWindowReader(client, table=settings.table, window_minutes=60),
            "our parser, parts side by side": DynamoWindowReader(
                client, table=settings.table, window_minutes=60, executor=executor
            ),
        }
        took: dict[str, list[float]] = {what: [] for what in readers}
        for _ in range(ROUNDS):
            for what, reader in readers.items():
                took[what].append(_milliseconds(lambda reader=reader: usage_of(reader, "tenant-0", "api_calls", days)))  # type: ignore[misc]
    for what, runs in took.items():
        yield Figure(f"a year of hours read and summed: {what}", runs[ROUNDS // 2 :], "ms", "-")


def _cpu_s(worker: psutil.Process) -> float:
    times = worker.cpu_times()
    return times.user + times.system


def _latencies_ms(port: int, path: str, requests: int) -> list[float]:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:

        def ask() -> None:
            connection.request("GET", path)
            answer = connection.getresponse()
            body = answer.read()
            if answer.status != 200:
                raise RuntimeError(f"{answer.status}: {body[:500]!r}")

        return [_milliseconds(ask) for _ in range(requests)]


def _milliseconds(call: Callable[[], object]) -> float:
    begun_at = time.perf_counter()
    call()
    return (time.perf_counter() - begun_at) * 1000


def _exported(port: int, worker: psutil.Process, tenants: int, peaks: list[float]) -> Iterator[Figure]:
    """Export all tenants from a service that has just started; put its peak of memory in MB behind `peaks`."""
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        connection.request("GET", f"{EXPORT}&min_as_of={time_text(YEAR[0])}")  # as quick, and all is imported
        cpu_s, begun_at = _cpu_s(worker), time.perf_counter()
        rows = whole_rows(connection.getresponse())  # type: ignore[arg-type]  # it has the one method that is used
        took_s = time.perf_counter() - begun_at
    [status] = [line for line in Path(f"/proc/{worker.pid}/status").read_text().splitlines() if "VmHWM" in line]
    peaks.append(int(status.split()[1]) / 1024)
    yield Figure(f"an export of {tenants} tenants, {rows} rows", [rows / took_s], "rows/s", "-")
    yield Figure("  CPU of billing's worker for each row", [(_cpu_s(worker) - cpu_s) * 1000 / rows], "ms", "-")
    yield Figure("  peak memory of billing's worker", [peaks[-1]], "MB", "-")


def _load(client: DynamoDBClient, settings: Settings, tenants: Sequence[int]) -> None:
    """Write the rows of tenants; tenant 0 has an hour for each of the year."""
    hours_of_year = (YEAR[1] - YEAR[0]) // timedelta(hours=1)
    write_items(
        client,
        settings.table,
        (
            item
            for tenant in tenants
            for item in tenant_items(
                f"tenant-{tenant}", ["api_calls"], YEAR[0], ROWS_OF_OTHERS if tenant else hours_of_year
            )
        ),
    )


def _open_shards(client: DynamoDBClient, settings: Settings) -> None:
    store = DynamoCounterStore(client, table=settings.table, rejected_table="-", rejected_ttl_days=1)
    now = datetime.now(UTC)
    for number in range(4):
        store.open_shard(ShardRef(settings.stream, YEAR[0], f"shardId-{number:012d}"), complete_until=now, now=now)


@contextmanager
def _dynamodb(folder: Path) -> Iterator[Settings]:
    port = free_port()
    with running(dynamodb_local_command(port, folder / "tables"), port, folder / "dynamodb.log") as endpoint:
        yield replace(Settings.from_environment({}), dynamodb_endpoint=endpoint)


@contextmanager
def _served(settings: Settings, folder: Path) -> Iterator[tuple[int, psutil.Process]]:
    """Run billing; give its port and its worker once it answers."""
    port = free_port()
    environment = os.environ | {
        "BILLING_PORT": str(port),
        "AWS_ENDPOINT_URL_DYNAMODB": str(settings.dynamodb_endpoint),
        "LOG_LEVEL": "WARNING",
        "PLANS_FILE": str(folder / "plans.yaml"),
    }
    with (folder / "billing.log").open("ab") as log:
        process = subprocess.Popen([sys.executable, "-m", "billing"], env=environment, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 60
        while not _ready(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((folder / "billing.log").read_text()[-2000:])
            time.sleep(0.05)
        [worker] = psutil.Process(process.pid).children()
        yield port, worker
    finally:
        process.terminate()
        process.wait(30)


def _ready(port: int) -> bool:
    try:
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=5)) as connection:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == 200
    except OSError:
        return False
