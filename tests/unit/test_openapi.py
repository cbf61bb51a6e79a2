"""The OpenAPI documents are valid, and say what the services do: routes, codes, examples and answers."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from flask import Flask

from billing.app import create_app as billing_app
from collector import app as collector_app
from collector.openapi import RESULT_CODES, RULE_CODES
from metering.memory import MemoryStream, MemoryTables
from metering.settings import Settings
from tests.live.billing_live_app import ALERTS, PLANS, world
from tests.unit.answered_codes import answered_codes
from tests.unit.collector_support import apps, encoded, settings_with
from tests.unit.openapi_support import KEY, META_SCHEMA, USAGE, Document, key_file

RESOURCES = {"collector": "stream", "billing": "table"}
NOT_ANSWERED: Mapping[str, Mapping[tuple[int, str], str]] = {
    "collector": {
        (411, "length_required"): "Werkzeug asks for no length",
        (422, "forbidden_tenant"): "as a result of one event among several; by itself it is 403",
    },
    "billing": {
        (411, "length_required"): "Werkzeug asks for no length",
        (422, "invalid_timestamp"): "a time in the query is answered as 400 invalid_time",
    },
}
BY_FLASK = {"HEAD", "OPTIONS"}


@pytest.fixture
def make() -> Iterator[Callable[..., Flask]]:
    with apps() as make:
        yield make


@pytest.fixture
def services(make: Callable[..., Flask], settings: Settings) -> dict[str, Flask]:
    return {
        "collector": make(MemoryStream()),
        "billing": billing_app(world().tables, replace(settings, plans_file=PLANS, alerts_file=ALERTS)),
    }


@pytest.fixture(params=sorted(RESOURCES))
def service(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def document(services: dict[str, Flask], service: str) -> Document:
    return Document.of(services[service])


# ── The document ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_it_is_valid_openapi_and_all_its_schemas_are_valid(document: Document) -> None:
    errors = jsonschema_rs.Draft202012Validator(META_SCHEMA, validate_formats=True).iter_errors(document.content)
    assert [f"{error.instance_path}: {error.message[:300]}" for error in errors] == []
    for part in document.parts():
        if "$ref" in part:
            document.resolve(part)
        if "schema" in part:
            document.validator(part["schema"])


def test_an_invalid_schema_would_be_found(document: Document) -> None:
    document.content["components"]["schemas"]["Wrong"] = {"type": "strnig"}
    assert not jsonschema_rs.Draft202012Validator(META_SCHEMA).is_valid(document.content)


def test_it_holds_every_route_and_method_and_no_other(services: dict[str, Flask], service: str) -> None:
    routes = {
        (re.sub(r"<(?:[^<>:]+:)?([^<>:]+)>", r"{\1}", rule.rule), method.lower())
        for rule in services[service].url_map.iter_rules()
        for method in (rule.methods or set()) - BY_FLASK
    }
    assert {(each.path, each.method) for each in Document.of(services[service]).operations()} == routes


def test_operations_have_names_of_their_own_and_name_the_parameters_of_their_path(document: Document) -> None:
    operations = document.operations()
    assert len({each.content["operationId"] for each in operations}) == len(operations)
    for each in operations:
        in_path = [part["name"] for part in each.content.get("parameters", ()) if part["in"] == "path"]
        assert in_path == re.findall(r"\{(.+?)\}", each.path)


def test_it_holds_every_code_that_the_service_answers_and_no_other(document: Document, service: str) -> None:
    answered = answered_codes(service, RESOURCES[service])
    assert set(NOT_ANSWERED[service]) <= answered
    assert document.problems() == answered - set(NOT_ANSWERED[service])


def test_the_codes_of_single_events_are_all_there() -> None:
    of_events = {code for status, code in answered_codes("collector", "stream") if status in {400, 413, 422}}
    assert of_events - {"bad_request", "no_event_accepted"} == RESULT_CODES
    assert {"forbidden_tenant", "malformed_json", "too_large"} == RESULT_CODES - RULE_CODES


def test_the_media_types_of_lines_are_those_that_are_read_as_such(services: dict[str, Flask]) -> None:
    content = Document.of(services["collector"]).content["paths"][USAGE]["post"]["requestBody"]["content"]
    assert {media_type for media_type in content if "ndjson" in media_type} == collector_app.NDJSON


def test_it_needs_a_key_where_keys_are_set(
    make: Callable[..., Flask], document: Document, service: str, tmp_path: Path
) -> None:
    assert {} in document.content["security"]
    keys = key_file(tmp_path, (KEY, "*", "read,write"))
    closed = settings_with(API_KEYS_FILE=keys)
    app = make(MemoryStream(), API_KEYS_FILE=keys) if service == "collector" else billing_app(MemoryTables(), closed)
    needed = Document.of(app).content["security"]
    assert needed == [each for each in document.content["security"] if each]
    assert len(needed) == 2
    for operation in document.operations():
        asked = app.test_client().open(operation.path.replace("{", "").replace("}", ""), method=operation.method)
        assert (asked.status_code == 401) == (operation.content.get("security") != [])


# ── Examples ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def examples_of(part: Mapping[str, Any]) -> dict[str, Any]:
    return {name: example["value"] for name, example in part.get("examples", {}).items()}


def test_examples_keep_the_schemas_beside_them(document: Document) -> None:
    found = 0
    for part in document.parts():
        values = [*examples_of(part).values(), *([part["example"]] if "example" in part else [])]
        for value in values if "schema" in part else ():
            assert [error.message for error in document.validator(part["schema"], strict=True).iter_errors(value)] == []
            found += 1
    assert found >= 6


def requests_of(document: Document) -> Iterator[tuple[bytes, dict[str, str]]]:
    """Yield body and headers of each example of a request."""
    usage = document.content["paths"][USAGE]["post"]
    for media_type, content in usage["requestBody"]["content"].items():
        for name, value in examples_of(content).items():
            headers = {"Content-Type": media_type} | {
                part["name"]: examples_of(part)[name] for part in usage["parameters"] if name in examples_of(part)
            }
            body = b"\n".join(map(encoded, value)) if "ndjson" in media_type else json.dumps(value).encode()
            yield body, headers


def test_example_requests_are_accepted_in_gzip_too(services: dict[str, Flask]) -> None:
    document, client = Document.of(services["collector"]), services["collector"].test_client()
    sent = list(requests_of(document))
    assert len(sent) >= 7
    for body, headers in sent:
        for coded, coding in ((body, "identity"), (gzip.compress(body), "gzip")):
            answer = client.post(USAGE, data=coded, headers={**headers, "Content-Encoding": coding})
            assert answer.status_code == 202, (headers, answer.text)
            document.assert_documented(answer, USAGE)


def test_examples_of_paths_are_answered_as_documented(services: dict[str, Flask]) -> None:
    document, client = Document.of(services["billing"]), services["billing"].test_client()
    for each in document.operations():
        given = [part for part in each.content.get("parameters", ()) if "example" in part]
        path, query = ({p["name"]: p["example"] for p in given if p["in"] == place} for place in ("path", "query"))
        bodies = each.content.get("requestBody", {"content": {"application/json": {"examples": {}}}})["content"]
        examples = [example["value"] for example in bodies["application/json"]["examples"].values()] or [None]
        for body in examples:
            answer = client.open(
                each.path.format(**path), method=each.method, query_string=query, json=body, buffered=True
            )
            assert answer.status_code == 200
            document.assert_documented(answer, each.path, each.method)
