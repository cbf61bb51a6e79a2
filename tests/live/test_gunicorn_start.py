"""How the services start: gunicorn's own variables are checked like ours, and the first lines say who may ask."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from metering.errors import InvalidSettingError
from metering.gunicorn_start import WORKERS_MAX, workers
from tests.live.test_collector_live import BOOT_S, ROOT, collector, free_port, gunicorn
from tests.unit.collector_support import WAIT_S, until

BAD = ["two", "1.5", "0", "-1", " 2", "257", "²", "9" * 5000]


def ended(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=BOOT_S,
    )


@pytest.mark.parametrize("value", BAD)
def test_a_number_of_workers_that_can_not_be_used_is_refused(value: str) -> None:
    with pytest.raises(InvalidSettingError, match=f"allowed: a whole number from 1 to {WORKERS_MAX}"):
        workers({"WEB_CONCURRENCY": value}, default=2)


def test_no_number_of_workers_is_the_default() -> None:
    assert [workers(environment, default=2) for environment in ({}, {"WEB_CONCURRENCY": ""})] == [2, 2]
    assert workers({"WEB_CONCURRENCY": "12"}, default=2) == 12


@pytest.mark.parametrize("package", ["collector", "billing"])
@pytest.mark.parametrize("value", ["two", "0"])
def test_a_start_with_it_is_one_line(package: str, value: str) -> None:
    done = ended(package, WEB_CONCURRENCY=value)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"WEB_CONCURRENCY={value!r} can't be used: allowed: a whole number from 1 to {WORKERS_MAX}\n"


@pytest.mark.parametrize("package", ["collector", "billing"])
def test_other_variables_of_gunicorn_are_no_traceback(package: str) -> None:
    for name, value in (("FORWARDED_ALLOW_IPS", "nonsense"), ("GUNICORN_CMD_ARGS", "--threads many")):
        done = ended(package, **{name: value})
        assert done.returncode != 0
        assert "Traceback" not in done.stderr
        assert "rror: " in done.stderr


def test_a_package_started_as_a_program_becomes_gunicorn_with_its_arguments(tmp_path: Path) -> None:
    log_path = tmp_path / "log"
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "collector", "--threads", "3"],
            cwd=ROOT,
            env={"PATH": os.environ["PATH"], "COLLECTOR_PORT": str(free_port()), "WEB_CONCURRENCY": ""},
            stderr=log,
        )
    try:
        until(lambda: len(psutil.Process(process.pid).children()) == 2, BOOT_S)
        assert psutil.Process(process.pid).cmdline()[1:3] == ["-m", "gunicorn"]
        assert psutil.Process(process.pid).cmdline()[-2:] == ["--threads", "3"]
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(WAIT_S) == 0
    assert "Traceback" not in log_path.read_text()


@pytest.mark.parametrize("service", ["collector", "billing"])
def test_a_worker_that_is_still_starting_ends_when_the_master_is_asked_to(tmp_path: Path, service: str) -> None:
    slow = tmp_path / "slow.py"
    slow.write_text(
        f"from {service}.gunicorn_conf import *\nimport time\ndef post_fork(_, __): time.sleep({3 * BOOT_S})\n"
    )
    log_path, port = tmp_path / "log", free_port()
    with gunicorn(log_path, "--config", str(slow), port=port, BILLING_PORT=str(port)) as process:
        until(lambda: "Booting worker" in log_path.read_text(), BOOT_S)
        process.send_signal(signal.SIGTERM)
        assert process.wait(WAIT_S) == 0
    assert "Traceback" not in log_path.read_text()


def test_price_plans_that_are_wrong_stop_the_start_with_their_place(tmp_path: Path) -> None:
    plans = tmp_path / "plans.yaml"
    plans.write_text("default_plan: a\nplans: {a: {currency: EURO}}\n")
    done = ended("billing", PLANS_FILE=str(plans))
    assert (done.returncode, done.stdout) == (1, "")
    place = f"PLANS_FILE={str(plans)!r} can't be used: {plans}:2:23: 'EURO' stands here; "
    assert done.stderr.startswith(place)
    assert done.stderr.count("\n") == 1


def test_the_configuration_does_not_import_prometheus_client() -> None:
    # It would not know of the workers' folder, and each worker would answer /metrics for itself alone.
    code = "import sys, collector.gunicorn_conf, billing.gunicorn_conf; sys.exit('prometheus_client' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_the_start_says_whose_keys_are_asked_for(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("".join(f"{hashlib.sha256(bytes([n])).hexdigest()} * write\n" for n in range(3)))
    with collector(tmp_path, API_KEYS_FILE=str(keys), WEB_CONCURRENCY="1") as service:
        assert sum(line["message"] == f"3 API keys from {keys}" for line in service.lines()) == 1
        assert "open to everyone" not in service.log()


@pytest.mark.parametrize(
    ("package", "variable"),
    [
        ("collector", "API_KEYS_FILE"),
        ("collector", "METERS_FILE"),
        ("billing", "API_KEYS_FILE"),
        ("billing", "METERS_FILE"),
        ("billing", "PLANS_FILE"),
    ],
)
def test_a_file_of_a_setting_that_can_not_be_used_is_one_line(package: str, variable: str, tmp_path: Path) -> None:
    missing = str(tmp_path / "nowhere")
    done = ended(package, **{variable: missing})
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"{variable}={missing!r} can't be used: ")
    assert done.stderr.count("\n") == 1
