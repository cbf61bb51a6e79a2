"""The schemas of events and the rules of the code are the same, as far as a schema can say them."""

from __future__ import annotations

import json
import string
import sys
import unicodedata
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import cache
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from billing.openapi import openapi_document as billing_document
from collector.openapi import CLOUD_EVENT, EVENT, RULE_CODES, openapi_document
from metering.cloudevents import EXTENSIONS, cloud_event
from metering.errors import InvalidEventError
from metering.events import VALUE_FRACTION_DIGITS_MAX, decode_json, parse_event, parse_sourced_event
from metering.openapi import EVENT_ID, NAME, SOURCE, TIMESTAMP, VALUE
from metering.outgoing import Rules
from metering.places import place_of_receipt
from metering.settings import Settings
from tests.unit.openapi_support import Document

NOW = datetime(2024, 1, 15, 12, 0, tzinfo=UTC)
RULES = Rules(now=NOW, partitions=64, age_days_max=None)
STRICT = Rules(now=NOW, partitions=64, age_days_max=30)
DOCUMENT = Document(openapi_document(Settings.from_environment({})))


def code_of(event: object, form: str = "Event", rules: Rules = RULES) -> str | None:
    """Return the code of the rule that an event breaks, None when it is accepted."""
    raw = decode_json(json.dumps(event).encode())
    try:
        if form == "Event":
            parse_event(raw, now=rules.now, age_days_max=rules.age_days_max)
        else:
            cloud_event(raw, rules)
    except InvalidEventError as error:
        return error.code
    return None


@cache
def generated(form: str) -> Any:
    """Return the strategy of what a schema of the document lets pass."""
    operation = {
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{form}"}}},
        },
        "responses": {"202": {"description": "accepted"}},
    }
    content = {**DOCUMENT.content, "paths": {"/": {"post": operation}}}
    bodies = schemathesis.openapi.from_dict(content)["/"]["POST"].as_strategy().map(lambda case: case.body)
    return bodies.filter(DOCUMENT.schema(form).is_valid)  # it takes blocks of Unicode for whole where they are not


@pytest.mark.parametrize("form", ["Event", "CloudEvent"])
def test_what_the_schema_lets_pass_is_accepted_but_for_what_no_schema_can_say(form: str) -> None:
    seen: set[str | None] = set()

    @given(generated(form))
    @hypothesis_settings(max_examples=300, suppress_health_check=list(HealthCheck))
    def held(event: dict[str, Any]) -> None:
        code = code_of(event, form)
        seen.add(code)
        value = event["value"] if form == "Event" else event["data"]["value"]
        moment = event.get("timestamp", event.get("time"))
        if code == "invalid_value":  # see VALUE
            assert isinstance(value, float)
            assert -int(Decimal(repr(value)).normalize().as_tuple().exponent) > VALUE_FRACTION_DIGITS_MAX
        elif code == "timestamp_in_future":
            assert moment[:10] >= NOW.date().isoformat()
        elif code == "invalid_timestamp":  # in UTC it would lie outside of years 1 to 9999
            assert moment[:10] in {"0001-01-01", "9999-12-31"}
        else:
            assert code is None

    held()
    assert None in seen


# ── Each field, both ways ────────────────────────────────────────────────────────────────────────────────────────────

# What was assigned in 2002 has the category that it had, whichever Unicode Python and the validator know.
SETTLED = [
    character
    for character in map(chr, range(sys.maxunicode + 1))
    if unicodedata.ucd_3_2_0.category(character) not in {"Cn", "Cs"}
]
LIKELY = st.sampled_from([*string.ascii_letters, *string.digits, *"._-:@ \t\n/é²\u0661ß\u200b\u00a0\ufeff"])
TEXT = st.text(LIKELY | st.sampled_from(SETTLED), max_size=130) | st.text(LIKELY, min_size=126, max_size=130)
OTHERS = st.sampled_from([None, True, 1, 1.5, [], ["a"], {}, {"value": 1}])


def field_accepted(name: str, value: object) -> bool:
    """Return whether the code takes a value for a field of an event that is otherwise right."""
    raw = decode_json(json.dumps({**EVENT, "event_id": "a", name: value}).encode())
    try:
        parse_sourced_event(raw, now=NOW)
    except InvalidEventError as error:
        if error.field != name:
            raise
        return False
    return True


@pytest.mark.parametrize(
    ("schema", "accepted"),
    [
        pytest.param(NAME, lambda text: field_accepted("metric", text), id="name"),
        pytest.param(SOURCE, str.isprintable, id="printable"),
    ],
)
def test_every_character_is_valid_for_the_schema_when_the_code_takes_it(
    schema: dict[str, Any], accepted: Callable[[str], bool]
) -> None:
    validator = DOCUMENT.validator(schema)
    assert [hex(ord(each)) for each in SETTLED if validator.is_valid(each) != accepted(each)] == []


@given(TEXT | OTHERS)
@example("kinesis:1")
@example("kinesis")
@example("a" * 128)
@example("\U0001d518" * 128)
@example("\U0001d518" * 129)
def test_texts_are_valid_for_the_schema_when_the_code_takes_them(value: object) -> None:
    for name, schema in (("tenant_id", NAME), ("metric", NAME), ("event_id", EVENT_ID), ("source", SOURCE)):
        assert DOCUMENT.validator(schema).is_valid(value) == field_accepted(name, value), name


PLAIN = st.from_regex(r"\A[0-9]{1,17}(\.[0-9]{1,11})?\Z", fullmatch=True)


@given(PLAIN | st.integers(-3, 10**16) | TEXT | OTHERS)
@example("1" * 15)
@example("1" * 16)
@example("0.123456789")
@example("1.")
@example(".5")
@example("-1")
@example("+1")
@example("1\n")
@example("\u0661")
@example(10**15 - 1)
@example(10**15)
@example(-1)
def test_values_are_valid_for_the_schema_only_when_the_code_takes_them(value: object) -> None:
    valid = DOCUMENT.validator(VALUE).is_valid(value)
    accepted = field_accepted("value", value)
    if isinstance(value, str) and accepted:
        # The code counts digits that are not 0, and takes exponents and a negative nothing: no form to recommend.
        assert valid == (len(value.partition(".")[0]) <= 15 and len(value.partition(".")[2]) <= 9 and value[0] != "-")
    else:
        assert valid == accepted


@st.composite
def moments(draw: st.DrawFn) -> str:
    """Return what looks like a time: most parts in their range, each of them out of it at times."""

    def part(width: int, most: int, *wrong: str) -> str:
        return draw(st.integers(0, most).map(lambda number: f"{number:0{width}d}") | st.sampled_from([*wrong, "00"]))

    fraction = draw(st.sampled_from(["", "", ".5", ".123456789", ".1234567890", ".", ",5"]))
    zone = draw(st.sampled_from(["Z", "z", "+02:00", "-23:59", "+24:00", "+02:60", "+0200", "", "Z\n", " Z"]))
    date = f"{part(4, 2023, '0000', '0001', '9999')}-{part(2, 13, '1')}-{part(2, 32, '1')}"
    return f"{date}{draw(st.sampled_from('Tt '))}{part(2, 25)}:{part(2, 61)}:{part(2, 62)}{fraction}{zone}"


@given(moments() | TEXT | OTHERS)
@example("2024-02-29T00:00:00Z")
@example("2023-02-29T00:00:00Z")
@example("2016-12-31T23:59:60Z")
@example("2016-12-31T12:00:60Z")
@example("2016-12-31T12:00:61Z")
@example("0000-01-01T00:00:00Z")
@example("0001-01-01T00:00:00+23:59")
def test_times_are_valid_for_the_schema_when_the_code_takes_them(value: object) -> None:
    by_pattern = DOCUMENT.validator({name: rule for name, rule in TIMESTAMP.items() if name != "format"})
    valid, accepted = by_pattern.is_valid(value), field_accepted("timestamp", value) or _in_future(value)
    if valid and not accepted:
        # The pattern does not count the days of a month, which the format does, nor look at the offset of year 1.
        assert isinstance(value, str)
        assert value[:10] in {"0001-01-01", "9999-12-31"} or not _exists(value[:10])
        assert value[:10] in {"0001-01-01", "9999-12-31"} or not DOCUMENT.validator(TIMESTAMP).is_valid(value)
    else:
        assert valid == accepted


def _in_future(value: object) -> bool:
    return isinstance(value, str) and code_of({**EVENT, "timestamp": value}) == "timestamp_in_future"


def _exists(date: str) -> bool:
    try:
        datetime.fromisoformat(date)
    except ValueError:
        return False
    return True


# ── Each rule ────────────────────────────────────────────────────────────────────────────────────────────────────────

BROKEN = [
    ("Event", {"tenant_id": None}, "missing_field"),
    ("Event", {"tenant_id": "a b"}, "invalid_tenant_id"),
    ("Event", {"tenant_id": 5}, "invalid_tenant_id"),
    ("Event", {"metric": ""}, "invalid_metric"),
    ("Event", {"value": True}, "invalid_value"),
    ("Event", {"value": 10**15}, "invalid_value"),
    ("Event", {"value": "0.1234567891"}, "invalid_value"),
    ("Event", {"value": -1}, "negative_value"),
    ("Event", {"value": "-1"}, "negative_value"),
    ("Event", {"timestamp": "2024-01-15"}, "invalid_timestamp"),
    ("Event", {"timestamp": "2023-02-29T00:00:00Z"}, "invalid_timestamp"),
    ("Event", {"event_id": "kinesis:1"}, "invalid_event_id"),
    ("Event", {"timestmap": "2024-01-15T10:00:00Z"}, "unknown_field"),
    ("Event", {"source": "/a"}, "unknown_field"),
    ("CloudEvent", {"specversion": "0.3"}, "invalid_specversion"),
    ("CloudEvent", {"datacontenttype": "text/xml"}, "invalid_data"),
    ("CloudEvent", {"data": [1]}, "invalid_data"),
    ("CloudEvent", {"data": {"value": 1, "unit": "s"}}, "unknown_field"),
    ("CloudEvent", {"source": ""}, "invalid_source"),
    ("CloudEvent", {"subject": "a/b"}, "invalid_tenant_id"),
    ("CloudEvent", {"id": None}, "missing_field"),
    ("CloudEvent", {"tiem": "2024-01-15T10:00:00Z"}, "unknown_field"),
]
BY_THE_CLOCK = {"timestamp_in_future", "timestamp_too_old"}


@pytest.mark.parametrize(("form", "change", "code"), BROKEN)
def test_what_breaks_a_rule_is_refused_by_the_schema_and_by_the_code(
    form: str, change: dict[str, object], code: str
) -> None:
    right = EVENT if form == "Event" else CLOUD_EVENT
    wrong = {name: value for name, value in {**right, **change}.items() if value is not None}
    assert DOCUMENT.schema(form).is_valid(right)
    assert not DOCUMENT.schema(form).is_valid(wrong)
    assert code_of(wrong, form) == code


def test_each_rule_is_broken_above() -> None:
    assert {code for _, _, code in BROKEN} == RULE_CODES - BY_THE_CLOCK - {"invalid_event", "unknown_metric"}
    for wrong in ([], "a", 1, None):
        assert not DOCUMENT.schema("Event").is_valid(wrong)
        assert code_of(wrong) == "invalid_event"
    for days, code in ((1, "timestamp_in_future"), (-31, "timestamp_too_old")):
        event = EVENT | {"timestamp": (NOW + timedelta(days=days)).isoformat()}
        assert DOCUMENT.schema("Event").is_valid(event)
        assert code_of(event, rules=STRICT) == code


@pytest.mark.parametrize(
    "media_type",
    ["application/json", "text/json;charset=utf-8", "application/vnd.a+json", "application/xml", "", "json"],
)
def test_content_types_of_data_are_valid_for_the_schema_when_the_code_takes_them(media_type: str) -> None:
    event = CLOUD_EVENT | {"datacontenttype": media_type}
    assert DOCUMENT.schema("CloudEvent").is_valid(event) == (code_of(event, "CloudEvent") is None)


@pytest.mark.parametrize("name", [*sorted(EXTENSIONS), "dataschema"])
@pytest.mark.parametrize("value", [None, 5, "", {}])
def test_attributes_that_mean_nothing_may_hold_anything(name: str, value: object) -> None:
    event = CLOUD_EVENT | {name: value}
    assert DOCUMENT.schema("CloudEvent").is_valid(event)
    assert code_of(event, "CloudEvent") is None


RECEIPTS = st.builds(
    "kinesis:{}:{}:{}".format,
    st.sampled_from(["shardId-000000000001", "", "a:b", "a/b", "x" * 128, "x" * 129]),
    st.sampled_from(["0", "01", "49", "", "1" * 999, "1" * 1000, "-1", "1\n"]),
    st.sampled_from(["0", "01", "99999", "100000", "", "-1", "0\n"]),
)


@given(RECEIPTS | st.sampled_from(["kinesis:", "kinesis:a", "kinesis:a:1", "Kinesis:a:1:0"]))
def test_receipts_are_valid_for_billings_schema_when_it_takes_them(event_id: str) -> None:
    document = Document(billing_document(Settings.from_environment({})))
    parameters = document.content["paths"]["/v1/tenants/{tenant_id}/events/{event_id}"]["get"]["parameters"]
    [schema] = [part["schema"] for part in parameters if part["name"] == "event_id"]
    try:
        place_of_receipt(event_id)
    except InvalidEventError:
        accepted = not event_id.startswith("kinesis:")  # then it is an id like another
    else:
        accepted = True
    assert document.validator(schema).is_valid(event_id) == accepted
