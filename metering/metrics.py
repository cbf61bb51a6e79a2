"""Metrics of both web services: what was asked and answered, and how long it took; /metrics in Prometheus form.

    metering_http_requests_total{service,method,route,status}
    metering_http_request_duration_seconds{service,method,route}     from Flask's start on a request to its answer

Labels come from closed sets, since each combination is a series that is kept: `route` is the URL rule, never the path.
Under gunicorn the figures are those of all workers (metering/metrics_folder.py), elsewhere those of this process.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from flask import Flask, Response, g, request

from metering.metrics_folder import VARIABLE

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry, Counter, Histogram, Metric

DURATION_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
OTHER_METHOD = "other"
NO_ROUTE = "none"
"""The route of a path that no rule knows, and of a method that its rule does not take."""
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def add_metrics(app: Flask, *, service: str) -> CollectorRegistry:
    """Count the requests of `app`, add /metrics, and return the registry for the service's own metrics.

    Call it before any other hook is added: Flask runs the hooks of a request's end in reverse, so this one sees the
    whole of it. service: the label that tells the services apart.
    """
    # Here and not at the top, since the import looks at the environment: metering/metrics_folder.py.
    from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest  # noqa: PLC0415

    own = CollectorRegistry()
    shown = own
    folder = os.environ.get(VARIABLE)
    if folder:
        shown = CollectorRegistry()
        shown.register(_AllWorkers(folder))
    requests = _Requests(
        service,
        Counter(
            "metering_http_requests_total",
            "HTTP requests answered",
            ("service", "method", "route", "status"),
            registry=own,
        ),
        Histogram(
            "metering_http_request_duration_seconds",
            "Time to an answer",
            ("service", "method", "route"),
            buckets=DURATION_BUCKETS_S,
            registry=own,
        ),
    )
    app.before_request(requests.began)
    app.after_request(requests.ended)

    @app.get("/metrics")
    def metrics() -> Response:
        return Response(generate_latest(shown), content_type=CONTENT_TYPE)

    return own


class _AllWorkers:
    """What all workers have counted in `folder`, added up as prometheus_client's MultiProcessCollector does it.

    That one fails on a file without a size. A worker makes each file empty and sizes it a moment later, so a scrape in
    between would be a 500, and all of them would be if the worker is killed there (prometheus/client_python#1199).
    """

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)

    def collect(self) -> Iterable[Metric]:
        from prometheus_client.multiprocess import MultiProcessCollector  # noqa: PLC0415 - see add_metrics

        sized = [str(file) for file in self._folder.glob("*.db") if _size_bytes(file)]
        summed: Iterable[Metric] = MultiProcessCollector.merge(sized)  # type: ignore[no-untyped-call]  # it lacks types
        return summed


def _size_bytes(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:  # its worker has ended
        return 0


class _Requests:
    def __init__(self, service: str, answered: Counter, duration: Histogram) -> None:
        self._service = service
        self._answered = answered
        self._duration = duration
        # Looking a series up by its labels costs more than counting.
        self._series: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}

    def began(self) -> None:
        g.began_s = perf_counter()

    def ended(self, response: Response) -> Response:
        rule = request.url_rule
        method = request.method if request.method in METHODS else OTHER_METHOD
        key = (method, NO_ROUTE if rule is None else rule.rule, response.status_code)
        series = self._series.get(key)
        if series is None:
            series = self._series[key] = (
                self._answered.labels(self._service, key[0], key[1], str(key[2])),
                self._duration.labels(self._service, key[0], key[1]),
            )
        answered, duration = series
        answered.inc()
        duration.observe(perf_counter() - g.began_s)
        return response
