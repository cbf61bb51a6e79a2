"""Strict JSON in, the stream's form out and back: nothing is read twice in two ways, nothing becomes a float."""

from __future__ import annotations

import string
import time
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metering.envelopes import encode_event
from metering.errors import InvalidEventError
from metering.events import (
    NESTING_MAX,
    Event,
    JsonNumber,
    decimal_text,
    decode_json,
    parse_event,
    parse_stream_event,
    stream_form,
    time_text,
)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"{",
        b"{}{}",
        b"{'a':1}",
        b'{"a":1,}',
        b"[1,]",
        b"// comment\n{}",
        b"NaN",
        b'{"a":Infinity}',
        b"[-Infinity]",
        b"01",
        b"000",
        b"+1",
        b".5",
        b"1.",
        b"True",
        b'"a\nb"',
        b'"\xff"',
        b'"\xc3"',
        b'"\xed\xa0\x80"',  # a surrogate in UTF-8
        b"\xef\xbb\xbf{}",  # byte order mark
        b'{"a":1,"a":1}',
        b'{"a":{"b":1,"c":2,"b":3}}',
        b'{"a":1,"\\u0061":2}',
        "{}".encode("utf-16"),
    ],
)
def test_what_is_not_strict_json_is_malformed(body: bytes) -> None:
    with pytest.raises(InvalidEventError) as caught:
        decode_json(body)
    assert caught.value.code == "malformed_json"


def test_numbers_stay_as_they_were_written() -> None:
    decoded = decode_json(b'[1.10, 1e999999999, -0, 123456789012345678901234567890, "5", true]')
    assert decoded == ["1.10", "1e999999999", "-0", "123456789012345678901234567890", "5", True]
    assert isinstance(decoded, list)
    assert [isinstance(member, JsonNumber) for member in decoded] == [True, True, True, True, False, False]


@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_nesting_has_an_exact_limit(opening: str) -> None:
    closing = "]" if opening == "[" else "}"
    decode_json((opening * NESTING_MAX + "0" + closing * NESTING_MAX).encode())
    with pytest.raises(InvalidEventError, match="nested deeper"):
        decode_json((opening * (NESTING_MAX + 1) + "0" + closing * (NESTING_MAX + 1)).encode())


def test_brackets_inside_strings_are_no_nesting() -> None:
    body = b'["' + b'[{\\"' * 1000 + b'"]'
    assert decode_json(body) == ['[{"' * 1000]


@pytest.mark.parametrize("body", [b"[" * 5_000_000, b'["' * 2_500_000, b'"\\' * 2_500_000])
def test_a_body_of_brackets_and_quotes_is_refused_quickly(body: bytes) -> None:
    started = time.process_time()
    with pytest.raises(InvalidEventError):
        decode_json(body)
    assert time.process_time() - started < 5


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("1E+14", "100000000000000"),
        ("1E-9", "0.000000001"),
        ("0.10", "0.1"),
        ("10.000", "10"),
        ("100", "100"),
        ("-0", "0"),
        ("-0.00", "0"),
        ("0E+5", "0"),
        ("-1.50", "-1.5"),
        ("999999999999999.999999999", "999999999999999.999999999"),
    ],
)
def test_the_text_of_a_decimal_is_plain(value: str, text: str) -> None:
    assert decimal_text(Decimal(value)) == text


letters = st.characters(categories=["Lu", "Ll", "Lo", "Nd"], include_characters="._-:@")
names = st.text(letters, min_size=1, max_size=128)
values = st.decimals(min_value=0, max_value=Decimal("999999999999999.999999999"), places=9)
moments = st.datetimes(datetime(1, 1, 2), datetime(2024, 1, 14), timezones=st.just(UTC))  # noqa: DTZ001 - naive by contract
event_ids = st.text(min_size=1, max_size=128).filter(lambda t: t.isprintable() and not t.startswith("kinesis:"))
client_events = st.builds(
    lambda required, optional: required | {name: value for name, value in optional.items() if value is not None},
    st.fixed_dictionaries({"tenant_id": names, "metric": names, "value": values.map(str)}),
    st.fixed_dictionaries(
        {"timestamp": st.none() | moments.map(datetime.isoformat), "event_id": st.none() | event_ids}
    ),
)


@given(client_events, st.datetimes(datetime(2024, 1, 15), timezones=st.just(UTC)))  # noqa: DTZ001
def test_the_stream_gives_back_the_event_that_was_put(raw: dict[str, object], now: datetime) -> None:
    put = parse_event(raw, now=now)
    encoded = encode_event(put)
    assert len(encoded) <= 2048
    assert parse_stream_event(decode_json(encoded), arrived_at=datetime.max.replace(tzinfo=UTC)) == put


@given(client_events)
def test_a_retry_of_the_same_event_has_the_same_content(raw: dict[str, object]) -> None:
    def content(event: Event) -> dict[str, str]:
        return {name: text for name, text in stream_form(event).items() if name != "received_at"}

    first, second = datetime(2024, 1, 15, tzinfo=UTC), datetime(2025, 6, 1, tzinfo=UTC)
    assert content(parse_event(raw, now=first)) == content(parse_event(raw, now=second))


@given(st.binary(max_size=200) | st.text(string.printable, max_size=200).map(str.encode))
def test_any_bytes_are_json_or_refused(body: bytes) -> None:
    try:
        decoded = decode_json(body)
    except InvalidEventError as error:
        assert error.code == "malformed_json"  # noqa: PT017 - both ends are allowed
    else:
        assert not isinstance(decoded, int | float) or isinstance(decoded, bool)


def test_time_text_is_what_received_at_holds() -> None:
    now = datetime(2024, 1, 15, 10, tzinfo=UTC)
    put = parse_event({"tenant_id": "t", "metric": "m", "value": "1"}, now=now)
    assert stream_form(put) == {"tenant_id": "t", "metric": "m", "value": "1", "received_at": time_text(now)}
