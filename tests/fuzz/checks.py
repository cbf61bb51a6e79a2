"""What must hold of any body, whatever it is: see `check`."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from collector import bodies
from collector.openapi import RESULT_CODES
from metering import outgoing
from metering.cloudevents import cloud_event, cloud_events, from_binary
from metering.envelopes import InvalidEntry, decode_record, encode_envelope, encode_event
from metering.errors import InvalidEventError, InvalidRecordError
from metering.events import Event, decode_json
from metering.outgoing import OutgoingEvent, Rules, array, array_of_events, lines_of_events, one_event
from metering.rows import event_claim_key
from tests.fuzz.bodies import Sent

NOW = datetime(2024, 1, 15, 12, 0, 0, 123_456, tzinfo=UTC)
AGE_DAYS_MAX = 36_500
RULES = Rules(now=NOW, partitions=64, age_days_max=AGE_DAYS_MAX)
DETAIL_CHARACTERS_MAX = 1000
"""64 characters of what was sent, each escaped to ten, and the sentence around them."""
IN_RANGE = re.compile(r"(0|[1-9][0-9]{0,14})(\.[0-9]{0,8}[1-9])?", re.ASCII)
"""A value as it stands on the stream."""
LINE_BYTES_MAX = 200
"""Instead of the collector's, so that lines are too long now and then."""
CLAIM_KEY_BYTES_MAX = 2048
"""Of a partition key (DynamoDB quotas)."""
Refused = tuple[str, str, str | None]
Outcome = Refused | Sequence[OutgoingEvent | Refused]


class DifferenceError(Exception):
    """A law that does not hold of a body."""


def check(sent: Sent, tally: Counter[tuple[str, str]]) -> None:
    """Feed a body to every parser, and add to `tally` how often each of them accepted an event or gave which code.

    - nothing is raised but InvalidEventError, by decode_record InvalidRecordError; with a known code, and in words that
      can be sent;
    - the quick way and the rules of metering.outgoing come to the same;
    - the lines of a body are the lines that were sent, wherever it is cut, or too long;
    - an accepted event says what was sent, by a decoder of its own;
    - the consumer reads each accepted event as that event, with its id;
    - what the consumer refuses can be kept, and read again.

    Raises DifferenceError, or whatever a parser raised.
    """
    body, lines = sent.body, _lines_of(sent)
    accepted: dict[bytes, OutgoingEvent] = {}
    for parser, call in (
        ("one_event", lambda: [one_event(body, RULES)]),
        ("array_of_events", lambda: array_of_events(body, RULES)),
        ("lines_of_events", lambda: lines_of_events(lines, RULES)),
    ):
        outcome = _outcome(call)
        with _by_the_rules():
            slow = _outcome(call)
        if outcome != slow:
            raise DifferenceError(f"{parser}: the quick way gives {outcome!r:.2000}, the rules {slow!r:.2000}")
        _count(parser, outcome, tally)
        _expect_as_sent(parser, outcome, lines if parser == "lines_of_events" else [body], _usage)
        accepted |= _accepted(outcome)
    for parser, call in (
        ("cloud_event", lambda: [cloud_event(decode_json(body), RULES)]),
        ("cloud_events", lambda: cloud_events(array(body), RULES)),
        ("from_binary", lambda: [cloud_event(from_binary(sent.headers, decode_json(body)), RULES)]),
    ):
        outcome = _outcome(call)
        _count(parser, outcome, tally)
        if parser != "from_binary":
            _expect_as_sent(parser, outcome, [body], _cloud)
        accepted |= _accepted(outcome)
    if accepted:
        _expect_read_by_the_consumer(tuple(accepted.values()))
    _expect_a_record_or_a_refusal(body, tally)


def _lines_of(sent: Sent) -> list[bytes]:
    """Return a body's lines as the collector gives them, which comes by the body in pieces."""
    body, pieces = sent.body, range(0, len(sent.body), sent.piece_bytes)
    limit, whole = bodies.LINE_BYTES_MAX, bodies.body_pieces
    bodies.body_pieces = lambda: (body[start : start + sent.piece_bytes] for start in pieces)
    bodies.LINE_BYTES_MAX = LINE_BYTES_MAX
    try:
        found = {line.number: bytes(line) for line in bodies.body_lines()}
    finally:
        bodies.LINE_BYTES_MAX, bodies.body_pieces = limit, whole
    lines = []
    for number, text in enumerate(body.split(b"\n"), 1):
        line, stripped = found.pop(number, b""), text.strip(b" \t\r")
        if line != stripped and not len(text) > LINE_BYTES_MAX < len(line):
            raise DifferenceError(f"body_lines: line {number} is {text[:2000]!r}, read was {line[:2000]!r}")
        lines += [stripped] if stripped else []
    if found:
        raise DifferenceError(f"body_lines: there are no lines {sorted(found)}")
    return lines


def _outcome(call: Callable[[], Iterable[OutgoingEvent | InvalidEventError]]) -> Outcome:
    try:
        return [entry if isinstance(entry, OutgoingEvent) else _refused(entry) for entry in call()]
    except InvalidEventError as error:
        return _refused(error)


def _refused(error: InvalidEventError) -> Refused:
    if error.code not in RESULT_CODES:
        raise DifferenceError(f"the code {error.code!r} is not one of the API's")
    _expect_words(error.detail)
    if len(error.field or "") > DETAIL_CHARACTERS_MAX:
        raise DifferenceError(f"the name of a field has {len(error.field or '')} characters")
    return error.code, error.detail, error.field


def _expect_words(text: str) -> None:
    if len(text) > DETAIL_CHARACTERS_MAX:
        raise DifferenceError(f"{len(text)} characters are too long for an answer: {text[:200]}")
    text.encode()  # as the results of a batch are


@contextmanager
def _by_the_rules() -> Iterator[None]:
    """Take the quick way away."""
    quickly = outgoing._quickly
    outgoing._quickly = lambda *_, **__: None
    try:
        yield
    finally:
        outgoing._quickly = quickly


def _count(parser: str, outcome: Outcome, tally: Counter[tuple[str, str]]) -> None:
    if isinstance(outcome, tuple):
        tally[parser, outcome[0]] += 1
        return
    for entry in outcome:
        tally[parser, "accepted" if isinstance(entry, OutgoingEvent) else entry[0]] += 1


def _accepted(outcome: Outcome) -> dict[bytes, OutgoingEvent]:
    return {entry.encoded: entry for entry in outcome if isinstance(entry, OutgoingEvent)}


def _expect_as_sent(
    parser: str, outcome: Outcome, texts: Sequence[bytes], usage: Callable[[Any], dict[str, Any]]
) -> None:
    """Hold accepted events against a plain reading of the body: json.loads, numbers as text."""
    if isinstance(outcome, tuple):
        return
    if parser == "lines_of_events":
        pairs = list(zip(outcome, texts, strict=True))
        read = [(entry, _plain(text)) for entry, text in pairs if isinstance(entry, OutgoingEvent)]
    else:
        raw = _plain(texts[0])
        elements = raw if parser in {"array_of_events", "cloud_events"} else [raw]
        read = [(entry, one) for entry, one in zip(outcome, elements, strict=True) if isinstance(entry, OutgoingEvent)]
    for entry, one in read:
        form, want = json.loads(entry.encoded), usage(one)
        del form["received_at"]
        if not IN_RANGE.fullmatch(form["value"]):
            raise DifferenceError(f"{parser}: accepted is the value {form['value']!r:.200}")
        if form.keys() != want.keys() or Decimal(form.pop("value")) != _amount(want.pop("value")) or form != want:
            raise DifferenceError(f"{parser}: {entry.encoded!r} is not what was sent: {one!r:.2000}")
        if (entry.tenant_id, entry.event_id) != (form["tenant_id"], form.get("event_id")):
            raise DifferenceError(f"{parser}: {entry!r} says otherwise than what goes to the stream")


def _plain(text: bytes, number: Callable[[str], Any] = str) -> Any:
    return json.loads(text, parse_int=number, parse_float=number, object_pairs_hook=_each_once)


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) != len(dict(pairs)):
        raise DifferenceError("accepted is an object with a key that stands twice")
    return dict(pairs)


def _number(text: str) -> tuple[str, str]:
    """Return a number so that it is no text."""
    return "number", text


def _amount(text: str) -> Decimal:
    """Return a number as it was sent. Decimal does not take a zero with any exponent."""
    digits = text.lower().partition("e")[0].strip("-0.")
    return Decimal(text) if digits else Decimal(0)


def _usage(raw: dict[str, Any]) -> dict[str, Any]:
    return dict(raw)


def _cloud(raw: dict[str, Any]) -> dict[str, Any]:
    names = {"subject": "tenant_id", "type": "metric", "time": "timestamp", "id": "event_id", "source": "source"}
    fields = {ours: raw[theirs] for theirs, ours in names.items() if raw.get(theirs) is not None}
    return {**fields, "value": raw["data"]["value"]}


def _expect_read_by_the_consumer(events: Sequence[OutgoingEvent]) -> None:
    data = encode_envelope("b", [event.encoded for event in events])
    entries = decode_record(data, arrived_at=NOW, age_days_max=AGE_DAYS_MAX).entries
    if len(entries) != len(events):
        raise DifferenceError(f"{len(events)} events went to the stream, the consumer reads {len(entries)}")
    for event, entry in zip(events, entries, strict=True):
        if not isinstance(entry, Event):
            raise DifferenceError(f"the consumer refuses what was accepted: {entry!r:.2000}")
        ids = entry.tenant_id, entry.event_id
        if ids != (event.tenant_id, event.event_id) or encode_event(entry) != event.encoded:
            raise DifferenceError(f"the consumer reads {entry!r:.2000}, sent was {event.encoded!r:.2000}")
        _expect_claim_key(entry)


def _expect_claim_key(event: Event) -> None:
    if event.event_id is not None:
        size = len(event_claim_key(event.tenant_id, event.event_id, event.source).encode())
        if size > CLAIM_KEY_BYTES_MAX:
            raise DifferenceError(f"the claim's key has {size} bytes")


def _expect_a_record_or_a_refusal(body: bytes, tally: Counter[tuple[str, str]]) -> None:
    try:
        entries = decode_record(body, arrived_at=NOW, age_days_max=AGE_DAYS_MAX).entries
    except InvalidRecordError as error:
        tally["decode_record", error.code] += 1
        _expect_words(error.detail)
        return
    for index, entry in enumerate(entries):
        if isinstance(entry, InvalidEntry):
            tally["decode_record", entry.code] += 1
            _expect_words(entry.detail)
            raw = _plain(body, _number)
            if _plain(entry.raw, _number) != (raw["events"][index] if "events" in raw else raw):
                raise DifferenceError(f"kept is {entry.raw!r:.2000} of what was refused: {raw!r:.2000}")
            if entry.claim_key is not None and len(entry.claim_key.encode()) > CLAIM_KEY_BYTES_MAX:
                raise DifferenceError("the claim's key of a refused event is too long")
        else:
            tally["decode_record", "accepted"] += 1
            encode_event(entry)
            _expect_claim_key(entry)
