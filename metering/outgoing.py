"""Events on their way to the stream: held against every rule, encoded, and given their partition.

Where it sits: the collector hands in what it was sent, and puts what comes out. Pure.

There are two ways to the same bytes. metering.events states the rules, one event at a time. What most bodies are made
of, plain events without a surprise, takes the second way: decoded by msgspec into structs and encoded again from
templates, seven times as fast. It never refuses anything: at the first event that it does not know to be right, the
whole body goes the first way, whose answer counts. A property test holds the two to the same result.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterable, Sequence
from datetime import datetime, timedelta
from functools import lru_cache

import msgspec

from metering.envelopes import encode_event
from metering.errors import InvalidEventError
from metering.events import (
    EVENT_ID_LENGTH_MAX,
    FUTURE_TOLERANCE,
    RECEIPT_PREFIX,
    Event,
    decode_json,
    encode_json,
    parse_event,
    parse_name,
    parse_timestamp,
    time_text,
    to_milliseconds,
)
from metering.partitions import partition_of

BATCH_EVENTS_MAX = 1000
"""Events in one JSON array."""
MARKS_MAX = 150_000
"""Commas in one body, opening brackets and opening braces, each: a thousand events whose ids are 128 of one kind have
fewer. What is behind one costs up to 250 bytes of memory or a microsecond, and a body of 5 MiB could have millions."""


class OutgoingEvent(msgspec.Struct, frozen=True, gc=False):
    """An event that keeps every rule. encoded: as envelopes.encode_event makes it; event_id: the client's, or None."""

    tenant_id: str
    event_id: str | None
    partition: int
    encoded: bytes


class Rules:
    """What all events of one request are held against.

    now: the time of receipt (aware UTC). age_days_max: EVENT_MAX_AGE_DAYS, or None for no limit.
    partitions: the number of virtual partitions. metrics: the only ones that are taken (METERS_STRICT), None for any.
    """

    def __init__(
        self,
        *,
        now: datetime,
        partitions: int,
        age_days_max: int | None = None,
        metrics: Container[str] | None = None,
    ) -> None:
        self.now = to_milliseconds(now)
        self.metrics = metrics
        self.partitions = partitions
        self.age_days_max = age_days_max
        self.latest = self.now + FUTURE_TOLERANCE
        self.earliest = None if age_days_max is None else self.now - timedelta(days=age_days_max)


def outgoing(event: Event, partitions: int) -> OutgoingEvent:
    """Return an event as it goes to the stream."""
    partition = partition_of(event.tenant_id, event.metric, partitions)
    return OutgoingEvent(event.tenant_id, event.event_id, partition, encode_event(event))


def checked(raw: object, rules: Rules) -> OutgoingEvent:
    """Return the event that a client sent, as decoded by decode_json.

    Raises InvalidEventError as parse_event and require_meter do.
    """
    event = parse_event(raw, now=rules.now, age_days_max=rules.age_days_max)
    require_meter(event, rules)
    return outgoing(event, rules.partitions)


def require_meter(event: Event, rules: Rules) -> None:
    """Raise InvalidEventError `unknown_metric` for an event whose metric is not among those that are taken.

    Here and not with the rules of an event: what the stream holds was accepted, whatever METERS_FILE says today.
    """
    if rules.metrics is not None and event.metric not in rules.metrics:
        raise InvalidEventError("unknown_metric", f"there is no meter for the metric {event.metric[:64]!r}", "metric")


def one_event(body: bytes, rules: Rules) -> OutgoingEvent:
    """Return the event that is the body of a request. Raises InvalidEventError as decode_json and parse_event do."""
    found = _quickly(b"[%b]" % body, rules, count=1) if body[:1] == b"{" else None
    return checked(decode_body(body), rules) if found is None else found[0]


def array_of_events(body: bytes, rules: Rules) -> Sequence[OutgoingEvent | InvalidEventError]:
    """Return the events of a JSON array, each as itself or as the rule that it breaks, in their order.

    Raises InvalidEventError `malformed_json` for what is no JSON, `invalid_event` for what is no array or an empty one,
    `too_large` for more than BATCH_EVENTS_MAX events.
    """
    found = _quickly(body, rules)
    return each(array(body), checked, rules) if found is None else found


def lines_of_events(lines: Sequence[bytes], rules: Rules) -> Sequence[OutgoingEvent | InvalidEventError]:
    """Return the events of lines that hold one JSON object each, as array_of_events does; never raises.

    A line that is no JSON is an InvalidEventError `malformed_json` of its own.
    """
    # An event is no deeper than its braces, and no string goes over the end of a line: when all lines begin and end
    # with braces, as many events as lines are one in each. A value with braces in it is none that the quick way knows.
    if all(line[:1] == b"{" and line[-1:] == b"}" for line in lines):
        found = _quickly(b"[%b]" % b",\n".join(lines), rules, count=len(lines))
        if found is not None:
            return found
    return [_line(line, rules) for line in lines]


def decode_body(body: bytes) -> object:
    """Decode a body by decode_json, and raise InvalidEventError `too_large` for one with more than MARKS_MAX."""
    for mark in (b",", b"[", b"{"):
        if body.count(mark) > MARKS_MAX:
            raise InvalidEventError("too_large", f"a body may have at most {MARKS_MAX} {mark.decode()!r}")
    return decode_json(body)


def array(body: bytes) -> list[object]:
    """Return the elements of a JSON array of events, 1 to BATCH_EVENTS_MAX; raises as array_of_events."""
    raw = decode_body(body)
    if not isinstance(raw, list):
        raise InvalidEventError("invalid_event", "a batch is a JSON array of events")
    if not raw:
        raise InvalidEventError("invalid_event", "a batch holds one event or more")
    if len(raw) > BATCH_EVENTS_MAX:
        raise InvalidEventError("too_large", f"a batch holds at most {BATCH_EVENTS_MAX} events; this one {len(raw)}")
    return raw


def each(
    elements: Iterable[object], check: Callable[[object, Rules], OutgoingEvent], rules: Rules
) -> list[OutgoingEvent | InvalidEventError]:
    """Return what `check` makes of each element, or the InvalidEventError that it raises."""
    found: list[OutgoingEvent | InvalidEventError] = []
    for raw in elements:
        try:
            found.append(check(raw, rules))
        except InvalidEventError as error:
            found.append(error)
    return found


def _line(line: bytes, rules: Rules) -> OutgoingEvent | InvalidEventError:
    try:
        return checked(decode_json(line), rules)
    except InvalidEventError as error:
        return error


# ── The second way ───────────────────────────────────────────────────────────────────────────────────────────────────


class _Sent(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """An event as a client sends it. value: as written."""

    tenant_id: str
    metric: str
    value: msgspec.Raw
    timestamp: str | msgspec.UnsetType = msgspec.UNSET
    event_id: str | msgspec.UnsetType = msgspec.UNSET


_SENT = msgspec.json.Decoder(list[_Sent])
_PLAIN_VALUE = re.compile(rb'"?((?:0|[1-9][0-9]{0,14})(?:\.[0-9]{1,9})?)"?')


def _quickly(body: bytes, rules: Rules, *, count: int | None = None) -> list[OutgoingEvent] | None:
    """Return the events of an array when all are right, each key stands once and there are `count`; None otherwise."""
    if b"\\" in body:
        return None  # what an escape stands for could be anything, a key for one
    try:
        sent = _SENT.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    if not 1 <= len(sent) <= BATCH_EVENTS_MAX or count not in {None, len(sent)}:
        return None
    try:
        events = [_outgoing(event, rules, _end(rules.now)) for event in sent]
    except (InvalidEventError, _NotPlainError):
        return None
    return events if _each_key_once(body, sent) else None


class _NotPlainError(Exception):
    """An event that the second way knows nothing of."""


def _outgoing(sent: _Sent, rules: Rules, end: str) -> OutgoingEvent:
    if rules.metrics is not None and sent.metric not in rules.metrics:
        raise _NotPlainError
    partition, start = _counter(sent.tenant_id, sent.metric, rules.partitions)
    value = _PLAIN_VALUE.fullmatch(sent.value)
    if value is None:
        raise _NotPlainError
    text = value[1].decode()
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    timestamp, event_id = sent.timestamp, sent.event_id
    if timestamp is msgspec.UNSET:
        when = ""
    else:
        occurred_at = _moment(timestamp)
        if occurred_at > rules.latest or (rules.earliest is not None and occurred_at < rules.earliest):
            raise _NotPlainError
        when = f',"timestamp":"{timestamp}"'
    if event_id is msgspec.UNSET:
        return OutgoingEvent(sent.tenant_id, None, partition, f'{start}{text}"{when}{end}'.encode())
    if not 1 <= len(event_id) <= EVENT_ID_LENGTH_MAX or not event_id.isprintable() or event_id[:8] == RECEIPT_PREFIX:
        raise _NotPlainError
    return OutgoingEvent(
        sent.tenant_id, event_id, partition, f'{start}{text}"{when},"event_id":"{event_id}"{end}'.encode()
    )


def _each_key_once(body: bytes, sent: Sequence[_Sent]) -> bool:
    """Return whether no key stands twice in one event, which JSON decoders let pass.

    Without a backslash in the body, a quoted name is that key, or a string of that very text, which makes the count
    too high and so costs time only.
    """
    count = len(sent)
    return (
        body.count(b'"tenant_id"') == count
        and body.count(b'"metric"') == count
        and body.count(b'"value"') == count
        and body.count(b'"timestamp"') == sum(event.timestamp is not msgspec.UNSET for event in sent)
        and body.count(b'"event_id"') == sum(event.event_id is not msgspec.UNSET for event in sent)
    )


@lru_cache(maxsize=16_384)
def _counter(tenant_id: str, metric: str, partitions: int) -> tuple[int, str]:
    """Return the partition of a counter, and how its events begin on the stream: up to the digits of the value."""
    parse_name(tenant_id, "tenant_id")
    parse_name(metric, "metric")
    start = encode_json({"tenant_id": tenant_id, "metric": metric}).decode()
    return partition_of(tenant_id, metric, partitions), f'{start[:-1]},"value":"'


@lru_cache(maxsize=16_384)
def _moment(timestamp: str) -> datetime:
    return parse_timestamp(timestamp)


@lru_cache(maxsize=16)
def _end(received_at: datetime) -> str:
    return f',"received_at":"{time_text(received_at)}"}}'
