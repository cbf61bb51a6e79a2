"""YAML files that a person writes, read strictly: every fault has a line, a column and a sentence.

    bytes ─► yaml_places: plain values, and the place of each ─► held to a JSON Schema ─► YamlFile

The sentence for a value that breaks the schema takes what is allowed from the schema's `description` at that place,
which is what editors show as well.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator, ValidationError
from jsonschema.validators import extend

from metering.errors import SetupError
from metering.files import file_content
from metering.yaml_places import Fault, Node, PlacedDocument, PlacedError, placed_document, shown

FILE_BYTES_MAX = 4 * 1024 * 1024
"""Room for more than 10,000 tenants with a line each."""
FAULTS_MAX = 100
"""Faults that are reported of one file: the first by place."""
_ERRORS_MAX = 100 * FAULTS_MAX  # they do not come in the order of their places
_TYPES = {
    "object": "a mapping",
    "array": "a list",
    "string": "text",
    "number": "a number",
    "integer": "a whole number",
    "boolean": "true or false",
    "null": "nothing",
}


def _pattern(_: object, pattern: str, instance: object, __: object) -> Iterator[ValidationError]:
    """Hold text to a pattern as JSON Schema means it (ECMA-262): `$` is the end, and not before a last line break."""
    if isinstance(instance, str) and not re.search(re.sub(r"\$\Z", r"\\Z", pattern), instance):
        yield ValidationError("")


_Validator = extend(Draft202012Validator, {"pattern": _pattern})  # type: ignore[no-untyped-call]


class InvalidFileError(SetupError):
    """A file can't be used; the message is one line, of its first fault. faults: the first FAULTS_MAX, by place."""

    def __init__(self, name: str, faults: Iterable[Fault]) -> None:
        self.name = name
        self.faults = tuple(sorted(set(faults))[:FAULTS_MAX])
        more = len(self.faults) - 1
        super().__init__(self.lines[0] + (f" (and {more} more)" if more else ""))

    @property
    def lines(self) -> list[str]:
        """Each fault as `NAME:LINE:COLUMN: sentence`, the form that editors and terminals make a link of."""
        return [f"{self.name}:{fault.line}:{fault.column}: {fault.sentence}" for fault in self.faults]


@dataclass(frozen=True, slots=True)
class YamlFile:
    """A file that keeps its schema. value: dict, list, str, Decimal, bool and None. name: as errors call the file."""

    name: str
    value: Any
    _document: PlacedDocument = field(repr=False)

    def fault(self, node: Node, sentence: str, *, of_name: bool = False) -> Fault:
        """Return a fault at the value of `node`, or at its name, for rules that no schema can say.

        A node that is not there is a fault of the innermost one around it that is.
        """
        while True:
            name, value = self._document.names.get(node), self._document.values.get(node)
            place = (name or value) if of_name else (value or name)
            if place is not None:
                return Fault(*place, sentence)
            node, of_name = node[:-1], True


def read_yaml(path: Path, *, schema: Mapping[str, Any]) -> YamlFile:
    """Return the file at `path`, FILE_BYTES_MAX at most, as parse_yaml does.

    Raises SetupError, one line that names the file, when it can't be read; InvalidFileError as parse_yaml.
    """
    try:
        content = file_content(path, bytes_max=FILE_BYTES_MAX)
    except SetupError as error:
        raise SetupError(f"{path}: {error}") from error
    return parse_yaml(content, name=str(path), schema=schema)


def parse_yaml(content: bytes, *, name: str, schema: Mapping[str, Any]) -> YamlFile:
    """Return the one document of `content`: UTF-8, a mapping at the top, held to `schema`.

    name: what errors call the file. schema: JSON Schema 2020-12; a number in it is an int, never a float.
    Raises InvalidFileError: with one fault when it is no YAML of the kind above, with all when it breaks the schema.
    """
    if len(content) > FILE_BYTES_MAX:
        raise InvalidFileError(name, [Fault(1, 1, f"the file has more than {FILE_BYTES_MAX} bytes")])
    try:
        document = placed_document(content)
    except PlacedError as error:
        raise InvalidFileError(name, [error.fault]) from None
    found = YamlFile(name, document.value, document)
    faults: set[Fault] = set()
    for broken in islice(_Validator(schema).iter_errors(found.value), _ERRORS_MAX):
        faults.update(_schema_faults(found, broken))
    if faults:
        raise InvalidFileError(name, faults)
    return found


def _schema_faults(file: YamlFile, error: ValidationError) -> Iterator[Fault]:
    """Yield a fault for each thing at fault; some errors of jsonschema speak of several."""
    node: Node = tuple(error.absolute_path)
    instance: Any = error.instance
    schema: Mapping[str, Any] = error.schema if isinstance(error.schema, Mapping) else {}
    if "propertyNames" in error.schema_path:
        yield file.fault((*node, instance), _refused(instance, schema), of_name=True)
        return
    match error.validator:
        case "additionalProperties":
            allowed = list(schema.get("properties", {}))
            for name in instance:
                if name not in allowed:
                    yield file.fault((*node, name), _unknown(name, allowed), of_name=True)
        case "required":
            missing = [name for name in schema["required"] if name not in instance]
            yield file.fault(node, f"missing here: {', '.join(missing)}", of_name=True)
        case _:
            yield file.fault(node, _refused(instance, schema))


def _unknown(name: str, allowed: list[str]) -> str:
    near = get_close_matches(name[:64], allowed, n=1)
    guess = f"; did you mean {near[0]}?" if near else ";"
    return f"there is no member {shown(name)} here{guess} allowed: {', '.join(allowed)}"


def _refused(value: object, schema: Mapping[str, Any]) -> str:
    return f"{shown(value)} stands here; {_allowed(schema)}"


def _allowed(schema: Mapping[str, Any]) -> str:
    if "enum" in schema:
        return f"allowed: {', '.join(map(str, schema['enum']))}"
    if "description" in schema:
        return f"allowed: {schema['description']}"
    types = schema.get("type", "object")
    return f"allowed: {' or '.join(_TYPES[name] for name in ([types] if isinstance(types, str) else types))}"
