"""How the two web services are started: `python -m collector`, `python -m billing`; further arguments are gunicorn's.

gunicorn reads WEB_CONCURRENCY while it is imported, long before a configuration file, and a value that it can't use
ends in a traceback there. So the variable is looked at first, and gunicorn takes this process's place afterwards.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import NoReturn

from metering.errors import InvalidSettingError

WORKERS_MAX = 256
_ENDING = (signal.SIGTERM, signal.SIGQUIT, signal.SIGINT)


def workers(environment: Mapping[str, str], default: int) -> int:
    """Return how many workers WEB_CONCURRENCY asks for, `default` when it is not set. Raises InvalidSettingError."""
    value = environment.get("WEB_CONCURRENCY", "")
    if not value:
        return default
    if not (value.isascii() and value.isdigit() and len(value) <= 3 and 1 <= int(value) <= WORKERS_MAX):
        raise InvalidSettingError("WEB_CONCURRENCY", value, f"allowed: a whole number from 1 to {WORKERS_MAX}")
    return int(value)


def keep_signals_for_starting_workers() -> None:
    """Let a worker that is asked to end while it starts end at once; called once, in the master.

    gunicorn's workers begin with the handlers of the master, which note a signal for a loop that no worker runs: it is
    lost, and the stop lasts as long as graceful_timeout.

        master    hold them back ─► fork ─► let them through
        worker                       └─► _end ─► let them through ─► … ─► the worker's own handlers
    """
    os.register_at_fork(before=_hold_back, after_in_parent=_let_through, after_in_child=_end_when_asked)


def _hold_back() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)


def _let_through() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)


def _end_when_asked() -> None:
    for number in _ENDING:
        signal.signal(number, _end)
    _let_through()


def _end(*_: object) -> None:
    os._exit(0)  # it has taken no request, and shares nothing that must be put in order


def start(service: str, arguments: Sequence[str]) -> NoReturn:
    """Become gunicorn with the configuration of `service`, or exit with one line and status 1."""
    environment = dict(os.environ)
    try:
        workers(environment, 1)
    except InvalidSettingError as error:
        sys.exit(str(error))
    if environment.get("WEB_CONCURRENCY") == "":
        del environment["WEB_CONCURRENCY"]  # empty counts as not set with us, and not with gunicorn
    command = [sys.executable, "-m", "gunicorn", "--config", f"python:{service}.gunicorn_conf", *arguments]
    os.execve(sys.executable, command, environment)  # noqa: S606 - no shell is wanted
