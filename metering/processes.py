"""Processes that end with the one that started them.

On Linux the kernel tells a child when its parent's thread is gone (prctl PR_SET_PDEATHSIG), also after kill -9; start
such processes from the main thread. Elsewhere only an orderly end takes them along.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def start_tied(
    argv: Sequence[str],
    *,
    environment: Mapping[str, str],
    output: int | IO[bytes],
    working_folder: Path | None = None,
    death_signal: signal.Signals = signal.SIGTERM,
    own_group: bool = False,
    keep_open: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    """Start a process whose stdout and stderr go to `output` and whose stdin is empty.

    death_signal: what it gets when this process is gone. own_group: it leads a session of its own, so that a
    terminal's Ctrl-C does not reach it and end_group can end all that it started. keep_open: descriptors it inherits.
    Raises FileNotFoundError when argv[0] does not exist.
    """
    return subprocess.Popen(
        list(argv),
        env=dict(environment),
        cwd=working_folder,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        start_new_session=own_group,
        pass_fds=keep_open,
        preexec_fn=_death_signal_setter(death_signal),  # noqa: PLW1509 - one system call, from the main thread
    )


def end(process: subprocess.Popen[bytes], *, grace_s: float) -> int:
    """Ask a process to end with SIGTERM, end it after `grace_s` seconds, and return its exit code."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(grace_s)
        except subprocess.TimeoutExpired:
            process.kill()
    return process.wait()


def end_group(process: subprocess.Popen[bytes]) -> None:
    """End at once whatever is left of the group of a process that was started with own_group."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return


def wait_until(condition: Callable[[], bool], *, timeout_s: float, interval_s: float = 0.05) -> bool:
    """Poll `condition` until it holds or `timeout_s` seconds are over; return whether it held."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(interval_s)
    return True


def _death_signal_setter(death_signal: signal.Signals) -> Callable[[], None] | None:
    if _libc is None:
        return None
    libc, parent = _libc, os.getpid()

    def set_death_signal() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, int(death_signal))
        if os.getppid() != parent:  # it was gone before the line above
            os.kill(os.getpid(), signal.SIGKILL)

    return set_death_signal
