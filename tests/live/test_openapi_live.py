"""schemathesis calls the live services as their OpenAPI documents say, and in every way that these exclude."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.live.test_collector_live import BOOT_S, ROOT, LiveCollector, collector, free_port, gunicorn
from tests.unit.collector_support import WAIT_S, until
from tests.unit.openapi_support import KEY, USAGE, key_file

EXAMPLES_MAX = 40
RUN_S = 90
REFUSED = ["400", "401", "403", "404", "405", "413", "415", "422", "429"]


@pytest.fixture
def keys(tmp_path: Path) -> str:
    return key_file(tmp_path, (KEY, "*", "read,write,void"))


@contextmanager
def billing(tmp_path: Path, keys: str) -> Iterator[LiveCollector]:
    port, log = free_port(), tmp_path / "billing.log"
    arguments = ("--config", "python:billing.gunicorn_conf", "tests.live.billing_live_app:create()")
    with gunicorn(
        log, *arguments, port=port, BILLING_PORT=str(port), API_KEYS_FILE=keys, MIN_AS_OF_WAIT_MS="0"
    ) as process:
        live = LiveCollector(process, port, log)
        until(live.alive, BOOT_S)
        yield live


def served(live: LiveCollector) -> dict[str, Any]:
    """Return the document that a service shows to who has no key."""
    answer = requests.get(f"http://127.0.0.1:{live.port}/openapi.json", timeout=WAIT_S)
    assert answer.headers["Content-Type"] == "application/json"
    document: dict[str, Any] = answer.json()
    return document


def check(
    tmp_path: Path, live: LiveCollector, document: dict[str, Any], *, accepted: list[str], some: list[str]
) -> None:
    """Let schemathesis call a service by `document`, and fail with what it found.

    accepted: the statuses of valid requests; some: those that tell of a part of an invalid one.
    """
    config = {
        "hooks": "tests.live.openapi_hooks",
        "checks.positive_data_acceptance.expected-statuses": accepted,
        "checks.negative_data_rejection.expected-statuses": REFUSED + some,
        "checks.missing_required_header.expected-statuses": REFUSED,
        "generation.database": "none",
        "generation.deterministic": True,
        "generation.max-examples": EXAMPLES_MAX,
        "phases.stateful.enabled": False,
        "reports.json.path": "report.json",
        "warnings": False,
    }
    (tmp_path / "config.toml").write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in config.items()))
    (tmp_path / "document.json").write_text(json.dumps(document))
    run = subprocess.run(
        [sys.executable, "-m", "schemathesis.cli", "--config-file", "config.toml", "run", "document.json",
         "--url", f"http://127.0.0.1:{live.port}", "--header", f"Authorization: Bearer {KEY}", "--checks", "all",
         "--no-color"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=RUN_S,
        check=False,
    )  # fmt: skip
    assert run.returncode == 0, "\n".join(line[:500] for line in (run.stdout + run.stderr).splitlines())
    assert "Traceback" not in live.log()
    operations = {f"{method.upper()} {path}" for path, item in document["paths"].items() for method in item}
    rates = json.loads((tmp_path / "report.json").read_text())["valid_rates"]
    assert set(rates) == operations
    assert [name for name in operations if not rates[name]["fuzzing"]["accepted"]] == []


def without_binary_mode(document: dict[str, Any]) -> dict[str, Any]:
    """Return the document of all but CloudEvents in binary mode: no schema can tie a body to headers."""
    document = deepcopy(document)
    usage = document["paths"][USAGE]["post"]
    usage["parameters"] = [part for part in usage["parameters"] if part["name"] == "Content-Encoding"]
    usage["parameters"][0]["schema"] = {"enum": ["identity", ""]}  # gzip would need another body
    json_body = usage["requestBody"]["content"]["application/json"]
    json_body["schema"]["oneOf"].remove({"$ref": "#/components/schemas/CloudEventData"})
    del json_body["examples"]["cloud_event_in_binary_mode"]
    return document


def binary_mode_alone(document: dict[str, Any]) -> dict[str, Any]:
    """Return the document of CloudEvents in binary mode, whose attributes need no percent-encoding."""
    document = deepcopy(document)
    usage = document["paths"][USAGE]["post"]
    usage["parameters"] = [part for part in usage["parameters"] if part["name"].startswith("Ce-")]
    for part in usage["parameters"]:
        part["required"] = part["name"] != "Ce-Time"
        if part["schema"].get("minLength"):
            part["schema"]["pattern"] = "^[0-9A-Za-z._:@-]{1,99}$"
    json_body = usage["requestBody"]["content"]["application/json"]
    json_body["schema"] = {"$ref": "#/components/schemas/CloudEventData"}
    json_body["examples"] = {"data": json_body["examples"]["cloud_event_in_binary_mode"]}
    usage["requestBody"]["content"] = {"application/json": json_body}
    return document


def exports_of_a_month(document: dict[str, Any]) -> dict[str, Any]:
    """Return the document with an export of a period alone: no schema can say that it goes without from and to."""
    document = deepcopy(document)
    export = document["paths"]["/v1/export"]["get"]
    left = [part for part in export["parameters"] if part["name"] not in {"from", "to", "timezone"}]
    export["parameters"] = [part | {"required": part["name"] == "period"} for part in left]
    return document


@pytest.mark.parametrize("part", [without_binary_mode, binary_mode_alone])
def test_the_collector_does_as_its_document_says(
    tmp_path: Path, keys: str, part: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    with collector(tmp_path, WEB_CONCURRENCY="1", API_KEYS_FILE=keys) as live:
        check(tmp_path, live, part(served(live)), accepted=["200", "202"], some=["207"])
        assert sum(live.published()) > EXAMPLES_MAX


def test_billing_does_as_its_document_says(tmp_path: Path, keys: str) -> None:
    with billing(tmp_path, keys) as live:
        check(tmp_path, live, exports_of_a_month(served(live)), accepted=["200", "303", "404", "409"], some=[])
