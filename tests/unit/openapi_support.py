"""An OpenAPI document as tests read it: its operations, and whether a value or an answer is as it says."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema_rs
from flask import Flask
from schemathesis.specs.openapi.definitions import OPENAPI_31
from werkzeug.test import TestResponse

USAGE = "/v1/usage"
KEY = "a" * 43
DIALECT = "https://json-schema.org/draft/2020-12/schema"

# OpenAPI's own schema leaves Schema Objects open to any dialect; ours is the default one.
META_SCHEMA = {**OPENAPI_31, "$defs": {**OPENAPI_31["$defs"], "schema": {"$dynamicAnchor": "meta", "$ref": DIALECT}}}


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def key_file(folder: Path, *lines: tuple[str, str, str]) -> str:
    """Write a key, its tenant and its scopes a line, and return the path of the file."""
    file = folder / "keys"
    file.write_text(
        "".join(f"{hashlib.sha256(key.encode()).hexdigest()} {tenant} {scopes}\n" for key, tenant, scopes in lines)
    )
    return str(file)


@dataclass(frozen=True)
class Operation:
    path: str
    method: str
    content: dict[str, Any]


class Document:
    """content: as it is served."""

    def __init__(self, content: dict[str, Any]) -> None:
        self.content = content

    @classmethod
    def of(cls, app: Flask) -> Document:
        answer = app.test_client().get("/openapi.json")
        assert (answer.status_code, answer.content_type) == (200, "application/json")
        return cls(json.loads(answer.data))

    def operations(self) -> list[Operation]:
        return [
            Operation(path, method, operation)
            for path, item in self.content["paths"].items()
            for method, operation in item.items()
        ]

    def resolve(self, part: Any) -> Any:
        """Return what a part is, or refers to."""
        while isinstance(part, dict) and "$ref" in part:
            found: Any = self.content
            for name in part["$ref"].removeprefix("#/").split("/"):
                found = found[name]
            part = found
        return part

    def validator(self, schema: Any, *, strict: bool = False) -> jsonschema_rs.Validator:
        """Return what checks values against a schema of this document. strict: an undocumented member is refused."""
        whole = {"$schema": DIALECT, "components": self.content["components"], "allOf": [schema]}
        return jsonschema_rs.validator_for(_closed(whole) if strict else whole, validate_formats=True)

    def schema(self, name: str) -> jsonschema_rs.Validator:
        return self.validator({"$ref": f"#/components/schemas/{name}"})

    def problems(self) -> set[tuple[int, str]]:
        """Return the status and code of every problem that is documented."""
        responses = [response for each in self.operations() for response in each.content["responses"].values()]
        responses += self.content["components"]["responses"].values()
        found: set[tuple[int, str]] = set()
        for response in map(self.resolve, responses):
            for schema in self._alternatives(response.get("content", {}).get("application/problem+json")):
                members = schema["properties"]
                found |= {(members["status"]["const"], code) for code in members["code"]["enum"]}
        return found

    def assert_documented(self, answer: TestResponse, path: str, method: str = "post") -> None:
        """Fail unless status, headers, media type and every member of an answer are documented for its operation."""
        responses = self.content["paths"][path][method]["responses"]
        assert str(answer.status_code) in responses, f"{answer.status_code} is not documented: {answer.text[:500]}"
        response = self.resolve(responses[str(answer.status_code)])
        for name, header in response.get("headers", {}).items():
            sent = answer.headers.get(name)
            if sent is None and not header.get("required"):
                continue
            assert sent is not None, f"{name} is missing"
            value = int(sent) if header["schema"].get("type") == "integer" else sent
            assert self.validator(header["schema"]).is_valid(value)
        assert answer.mimetype in response["content"]
        schema = response["content"][answer.mimetype]["schema"]
        value = json.loads(answer.text) if answer.mimetype.endswith(("/json", "+json")) else answer.text
        assert [str(error)[:500] for error in self.validator(schema, strict=True).iter_errors(value)] == []

    def parts(self, part: Any = None) -> Iterator[dict[str, Any]]:
        """Yield every object in the document."""
        part = self.content if part is None else part
        if isinstance(part, dict):
            yield part
        for inner in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
            if inner is not None:
                yield from self.parts(inner)

    def _alternatives(self, media_type: Any) -> list[Any]:
        schema = self.resolve(media_type["schema"]) if media_type else {"oneOf": []}
        return [self.resolve(each) for each in schema.get("oneOf", [schema])]


def _closed(part: Any) -> Any:
    """Return schemas whose objects hold no other members than theirs."""
    if isinstance(part, list):
        return [_closed(each) for each in part]
    if not isinstance(part, dict):
        return part
    closed = {name: _closed(each) for name, each in part.items()}
    if closed.get("type") == "object" and "properties" in closed:
        closed.setdefault("additionalProperties", False)
    return closed
