"""What a body may cost: memory in proportion to its bytes, and nothing for the numbers that it names."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import pytest

from collector.bodies import BODY_BYTES_MAX
from metering.cloudevents import cloud_event
from metering.envelopes import decode_record
from metering.errors import InvalidEventError, InvalidRecordError
from metering.events import decode_json
from metering.outgoing import Rules, array_of_events, lines_of_events, one_event

NOW = datetime(2024, 1, 15, 12, 0, tzinfo=UTC)
RULES = Rules(now=NOW, partitions=64)
PARSERS: dict[str, Callable[[bytes], Any]] = {
    "one_event": lambda body: one_event(body, RULES),
    "array_of_events": lambda body: array_of_events(b"[%b]" % body, RULES),
    "lines_of_events": lambda body: lines_of_events([body], RULES),
    "cloud_event": lambda body: cloud_event(
        decode_json(b'{"specversion":"1.0","id":"e","source":"/a","type":"m","subject":"t","data":%b}' % body), RULES
    ),
    "decode_record": lambda body: decode_record(body, arrived_at=NOW),
}
WORDS_BYTES = 16 * 1024
"""What a refusal takes, beside the number itself: the error and its traceback."""


def peak_bytes(parse: Callable[[bytes], Any], body: bytes) -> int:
    """The most memory that was taken at once, beyond what was taken before."""
    tracemalloc.start()
    try:
        _parsed(parse, body)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def _parsed(parse: Callable[[bytes], Any], body: bytes) -> None:
    with suppress(InvalidEventError, InvalidRecordError):
        parse(body)


def event(value: bytes, parser: str) -> bytes:
    if parser == "cloud_event":
        return b'{"value":%b}' % value
    return b'{"tenant_id":"t","metric":"m","value":%b}' % value


@pytest.mark.parametrize("parser", PARSERS)
@pytest.mark.parametrize(
    "number",
    [
        b"1e999999999", b"1e-999999999", b"-1e999999999", b"0e999999999", b"0e-999999999", b"1E+99999999",
        b"9.9e-99999999", b'"1e999999999"', b'"0e999999999"',
        b"1e" + b"9" * 10_000, b"1e-" + b"9" * 10_000, b"0e" + b"9" * 10_000, b"9" * 10_000,
        b"0." + b"0" * 10_000 + b"1", b'"' + b"0" * 10_000 + b'1"',
    ],
    ids=lambda number: number[:14].decode(),
)  # fmt: skip
def test_a_huge_number_costs_what_its_bytes_do(parser: str, number: bytes) -> None:
    _parsed(PARSERS[parser], event(b"1", parser))  # imports, caches
    plain = peak_bytes(PARSERS[parser], event(b"1", parser))
    assert peak_bytes(PARSERS[parser], event(number, parser)) <= plain + WORDS_BYTES + 10 * len(number)


HOSTILE = {
    "numbers": (b"[", b"1,", b"1]"),
    "lists": (b"[", b"[],", b"[]]"),
    "objects": (b"[", b"{},", b"{}]"),
    "texts": (b"[", b'"",', b'""]'),
    "the shortest events": (b"[", b'{"tenant_id":"t","metric":"m","value":1},', b"{}]"),
    "a key again and again": (b"{", b'"a":1,', b'"a":1}'),
    "brackets": (b"", b"[", b""),
    "closed brackets": (b"", b"[]", b""),
    "braces in a text": (b'"', b"{[", b'"'),
    "escapes": (b'["', b'\\"', b'"]'),
    "digits": (b'{"tenant_id":"t","metric":"m","value":', b"9", b"}"),
    "four bytes a character": (b'["', "\U0001d4b3".encode(), b'"]'),
}


@pytest.mark.parametrize(("start", "middle", "end"), HOSTILE.values(), ids=HOSTILE)
def test_no_body_takes_more_than_some_times_its_bytes(start: bytes, middle: bytes, end: bytes) -> None:
    body = start + middle * ((BODY_BYTES_MAX - len(start + end)) // len(middle)) + end
    for parse in (array_of_events, one_event):
        assert peak_bytes(lambda body, parse=parse: parse(body, RULES), body) < 8 * BODY_BYTES_MAX  # type: ignore[misc]


def test_keys_of_one_object_take_no_more() -> None:
    body = b"{%b}" % b",".join(b'"%x":1' % number for number in range(500_000))
    assert 0.8 * BODY_BYTES_MAX < len(body) < BODY_BYTES_MAX
    assert peak_bytes(lambda body: one_event(body, RULES), body) < 8 * BODY_BYTES_MAX
