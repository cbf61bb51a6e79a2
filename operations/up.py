"""`metering up`, which `make run` calls: the whole pipeline on this machine, until Ctrl-C or SIGTERM.

    DynamoDB Local, kinesis-mock ─► tables, stream ─► collector, billing, consumer ─► the guide's event ─► its total

Stopped in the other order: the emulators go last, so that the consumer can write its last checkpoint, and cleanly, for
kinesis-mock writes what it holds only then. Over 300 lines, so that start, watch and stop stand beside each other.
"""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import requests

from billing.alerts_file import alerts_of
from consumer.launch import PROPERTIES_FOLDER, render_properties
from devstack.services import Service, stop
from devstack.tools import Command, dynamodb_local_command, kinesis_mock_command
from metering.aws import dynamodb_client, kinesis_client
from metering.dynamodb import DynamoUsageReader
from metering.errors import ServiceUnavailableError, SetupError
from metering.events import time_text
from metering.meters_file import meters_of
from metering.processes import wait_until
from metering.settings import Settings
from operations.local import REGION, LocalStack, adopt
from operations.provision import provision

START_S = 120.0
SERVICE_GRACE_S = 16.0
EMULATOR_GRACE_S = 60.0
"""kinesis-mock writes all that it holds when it stops."""
GUIDE_EVENT = {"tenant_id": "tenant-123", "metric": "api_calls", "value": 10, "timestamp": "2024-01-15T10:00:00Z"}
LOCAL_KCL_PROPERTIES = {
    "idleTimeBetweenReadsInMillis": "200",
    "shardSyncIntervalMillis": "1000",
    "failoverTimeMillis": "3000",
    "leaseAssignmentIntervalMillis": "1000",
    "parentShardPollIntervalMillis": "1000",
    "workerMetricsReporterFreqInMillis": "2000",
    "metricsLevel": "NONE",
}
"""No quota to share with others, no CloudWatch to report to, and a person who waits."""
LOCAL_ALERTS_INTERVAL_S = "2"
REPOSITORY = Path(__file__).resolve().parent.parent


class Stack:
    """The local stack. say: prints one line for a person."""

    def __init__(self, settings: Settings, environment: Mapping[str, str], say: Callable[[str], None]) -> None:
        self._settings = settings
        self._say = say
        self._stopping = False
        self._logs = settings.home / "logs"
        self.note = LocalStack(
            pid=os.getpid(),
            kinesis_url=f"http://127.0.0.1:{settings.kinesis_port}",
            dynamodb_url=f"http://127.0.0.1:{settings.dynamodb_port}",
            collector_url=f"http://127.0.0.1:{settings.collector_port}",
            billing_url=f"http://127.0.0.1:{settings.billing_port}",
        )
        self.environment = self.note.environment(environment)
        self.environment["METERING_HOME"] = str(settings.home)
        self.environment["KCL_PROPERTIES"] = " ".join(
            [f"{name}={value}" for name, value in LOCAL_KCL_PROPERTIES.items()]
            + [f"{name}={value}" for name, value in settings.kcl_properties]
        )
        self._local = Settings.from_environment(self.environment)
        self._emulators = [
            self._emulator(
                "dynamodb-local", dynamodb_local_command(settings.dynamodb_port, settings.home / "dynamodb")
            ),
            self._emulator(
                "kinesis-mock", kinesis_mock_command(settings.kinesis_port, settings.home / "kinesis", REGION)
            ),
        ]
        self._services = [
            self._service("usage-collector", "-m", "collector"),
            self._service("billing-api", "-m", "billing"),
            self._service("aggregator", "-m", "operations.cli", "consumer"),
        ]
        if settings.alerts_file is not None:
            self.environment.setdefault("ALERTS_INTERVAL_S", LOCAL_ALERTS_INTERVAL_S)
            self._services.append(self._service("alerts", "-m", "operations.cli", "alerts", "run"))

    def run(self) -> None:
        """Start everything, say when it is ready, keep it running, and stop it when told to.

        Raises SetupError when a port is in use, another stack runs on the same data, or a part does not start.
        """
        started_at = time.monotonic()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        with _home_lock(self._settings.home):
            self._refuse_kcl_properties()
            meters_of(self._settings)
            alerts_of(self._settings, now=datetime.now(UTC))
            self._refuse_ports_in_use()
            self._rotate_logs()
            try:
                self._start()
                self._guide_event()
                if not self._stopping:
                    self._say(self._ready_text(time.monotonic() - started_at))
                while not self._stopping:
                    for service in [*self._emulators, *self._services]:
                        service.watch(self._say)
                    time.sleep(0.2)
            finally:
                self._say("stopping")
                stop(self._services, self._say)
                stop(self._emulators, self._say)
                self.note.remove(self._settings.home)
                self._say("stopped; the data is kept in " + str(self._settings.home))

    def _start(self) -> None:
        self._say("starting DynamoDB Local and kinesis-mock")
        for emulator in self._emulators:
            emulator.start()
        for emulator, port in zip(
            self._emulators, (self._settings.dynamodb_port, self._settings.kinesis_port), strict=True
        ):
            self._await(emulator, f"{emulator.name} answers", lambda p=port: _accepts_connections(p))  # type: ignore[misc]
        self._await(self._emulators[0], "the tables and the stream are there", self._provisioned)
        self.note.write(self._settings.home)
        self._say("starting collector, billing and consumer" + (", and alerts" if len(self._services) > 3 else ""))
        begun_at = datetime.now(UTC)
        for service in self._services:
            service.start()
        collector, billing, aggregator = self._services[:3]
        self._await(collector, "the collector is ready", lambda: _ready(self.note.collector_url))
        self._await(billing, "billing is ready", lambda: _ready(self.note.billing_url))
        reader = DynamoUsageReader(dynamodb_client(self._local), table=self._local.table)
        self._await(aggregator, "every shard is being read", lambda: self._all_read(reader, begun_at))

    def _provisioned(self) -> bool:
        try:
            provision(dynamodb_client(self._local), kinesis_client(self._local), self._local)
        except ServiceUnavailableError:
            return False
        return True

    def _all_read(self, reader: DynamoUsageReader, since: datetime) -> bool:
        shards = [shard for shard in reader.progress(self._local.stream) if not shard.closed]
        return bool(shards) and all(s.heartbeat_at is not None and s.heartbeat_at >= since for s in shards)

    def _guide_event(self) -> None:
        """Post the troubleshooting guide's event, unless an earlier run has, and await its total."""
        if self._stopping:
            return
        if self._local.api_keys_file is not None:
            self._say(f"API keys from {self._local.api_keys_file}: each request needs one, and no event is posted here")
            return
        url = f"{self.note.billing_url}/v1/tenants/{GUIDE_EVENT['tenant_id']}/usage/{GUIDE_EVENT['metric']}"
        if requests.get(url, timeout=10).status_code == 404:
            answer = requests.post(f"{self.note.collector_url}/v1/usage", json=GUIDE_EVENT, timeout=30)
            self._say(f"posted {GUIDE_EVENT}: {answer.status_code} {answer.text.strip()}")
        self._await(self._services[2], "the total is there", lambda: requests.get(url, timeout=10).ok)
        if not self._stopping:
            self._say(f"total read back: {requests.get(url, timeout=10).text.strip()}")

    def _await(self, service: Service, what: str, condition: Callable[[], bool]) -> None:
        def met() -> bool:
            if self._stopping:
                return True
            for each in [*self._emulators, *self._services]:
                if each.process is not None:
                    each.must_run()
            return condition()

        if not wait_until(met, timeout_s=START_S, interval_s=0.1):
            raise SetupError(f"not after {START_S:.0f} s: {what}; the end of {service.log}:\n{service.log_tail()}")

    def _emulator(self, name: str, command: Command) -> Service:
        return Service(
            name=name,
            argv=command.argv,
            environment=command.env,
            working_folder=command.cwd,
            log=self._logs / f"{name}.log",
            grace_s=EMULATOR_GRACE_S,
            on_restart=self._after_emulator_restart,
        )

    def _service(self, name: str, *arguments: str) -> Service:
        return Service(
            name=name,
            argv=[sys.executable, *arguments],
            environment=self.environment,
            working_folder=REPOSITORY,
            log=self._logs / f"{name}.log",
            grace_s=SERVICE_GRACE_S,
        )

    def _after_emulator_restart(self) -> None:
        # A killed kinesis-mock comes back without what it had not written, perhaps without the stream.
        if not wait_until(lambda: self._stopping or self._provisioned(), timeout_s=START_S, interval_s=0.2):
            self._say("the tables and the stream could not be made again; see the logs in " + str(self._logs))

    def _refuse_kcl_properties(self) -> None:
        # What the consumer would refuse at its start is said before anything starts.
        template = (PROPERTIES_FOLDER / "consumer.properties").read_text(encoding="utf-8")
        render_properties(template, self._local)

    def _refuse_ports_in_use(self) -> None:
        settings = self._settings
        ports = {
            "COLLECTOR_PORT": settings.collector_port,
            "BILLING_PORT": settings.billing_port,
            "KINESIS_PORT": settings.kinesis_port,
            "DYNAMODB_PORT": settings.dynamodb_port,
        }
        taken: dict[int, str] = {}
        for variable, port in ports.items():
            if port in taken:
                raise SetupError(f"{variable} and {taken[port]} are both {port}: give them different ports")
            taken[port] = variable
            if not _is_free(port):
                raise SetupError(f"port {port} is in use: stop what uses it, or set {variable} to another port")

    def _rotate_logs(self) -> None:
        self._logs.mkdir(parents=True, exist_ok=True)
        for service in [*self._emulators, *self._services]:
            if service.log.exists():
                service.log.replace(service.log.with_suffix(".log.1"))

    def _stop(self, number: int, frame: object) -> None:
        self._stopping = True

    def _ready_text(self, seconds: float) -> str:
        event = '{"tenant_id": "tenant-123", "metric": "api_calls", "value": 10, "event_id": "my-first"}'
        curl, password = "curl", ""
        if self._local.api_keys_file is not None:
            curl, password = 'curl -H "Authorization: Bearer $KEY"', ", with the key as password"
        names = ", ".join(service.name for service in self._services)
        return f"""
ready after {seconds:.1f} s. Try it:

  {curl} -X POST {self.note.collector_url}/v1/usage -H 'Content-Type: application/json' \\
    -d '{event}'
  {curl} {self.note.billing_url}/v1/tenants
  {curl} {self.note.billing_url}/v1/tenants/tenant-123/usage
  {curl} {self.note.billing_url}/v1/tenants/tenant-123/usage/api_calls

or open {self.note.billing_url}/ in a browser{password}
Kinesis {self.note.kinesis_url}   DynamoDB {self.note.dynamodb_url}
logs in {self._logs} ({names}); data in {self._settings.home}; Ctrl-C stops all
"""


def up(settings: Settings, environment: Mapping[str, str]) -> None:
    """Run the local stack until told to stop; see Stack.run."""
    # What is said here is for a person, who need not know how often an emulator was asked whether it is up.
    logging.getLogger("stamina").setLevel(logging.ERROR)
    stack = Stack(settings, environment, _say)
    adopt(stack.environment)
    stack.run()


def _say(line: str) -> None:
    print(f"{time_text(datetime.now(UTC))} {line}" if "\n" not in line else line, flush=True)


@contextmanager
def _home_lock(home: Path) -> Iterator[None]:
    """Hold `home` for this process: two stacks on the same data would spoil it."""
    home.mkdir(parents=True, exist_ok=True)
    with (home / "lock").open("a", encoding="ascii") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SetupError(f"a local stack runs already with METERING_HOME={home}: stop it first") from error
        yield


def _is_free(port: int) -> bool:
    # The emulators listen on all interfaces, the services on one.
    for host in ("0.0.0.0", "127.0.0.1"):  # noqa: S104 - only to see whether it could be bound
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError:
                return False
    return not _accepts_connections(port)


def _accepts_connections(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        return False


def _ready(url: str) -> bool:
    try:
        return requests.get(f"{url}/readyz", timeout=5).ok
    except requests.RequestException:
        return False
