"""Starts the local stack's emulators for tests, one process each, on free ports and in folders of their own.

A part that is missing or does not come up fails the test that asked for it; nothing is skipped.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import time
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from devstack.tools import Command

READY_S = 60.0
STOP_S = 10.0


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextlib.contextmanager
def running(command: Command, port: int, log: Path) -> Iterator[str]:
    """Run `command` until the end of the block; give the endpoint, http://127.0.0.1:port, once it accepts connections.

    log: the file that gets what it writes. Raises RuntimeError with that when it ends early or does not listen in time.
    """
    with log.open("wb") as output:
        process = subprocess.Popen(
            command.argv,
            cwd=command.cwd,
            env=dict(command.env),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        _await_port(process, port, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _await_port(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        if _listens(process.pid, port):
            return
        time.sleep(0.05)
    raise RuntimeError(f"{process.args!r} does not listen on port {port}: {log.read_text(errors='replace')[-2000:]}")


def _listens(pid: int, port: int) -> bool:
    """Whether the process itself does: a free port may be another test's for a moment before it is the emulator's."""
    try:
        connections = psutil.Process(pid).net_connections("tcp")
    except psutil.NoSuchProcess:
        return False
    return any(one.status == psutil.CONN_LISTEN and one.laddr.port == port for one in connections)
