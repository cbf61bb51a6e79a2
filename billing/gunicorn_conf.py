"""How gunicorn serves billing: `gunicorn --config python:billing.gunicorn_conf`.

The names below are gunicorn's own settings. It is read in the master, before anything listens; an environment
that can't be used ends it with one line and status 1; `python -m billing` starts it so that this holds for gunicorn's
own WEB_CONCURRENCY as well, which is checked and has no other effect (metering/gunicorn_start.py).
"""

from __future__ import annotations

import gc
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from billing.alerts_file import alerts_of
from billing.plans_file import PLANS_FILE
from billing.wsgi import THREADS
from metering.api_keys import read_keys
from metering.errors import InvalidSettingError, SetupError
from metering.gunicorn_log import JsonLinesLogger
from metering.gunicorn_start import keep_signals_for_starting_workers
from metering.gunicorn_worker import BufferingWorker
from metering.meters_file import meters_of
from metering.metrics_folder import MetricsFolder
from metering.settings import Settings

try:
    _settings = Settings.from_environment(os.environ)
    _keys = read_keys(_settings.api_keys_file) if _settings.api_keys_file else None
    _plans = PLANS_FILE.read(_settings.plans_file) if _settings.plans_file else None
    _meters = meters_of(_settings)
    _alerts = alerts_of(_settings, now=datetime.now(UTC))
    _metrics = MetricsFolder(os.environ)
except InvalidSettingError as error:
    sys.exit(str(error))

wsgi_app = "billing.wsgi:application()"
_host = f"[{_settings.bind_host}]" if ":" in _settings.bind_host else _settings.bind_host  # IPv6
bind = f"{_host}:{_settings.billing_port}"
proc_name = "billing"

worker_class = BufferingWorker
worker_connections = 800  # a process may have 1,024 descriptors in many places; there are other files, too
workers = 1  # a read costs DynamoDB's time, not this process's; scale by running more of it
threads = THREADS
keepalive = 75  # s: longer than the idle timeout of an AWS load balancer, which is 60
# s: what is in flight is answered, and what waits for a later as_of may wait to its end
graceful_timeout = 5 + -(-_settings.min_as_of_wait_ms // 1000)
timeout = 30  # s without a sign of life from the worker
if Path("/dev/shm").is_dir():  # noqa: S108 - in memory: the heartbeat file never waits for a disk
    worker_tmp_dir = "/dev/shm"  # noqa: S108
control_socket_disable = True  # it would be a file in the home directory, one for all services

logger_class = JsonLinesLogger
loglevel = _settings.log_level.lower()


def on_starting(_server: Any) -> None:
    """Give the workers a place for their metrics, and keep their signals, before the first of them exists."""
    keep_signals_for_starting_workers()
    try:
        _metrics.open()
    except SetupError as error:
        sys.exit(str(error))


def post_worker_init(_worker: Any) -> None:
    """Leave what has been loaded out of garbage collection: nothing of it is ever garbage.

    An answer of thousands of rows has the collector walk through all that there is, botocore's models above all, which
    took as long as the answer's own work (docs/decisions/0016-query-answers-are-decoded-at-once.md).
    """
    gc.collect()
    gc.freeze()


def when_ready(server: Any) -> None:
    """Say once, at start, who may read bills, by which plans and meters they are made, and which quotas there are."""
    if _keys is None:
        server.log.warning("no API keys are set: billing is open to everyone who can reach %s", bind)
    else:
        server.log.info("%d API keys from %s", len(_keys), _settings.api_keys_file)
    if _plans is not None:
        server.log.info("%d price plans from %s", len(_plans.plans), _settings.plans_file)
    if _settings.meters_file is not None:
        server.log.info("%d meters from %s", len(_meters.by_metric), _settings.meters_file)
    if _settings.alerts_file is not None:
        quotas = len(_alerts.own_quotas or ()) + len(_alerts.default_quotas or ())
        server.log.info("%d quotas from %s", quotas, _settings.alerts_file)


def child_exit(_server: Any, worker: Any) -> None:
    """Take a worker that has ended out of the sums of what is pending."""
    _metrics.worker_ended(worker.pid)
