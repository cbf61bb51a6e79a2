"""Kinds of YAML files, each of which a setting names: held to the kind's schema, then to what no schema can say.

Where it sits: yaml_files reads YAML and holds it to a schema; plans_file, alerts_file and meters_file are the kinds,
and know their rules. Nothing here knows what a file is for.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from metering.errors import InvalidEventError, InvalidSettingError, SetupError
from metering.events import parse_name
from metering.local_time import zone_names
from metering.yaml_files import InvalidFileError, YamlFile, parse_yaml, read_yaml
from metering.yaml_places import Fault, Node, shown

T = TypeVar("T")


class RuleReader(ABC, Generic[T]):
    """Makes a T of a file. It reads on after a fault, so that all are found; what it makes then is not used."""

    def __init__(self, file: YamlFile) -> None:
        self.file = file
        self.faults: list[Fault] = []

    @abstractmethod
    def made(self) -> T:
        """Return what the file says; what is wrong with it goes to `faults`."""

    def fault(self, node: Node, sentence: str, *, of_name: bool = False) -> None:
        """Note a fault at the value of `node`, or at its name."""
        self.faults.append(self.file.fault(node, sentence, of_name=of_name))

    def check_name(self, node: Node, name: str, field: str, *, of_name: bool = False) -> None:
        """Note a fault unless events can have `name` as their `field`: tenant_id, metric."""
        try:
            parse_name(name, field)
        except InvalidEventError as error:
            self.fault(node, f"{shown(name)} stands here; {error.detail}", of_name=of_name)

    def timezone(self) -> str:
        """Return the file's `timezone`, UTC where it has none, and note a fault when there is no such zone."""
        name: str = self.file.value.get("timezone", "UTC")
        if name not in zone_names():
            self.fault(("timezone",), f"{shown(name)} stands here; allowed: an IANA time zone, as Europe/Berlin")
        return name


@dataclass(frozen=True, slots=True)
class YamlKind(Generic[T]):
    """A kind of file. variable: the environment variable that names one. schema_file: JSON Schema 2020-12."""

    variable: str
    schema_file: Path
    reader: type[RuleReader[T]]

    def read(self, path: Path) -> T:
        """Return what the file at `path` says.

        Raises InvalidSettingError, one line that names the variable, the file, and the place of the first fault.
        """
        try:
            return self._made(read_yaml(path, schema=self._schema()))
        except SetupError as error:
            raise InvalidSettingError(self.variable, str(path), str(error)) from error

    def parse(self, content: bytes, *, name: str) -> T:
        """Return what a file's content says. name: what errors call it. Raises InvalidFileError, with all faults."""
        return self._made(parse_yaml(content, name=name, schema=self._schema()))

    def _made(self, file: YamlFile) -> T:
        reader = self.reader(file)
        made = reader.made()
        if reader.faults:
            raise InvalidFileError(file.name, reader.faults)
        return made

    def _schema(self) -> dict[str, object]:
        schema: dict[str, object] = json.loads(self.schema_file.read_bytes())
        return schema
