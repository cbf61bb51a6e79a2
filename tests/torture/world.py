"""The real stack under torture: emulators, fault proxy, collectors, workers; what dies is started again."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import requests

from metering.processes import start_tied
from operations.up import LOCAL_KCL_PROPERTIES
from tests.e2e.parts import Parts, Pipeline
from tests.e2e.processes import METERING, REPOSITORY, Started, end_all_of, show_on_failure, started, until
from tests.e2e.tables import Tables
from tests.local_stack import free_port
from tests.torture.stream import Stream

SHARDS = 4
WORKERS = 2
COLLECTORS = 2
WEB_WORKERS = {"collector": 2, "billing": 1}
READY_S = 60.0
KCL_PROPERTIES = LOCAL_KCL_PROPERTIES | {"shutdownGraceMillis": "3000", "maxRecords": "100"}
"""Small batches: more places to be killed at, and what was not applied in time is not all done over again."""


class Proxy:
    """The fault proxy's process. See proxy.py."""

    def __init__(self, stack: ExitStack, folder: Path, kinesis_url: str, dynamodb_url: str, seed: int) -> None:
        ports = {name: free_port() for name in ("dynamodb", "kinesis", "kcl", "control")}
        self.dynamodb_url, self.kinesis_url, self.kcl_url, self._control_url = (
            f"http://127.0.0.1:{port}" for port in ports.values()
        )
        command = [sys.executable, "-m", "tests.torture.proxy", "--seed", str(seed)]
        command += ["--dynamodb", dynamodb_url, "--kinesis", kinesis_url]
        for name, port in ports.items():
            command += [f"--{name}-port", str(port)]
        environment = {"PYTHONPATH": str(REPOSITORY), "METERING_HOME": str(folder)}
        process = stack.enter_context(started(command, environment, folder / "proxy.log"))
        self._session = stack.enter_context(requests.Session())
        until(lambda: not process.alive() or self._answers(), "the fault proxy answers", timeout_s=READY_S)
        assert process.alive(), process.text()

    def play(self, service: str, kind: str, *, rate: float, seconds: float) -> None:
        """Let requests to a service meet a fault from now on, for `seconds`. rate: the share of them, 0 to 1."""
        asked = {"service": service, "kind": kind, "rate": rate, "seconds": seconds}
        self._session.post(self._control_url, json=asked, timeout=10).raise_for_status()

    def state(self) -> dict[str, Any]:
        """How many requests each fault has hit, and how many requests are under way."""
        return dict(self._session.get(self._control_url, timeout=10).json())

    def _answers(self) -> bool:
        try:
            return bool(self.state())
        except requests.RequestException:
            return False


class WebService:
    """A collector or billing with its gunicorn workers. package: which of the two."""

    def __init__(self, stack: ExitStack, package: str, environment: dict[str, str], log: Path) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._workers = WEB_WORKERS[package]
        environment |= {f"{package.upper()}_PORT": str(port), "WEB_CONCURRENCY": str(self._workers)}
        command = [sys.executable, "-m", package]
        self._process = stack.enter_context(started(command, environment, log))
        until(lambda: not self._process.alive() or self._answers(), f"{package} answers", timeout_s=READY_S)

    def workers(self) -> list[psutil.Process]:
        return _children(psutil.Process(self._process.process.pid))

    def whole(self) -> bool:
        return len(self.workers()) == self._workers

    def _answers(self) -> bool:
        with suppress(requests.RequestException):
            return requests.get(f"{self.url}/healthz", timeout=5).ok
        return False


@dataclass
class Worker:
    """One `metering consumer`: a supervisor, its JVM, the JVM's children."""

    name: str
    environment: dict[str, str]
    log: Path
    starts: int = 0
    _process: Started | None = field(default=None)

    def tend(self) -> None:
        """Start it unless it runs. From the main thread only: it ends with the thread that started it."""
        if self._process is None or not self._process.alive():
            show_on_failure(self.log)
            with self.log.open("ab") as output:
                process = start_tied(
                    [METERING, "consumer"],
                    environment=self.environment,
                    output=output,
                    working_folder=REPOSITORY,
                    own_group=True,
                )
            self._process = Started(process, self.log)
            self.starts += 1

    def wait(self) -> None:
        """Wait until its supervisor has ended."""
        if self._process is not None:
            self._process.process.wait(READY_S)

    def supervisor(self) -> psutil.Process | None:
        if self._process is not None and self._process.alive():
            with suppress(psutil.NoSuchProcess):
                return psutil.Process(self._process.process.pid)
        return None

    def daemon(self) -> psutil.Process | None:
        """The JVM, when there is one."""
        supervisor = self.supervisor()
        return next(iter(_children(supervisor)), None) if supervisor else None

    def record_processors(self) -> list[psutil.Process]:
        daemon = self.daemon()
        return _children(daemon) if daemon else []

    def processes(self) -> list[psutil.Process]:
        """All of it, the supervisor first: whoever is stopped first does not see the others stop."""
        first = [process for process in (self.supervisor(), self.daemon()) if process]
        return [*first, *self.record_processors()]


class World:
    """Everything that runs. control: the children neither fence nor claim (see unfenced_child.py)."""

    def __init__(
        self, stack: ExitStack, folder: Path, urls: tuple[str, str], *, name: str, seed: int, control: bool
    ) -> None:
        straight = Parts(folder, *urls).named(name)
        straight.environment["KINESIS_SHARDS"] = str(SHARDS)
        straight.set_up()
        self.workers: list[Worker] = []
        self.tables: Tables = stack.enter_context(straight.tables())
        self.stream = Stream(self.tables)
        stack.callback(self._end, straight.folder)
        self.proxy = Proxy(stack, straight.folder, *urls, seed)
        through = Parts(folder, self.proxy.kinesis_url, self.proxy.dynamodb_url).named(name)
        self.collectors = [
            WebService(stack, "collector", dict(through.environment), straight.folder / f"collector-{number}.log")
            for number in range(COLLECTORS)
        ]
        self.billing = WebService(stack, "billing", dict(through.environment), straight.folder / "billing.log")
        properties = KCL_PROPERTIES | {"kinesisEndpoint": self.proxy.kcl_url}
        if control:
            properties["executableName"] = str(_unfenced_child(straight.folder))
        through.environment["KCL_PROPERTIES"] = " ".join(f"{key}={value}" for key, value in properties.items())
        self.workers = [_worker(through, f"worker-{number}") for number in range(WORKERS)]
        self.environment = straight.environment

    def _end(self, folder: Path) -> None:
        end_all_of(folder)
        for worker in self.workers:
            worker.wait()

    def tend(self) -> None:
        """Start again what died."""
        for worker in self.workers:
            worker.tend()

    def whole(self) -> bool:
        """Whether all parts run."""
        return all(worker.daemon() for worker in self.workers) and all(c.whole() for c in self.web_services())

    def web_services(self) -> list[WebService]:
        return [*self.collectors, self.billing]

    def children(self) -> list[tuple[Worker, psutil.Process]]:
        return [(worker, child) for worker in self.workers for child in worker.record_processors()]


@contextmanager
def world(folder: Path, urls: tuple[str, str], *, name: str, seed: int, control: bool) -> Iterator[World]:
    """Run a whole stack beside the emulators at `urls`; nothing of it is left at the end of the block."""
    with ExitStack() as stack:
        yield World(stack, folder, urls, name=name, seed=seed, control=control)


def send(process: psutil.Process, number: signal.Signals) -> bool:
    """Signal one process; False when it is gone."""
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return False
    return True


def _worker(pipeline: Pipeline, name: str) -> Worker:
    return Worker(name, pipeline.environment | {"WORKER_ID": name}, pipeline.folder / f"{name}.log")


def _unfenced_child(folder: Path) -> Path:
    """The KCL splits a command on spaces and knows no other arguments: a script of one word that starts ours."""
    script = folder / "unfenced-child"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m tests.torture.unfenced_child\n', encoding="utf-8")
    script.chmod(0o755)
    return script


def _children(process: psutil.Process) -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        return [child for child in process.children() if child.status() != psutil.STATUS_ZOMBIE]
    return []
