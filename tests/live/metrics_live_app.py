"""An app with the metrics of both kinds, for tests across gunicorn's workers."""

from __future__ import annotations

import os

from flask import Flask

from collector.committer import GroupCommitter
from collector.metrics import CollectorMetrics
from metering.memory import MemoryStream
from metering.metrics import add_metrics
from metering.metrics_folder import VARIABLE
from metering.settings import Settings
from metering.web import add_health


def create() -> Flask:
    app = Flask("live")
    metrics = CollectorMetrics(add_metrics(app, service="live"))
    add_health(app, lambda: None)
    settings = Settings.from_environment({})
    app.extensions["committer"] = GroupCommitter(MemoryStream(), settings, metrics=metrics)  # gunicorn_conf ends it

    @app.post("/events/<int:events>")
    def accept(events: int) -> dict[str, int]:
        metrics.events_accepted(events)
        return {"pid": os.getpid()}

    @app.post("/pending/<int:events>")
    def pend(events: int) -> dict[str, int]:
        metrics.pending(events)
        return {"pid": os.getpid()}

    @app.get("/folder")
    def folder() -> dict[str, str]:
        return {"folder": os.environ[VARIABLE]}

    return app
