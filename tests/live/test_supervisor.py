"""The supervisor, with a shell script in the place of Java: what it does when a daemon dies, hangs or babbles."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from metering.processes import wait_until
from tests.local_stack import free_port

END_S = 30.0
RUN = """
import logging, os, sys
from contextlib import contextmanager, nullcontext
from consumer import supervisor
from consumer.leader_watcher import give_back_own_lock, leader_watcher
from consumer.lost_records import rewind_lost
from metering.errors import SetupError
from metering.logs import configure_logging
from metering.settings import Settings
@contextmanager
def noting(settings, properties):
    logging.info("watch begins")
    yield
    logging.info("watch ends")
watchers = {"real": leader_watcher, "noting": noting, "none": lambda settings, properties: nullcontext()}
before_starts = {
    "real": [give_back_own_lock, rewind_lost],
    "noting": [lambda settings, properties: logging.info("lock given back")],
    "none": [],
}
supervisor.STOP_GRACE_S = 2.0
configure_logging("INFO")
try:
    watcher = watchers[os.environ["WATCHER"]]
    before_start = before_starts[os.environ["WATCHER"]]
    sys.exit(supervisor.Supervisor(Settings.from_environment(os.environ), os.environ, watcher, before_start).run())
except SetupError as error:
    sys.exit(f"refused: {error}")
"""


class Supervised:
    """A supervisor whose daemon is `script`."""

    def __init__(self, folder: Path, script: str, **environment: str) -> None:
        java = folder / "java-home" / "bin" / "java"
        java.parent.mkdir(parents=True, exist_ok=True)
        java.write_text(f'#!/bin/sh\n[ "$1" = -version ] && {{ echo \'version "21"\' >&2; exit; }}\n{script}\n')
        java.chmod(0o755)
        self.log = folder / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", RUN],
                env={
                    **os.environ,
                    "JAVA_HOME": str(folder / "java-home"),
                    "METERING_HOME": str(folder / "home"),
                    "WORKER_ID": "w-1",
                    "WATCHER": "none",
                    **environment,
                },
                stdout=log,
                stderr=log,
            )

    def lines(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def messages(self) -> list[object]:
        return [line["message"] for line in self.lines()]

    def said(self, text: str, times: int = 1) -> bool:
        return self.log.read_text().count(text) >= times

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(END_S)


@pytest.fixture
def started() -> Iterator[list[Supervised]]:
    all_started: list[Supervised] = []
    yield all_started
    for supervised in all_started:
        if supervised.process.poll() is None:
            supervised.process.kill()
        supervised.process.wait()


def test_a_daemon_that_ends_is_started_again(tmp_path: Path, started: list[Supervised]) -> None:
    started.append(supervised := Supervised(tmp_path, "exit 3"))
    assert wait_until(lambda: supervised.said("The daemon ended with code 3", 3), timeout_s=END_S)
    assert supervised.stop() == 0
    assert supervised.messages()[-1] == "Consumer stopped"


def test_sigterm_reaches_the_daemon_and_waits_for_it(tmp_path: Path, started: list[Supervised]) -> None:
    script = "trap 'echo told >&2; sleep 0.3; echo done >&2; exit 0' TERM; echo up >&2; while :; do sleep 0.05; done"
    started.append(supervised := Supervised(tmp_path, script))
    assert wait_until(lambda: supervised.said('"up"'), timeout_s=END_S)
    assert supervised.stop() == 0
    assert supervised.messages()[-3:] == ["told", "done", "Consumer stopped"]


def test_a_daemon_that_does_not_stop_is_killed_with_its_children(tmp_path: Path, started: list[Supervised]) -> None:
    script = "trap '' TERM; sleep 600 & echo child $! >&2; while :; do sleep 0.05; done"
    started.append(supervised := Supervised(tmp_path, script))
    assert wait_until(lambda: supervised.said("child "), timeout_s=END_S)
    child = int(str(next(m for m in supervised.messages() if str(m).startswith("child "))).split()[1])
    assert supervised.stop() == 1
    assert wait_until(lambda: not psutil.pid_exists(child), timeout_s=END_S)


def test_children_of_a_daemon_that_was_killed_are_ended_before_the_next_one(
    tmp_path: Path, started: list[Supervised]
) -> None:
    started.append(supervised := Supervised(tmp_path, "sleep 600 & echo child $! >&2; kill -9 $$"))
    assert wait_until(lambda: supervised.said("child ", 2), timeout_s=END_S)
    first = int(str(next(m for m in supervised.messages() if str(m).startswith("child "))).split()[1])
    assert wait_until(lambda: not psutil.pid_exists(first), timeout_s=END_S)
    assert supervised.stop() in {0, 1}


def test_a_killed_supervisor_takes_its_daemon_along(tmp_path: Path, started: list[Supervised]) -> None:
    started.append(supervised := Supervised(tmp_path, "echo daemon $$ >&2; exec sleep 600"))
    assert wait_until(lambda: supervised.said("daemon "), timeout_s=END_S)
    assert wait_until(lambda: bool(psutil.Process(supervised.process.pid).children()), timeout_s=END_S)
    daemon = psutil.Process(supervised.process.pid).children()[0]
    supervised.process.kill()
    assert wait_until(lambda: not daemon.is_running(), timeout_s=END_S)


def test_every_line_comes_out_once_as_json(tmp_path: Path, started: list[Supervised]) -> None:
    script = (
        'echo \'{"level":"INFO","message":"json already"}\' >&2; echo \'plain "text"\' >&2; echo >&2; '
        "printf 'no end' >&2; sleep 600"
    )
    started.append(supervised := Supervised(tmp_path, script))
    assert wait_until(lambda: supervised.said("plain"), timeout_s=END_S)
    supervised.stop()
    messages = supervised.messages()
    assert messages.count("json already") == 1
    assert messages.count('plain "text"') == 1
    assert messages.count("no end") == 1


def test_a_second_consumer_with_the_same_worker_id_is_refused(tmp_path: Path, started: list[Supervised]) -> None:
    started.append(first := Supervised(tmp_path, "echo up >&2; exec sleep 600"))
    assert wait_until(lambda: first.said('"up"'), timeout_s=END_S)
    first_log = first.log.read_text()
    (tmp_path / "second").mkdir()
    second = Supervised(tmp_path / "second", "exit 0", METERING_HOME=str(tmp_path / "home"))
    started.append(second)
    assert second.process.wait(END_S) == 1
    refusal = second.log.read_text()
    assert refusal.startswith(f"refused: a consumer with WORKER_ID=w-1 runs here already (pid {first.process.pid})")
    assert "Traceback" not in first_log + refusal


def test_the_alive_file_is_touched_while_the_daemon_runs(tmp_path: Path, started: list[Supervised]) -> None:
    started.append(supervised := Supervised(tmp_path, "exec sleep 600"))
    alive = tmp_path / "home" / "consumer" / "w-1" / "alive"
    assert wait_until(alive.exists, timeout_s=END_S)
    before = alive.stat().st_mtime
    assert wait_until(lambda: alive.stat().st_mtime > before, timeout_s=END_S)
    supervised.stop()


def test_a_leader_that_cannot_be_watched_is_said_once_and_stops_nothing(
    tmp_path: Path, started: list[Supervised]
) -> None:
    nowhere = {"AWS_ENDPOINT": f"http://127.0.0.1:{free_port()}"}
    keys = {"AWS_ACCESS_KEY_ID": "local", "AWS_SECRET_ACCESS_KEY": "local", "AWS_EC2_METADATA_DISABLED": "true"}
    started.append(supervised := Supervised(tmp_path, "echo up >&2; exec sleep 600", WATCHER="real", **nowhere, **keys))
    assert wait_until(lambda: supervised.said("The leader can't be watched: the table "), timeout_s=END_S)
    daemon = psutil.Process(supervised.process.pid).children()[0]
    daemon.kill()
    assert wait_until(lambda: supervised.said('"up"', 2), timeout_s=END_S)
    assert supervised.stop() == 0


def test_the_leader_is_watched_while_a_daemon_runs_and_by_no_thread_between_two(
    tmp_path: Path, started: list[Supervised]
) -> None:
    started.append(supervised := Supervised(tmp_path, "exit 3", WATCHER="noting"))
    assert wait_until(lambda: supervised.said("The daemon ended with code 3", 3), timeout_s=END_S)
    assert supervised.stop() == 0
    noted = [m for m in supervised.messages() if str(m).startswith(("watch ", "lock ", "The daemon was started"))]
    assert noted[:8] == ["lock given back", "The daemon was started", "watch begins", "watch ends"] * 2


@pytest.mark.parametrize("value", ["soon", "-1", "1.5"])
def test_a_time_that_the_watcher_cannot_use_is_refused_at_the_start(
    tmp_path: Path, started: list[Supervised], value: str
) -> None:
    properties = f"failoverTimeMillis={value}"
    supervised = Supervised(tmp_path, "echo up >&2; exec sleep 600", WATCHER="real", KCL_PROPERTIES=properties)
    started.append(supervised)
    assert supervised.process.wait(END_S) == 1
    assert supervised.log.read_text() == (
        f"refused: the KCL's property failoverTimeMillis={value!r} can't be used: "
        "allowed: a whole number of milliseconds\n"
    )
