"""Processes under test: started with an environment of their own, found whoever their parent is, ended for sure."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from metering.processes import start_tied

REPOSITORY = Path(__file__).resolve().parents[2]
METERING = str(Path(sys.executable).with_name("metering"))
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
GRACE_S = 60.0
PATIENCE = 3
"""How much longer waits may take on a machine that others use, too, than they do on one of our own."""

_logs: list[Path] = []
"""Files to show the end of when a test fails: see conftest.py."""


def until(condition: Callable[[], Any], what: str | Callable[[], str], *, timeout_s: float = 60.0) -> None:
    """Poll until `condition` holds; fail with `what`, which did not come about, after PATIENCE * timeout_s seconds."""
    wait_s = PATIENCE * timeout_s
    deadline = time.monotonic() + wait_s
    while not condition():
        if time.monotonic() >= deadline:
            raise AssertionError(f"not after {wait_s:.0f} s: {what if isinstance(what, str) else what()}")
        time.sleep(0.02)


def clean_environment(**values: str) -> dict[str, str]:
    """What a person's shell needs, and `values`: no setting of this process reaches what is tested."""
    inherited = {name: os.environ[name] for name in ("HOME", "LANG", "TMPDIR") if name in os.environ}
    return {**inherited, "PATH": PATH, **values}


def show_on_failure(log: Path) -> None:
    if log not in _logs:
        _logs.append(log)


def log_tails(*, since_s: float, lines: int = 15, columns: int = 300) -> Iterator[tuple[str, str]]:
    """The name and the end of each log that was written to since a time (seconds since the epoch)."""
    for log in _logs:
        text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
        if text and log.stat().st_mtime >= since_s:
            yield f"end of {log}", "\n".join(line[:columns] for line in text.splitlines()[-lines:])


def json_lines(log: Path) -> list[dict[str, Any]]:
    """The whole lines of a log; fails when one of them is not a JSON object."""
    lines = log.read_text(encoding="utf-8").splitlines(keepends=True)
    found = [json.loads(line) for line in lines if line.endswith("\n")]
    assert all(isinstance(line, dict) for line in found)
    return found


class LogFollower:
    """Reads what is appended to a log from now on."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._offset = log.stat().st_size if log.exists() else 0

    def saw(self, text: str) -> bool:
        """Whether a line with `text` was appended since the last call."""
        with self._log.open("rb") as log:
            log.seek(self._offset)
            appended = log.read()
        whole = appended[: appended.rfind(b"\n") + 1]
        self._offset += len(whole)
        return text.encode() in whole


def processes_of(folder: Path) -> list[psutil.Process]:
    """All processes whose command or environment names `folder`, orphans too; no other process does."""
    needle = str(folder)
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE:
                words = [*process.cmdline(), *process.environ().values()]
                if any(needle in word for word in words):
                    found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def described(processes: Sequence[psutil.Process]) -> str:
    """Pids and commands, for the message of a failure."""
    lines = []
    for process in processes:
        try:
            lines.append(f"{process.pid}: {' '.join(process.cmdline())[:200]}")
        except psutil.NoSuchProcess:
            continue
    return "\n".join(lines)


def end_all_of(folder: Path) -> None:
    """Kill whatever is left of the processes that were started on `folder`, and wait until they are gone."""
    deadline = time.monotonic() + GRACE_S
    while left := processes_of(folder):
        for process in left:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(left, timeout=1)
        if time.monotonic() > deadline:
            raise RuntimeError(f"can't be killed: {described(left)}")


@dataclass
class Started:
    """A process and the file that its output goes to."""

    process: subprocess.Popen[bytes]
    log: Path

    def text(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def alive(self) -> bool:
        return self.process.poll() is None

    def stop(self, *, timeout_s: float = GRACE_S) -> tuple[int, float]:
        """Send SIGTERM; return the exit code and the seconds it took."""
        begun_at = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout_s), time.monotonic() - begun_at


@contextmanager
def started(
    argv: Sequence[str], environment: Mapping[str, str], log: Path, *, working_folder: Path = REPOSITORY
) -> Iterator[Started]:
    """Run a process until the end of the block; it ends with this process, too."""
    show_on_failure(log)
    with log.open("ab") as output:
        process = start_tied(
            argv, environment=environment, output=output, working_folder=working_folder, own_group=True
        )
    try:
        yield Started(process, log)
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(GRACE_S)
            except subprocess.TimeoutExpired:
                process.kill()
        process.wait()


def ran(argv: Sequence[str], environment: Mapping[str, str], *, timeout_s: float = 60.0) -> tuple[int, str, str]:
    """Run a command to its end; return its exit code and what it wrote to stdout and to stderr."""
    done = subprocess.run(
        list(argv),
        env=dict(environment),
        cwd=REPOSITORY,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr
