"""The reader of YAML files: what a scalar is, what is refused, and the place and the sentence of each fault."""

from __future__ import annotations

import re
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metering.errors import SetupError
from metering.yaml_files import FAULTS_MAX, FILE_BYTES_MAX, InvalidFileError, parse_yaml, read_yaml

ANYTHING: dict[str, Any] = {"type": "object"}
PRICE = {"type": ["string", "number"], "pattern": r"^[0-9]+(\.[0-9]+)?$", "minimum": 0, "description": "a price"}
PRICES: dict[str, Any] = {
    "type": "object",
    "required": ["currency", "prices"],
    "additionalProperties": False,
    "properties": {
        "currency": {"enum": ["EUR", "USD"]},
        "note": {"type": "string"},
        "prices": {
            "type": "object",
            "propertyNames": {"maxLength": 8, "description": "a metric of 8 characters"},
            "additionalProperties": PRICE,
        },
        "tiers": {
            "type": "array",
            "minItems": 1,
            "description": "a list of one tier or more",
            "items": {
                "type": "object",
                "required": ["unit_price"],
                "additionalProperties": False,
                "properties": {"unit_price": PRICE, "up_to": {"type": "number"}},
            },
        },
    },
}

TOO_MANY_DIGITS = "the number has too many digits; allowed: 15 before the point and 15 after it"
NO_YAML = "this is not YAML: did not find expected"
TOO_DEEP = "this is not YAML: exceeded maximum nesting depth"


def value(text: str) -> Any:
    return parse_yaml(text.encode(), name="f.yaml", schema=ANYTHING).value


def refused(content: str | bytes, schema: dict[str, Any] = ANYTHING) -> list[str]:
    with pytest.raises(InvalidFileError) as caught:
        parse_yaml(content if isinstance(content, bytes) else content.encode(), name="f.yaml", schema=schema)
    return caught.value.lines


def message(content: bytes) -> str:
    """What is wrong with a content; nothing when it can be read."""
    try:
        parse_yaml(content, name="f.yaml", schema=ANYTHING)
    except InvalidFileError as error:
        return str(error)
    return ""


# ── What a scalar is ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("0.1", Decimal("0.1")),
        ("1e3", Decimal(1000)),
        ("010", Decimal(10)),
        ("-.5", Decimal("-0.5")),
        ("5.", Decimal(5)),
        ("-0", Decimal(0)),
        ("999999999999999.999999999999999", Decimal("999999999999999.999999999999999")),
        ("1.000000000000000000", Decimal(1)),
        ("true", True),
        ("False", False),
        ("~", None),
        ("", None),
        ('"0.10"', "0.10"),
        ("'true'", "true"),
        ("no", "no"),
        ("on", "on"),
        ("12:30", "12:30"),
        ("1_000", "1_000"),
        ("0x10", "0x10"),
        (".inf", ".inf"),
        ("2024-01-16", "2024-01-16"),
        ("2024-01-16T00:00:00Z", "2024-01-16T00:00:00Z"),
        ("|\n  1", "1\n"),
    ],
)
def test_a_value_is_what_yaml_1_2_says_and_a_number_is_exact(written: str, meant: object) -> None:
    found = value(f"a: {written}\n")["a"]
    assert (type(found), found) == (type(meant), meant)


def test_there_is_no_negative_zero() -> None:
    assert str(value("a: -0.00")["a"]) == "0"


def test_a_name_is_the_text_that_stands_there() -> None:
    names = ["no", "1e3", "12:30", "null", "true", "0.10", "2024-01-16", "~", "y", "<<", "ünit:@x"]
    assert list(value("".join(f"{name}: 1\n" for name in names))) == names


def test_a_quoted_scalar_is_text_and_a_plain_one_of_digits_a_number() -> None:
    assert value('a: "1"\nb: 1') == {"a": "1", "b": Decimal(1)}
    assert not isinstance(value('a: "1"')["a"], Decimal)


@pytest.mark.parametrize(
    "content", [b"\xef\xbb\xbfa: 1\n", b"a: 1\r\n", b"--- \na: 1\n...\n", b"# why\n\na: 1", b"{a: 1}"]
)
def test_the_form_of_the_file_is_not_the_point(content: bytes) -> None:
    assert parse_yaml(content, name="f.yaml", schema=ANYTHING).value == {"a": 1}


# ── What is no file of this kind ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("", "1:1: the file is empty; allowed: a mapping"),
        ("# nothing\n", "1:1: the file is empty; allowed: a mapping"),
        ("---\n", "2:1: nothing but comments stands in it; allowed: a mapping"),
        ("- a\n- b\n", "1:1: a list stands at the top; allowed: a mapping"),
        ("standard\n", "1:1: 'standard' stands at the top; allowed: a mapping"),
        ("a: 1\n---\nb: 1\n", "2:1: a second document begins here; allowed: one"),
        ("a:\n\tb: 1\n", "2:1: a tab stands here; YAML indents with spaces alone"),
        (b"a: 1\nb: \xff\n", "2:4: a byte that is not UTF-8 stands here; allowed: UTF-8"),
        ("a: 1".encode("utf-16"), "1:1: a byte that is not UTF-8 stands here; allowed: UTF-8"),
        ("a: 1\nb: \0\n", "2:4: the character U+0000 stands here; allowed: printable characters"),
        ("a: \ufeff\n", "1:4: the character U+FEFF stands here; allowed: printable characters"),
        ("a: 1\nb: 2\na: 3\n", "3:1: the name 'a' stands here for the second time; before in line 1"),
        ("a: {b: 1, 'b': 2}\n", "1:11: the name 'b' stands here for the second time; before in line 1"),
        ("a: &x 1\nb: *x\n", "1:4: the anchor 'x' stands here; anchors are not allowed"),
        ("a: *x\n", "1:4: the alias 'x' stands here; aliases are not allowed"),
        ("a: !!float 1\n", "1:4: the tag 'tag:yaml.org,2002:float' stands here; tags are not allowed"),
        ("a: !<%0A> 1\n", "1:4: the tag '\\n' stands here; tags are not allowed"),
        ("? [a]\n: 1\n", "1:3: a mapping or a list stands where a name must"),
        ("{'': 1}\n", "1:2: a name is missing here"),
        ("a: 1\n b: 2\n", "2:3: this is not YAML: mapping values are not allowed in this context"),
        ("a: [1,\n  2\n", f"3:1: {NO_YAML} ',' or ']' while parsing a flow sequence that began in line 1"),
        ("ä: '\U0001f600', b\n", f"1:7: {NO_YAML} key while parsing a block mapping that began in line 1"),
        ("a: 1" + "0" * 15 + "\n", "1:4: " + TOO_MANY_DIGITS),
        ("a: 1e-16\n", "1:4: " + TOO_MANY_DIGITS),
        ("a: 1e999999999999999999999\n", "1:4: " + TOO_MANY_DIGITS),
        ("a: " + "[" * 32 + "]" * 32, "1:35: it is nested deeper than 32 levels here"),
        ("a: " + "[" * 100_000, f"1:1003: {TOO_DEEP} while increasing flow level that began in line 1"),
        ("a: 1\n" + "#" * FILE_BYTES_MAX, f"1:1: the file has more than {FILE_BYTES_MAX} bytes"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_one_line_with_a_place(content: str | bytes, line: str) -> None:
    assert refused(content) == [f"f.yaml:{line}"]


def test_a_few_bytes_that_mean_gigabytes_cost_nothing() -> None:
    laughs = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60))
    started = time.process_time()
    assert refused(laughs) == ["f.yaml:1:5: the anchor 'a0' stands here; anchors are not allowed"]
    assert time.process_time() - started < 5  # seconds; without the bound it would not end


@given(st.binary(max_size=60) | st.text(alphabet="ab:-{}[]<>%0A,'\"|&*!#? \n\t\r\x85\u2028\ufeffé1.", max_size=40))
def test_any_content_is_read_or_refused(content: bytes | str) -> None:
    said = message(content if isinstance(content, bytes) else content.encode())
    assert re.fullmatch(r"(f\.yaml:[1-9][0-9]*:[1-9][0-9]*: .+)?", said)


# ── What breaks the schema ───────────────────────────────────────────────────────────────────────────────────────────


def test_all_faults_are_reported_by_place_and_the_message_is_the_first() -> None:
    text = "tiers:\n  - unit_prize: 1\n  - {unit_price: -1}\nprices:\n  storage_gb: free\ncurency: EUR\nnote: 7\n"
    lines = [
        "f.yaml:1:1: missing here: currency",
        "f.yaml:2:5: missing here: unit_price",
        "f.yaml:2:5: there is no member 'unit_prize' here; did you mean unit_price? allowed: unit_price, up_to",
        "f.yaml:3:18: the number -1 stands here; allowed: a price",
        "f.yaml:5:3: 'storage_gb' stands here; allowed: a metric of 8 characters",
        "f.yaml:5:15: 'free' stands here; allowed: a price",
        "f.yaml:6:1: there is no member 'curency' here; did you mean currency? allowed: currency, note, prices, tiers",
        "f.yaml:7:7: the number 7 stands here; allowed: text",
    ]
    assert refused(text, PRICES) == lines
    with pytest.raises(InvalidFileError) as caught:
        parse_yaml(text.encode(), name="f.yaml", schema=PRICES)
    assert str(caught.value) == f"{lines[0]} (and 7 more)"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("currency: GBP\nprices: {}\n", "1:11: 'GBP' stands here; allowed: EUR, USD"),
        ("currency:\nprices: {}\n", "1:10: nothing stands here; allowed: EUR, USD"),
        ("currency: EUR\nprices: []\n", "2:9: a list stands here; allowed: a mapping"),
        ("currency: EUR\nprices: {}\ntiers: []\n", "3:8: a list stands here; allowed: a list of one tier or more"),
        ("currency: EUR\nprices: {a: true}\n", "2:13: true stands here; allowed: a price"),
        ("currency: EUR\nprices: {a: '-1'}\n", "2:13: '-1' stands here; allowed: a price"),
        ('currency: EUR\nprices: {a: "1\\n"}\n', "2:13: '1\\n' stands here; allowed: a price"),
    ],
)  # fmt: skip
def test_a_fault_says_what_stands_there_and_what_is_allowed(text: str, line: str) -> None:
    assert refused(text, PRICES) == [f"f.yaml:{line}"]


def test_what_is_shown_of_a_value_and_how_many_faults_are_bounded() -> None:
    many = "currency: EUR\nprices:\n" + "".join(f"  m{i}: {'x' * 999}\n" for i in range(3 * FAULTS_MAX))
    lines = refused(many, PRICES)
    assert [line.split(":")[1] for line in lines] == [str(number) for number in range(3, 3 + FAULTS_MAX)]
    assert lines[0] == f"f.yaml:3:7: '{'x' * 64}…' stands here; allowed: a price"


def test_a_rule_of_ones_own_has_the_place_of_the_name_the_value_or_what_is_around_it() -> None:
    found = parse_yaml(b"a:\n  - b: 1\n  - c\n", name="f.yaml", schema=ANYTHING)
    places = [
        (("a", 0, "b"), False, (2, 8)),
        (("a", 0, "b"), True, (2, 5)),
        (("a", 1), False, (3, 5)),
        (("a", 1), True, (3, 5)),
        (("a", 0, "missing"), False, (2, 5)),
        (("a", 7, "b"), False, (1, 1)),
        ((), True, (1, 1)),
    ]
    for node, of_name, place in places:
        fault = found.fault(node, "why", of_name=of_name)
        assert (fault.line, fault.column) == place, node


# ── The file itself ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_file_is_read_and_named_in_what_is_wrong_with_it(tmp_path: Path) -> None:
    path = tmp_path / "plans.yaml"
    with pytest.raises(SetupError, match=r"plans\.yaml: No such file or directory"):
        read_yaml(path, schema=ANYTHING)
    with pytest.raises(SetupError, match="it is not a regular file"):
        read_yaml(tmp_path, schema=ANYTHING)
    path.write_bytes(b"#" * (FILE_BYTES_MAX + 1))
    with pytest.raises(SetupError, match=f"plans.yaml: it has more than {FILE_BYTES_MAX} bytes"):
        read_yaml(path, schema=ANYTHING)
    path.write_text("a: [")
    with pytest.raises(InvalidFileError, match=r"plans\.yaml:1:5: this is not YAML"):
        read_yaml(path, schema=ANYTHING)
    path.write_text("a: 1")
    assert read_yaml(path, schema=ANYTHING).value == {"a": 1}
