"""The two ways from a body to the stream: whatever a client sends, both give the same events, bytes and refusals."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from unittest import mock

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from metering import outgoing
from metering.envelopes import encode_envelope
from metering.errors import InvalidEventError
from metering.outgoing import BATCH_EVENTS_MAX, OutgoingEvent, Rules, array_of_events, lines_of_events, one_event

NOW = datetime(2024, 1, 15, 12, 0, 0, 123_456, tzinfo=UTC)
RULES = Rules(now=NOW, partitions=64)
PLAIN = {"tenant_id": "acme", "metric": "calls", "value": 10, "timestamp": "2024-01-15T10:00:00Z", "event_id": "a-1"}

names = st.sampled_from(["acme", "a" * 128, "a" * 129, "ümlaut", "a b", "", "TENANT#x", 'a"b', "tenant_id", "\ud800"])
values: st.SearchStrategy[object] = st.one_of(
    st.integers(-5, 10**16),
    st.sampled_from(
        ["1", "1.50", "0.000", "-0", "01", "1e3", "1E-9", "", "\u0661", " 1", "9" * 15, "9" * 16, "1." + "1" * 9]
    ),
    st.floats(allow_nan=False, allow_infinity=False),
    st.booleans(),
    st.none(),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.sampled_from(["value", "x"]), st.integers(), max_size=1),
)
times: st.SearchStrategy[object] = st.sampled_from(
    [
        "2024-01-15T10:00:00Z", "2024-01-15T12:04:59.9+00:00", "2024-01-15T12:06:00Z", "2024-02-30T00:00:00Z",
        "2016-12-31T23:59:60Z", "0001-01-01T00:00:00+10:00", "2024-01-15t10:00:00z", "2023-01-01T00:00:00-05:30",
        "timestamp", 5, None, "",
    ]
)  # fmt: skip
ids: st.SearchStrategy[object] = st.one_of(
    st.text(max_size=5), st.sampled_from(["kinesis:1", "a" * 128, "a" * 129, "event_id", "value", "é", "\x7f", 7, None])
)
events = st.fixed_dictionaries(
    {},
    optional={
        "tenant_id": names,
        "metric": names,
        "value": values,
        "timestamp": times,
        "event_id": ids,
        "received_at": times,
        "surprise": values,
    },
)
plain_events = st.fixed_dictionaries(
    {
        "tenant_id": st.sampled_from(["acme", "ümlaut"]),
        "metric": st.just("calls"),
        "value": st.one_of(st.integers(0, 10**6), st.sampled_from(["1.50", 0.25, "7"])),
    },
    optional={"timestamp": st.just("2024-01-15T10:00:00.5+02:00"), "event_id": st.sampled_from(["a-1", "é"])},
)


def outcome(events: object) -> object:
    """What came out, so that refusals compare too."""
    assert isinstance(events, list)
    return [(e.code, e.detail, e.field) if isinstance(e, InvalidEventError) else e for e in events]


def both_ways(call: object, *arguments: object) -> tuple[object, object]:
    def run() -> object:
        try:
            found = call(*arguments)  # type: ignore[operator]
        except InvalidEventError as error:
            return error.code, error.detail, error.field
        return found if isinstance(found, OutgoingEvent) else outcome(found)

    quick = run()
    with mock.patch.object(outgoing, "_quickly", return_value=None):
        return quick, run()


@given(st.lists(st.one_of(events, plain_events), max_size=4), st.booleans(), st.sampled_from([None, (",", ":")]))
@example([PLAIN, PLAIN], True, None)
def test_both_ways_give_the_same_events_or_the_same_refusals(
    sent: list[dict[str, object]],
    escaped: bool,  # noqa: FBT001 - hypothesis passes by position
    separators: tuple[str, str] | None,
) -> None:
    texts = [json.dumps(event, ensure_ascii=escaped, separators=separators) for event in sent]
    bodies = [text.encode("utf-8", "surrogatepass") for text in texts]
    for one, other in (
        both_ways(array_of_events, b"[%b]" % b" , ".join(bodies), RULES),
        both_ways(lines_of_events, bodies, RULES),
        *(both_ways(one_event, body, RULES) for body in bodies),
    ):
        assert one == other


@given(st.data())
def test_both_ways_agree_about_bodies_that_are_damaged(data: st.DataObject) -> None:
    body = bytearray(json.dumps([PLAIN, PLAIN]).encode())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(body) - 1))
        piece = data.draw(
            st.one_of(st.binary(max_size=2), st.sampled_from([b'"value":1,', b"},{", b"]", b"[", b"\\", b"0"]))
        )
        body[place : place + data.draw(st.integers(0, 2))] = piece
    one, other = both_ways(array_of_events, bytes(body), RULES)
    assert one == other
    one, other = both_ways(lines_of_events, bytes(body).splitlines(), RULES)
    assert one == other


@given(st.lists(plain_events, min_size=1, max_size=5))
def test_plain_events_take_the_quick_way(sent: list[dict[str, object]]) -> None:
    body = json.dumps(sent, ensure_ascii=False).encode()
    with mock.patch.object(outgoing, "decode_json", side_effect=AssertionError):
        events = array_of_events(body, RULES)
        assert lines_of_events([json.dumps(event, ensure_ascii=False).encode() for event in sent], RULES) == events
    assert len(events) == len(sent)


@pytest.mark.parametrize(
    "body",
    [
        b'[{"tenant_id":"a","metric":"m","value":1,"value":2}]',
        b'[{"tenant_id":"a","metric":"m","value":1,"valu\\u0065":2}]',
        b'[{"tenant_id":"a","tenant_id":"b","metric":"m","value":1}]',
        b'[{"tenant_id":"a","metric":"m","value":1,"event_id":"x","event_id":"x"}]',
        b'[{"tenant_id":"a","metric":"m","value":1,"timestamp":"2024-01-01T00:00:00Z","timestamp" :""}]',
        # One key too many in one event and one too few in the other: the counts alone would be right.
        b'[{"tenant_id":"a","metric":"m","value":1,"event_id":"x","event_id":"y"},{"tenant_id":"a","metric":"m"}]',
    ],
)
def test_a_key_that_stands_twice_is_malformed(body: bytes) -> None:
    with pytest.raises(InvalidEventError) as caught:
        array_of_events(body, RULES)
    assert caught.value.code == "malformed_json"


def test_lines_are_events_of_their_own_whatever_their_neighbours_hold() -> None:
    two_in_one = b'{"tenant_id":"a","metric":"m","value":1},{"tenant_id":"a","metric":"m","value":2}'
    torn = [b'{"tenant_id":"a","metric":"m","value":[{}', b"{}]}"]
    found = lines_of_events([two_in_one, *torn, json.dumps(PLAIN).encode(), b""], RULES)
    assert [e.code if isinstance(e, InvalidEventError) else e.event_id for e in found] == [
        "malformed_json", "malformed_json", "malformed_json", "a-1", "malformed_json",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"[]", "invalid_event"),
        (b"{}", "invalid_event"),
        (b"7", "invalid_event"),
        (b"", "malformed_json"),
        (b"[{}", "malformed_json"),
        (b"[{}]x", "malformed_json"),
        (b"\xef\xbb\xbf[]", "malformed_json"),
        (b"[NaN]", "malformed_json"),
        (b"[" + b"{}," * BATCH_EVENTS_MAX + b"{}]", "too_large"),
        (b"[" * 100_000, "malformed_json"),
    ],
)
def test_what_is_no_batch_is_refused_as_a_whole(body: bytes, code: str) -> None:
    with pytest.raises(InvalidEventError) as caught:
        array_of_events(body, RULES)
    assert caught.value.code == code


def test_a_batch_may_hold_a_thousand_events() -> None:
    body = json.dumps([PLAIN] * BATCH_EVENTS_MAX).encode()
    assert len(array_of_events(body, RULES)) == BATCH_EVENTS_MAX


def test_age_is_held_against_the_time_of_receipt() -> None:
    rules = Rules(now=NOW, partitions=64, age_days_max=1)
    old = {**PLAIN, "timestamp": "2024-01-14T11:59:59Z"}
    young = {**PLAIN, "timestamp": "2024-01-14T12:00:01Z"}
    first, second = array_of_events(json.dumps([old, young]).encode(), rules)
    assert isinstance(first, InvalidEventError)
    assert first.code == "timestamp_too_old"
    assert isinstance(second, OutgoingEvent)


def test_what_goes_out_is_an_envelope_that_the_consumer_reads() -> None:
    from metering.envelopes import decode_record
    from metering.events import Event

    sent = array_of_events(json.dumps([PLAIN, {**PLAIN, "value": "1.50", "event_id": "é"}]).encode(), RULES)
    data = encode_envelope("b", [event.encoded for event in sent if isinstance(event, OutgoingEvent)])
    first, second = decode_record(data, arrived_at=NOW).entries
    assert isinstance(first, Event)
    assert isinstance(second, Event)
    assert (first.value, second.value, second.event_id) == (10, Decimal("1.5"), "é")
    assert first.received_at == NOW.replace(microsecond=123_000)
