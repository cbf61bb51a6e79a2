"""Processes that the local stack keeps running: started, watched, started again when they die, stopped in order.

Everything happens in the thread that calls; `watch` is to be called a few times a second.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from metering.errors import SetupError
from metering.processes import end_group, start_tied

BACKOFF_FIRST_S = 0.5
BACKOFF_MAX_S = 10.0
STEADY_AFTER_S = 30.0
LOG_TAIL_LINES = 15


@dataclass
class Service:
    """One process of the stack. grace_s: how long it may take to stop after SIGTERM.

    on_restart: called after it died and was started again, once it may be needed.
    """

    name: str
    argv: Sequence[str]
    environment: Mapping[str, str]
    working_folder: Path
    log: Path
    grace_s: float
    on_restart: Callable[[], None] = lambda: None
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)
    _started_at: float = field(default=0.0, init=False)
    _backoff_s: float = field(default=BACKOFF_FIRST_S, init=False)
    _due_at: float | None = field(default=None, init=False)

    def start(self) -> None:
        """Start the process; its output is appended to the log."""
        with self.log.open("ab") as log:
            self.process = start_tied(
                self.argv,
                environment=self.environment,
                output=log,
                working_folder=self.working_folder,
                own_group=True,
            )
        self._started_at = time.monotonic()
        self._due_at = None

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def watch(self, say: Callable[[str], None]) -> None:
        """Start the process again when it has died, after a pause that doubles while it keeps dying."""
        if self.process is None or self.process.poll() is None:
            return
        now = time.monotonic()
        if self._due_at is None:
            if now - self._started_at > STEADY_AFTER_S:
                self._backoff_s = BACKOFF_FIRST_S
            say(f"{self.name} ended with code {self.process.returncode} and is started again; its log: {self.log}")
            end_group(self.process)
            self._due_at = now + self._backoff_s
            self._backoff_s = min(BACKOFF_MAX_S, self._backoff_s * 2)
        elif now >= self._due_at:
            self.start()
            self.on_restart()

    def must_run(self) -> None:
        """Raise SetupError with the end of the log when the process has ended."""
        if not self.running:
            code = self.process.returncode if self.process else None
            raise SetupError(f"{self.name} ended with code {code}; the end of {self.log}:\n{self.log_tail()}")

    def log_tail(self) -> str:
        """Return the last lines of the log."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines() if self.log.exists() else []
        return "\n".join(lines[-LOG_TAIL_LINES:])


def stop(services: Sequence[Service], say: Callable[[str], None]) -> None:
    """Stop services side by side: SIGTERM to all, SIGKILL to each that is not gone after its grace."""
    started = [(service, service.process) for service in services if service.process is not None]
    started_at = time.monotonic()
    for _, process in started:
        process.terminate()
    for service, process in started:
        try:
            process.wait(max(0.0, started_at + service.grace_s - time.monotonic()))
        except subprocess.TimeoutExpired:
            say(f"{service.name} did not stop in {service.grace_s:.0f} s and is killed")
        end_group(process)
        process.wait()
