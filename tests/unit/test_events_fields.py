"""The rules of an event's fields, other than its timestamp: who is refused, with which code, and who is not."""

from __future__ import annotations

import time
from decimal import Decimal

import pytest

from metering.errors import InvalidEventError
from metering.events import (
    JsonNumber,
    decode_json,
    parse_event,
    parse_identity,
    parse_name,
    parse_stream_event,
    stream_form,
)
from tests.builders import NOW, event

GOOD = {"tenant_id": "tenant-123", "metric": "api_calls", "value": "10"}


def refusal(raw: object) -> tuple[str, str | None]:
    with pytest.raises(InvalidEventError) as caught:
        parse_event(raw, now=NOW)
    return caught.value.code, caught.value.field


@pytest.mark.parametrize("raw", [None, True, "text", [], ["tenant_id"], 5])
def test_an_event_is_an_object(raw: object) -> None:
    assert refusal(raw) == ("invalid_event", None)


@pytest.mark.parametrize("field", ["tenant_id", "metric", "value"])
@pytest.mark.parametrize("null", [True, False], ids=["null", "absent"])
def test_a_missing_field_is_named(field: str, *, null: bool) -> None:
    raw: dict[str, object] = {**GOOD, field: None}
    if not null:
        del raw[field]
    assert refusal(raw) == ("missing_field", field)


@pytest.mark.parametrize("name", ["timestmap", "source", "Tenant_id", "", "received_at", "\ud800"])
def test_an_unknown_field_is_named_before_any_other_fault(name: str) -> None:
    assert refusal({name: "x"}) == ("unknown_field", name)


def test_a_long_unknown_field_is_quoted_in_part() -> None:
    with pytest.raises(InvalidEventError) as caught:
        parse_event({**GOOD, "x" * 10_000: 1}, now=NOW)
    assert caught.value.field == "x" * 64
    assert len(caught.value.detail) < 150


def test_the_stream_may_hold_received_at_and_a_source_but_nothing_else() -> None:
    raw = {**GOOD, "received_at": "2024-01-15T10:00:00.000Z"}
    assert parse_stream_event(raw, arrived_at=NOW).received_at is not None
    event = parse_stream_event({**raw, "event_id": "1", "source": "/a"}, arrived_at=NOW)
    assert event.source == "/a"
    assert parse_stream_event(stream_form(event), arrived_at=NOW) == event
    for field in ("received_at", "source"):
        with pytest.raises(InvalidEventError, match="unknown_field"):
            parse_event({**GOOD, "event_id": "1", field: "2024-01-15T10:00:00.000Z"}, now=NOW)
    with pytest.raises(InvalidEventError, match="unknown_field"):
        parse_stream_event({**raw, "subject": "x"}, arrived_at=NOW)


@pytest.mark.parametrize("source", ["", "x" * 1025, "a\nb", 1, None, JsonNumber("1")])
def test_a_source_that_breaks_its_rule_is_refused(source: object) -> None:
    with pytest.raises(InvalidEventError, match="invalid_source"):
        parse_stream_event({**GOOD, "event_id": "1", "source": source}, arrived_at=NOW)


def test_a_source_needs_an_event_id() -> None:
    with pytest.raises(InvalidEventError, match="missing_field"):
        parse_stream_event({**GOOD, "source": "/a"}, arrived_at=NOW)


def test_the_identity_of_an_invalid_event_is_read_when_it_has_one() -> None:
    raw = {"tenant_id": "t", "event_id": "1", "value": "-1"}
    assert parse_identity(raw) == ("t", "1", None)
    assert parse_identity({**raw, "source": "/a"}) == ("t", "1", "/a")
    assert parse_identity({"tenant_id": "t"}) is None
    assert parse_identity([raw]) is None
    for broken in ({**raw, "tenant_id": "a b"}, {"event_id": "1"}, {**raw, "event_id": "kinesis:1"}):
        with pytest.raises(InvalidEventError):
            parse_identity(broken)


NAMES_ALLOWED = [
    "a",
    "0",
    "." * 128,
    "a.b_c-d:e@f",
    "x" * 128,
    "ü" * 128,
    "テナント",
    "арендатор",
    "٣٤",  # Arabic-Indic digits
    "\U0001d4b3" * 128,  # outside the basic plane: characters are counted, not bytes or UTF-16 units
    "é",
]
NAMES_REFUSED = [
    "",
    "x" * 129,
    "ü" * 129,
    "a b",
    " a",
    "a\n",
    "a/b",
    "a#b",
    "a%b",
    "a\x00",
    "a\u200b",  # zero width space
    "e\u0301",  # a combining mark is no letter
    "\u0301",
    "हिन्दी",  # vowel signs are combining marks
    "²",  # a digit, but not a decimal one
    "½",
    "\ud800",  # half a surrogate pair
    "😀",
]


@pytest.mark.parametrize("field", ["tenant_id", "metric"])
@pytest.mark.parametrize("name", NAMES_ALLOWED)
def test_names_hold_letters_digits_and_some_punctuation_of_any_script(field: str, name: str) -> None:
    assert getattr(event(**{field: name}), field) == name
    assert parse_name(name, field) == name


@pytest.mark.parametrize("field", ["tenant_id", "metric"])
@pytest.mark.parametrize("name", [*NAMES_REFUSED, True, 5, [], {}])
def test_other_names_are_refused(field: str, name: object) -> None:
    assert refusal({**GOOD, field: name}) == (f"invalid_{field}", field)


def test_a_json_number_is_no_name() -> None:
    assert refusal(decode_json(b'{"tenant_id":5,"metric":"m","value":1}')) == ("invalid_tenant_id", "tenant_id")


VALUES = {
    "0": "0",
    "-0": "0",
    "-0.000": "0",
    "0e99999999999": "0",
    "000": "0",
    "007": "7",
    "10": "10",
    "0.1": "0.1",
    "1e14": "100000000000000",
    "1E+14": "100000000000000",
    "1E-9": "0.000000001",
    "999999999999999.999999999": "999999999999999.999999999",
    "1.50000000000000000000000": "1.5",
    "0.0000000010e0": "0.000000001",
    "1000000000000000e-1": "100000000000000",
    "0.00000000000000000001e20": "1",
    "0" * 100_000 + "1": "1",
}


@pytest.mark.parametrize(("text", "value"), VALUES.items(), ids=lambda text: text[:24])
def test_values_in_range_are_exact(text: str, value: str) -> None:
    parsed = event(value=text).value
    assert isinstance(parsed, Decimal)
    assert parsed == Decimal(value)
    assert not parsed.is_signed()


@pytest.mark.parametrize(
    "text",
    [
        "1e15",
        "1000000000000000",
        "1e-10",
        "0.0000000001",
        "1.0000000001",
        "1e999999999",
        "1e-999999999",
        "1e" + "9" * 100_000,
        "9" * 100_000,
        "0." + "0" * 100_000 + "1",
    ],
    ids=lambda text: text[:24],
)
def test_values_out_of_range_are_refused_quickly(text: str) -> None:
    started = time.process_time()
    assert refusal({**GOOD, "value": text}) == ("invalid_value", "value")
    assert time.process_time() - started < 1


@pytest.mark.parametrize(
    "value",
    [
        "1_000",
        " 1",
        "1 ",
        "1\n",
        "+1",
        ".5",
        "1.",
        "1e",
        "1e1.5",
        "0x10",
        "1,5",
        "٣",
        "NaN",
        "Infinity",
        "-Infinity",
        "",
        True,
        False,
        [],
        {},
        1.5,
    ],
)
def test_what_is_no_decimal_number_is_no_value(value: object) -> None:
    assert refusal({**GOOD, "value": value}) == ("invalid_value", "value")


@pytest.mark.parametrize("text", ["-1", "-1e-9", "-0.5", "-1e999999999"])
def test_a_negative_value_has_a_code_of_its_own(text: str) -> None:
    assert refusal({**GOOD, "value": text}) == ("negative_value", "value")


@pytest.mark.parametrize("event_id", ["r", "x" * 128, "ü" * 128, "a b", "kinesis", "Kinesis:1", "e\u0301", "😀"])
def test_an_event_id_is_printable_text(event_id: str) -> None:
    assert event(event_id=event_id).event_id == event_id


@pytest.mark.parametrize(
    "event_id",
    ["", "x" * 129, "kinesis:", "kinesis:shardId-000000000000:1:0", "a\n", "a\x00", "\ud800", "\u200b", None, 5, True],
)
def test_other_event_ids_are_refused(event_id: object) -> None:
    assert refusal({**GOOD, "event_id": event_id}) == ("invalid_event_id", "event_id")


def test_a_json_number_is_no_event_id() -> None:
    raw = decode_json(b'{"tenant_id":"t","metric":"m","value":1,"event_id":7}')
    assert refusal(raw) == ("invalid_event_id", "event_id")
