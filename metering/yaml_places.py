"""The text of a YAML file as plain values, and the place of each. Pure; yaml_files holds them to a schema.

PyYAML splits the text and no more: what a scalar is decides this module, by YAML 1.2's core schema as far as a price
list needs it. A name (a key of a mapping) is always the text that stands there: a tenant may be called `no`, a metric
`1e3` or `12:30`. A plain value is a number (Decimal, never a float), true, false, nothing, or text; dates stay text.
Anchors and aliases (a few bytes may mean gigabytes), tags, and a name that stands twice are refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, DecimalException
from typing import Any

import yaml

from metering.errors import MeteringError

DEPTH_MAX = 32
NUMBER_INTEGER_DIGITS_MAX = 15
NUMBER_FRACTION_DIGITS_MAX = 15
"""More than an event's value may have: the price of a token has ten digits after the point."""

Node = tuple[str | int, ...]
"""Where something stands in the document: names and indexes, from the top."""

_NUMBER = re.compile(r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?\Z", re.ASCII)
_NUMBER_LENGTH_MAX = 64
_CONSTANTS = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_LINE_BREAK = re.compile(r"\r\n|[\n\r\x85\u2028\u2029]")  # YAML 1.1's, by which the parser counts
_NOT_PRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True, slots=True, order=True)
class Fault:
    """One fault of a file. line, column: from 1, in characters. sentence: what is there, and what is allowed."""

    line: int
    column: int
    sentence: str


@dataclass(frozen=True, slots=True)
class PlacedDocument:
    """value: dict, list, str, Decimal, bool and None. names, values: line and column, from 1, of each node's."""

    value: dict[str, Any]
    names: Mapping[Node, tuple[int, int]]
    values: Mapping[Node, tuple[int, int]]


def placed_document(content: bytes) -> PlacedDocument:
    """Return the one document of `content`, which is UTF-8 and has a mapping at its top.

    Raises PlacedError with the first fault: what is no YAML, and what this module refuses.
    """
    builder = _Builder()
    text = _text(content)
    try:
        for event in yaml.parse(text, Loader=yaml.CBaseLoader):
            builder.take(event)
    except yaml.MarkedYAMLError as error:
        raise _syntax_error(error, text) from None
    return PlacedDocument(builder.document(), builder.names, builder.values)


def shown(value: object) -> str:
    """Return a value of a document in words, 64 characters of it at most: `'monthly'`, `the number 0.1`, `a list`."""
    match value:
        case None:
            return "nothing"
        case bool():
            return "true" if value else "false"
        case Decimal():
            return f"the number {value}"
        case str():
            return repr(value if len(value) <= 64 else value[:64] + "…")
        case list():
            return "a list"
        case _:
            return "a mapping"


def fraction_digits(number: Decimal) -> int:
    """Return how many digits after the point a finite number needs: 1 of 0.10, 0 of 1E+3."""
    digits = "".join(map(str, number.as_tuple().digits))
    exponent = number.adjusted() - len(digits.rstrip("0")) + 1
    return max(0, -exponent) if number else 0


class PlacedError(MeteringError):
    """One fault of the text, at which reading ends."""

    def __init__(self, place: tuple[int, int], sentence: str) -> None:
        super().__init__(sentence)
        self.fault = Fault(*place, sentence)


def _text(content: bytes) -> str:
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        before = content[: error.start].decode("utf-8")
        raise PlacedError(_place_after(before), "a byte that is not UTF-8 stands here; allowed: UTF-8") from None
    text = text.removeprefix("\ufeff")
    odd = _NOT_PRINTABLE.search(text)
    if odd:
        place = _place_after(text[: odd.start()])
        raise PlacedError(place, f"the character U+{ord(odd[0]):04X} stands here; allowed: printable characters")
    return text


def _place_after(text: str) -> tuple[int, int]:
    lines = _LINE_BREAK.split(text)
    return len(lines), len(lines[-1]) + 1


def _place(mark: Any) -> tuple[int, int]:
    return mark.line + 1, mark.column + 1


class _Builder:
    """Takes the parser's events one by one: no recursion, and nothing is built beyond a limit."""

    def __init__(self) -> None:
        self.names: dict[Node, tuple[int, int]] = {}
        self.values: dict[Node, tuple[int, int]] = {}
        self._open: list[tuple[Node, dict[str, Any] | list[Any]]] = []
        self._name: list[str | None] = []
        """Of each open mapping: the name whose value comes next; None when a name comes next."""
        self._document: dict[str, Any] | None = None

    def document(self) -> dict[str, Any]:
        if self._document is None:
            raise PlacedError((1, 1), "the file is empty; allowed: a mapping")
        return self._document

    def take(self, event: Any) -> None:
        match event:
            case yaml.DocumentStartEvent() if self._document is not None:
                raise PlacedError(_place(event.start_mark), "a second document begins here; allowed: one")
            case yaml.AliasEvent():
                raise PlacedError(
                    _place(event.start_mark), f"the alias {shown(event.anchor)} stands here; aliases are not allowed"
                )
            case yaml.MappingStartEvent() | yaml.SequenceStartEvent() | yaml.ScalarEvent():
                self._refuse_properties(event)
                self._begin(event)
            case yaml.MappingEndEvent() | yaml.SequenceEndEvent():
                self._open.pop()
                self._name.pop()
            case _:
                pass

    @staticmethod
    def _refuse_properties(event: Any) -> None:
        if event.anchor is not None:
            raise PlacedError(
                _place(event.start_mark), f"the anchor {shown(event.anchor)} stands here; anchors are not allowed"
            )
        if event.tag not in {None, "!"}:
            raise PlacedError(_place(event.start_mark), f"the tag {shown(event.tag)} stands here; tags are not allowed")

    def _begin(self, event: Any) -> None:
        place = _place(event.start_mark)
        scalar = isinstance(event, yaml.ScalarEvent)
        if self._open and isinstance(self._open[-1][1], dict) and self._name[-1] is None:
            if not scalar:
                raise PlacedError(place, "a mapping or a list stands where a name must")
            self._take_name(event.value, place)
            return
        value: Any = _scalar(event) if scalar else {} if isinstance(event, yaml.MappingStartEvent) else []
        node = self._put(value, place)
        if scalar:
            return
        if len(self._open) == DEPTH_MAX:
            raise PlacedError(place, f"it is nested deeper than {DEPTH_MAX} levels here")
        self._open.append((node, value))
        self._name.append(None)

    def _take_name(self, name: str, place: tuple[int, int]) -> None:
        parent, mapping = self._open[-1]
        if not name:
            raise PlacedError(place, "a name is missing here")
        node = (*parent, name)
        if name in mapping:
            line = self.names[node][0]
            raise PlacedError(place, f"the name {shown(name)} stands here for the second time; before in line {line}")
        self.names[node] = place
        self._name[-1] = name

    def _put(self, value: Any, place: tuple[int, int]) -> Node:
        if not self._open:
            if not isinstance(value, dict):
                there = "nothing but comments stands in it" if value is None else f"{shown(value)} stands at the top"
                raise PlacedError(place, f"{there}; allowed: a mapping")
            self._document = value
            self.values[()] = place
            return ()
        parent, container = self._open[-1]
        name = self._name[-1]
        if isinstance(container, list):
            node: Node = (*parent, len(container))
            container.append(value)
        else:
            assert name is not None  # noqa: S101 - _begin has seen to it
            node = (*parent, name)
            container[name] = value
            self._name[-1] = None
        self.values[node] = place
        return node


def _scalar(event: Any) -> str | Decimal | bool | None:
    text: str = event.value
    if not event.implicit[0]:  # quoted, or a block of text
        return text
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if not _NUMBER.match(text):
        return text
    try:
        number = Decimal(text) if len(text) <= _NUMBER_LENGTH_MAX else None
    except DecimalException:
        number = None
    if number is None or not _within_limits(number):
        raise PlacedError(
            _place(event.start_mark),
            f"the number has too many digits; allowed: {NUMBER_INTEGER_DIGITS_MAX} before the point and "
            f"{NUMBER_FRACTION_DIGITS_MAX} after it",
        )
    return number or Decimal(0)


def _within_limits(number: Decimal) -> bool:
    return not number or (
        number.adjusted() < NUMBER_INTEGER_DIGITS_MAX and fraction_digits(number) <= NUMBER_FRACTION_DIGITS_MAX
    )


def _syntax_error(error: yaml.MarkedYAMLError, text: str) -> PlacedError:
    mark = error.problem_mark or error.context_mark
    place = (1, 1) if mark is None else _place(mark)
    lines = _LINE_BREAK.split(text)
    if place[0] > len(lines):  # the parser adds a line break to a last line that has none
        place = len(lines), len(lines[-1]) + 1
    if lines[place[0] - 1][place[1] - 1 :].startswith("\t"):
        return PlacedError(place, "a tab stands here; YAML indents with spaces alone")
    since = f" {error.context} that began in line {error.context_mark.line + 1}" if error.context_mark else ""
    return PlacedError(place, f"this is not YAML: {error.problem}{since}")
