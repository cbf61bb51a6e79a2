"""`metering consumer`: keeps a MultiLangDaemon running until it is told to stop.

A child that exits takes the whole daemon with it, by the KCL's design, so the daemon is started again, with backoff.
Everything that the daemon and its children write goes on to this process's stderr as JSON lines.

One thread: the daemon must be started from the main thread (see metering.processes), and signals arrive there. While
the daemon runs, and only then, a second one watches the KCL's leader and its handovers (consumer/takeover.py,
consumer/handoff.py).
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import selectors
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import IO

import javaproperties

from consumer.launch import PROPERTIES_FOLDER, daemon_command, daemon_environment, daemon_properties
from consumer.leader_watcher import give_back_own_lock, leader_watcher
from consumer.lost_records import rewind_lost
from metering.errors import SetupError
from metering.processes import end_group, start_tied
from metering.settings import Settings

STOP_GRACE_S = 13.0
"""From SIGTERM to SIGKILL; longer than shutdownGraceMillis (10 s), shorter than the 15 s that are promised."""
BACKOFF_FIRST_S = 0.2
BACKOFF_MAX_S = 30.0
STEADY_AFTER_S = 30.0
"""A daemon that ran this long was all right: the next start has no backoff from before."""
ALIVE_INTERVAL_S = 2.0

_log = logging.getLogger(__name__)


class Supervisor:
    """Runs the daemon of one worker. folder: for its lock, its rendered properties and the `alive` file.

    watcher: makes what watches the KCL's leader and handovers for the length of a `with` block, from settings and the
    properties.
    before_start: what puts the KCL's tables right while no daemon of this worker lives; called before each start.
    """

    def __init__(
        self,
        settings: Settings,
        environment: Mapping[str, str],
        watcher: Callable[[Settings, Mapping[str, str]], AbstractContextManager[object]] = leader_watcher,
        before_start: Sequence[Callable[[Settings, Mapping[str, str]], None]] = (give_back_own_lock, rewind_lost),
    ) -> None:
        self._settings = settings
        self._environment = dict(environment)
        self._watcher = watcher
        self._before_start = before_start
        self._folder = settings.home / "consumer" / settings.worker_id
        self._stopping_at: float | None = None
        self._alive_at = 0.0

    def run(self) -> int:
        """Run until SIGTERM or SIGINT; return 0 after an orderly stop, 1 when the daemon had to be killed.

        Raises SetupError before the first start when the settings, the properties or Java are not fit, or when
        another consumer with the same WORKER_ID runs here.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        lock = self._lock()
        template = (PROPERTIES_FOLDER / "consumer.properties").read_text(encoding="utf-8")
        properties_file = self._folder / "consumer.properties"
        properties = daemon_properties(template, self._settings)
        properties_file.write_text(javaproperties.dumps(properties, timestamp=False), encoding="ascii")
        command = daemon_command(properties_file)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        backoff_s, killed = BACKOFF_FIRST_S, False
        while not self._told_to_stop():
            started_at = time.monotonic()
            code, killed = self._run_daemon(command, lock, properties)
            if self._told_to_stop():
                break
            if time.monotonic() - started_at >= STEADY_AFTER_S:
                backoff_s = BACKOFF_FIRST_S
            _log.warning("The daemon ended with code %d and is started again in %.1f s", code, backoff_s)
            self._pause(backoff_s)
            backoff_s = min(BACKOFF_MAX_S, backoff_s * 2)
        _log.info("Consumer stopped")
        return int(killed)

    def _run_daemon(self, command: list[str], lock: IO[str], properties: Mapping[str, str]) -> tuple[int, bool]:
        """Run the daemon once; return its exit code and whether it had to be killed."""
        watcher = self._watcher(self._settings, properties)
        # No daemon of this worker lives: this process holds its lock, and the last one's group was ended.
        for prepare in self._before_start:
            prepare(self._settings, properties)
        read_end, write_end = os.pipe()
        daemon = start_tied(
            command,
            environment=daemon_environment(self._environment),
            output=write_end,
            death_signal=signal.SIGKILL,
            own_group=True,
            keep_open=(lock.fileno(),),
        )
        os.close(write_end)
        _log.info("The daemon was started", extra={"daemon_pid": daemon.pid, "worker": self._settings.worker_id})
        os.set_blocking(read_end, False)
        killed = False
        with (
            os.fdopen(read_end, "rb", buffering=0) as lines,
            selectors.DefaultSelector() as selector,
            watcher,
        ):
            selector.register(lines, selectors.EVENT_READ)
            pump = _LinePump()
            told = False
            while daemon.poll() is None:
                if self._stopping_at is not None:
                    if not told:
                        daemon.terminate()
                        told = True
                    if time.monotonic() - self._stopping_at > STOP_GRACE_S:
                        _log.warning("The daemon did not stop in %.0f s and is killed", STOP_GRACE_S)
                        killed = True
                        end_group(daemon)
                self._touch_alive()
                if selector.select(timeout=0.1):
                    pump.forward(lines)
            # Children whose daemon is gone may still be writing. The rows fence them, but none is needed any more.
            end_group(daemon)
            pump.forward(lines)
            pump.flush()
        return daemon.wait(), killed

    def _stop(self, number: int, frame: object) -> None:
        if self._stopping_at is None:
            self._stopping_at = time.monotonic()

    def _told_to_stop(self) -> bool:
        return self._stopping_at is not None

    def _pause(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not self._told_to_stop() and time.monotonic() < deadline:
            time.sleep(0.05)

    def _touch_alive(self) -> None:
        if time.monotonic() - self._alive_at >= ALIVE_INTERVAL_S:
            (self._folder / "alive").touch()
            self._alive_at = time.monotonic()

    def _lock(self) -> IO[str]:
        """Hold the worker's lock for this process and the daemons that it starts."""
        path = self._folder / "lock"
        lock = path.open("a+", encoding="ascii")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            raise SetupError(
                f"a consumer with WORKER_ID={self._settings.worker_id} runs here already (pid {lock.read().strip()}): "
                "stop it, or give this one another WORKER_ID"
            ) from error
        lock.seek(0)
        lock.truncate()
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        return lock


class _LinePump:
    """Forwards whole lines to stderr; a line that is not JSON becomes the message of one that is."""

    def __init__(self) -> None:
        self._rest = b""

    def forward(self, source: IO[bytes]) -> None:
        """Forward what `source`, which does not block, has to read now."""
        while chunk := source.read(65_536):
            *lines, self._rest = (self._rest + chunk).split(b"\n")
            for line in lines:
                self._emit(line)

    def flush(self) -> None:
        self._emit(self._rest)
        self._rest = b""

    @staticmethod
    def _emit(line: bytes) -> None:
        text = line.decode("utf-8", "replace").rstrip("\r")
        if not text.strip():
            return
        if not _is_json_object(text):
            text = json.dumps({"level": "WARNING", "logger": "daemon", "message": text})
        sys.stderr.write(text + "\n")
        sys.stderr.flush()


def _is_json_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False
