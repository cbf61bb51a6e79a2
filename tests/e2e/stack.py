"""The local stack under test: `metering up` on free ports, with its data in a folder of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import psutil

from metering.processes import start_tied
from metering.settings import Settings
from operations.local import LocalStack
from tests.e2e.processes import (
    GRACE_S,
    METERING,
    REPOSITORY,
    LogFollower,
    clean_environment,
    described,
    end_all_of,
    processes_of,
    show_on_failure,
    until,
)
from tests.e2e.tables import Tables
from tests.local_stack import free_port

READY_S = 150.0
STOP_S = 40.0
STARTS_MAX = 5
PORTS = ("COLLECTOR_PORT", "BILLING_PORT", "KINESIS_PORT", "DYNAMODB_PORT")


class Stack:
    """One METERING_HOME and its `metering up`, which can be stopped and started again."""

    def __init__(self, folder: Path, **variables: str) -> None:
        self._variables = variables
        self.home = folder / "home"
        self.output = folder / "up.log"
        self.environment: dict[str, str] = {}
        self._process: subprocess.Popen[bytes] | None = None
        for log in (self.output, *map(self.log, ("aggregator", "usage-collector", "billing-api"))):
            show_on_failure(log)

    def start(self) -> None:
        """Start it and wait until it says that it is ready. Ports are chosen once, and anew when one was taken."""
        for _ in range(STARTS_MAX):
            if not self.environment:
                self._choose_ports()
            said = LogFollower(self.output)
            with self.output.open("ab") as output:
                self._process = process = start_tied(
                    [METERING, "up"],
                    environment=self.environment,
                    output=output,
                    working_folder=REPOSITORY,
                    own_group=True,
                )
            ready = False

            def done(process: subprocess.Popen[bytes] = process, said: LogFollower = said) -> bool:
                nonlocal ready
                ready = ready or said.saw("ready after ")
                return ready or process.poll() is not None

            until(done, "`metering up` is ready", timeout_s=READY_S)
            if ready:
                return
            last = self.output.read_text(encoding="utf-8").strip().splitlines()[-1]
            assert "is in use" in last, f"`metering up` ended with code {process.returncode}: {last}"
            self.environment = {}
        raise AssertionError(f"no free ports in {STARTS_MAX} attempts")

    def stop(self) -> tuple[int, float]:
        """Send SIGTERM to `metering up`; return its exit code and the seconds until it was gone."""
        assert self._process is not None
        begun_at = time.monotonic()
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(GRACE_S), time.monotonic() - begun_at

    def kill(self) -> None:
        """kill -9 `metering up`, which takes all that it started along."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        until(lambda: not processes_of(self.home), lambda: f"all ends: {described(processes_of(self.home))}")

    def close(self) -> None:
        """Stop it if it runs, and leave no process of it behind whatever happened."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(GRACE_S)
        left = processes_of(self.home)
        end_all_of(self.home)
        if self._process is not None:
            self._process.wait()
        assert not left, f"`metering up` left processes behind:\n{described(left)}"

    def _choose_ports(self) -> None:
        ports: set[int] = set()
        while len(ports) < len(PORTS):
            ports.add(free_port())
        self.environment = clean_environment(
            METERING_HOME=str(self.home),
            **{name: str(port) for name, port in zip(PORTS, ports, strict=True)},
            **self._variables,
        )

    # ── What it is ───────────────────────────────────────────────────────────────────────────────────────────────────

    def note(self) -> LocalStack:
        """Where its parts answer."""
        return LocalStack.read(self.home)

    @property
    def collector_url(self) -> str:
        return self.note().collector_url

    @property
    def billing_url(self) -> str:
        return self.note().billing_url

    def log(self, name: str) -> Path:
        return self.home / "logs" / f"{name}.log"

    def tables(self) -> Tables:
        """Its tables and its stream, through clients of the test's own; to be closed."""
        return Tables(Settings.from_environment(self.note().environment(self.environment)))

    # ── Its processes ────────────────────────────────────────────────────────────────────────────────────────────────

    def supervisors(self) -> list[psutil.Process]:
        """The `metering consumer` that `metering up` runs."""
        assert self._process is not None
        return [p for p in psutil.Process(self._process.pid).children() if _command(p)[-1:] == ["consumer"]]

    def kinesis_mock(self) -> psutil.Process:
        assert self._process is not None
        [found] = [p for p in psutil.Process(self._process.pid).children() if "kinesis_mock" in " ".join(_command(p))]
        return found

    def daemons(self) -> list[psutil.Process]:
        """The JVM of the consumer."""
        return [p for supervisor in self.supervisors() for p in _children(supervisor)]

    def record_processors(self) -> list[psutil.Process]:
        """The Python children of the JVM, one for each shard."""
        return [p for daemon in self.daemons() for p in _children(daemon)]

    def await_batch(self) -> None:
        """Return as soon as a child says that it has received a batch: it is being applied now."""
        log = LogFollower(self.log("aggregator"))
        until(lambda: log.saw("Received "), "a batch is received", timeout_s=90)


def kill(process: psutil.Process) -> None:
    """kill -9, now."""
    os.kill(process.pid, signal.SIGKILL)


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children()
    except psutil.NoSuchProcess:
        return []


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return []
