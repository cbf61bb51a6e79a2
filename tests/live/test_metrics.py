"""/metrics: what is counted, under which labels, in one process and right across gunicorn's workers."""

from __future__ import annotations

import math
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests
from flask import Flask, abort
from flask.testing import FlaskClient
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from collector.metrics import CALL_FAILED, CollectorMetrics
from metering.errors import InvalidSettingError, SetupError
from metering.metrics import add_metrics
from metering.metrics_folder import PREFIX, VARIABLE, MetricsFolder
from metering.web import add_problems
from tests.live.test_collector_live import ROOT, LiveCollector, collector
from tests.unit.collector_support import WAIT_S, until

LIVE_APP = "tests.live.metrics_live_app:create()"
REQUESTS = "metering_http_requests_total"
DURATION = "metering_http_request_duration_seconds"


def samples(text: str, name: str) -> dict[tuple[str, ...], float]:
    """The samples of one name: their labels' values, in the order of the labels' names, and what they hold."""
    return {
        tuple(sample.labels[label] for label in sorted(sample.labels)): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name
    }


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> FlaskClient:
    monkeypatch.delenv(VARIABLE, raising=False)
    app = Flask("test", static_folder=None)
    add_metrics(app, service="test")
    add_problems(app)

    @app.get("/tenants/<tenant_id>")
    def tenant(tenant_id: str) -> str:
        if tenant_id == "gone":
            abort(410)
        if tenant_id == "bug":
            raise RuntimeError(tenant_id)
        return tenant_id

    return app.test_client()


def shown(client: FlaskClient, name: str) -> dict[tuple[str, ...], float]:
    return samples(client.get("/metrics").text, name)


def test_requests_are_counted_by_rule_method_and_status(client: FlaskClient) -> None:
    for path in ("/tenants/a", "/tenants/b", "/tenants/gone", "/tenants/bug"):
        client.get(path)
    client.head("/tenants/a")
    rule = "/tenants/<tenant_id>"
    assert shown(client, REQUESTS) == {
        ("GET", rule, "test", "200"): 2,
        ("GET", rule, "test", "410"): 1,
        ("GET", rule, "test", "500"): 1,
        ("HEAD", rule, "test", "200"): 1,
    }
    assert shown(client, f"{DURATION}_count")["GET", rule, "test"] == 4
    assert shown(client, f"{DURATION}_sum")["GET", rule, "test"] > 0


def test_what_a_client_makes_up_is_one_series(client: FlaskClient) -> None:
    for number in range(20):
        client.get(f"/nothing/{number}")
        client.open("/tenants/a", method=f"MADEUP{number}")
    assert shown(client, REQUESTS) == {
        ("GET", "none", "test", "404"): 20,
        ("other", "none", "test", "405"): 20,
    }


def test_buckets_reach_from_a_millisecond_to_ten_seconds(client: FlaskClient) -> None:
    client.get("/tenants/a")
    bounds = [float(le) for le, *_ in samples(client.get("/metrics").text, f"{DURATION}_bucket")]
    assert (min(bounds), sorted(bounds)[-2], max(bounds)) == (0.001, 10.0, math.inf)


def test_the_answer_is_prometheus_text_whatever_is_asked_for(client: FlaskClient) -> None:
    for accept in ("*/*", "application/openmetrics-text;version=1.0.0", "text/plain;version=x"):
        answer = client.get("/metrics", headers={"Accept": accept})
        assert (answer.status_code, answer.content_type) == (200, "text/plain; version=0.0.4; charset=utf-8")


def test_the_collectors_own_metrics() -> None:
    from prometheus_client import generate_latest

    registry = CollectorRegistry()
    metrics = CollectorMetrics(registry)
    metrics.events_accepted(3)
    metrics.events_accepted()
    metrics.events_rejected("negative_value", 2)
    metrics.events_unavailable(5)
    metrics.events_unavailable(code="too_many_pending")
    metrics.pending(7)
    metrics.pending(4)
    metrics.put_records(records=2, events=9, data_bytes=48_000, seconds=0.012)
    metrics.put_records(records=1, events=1, data_bytes=100, seconds=0.5)
    metrics.put_retried("ProvisionedThroughputExceededException", 2)
    metrics.put_retried(CALL_FAILED, 3)
    for reason in ("Made", "up"):
        metrics.put_retried(reason, 1)
    text = generate_latest(registry).decode()
    assert samples(text, "metering_events_total") == {
        ("", "accepted"): 4,
        ("negative_value", "rejected"): 2,
        ("unavailable", "unavailable"): 5,
        ("too_many_pending", "unavailable"): 1,
    }
    assert samples(text, "metering_pending_events") == {(): 4}
    assert samples(text, "metering_put_records_duration_seconds_count") == {(): 2}
    assert samples(text, "metering_put_records_size_bytes_sum") == {(): 48_100}
    assert samples(text, "metering_put_records_size_records_sum") == {(): 3}
    assert samples(text, "metering_put_records_size_events_sum") == {(): 10}
    assert samples(text, "metering_put_records_retried_records_total") == {
        ("ProvisionedThroughputExceededException",): 2,
        (CALL_FAILED,): 3,
        ("other",): 2,
    }


@contextmanager
def live(tmp_path: Path, **environment: str) -> Iterator[LiveCollector]:
    with collector(tmp_path, LIVE_APP, **environment) as service:
        yield service


def asked(service: LiveCollector, method: str, path: str) -> requests.Response:
    """Answer on a connection of its own, so that any worker may take it."""
    return requests.request(method, f"http://127.0.0.1:{service.port}{path}", timeout=WAIT_S)


def shared(service: LiveCollector, name: str) -> dict[tuple[str, ...], float]:
    return samples(asked(service, "GET", "/metrics").text, name)


def spread(service: LiveCollector, path: str, workers: int = 2) -> Counter[int]:
    """Post until `workers` workers have served some; return how many each did."""
    served: Counter[int] = Counter()

    def post(_number: int) -> int:
        return int(asked(service, "POST", path).json()["pid"])

    with ThreadPoolExecutor(8) as pool:
        until(lambda: served.update(pool.map(post, range(16))) or len(served) >= workers)
    return served


def test_sums_of_all_workers_are_exact_and_outlive_a_killed_one(tmp_path: Path) -> None:
    with live(tmp_path) as service:
        served = spread(service, "/events/3")
        requests_of = ("POST", "/events/<int:events>", "live", "200")
        for _ in range(8):  # whichever worker is asked
            assert shared(service, "metering_events_total") == {("", "accepted"): 3 * served.total()}
            assert shared(service, REQUESTS)[requests_of] == served.total()
            assert shared(service, f"{DURATION}_count")[requests_of[:3]] == served.total()
        assert set(spread(service, "/pending/5")) == set(served)
        assert shared(service, "metering_pending_events") == {(): 10}

        killed = min(served)
        os.kill(killed, signal.SIGKILL)
        until(lambda: shared(service, "metering_pending_events") == {(): 5})
        until(lambda: len(service.workers() - {killed}) == 2)
        assert shared(service, "metering_events_total") == {("", "accepted"): 3 * served.total()}
        assert shared(service, REQUESTS)[requests_of] == served.total()
        more = spread(service, "/events/3")
        assert set(more) == service.workers()
        assert shared(service, "metering_events_total") == {("", "accepted"): 3 * (served.total() + more.total())}


def test_a_worker_killed_before_its_files_have_a_size_costs_no_answer(tmp_path: Path) -> None:
    with live(tmp_path) as service:
        assert asked(service, "POST", "/events/3").ok
        folder = Path(asked(service, "GET", "/folder").json()["folder"])
        for kind in ("counter", "histogram", "gauge_livesum"):
            (folder / f"{kind}_1.db").touch()
        assert shared(service, "metering_events_total") == {("", "accepted"): 3}


def test_the_folder_is_private_and_goes_with_the_master(tmp_path: Path) -> None:
    with live(tmp_path) as service:
        folder = Path(asked(service, "GET", "/folder").json()["folder"])
        assert folder.name.startswith(PREFIX)
        assert folder.stat().st_mode & 0o777 == 0o700
        worker = min(service.workers())
        os.kill(worker, signal.SIGTERM)  # a worker that ends in order leaves it alone
        until(lambda: service.workers() - {worker} and worker not in service.workers())
        assert list(folder.glob("counter_*.db"))
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(WAIT_S) == 0
        assert not folder.exists()


def test_the_folder_of_a_killed_master_is_swept_by_the_next_and_that_of_a_living_one_is_not(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "next").mkdir()
    with live(tmp_path) as service, live(tmp_path / "other") as living:
        left, used = (Path(asked(each, "GET", "/folder").json()["folder"]) for each in (service, living))
        workers = service.workers()
        service.process.kill()
        service.process.wait(WAIT_S)
        assert left.exists()
        until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))
        with live(tmp_path / "next"):
            assert not left.exists()
            assert used.exists()
            assert shared(living, REQUESTS)


def test_a_folder_that_was_given_is_used_and_left(tmp_path: Path) -> None:
    given = tmp_path / "given"
    given.mkdir()
    with live(tmp_path, **{VARIABLE: str(given)}) as service:
        assert asked(service, "GET", "/folder").json()["folder"] == str(given)
        spread(service, "/events/1")
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(WAIT_S) == 0
    assert len(list(given.glob("counter_*.db"))) == 2


@pytest.mark.parametrize("package", ["collector", "billing"])
def test_a_given_folder_that_can_not_be_used_stops_the_start_with_one_line(package: str, tmp_path: Path) -> None:
    given = str(tmp_path / "nowhere")
    ended = subprocess.run(
        [sys.executable, "-m", package],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], VARIABLE: given},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    allowed = "allowed: empty, or a folder that exists and can be written"
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == f"{VARIABLE}={given!r} can't be used: {allowed}\n"


def test_another_masters_folder_is_not_taken_for_a_given_one(tmp_path: Path) -> None:
    # As a master finds it that gunicorn starts for an upgrade (USR2); the old one removes its folder when it goes.
    old = tmp_path / f"{PREFIX}old"
    environment = {VARIABLE: str(old)}
    MetricsFolder(environment, tmp_path).open()
    assert Path(environment[VARIABLE]).parent == tmp_path
    assert environment[VARIABLE] != str(old)


def test_no_place_for_a_folder_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=re.escape("there is no place for metrics: ")):
        MetricsFolder({}, tmp_path / "nowhere").open()


def test_a_folder_is_checked_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettingError):
        MetricsFolder({VARIABLE: str(tmp_path / "nowhere")}, tmp_path)
    MetricsFolder({}, tmp_path)
    assert not list(tmp_path.iterdir())
