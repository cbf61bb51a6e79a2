"""gunicorn's configuration: `gunicorn --config python:collector.gunicorn_conf`.

gunicorn reads its settings from this module's names, so this is the one module that reads the environment on import.
WEB_CONCURRENCY and GUNICORN_CMD_ARGS, gunicorn's own variables, work as its documentation says; `python -m collector`
starts it so that a WEB_CONCURRENCY which can't be used is one line (metering/gunicorn_start.py).
"""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path
from typing import Any

from collector.app import ANSWER_MARGIN_S
from metering.api_keys import read_keys
from metering.errors import SetupError
from metering.gunicorn_log import JsonLinesLogger
from metering.gunicorn_start import keep_signals_for_starting_workers
from metering.gunicorn_start import workers as worker_count
from metering.gunicorn_worker import BufferingWorker
from metering.meters_file import meters_of
from metering.metrics_folder import MetricsFolder
from metering.settings import Settings

try:
    _settings = Settings.from_environment(os.environ)
    _keys = read_keys(_settings.api_keys_file) if _settings.api_keys_file else None
    _meters = meters_of(_settings)
    _metrics = MetricsFolder(os.environ)
    workers = worker_count(os.environ, default=2)
except SetupError as error:
    # SystemExit, since gunicorn would print a traceback with anything else.
    print(error, file=sys.stderr)  # noqa: T201 - one line for a person, before there is a log
    raise SystemExit(1) from None

_host = f"[{_settings.bind_host}]" if ":" in _settings.bind_host else _settings.bind_host
_answer_s_max = math.ceil(_settings.put_deadline_ms / 1000 + ANSWER_MARGIN_S)

wsgi_app = "collector.wsgi:create()"
bind = f"{_host}:{_settings.collector_port}"
worker_class = BufferingWorker
worker_connections = 800  # a process may have 1,024 descriptors in many places; there are other files, too
threads = 256
"""Requests served at once. One waits for the stream, two calls long at worst, and what waits shares the next call: on
kinesis-mock, whose puts take 50 ms and more, one worker took 1,080 single events/s with 64 threads and 1,660 with 256.
Python's own speed is the limit of a stream that answers at once, with either number."""
preload_app = False  # each worker has its own committer and connections

graceful_timeout = _answer_s_max + 3
"""Seconds from SIGTERM to SIGKILL: every request that is in flight gets its answer within this time."""
timeout = 30
"""A worker whose main loop is silent for that long is replaced; a request may take as long as it needs."""
keepalive = 75
"""Longer than the idle timeout of an AWS load balancer (60 s), which would otherwise meet closed connections."""

limit_request_line = 4094
limit_request_fields = 50
limit_request_field_size = 8190

# The container's root file system is read-only: heartbeats go to memory, and there is no control socket in $HOME.
if Path("/dev/shm").is_dir():  # noqa: S108 - gunicorn makes an unlinked file there, with a name of its own
    worker_tmp_dir = "/dev/shm"  # noqa: S108
control_socket_disable = True

logger_class = JsonLinesLogger
loglevel = _settings.log_level.lower()


def on_starting(_server: Any) -> None:
    """Give the workers a place for their metrics, and keep their signals, before the first of them exists."""
    keep_signals_for_starting_workers()
    try:
        _metrics.open()
    except SetupError as error:
        sys.exit(str(error))


def when_ready(server: Any) -> None:
    """Say once, at start, who may send events, and of which metrics."""
    if _keys is None:
        server.log.warning("no API keys are set: the collector is open to everyone who can reach %s", bind)
    else:
        server.log.info("%d API keys from %s", len(_keys), _settings.api_keys_file)
    if _settings.meters_strict:
        server.log.info("%d metrics are taken, those of %s", len(_meters.by_metric), _settings.meters_file)


def child_exit(_server: Any, worker: Any) -> None:
    """Take a worker that has ended out of the sums of what is pending."""
    _metrics.worker_ended(worker.pid)


def worker_exit(_server: Any, worker: Any) -> None:
    """Let the committer finish: requests have been answered by now, but one that gave up may still be on its way."""
    app = getattr(worker, "wsgi", None)  # not there when the app could not be loaded
    if app is not None:
        app.extensions["committer"].close(ANSWER_MARGIN_S)
