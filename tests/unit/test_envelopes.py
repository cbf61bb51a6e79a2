"""What a record holds: a good event is never lost to a bad neighbour, and nothing undecodable gets through."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metering.envelopes import (
    ENVELOPE_BYTES_TARGET,
    Envelope,
    InvalidEntry,
    decode_record,
    encode_envelope,
    encode_event,
    envelope_bytes,
)
from metering.errors import InvalidRecordError
from metering.rows import event_claim_key
from tests.builders import NOW, event

GOOD = {"tenant_id": "tenant-123", "metric": "api_calls", "value": "10"}


def decode(record: object) -> Envelope:
    return decode_record(json.dumps(record).encode(), arrived_at=NOW)


@given(st.lists(st.builds(event, tenant_id=st.sampled_from(["t", "テナント"])), min_size=1, max_size=20))
def test_an_envelope_gives_back_its_events_in_order(events: list[object]) -> None:
    encoded = [encode_event(one) for one in events]  # type: ignore[arg-type]
    data = encode_envelope("batch-1", encoded)
    assert decode_record(data, arrived_at=NOW) == Envelope("batch-1", tuple(events))  # type: ignore[arg-type]
    assert len(data) == envelope_bytes("batch-1", sum(map(len, encoded)), len(encoded))


def test_the_size_of_an_empty_envelope_is_that_of_its_frame() -> None:
    assert envelope_bytes("b", 0, 0) == len(encode_envelope("b", []))
    assert ENVELOPE_BYTES_TARGET < 25_000


def test_a_bare_event_is_a_batch_of_one_without_a_batch_id() -> None:
    decoded = decode(GOOD)
    assert decoded.batch_id is None
    assert [entry.tenant_id for entry in decoded.entries if not isinstance(entry, InvalidEntry)] == ["tenant-123"]


def test_a_bare_event_that_breaks_a_rule_keeps_its_bytes() -> None:
    data = b'{ "tenant_id": "t", "metric": "m", "value": -1 }'
    decoded = decode_record(data, arrived_at=NOW)
    assert decoded.entries == (InvalidEntry("negative_value", "value must not be negative", data, "t"),)


@pytest.mark.parametrize(
    ("entry", "tenant_id", "claim_key"),
    [
        ({"tenant_id": "acme", "event_id": "a"}, "acme", event_claim_key("acme", "a")),
        ({"tenant_id": "acme", "event_id": "a", "source": "/s"}, "acme", event_claim_key("acme", "a", "/s")),
        ({"tenant_id": "acme"}, "acme", None),
        ({"tenant_id": "acme", "event_id": "kinesis:x"}, "acme", None),
        ({"tenant_id": "ac#me", "event_id": "a"}, None, None),
        ({"tenant_id": ["acme"], "event_id": "a"}, None, None),
        ({"tenant_id": 7}, None, None),
        ({"event_id": "a"}, None, None),
        ({}, None, None),
        (["acme"], None, None),
        ("acme", None, None),
        (None, None, None),
    ],
)
def test_an_invalid_entry_says_whose_it_is_where_that_keeps_the_rules(
    entry: object, tenant_id: str | None, claim_key: str | None
) -> None:
    (invalid,) = decode({"batch_id": "b", "events": [entry]}).entries
    assert isinstance(invalid, InvalidEntry)
    assert (invalid.tenant_id, invalid.claim_key) == (tenant_id, claim_key)


@pytest.mark.parametrize(
    ("entry", "code"),
    [
        ({**GOOD, "value": "-1"}, "negative_value"),
        ({**GOOD, "value": "x"}, "invalid_value"),
        ({**GOOD, "extra": 1}, "unknown_field"),
        ({}, "missing_field"),
        (None, "invalid_event"),
        (7, "invalid_event"),
        ([GOOD], "invalid_event"),
        ("text", "invalid_event"),
    ],
)
def test_an_invalid_entry_costs_no_other_event(entry: object, code: str) -> None:
    first, invalid, last = decode({"batch_id": "b", "events": [GOOD, entry, GOOD]}).entries
    assert isinstance(invalid, InvalidEntry)
    assert invalid.code == code
    assert first == last
    assert not isinstance(first, InvalidEntry)


def test_the_bytes_of_an_invalid_entry_hold_what_was_sent_and_numbers_as_written() -> None:
    entry = '{"value":1e999999999,"a":[true,null,1.10,"\\ud800 \\u0000"],"ü":{}}'
    data = b'{"batch_id":"b","events":[' + entry.encode() + b"]}"
    (invalid,) = decode_record(data, arrived_at=NOW).entries
    assert isinstance(invalid, InvalidEntry)
    assert b'"value":1e999999999' in invalid.raw
    assert b"1.10" in invalid.raw
    sent, kept = (json.loads(text, parse_float=str) for text in (entry, invalid.raw))
    assert kept == sent


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not json",
        b"\xff\xfe",
        b"\xf3\x89\x9a\xc2",  # how the KPL's aggregated records begin
        b"[]",
        b"7",
        b"null",
        b'"text"',
        b"[" * 100_000,
        b'{"a":1,"a":2}',
        b'{"batch_id":"b"}',
        b'{"events":[{}]}',
        b'{"batch_id":"b","events":[]}',
        b'{"batch_id":"b","events":{}}',
        b'{"batch_id":"b","events":null}',
        b'{"batch_id":"","events":[{}]}',
        b'{"batch_id":7,"events":[{}]}',
        b'{"batch_id":null,"events":[{}]}',
        b'{"batch_id":"a\\u0000b","events":[{}]}',
        b'{"batch_id":"' + b"x" * 129 + b'","events":[{}]}',
        b'{"batch_id":"b","events":[{}],"more":1}',
    ],
    ids=lambda data: repr(data[:40]),
)
def test_what_is_neither_envelope_nor_event_is_one_malformed_record(data: bytes) -> None:
    with pytest.raises(InvalidRecordError) as caught:
        decode_record(data, arrived_at=NOW)
    assert caught.value.code == "malformed_record"
    assert len(caught.value.detail) < 200


@given(st.binary(max_size=300))
def test_any_bytes_are_an_envelope_or_a_malformed_record(data: bytes) -> None:
    try:
        decoded = decode_record(data, arrived_at=NOW)
    except InvalidRecordError:
        return
    assert decoded.entries
