"""The parts of the pipeline one by one, as on AWS: a test starts them in its own order, on tables of its own."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import requests

from devstack.tools import dynamodb_local_command, kinesis_mock_command
from metering.settings import Settings
from operations.up import LOCAL_KCL_PROPERTIES
from tests.e2e.processes import (
    METERING,
    Started,
    clean_environment,
    end_all_of,
    json_lines,
    processes_of,
    ran,
    started,
    until,
)
from tests.e2e.tables import Tables
from tests.local_stack import free_port, running

REGION = "us-east-1"
WEB_SERVICE_S = 60.0


@contextmanager
def emulators(folder: Path) -> Iterator[tuple[str, str]]:
    """Run both emulators; give the URLs of kinesis-mock and DynamoDB Local."""
    with ExitStack() as stack:
        port = free_port()
        dynamodb_url = stack.enter_context(
            running(dynamodb_local_command(port, folder / "dynamodb"), port, folder / "dynamodb.log")
        )
        port = free_port()
        kinesis_url = stack.enter_context(
            running(kinesis_mock_command(port, folder / "kinesis", REGION), port, folder / "kinesis.log")
        )
        yield kinesis_url, dynamodb_url


@dataclass(frozen=True)
class Parts:
    """Two emulators, and how to run a pipeline beside them."""

    folder: Path
    kinesis_url: str
    dynamodb_url: str

    def named(self, name: str) -> Pipeline:
        """A pipeline with tables, stream and METERING_HOME of its own; nothing is made yet."""
        return Pipeline(
            self.folder / name,
            self.environment(
                METERING_HOME=str(self.folder / name / "home"),
                KINESIS_STREAM=f"{name}-events",
                DYNAMODB_TABLE=f"{name}-aggregator",
                LEDGER_TABLE=f"{name}-ledger",
                REJECTED_TABLE=f"{name}-rejected",
                KCL_APPLICATION=f"{name}-consumer",
                KCL_PROPERTIES=" ".join(f"{key}={value}" for key, value in LOCAL_KCL_PROPERTIES.items()),
            ),
        )

    def environment(self, **values: str) -> dict[str, str]:
        """What points a process at the emulators."""
        return clean_environment(
            AWS_ENDPOINT_URL_KINESIS=self.kinesis_url,
            AWS_ENDPOINT_URL_DYNAMODB=self.dynamodb_url,
            AWS_REGION=REGION,
            AWS_ACCESS_KEY_ID="local",
            AWS_SECRET_ACCESS_KEY="local",
            AWS_EC2_METADATA_DISABLED="true",
            **values,
        )


@dataclass(frozen=True)
class Worker:
    """One of several consumers of a pipeline. home: its METERING_HOME, which no process of another names."""

    worker_id: str
    home: Path
    supervisor: Started

    def signal_all(self, number: signal.Signals) -> None:
        """Send a signal to its supervisor, JVM and children, in this order, as if its host were gone or stood still."""
        for process in sorted(processes_of(self.home), key=lambda process: process.create_time()):
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def reads(self) -> set[str]:
        """The shards that it reads, by its log: begun and not given up since."""
        found = set()
        for line in json_lines(self.supervisor.log):
            if line["message"] == "Consumer started, listening for new events":
                found.add(line["shard"])
            elif line["message"] == "Lease given up or lost; nothing more is written":
                found.discard(line["shard"])
        return found


class Pipeline:
    """The processes of one pipeline. folder: for its logs and its METERING_HOME."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder = folder
        self.environment = environment
        folder.mkdir(exist_ok=True)

    def tables(self) -> Tables:
        """Its tables and its stream; to be closed."""
        return Tables(Settings.from_environment(self.environment))

    def set_up(self) -> None:
        """Make stream and tables with `metering setup`."""
        code, output, errors = ran([METERING, "setup"], self.environment)
        assert code == 0, output + errors

    def collector(self) -> AbstractContextManager[str]:
        """Run the collector; give its URL once it answers."""
        return self._web_service("collector", "COLLECTOR_PORT")

    def billing(self) -> AbstractContextManager[str]:
        """Run billing; give its URL once it answers."""
        return self._web_service("billing", "BILLING_PORT")

    @contextmanager
    def _web_service(self, package: str, port_variable: str) -> Iterator[str]:
        port = free_port()
        environment = self.environment | {port_variable: str(port), "WEB_CONCURRENCY": "1"}
        command = [sys.executable, "-m", package]
        url = f"http://127.0.0.1:{port}"
        with started(command, environment, self.folder / f"{package}.log") as process:
            until(lambda: not process.alive() or _answers(url), f"{package} answers", timeout_s=WEB_SERVICE_S)
            assert process.alive(), process.text()
            yield url

    @contextmanager
    def consumer(self, **environment: str) -> Iterator[Started]:
        """Run `metering consumer`; nothing of it is left at the end of the block."""
        try:
            with started([METERING, "consumer"], self.environment | environment, self.consumer_log) as process:
                yield process
        finally:
            end_all_of(self.folder)

    @contextmanager
    def worker(self, worker_id: str) -> Iterator[Worker]:
        """Run a `metering consumer` with a METERING_HOME of its own, as on a host of its own; nothing of it is left."""
        home = self.folder / worker_id
        environment = self.environment | {"METERING_HOME": str(home), "WORKER_ID": worker_id}
        try:
            with started([METERING, "consumer"], environment, self.folder / f"{worker_id}.log") as process:
                yield Worker(worker_id, home, process)
        finally:
            end_all_of(home)

    @property
    def consumer_log(self) -> Path:
        return self.folder / "consumer.log"


def _answers(url: str) -> bool:
    try:
        return requests.get(f"{url}/healthz", timeout=5).ok
    except requests.RequestException:
        return False
