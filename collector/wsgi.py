"""The collector's composition root: the environment, Kinesis and the app, wired together in a gunicorn worker."""

from __future__ import annotations

import os
import signal

from flask import Flask

from collector.app import create_app
from metering.aws import kinesis_client
from metering.kinesis import KinesisEventSink
from metering.logs import configure_logging
from metering.settings import Settings


def create() -> Flask:
    """Return the app on the real stream, as the environment says. Raises InvalidSettingError; connects to nothing."""
    settings = Settings.from_environment(os.environ)
    configure_logging(settings.log_level)
    sink = KinesisEventSink(kinesis_client(settings), settings.stream, settings.partitions)
    return create_app(sink, settings, on_crash=end_this_worker)


def end_this_worker() -> None:
    """End this gunicorn worker gracefully, so that requests under way get their answer; the master starts another."""
    os.kill(os.getpid(), signal.SIGTERM)
