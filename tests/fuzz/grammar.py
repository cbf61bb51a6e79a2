"""A grammar of bodies: what clients and producers write, with texts, numbers and times at the edges of the rules."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from random import Random

_NAMES = ("acme", "tenant-123", "api_calls", "ümlaut", "a.b_c-d:e@f")
_IDS = ("a-1", "req-8f2c", "é", "a b", "x},{y", "event_id")
_ODD_TEXTS = (
    "", "a" * 128, "a" * 129, "ü" * 128, "\U0001d4b3" * 128, "テナント", "арендатор", "٣٤", "²", "हिन्दी", "e\u0301",
    "\u200b", "\u2028", "\x00", "\x7f", "\x1f", "\ud800", "\udc00\ud800", "\ud83d\ude00", "😀", "\ufeff", "a b",
    "a/b", "a#b", "TENANT#a", "kinesis:", "kinesis:s:1:0", '"', "\\", "}", "},{", "x},{y", "{", "[", "]", ",", ":",
    '"value":1', "tenant_id", "value", "event_id", "\n", "x\r", "/gateway/eu-1", "x" * 1024, "é" * 1025,
    "\U0001d4b3" * 1024, "1.0",
)  # fmt: skip
_NUMBERS = (
    "0", "1", "10", "7", "0.5", "1.50", "12345", "0.000000001", "999999999999999", "999999999999999.999999999",
    "1e14", "1E+14", "1e-9", "1E-9", "0e0", "-0", "-0.0",
)  # fmt: skip
_ODD_NUMBERS = (
    "-1", "-1e-9", "1000000000000000", "0.0000000001", "1e15", "1e-10", "1e999999999", "1e-999999999", "0e999999999",
    "0e-999999999", "-1e999999999", "1E+99999999", "1e-00000000000000000001", "1000000000000000e-1",
    "0.00000000000000000001e20", "007", "01", "-", "+1", ".5", "1.", "1e", "1e+", "0x10", "1_000", "NaN", "Infinity",
    "-Infinity", "٣", "1" * 400, "0." + "0" * 400 + "1", "1e" + "9" * 400, "0" * 400 + "1",
)  # fmt: skip
_TIMES = (
    "2024-01-15T10:00:00Z", "2024-01-15T10:00:00.5+02:00", "2024-01-15t10:00:00z", "2016-12-31T23:59:60Z",
    "2024-01-15T12:04:59.9Z", "2024-01-15T10:00:00+23:59", "2023-02-28T00:00:00.123456789-05:30",
    "1924-02-09T12:00:00.123Z", "2024-01-15T12:05:00.123Z",
)  # fmt: skip
_ODD_TIMES = (
    "", "0001-01-01T00:00:00Z", "1924-02-09T12:00:00.122Z", "2024-01-15", "2024-01-15T10:00:00",
    "2024-02-30T10:00:00Z", "2024-01-15T24:00:00Z", "2024-01-15T10:00:61Z", "9999-12-31T23:59:59Z",
    "9999-12-31T23:59:59-00:01", "0001-01-01T00:00:00+00:01", "0000-01-01T00:00:00Z", "2024-01-15T10:00:00+24:00",
    "yesterday", "2024-01-15T10:00:00.1234567890Z", "٢٠٢٤-01-15T10:00:00Z", "2024-01-15T12:05:00.124Z",
    "2024-01-15T10:00:00Z\n", "1705312800",
)  # fmt: skip
_EXTENSIONS = (
    "traceparent",
    "datacontenttype",
    "dataschema",
    "partitionkey",
    "sampledrate",
    "tiem",
    "data_base64",
    "tenant_id",
)
_MEDIA_TYPES = ("application/json", "text/json; charset=utf-8", "application/x+json", "application/xml", "", "json")


def _one_of(rng: Random, usual: Sequence[str], odd: Sequence[str], odd_share: float = 0.06) -> str:
    return rng.choice(odd if rng.random() < odd_share else usual)


def _string(rng: Random, text: str) -> bytes:
    if rng.random() < 0.15:
        return json.dumps(text).encode()
    return json.dumps(text, ensure_ascii=False).encode("utf-8", "surrogatepass")


def _name(rng: Random) -> bytes:
    return _string(rng, _one_of(rng, _NAMES, _ODD_TEXTS))


def _id(rng: Random) -> bytes:
    return _string(rng, _one_of(rng, _IDS, _ODD_TEXTS))


def _source(rng: Random) -> bytes:
    return _string(rng, _one_of(rng, ("/gateway/eu-1", "urn:x:y", "\U0001d4b3" * 1024), _ODD_TEXTS))


def _value(rng: Random) -> bytes:
    if rng.random() < 0.03:
        return _any(rng, 3)
    number = _one_of(rng, _NUMBERS, _ODD_NUMBERS, 0.1)
    return json.dumps(number).encode() if rng.random() < 0.3 else number.encode()


def _time(rng: Random) -> bytes:
    return _any(rng, 1) if rng.random() < 0.01 else _string(rng, _one_of(rng, _TIMES, _ODD_TIMES))


def _object(rng: Random, members: list[tuple[str, bytes]]) -> bytes:
    if rng.random() < 0.2:
        rng.shuffle(members)
    if rng.random() < 0.02:
        members.append(rng.choice(members))
    if rng.random() < 0.02:
        members.append((rng.choice(_ODD_TEXTS), _any(rng, 2)))
    if rng.random() < 0.02:
        del members[rng.randrange(len(members))]
    comma, colon = rng.choice(((b",", b":"), (b", ", b": "), (b" ,\t", b" : ")))
    return b"{" + comma.join(_key(rng, name) + colon + value for name, value in members) + b"}"


def _key(rng: Random, name: str) -> bytes:
    if name and rng.random() < 0.01:
        at = rng.randrange(len(name))
        before, after = (json.dumps(part)[1:-1] for part in (name[:at], name[at + 1 :]))
        return f'"{before}\\u{ord(name[at]) & 0xFFFF:04x}{after}"'.encode()
    return _string(rng, name) if not name.isascii() else json.dumps(name).encode()


def event(rng: Random) -> bytes:
    members = [("tenant_id", _name(rng)), ("metric", _name(rng)), ("value", _value(rng))]
    if rng.random() < 0.6:
        members.append(("timestamp", _time(rng)))
    if rng.random() < 0.6:
        members.append(("event_id", _id(rng)))
    return _object(rng, members)


def _plain_event(rng: Random) -> bytes:
    """Return an event without anything odd: what is damaged next is all that is wrong with it."""
    fields = {"tenant_id": rng.choice(_NAMES), "metric": rng.choice(_NAMES), "value": rng.choice(_NUMBERS)}
    if rng.random() < 0.5:
        fields |= {"timestamp": rng.choice(_TIMES), "event_id": rng.choice(_IDS)}
    return json.dumps(fields, ensure_ascii=False).encode()


def _stream_event(rng: Random) -> bytes:
    members = [("tenant_id", _name(rng)), ("metric", _name(rng)), ("value", _value(rng)), ("event_id", _id(rng))]
    if rng.random() < 0.5:
        members.append(("source", _source(rng)))
    if rng.random() < 0.8:
        members.append(("received_at", _time(rng)))
    return _object(rng, members)


def _cloud_event(rng: Random) -> bytes:
    members = [
        ("specversion", b'"1.0"' if rng.random() < 0.97 else rng.choice((b"1.0", b'"0.3"', b"null", b'"1.0 "'))),
        ("id", _id(rng)),
        ("source", _source(rng)),
        ("type", _name(rng)),
        ("subject", _name(rng)),
        ("data", _object(rng, [("value", _value(rng))])),
    ]
    if rng.random() < 0.6:
        members.append(("time", _time(rng)))
    if rng.random() < 0.2:
        name = rng.choice(_EXTENSIONS)
        members.append((name, _string(rng, rng.choice(_MEDIA_TYPES if name == "datacontenttype" else _ODD_TEXTS))))
    return _object(rng, members)


def _several(rng: Random, one: Callable[[Random], bytes]) -> list[bytes]:
    return [one(rng) for _ in range(rng.choice((1, 1, 2, 2, 3, 5)))]


def _array(rng: Random) -> bytes:
    one = _plain_event if rng.random() < 0.3 else event
    return b"[%b]" % rng.choice((b",", b" , ", b",\n")).join(_several(rng, one))


def _lines(rng: Random) -> bytes:
    one = _plain_event if rng.random() < 0.3 else event
    return rng.choice((b"\n", b"\n", b"\r\n", b"\n\n")).join(_several(rng, one))


def _cloud_batch(rng: Random) -> bytes:
    return b"[%b]" % b",".join(_several(rng, _cloud_event))


def _envelope(rng: Random) -> bytes:
    return b'{"batch_id":%b,"events":[%b]}' % (_id(rng), b",".join(_several(rng, _stream_event)))


def _data(rng: Random) -> bytes:
    return _object(rng, [("value", _value(rng))])


def _any(rng: Random, depth: int) -> bytes:
    """Return any JSON, and what looks like it, at most `depth` deep."""
    kind = rng.randrange(7) if depth else rng.randrange(4)
    if kind == 0:
        return _string(rng, rng.choice(_ODD_TEXTS))
    if kind == 1:
        return rng.choice(_NUMBERS + _ODD_NUMBERS).encode()
    if kind in {2, 3}:
        return rng.choice((b"null", b"true", b"false", b"0", b'""', b"[]", b"{}"))
    if kind == 4:
        return b"[%b]" % b",".join(_any(rng, depth - 1) for _ in range(rng.randrange(4)))
    if kind == 5:
        return b"[" * depth + b"]" * depth
    members = [
        (rng.choice(("value", "a", "b", "tenant_id", "é")), _any(rng, depth - 1)) for _ in range(rng.randrange(4))
    ]
    return b"{" + b",".join(_key(rng, name) + b":" + value for name, value in members) + b"}"


def binary_headers(rng: Random) -> tuple[tuple[str, str], ...]:
    headers = {
        "ce-specversion": b"1.0" if rng.random() < 0.97 else b"1.1",
        "ce-id": _id(rng)[rng.choice((0, 1)) : rng.choice((-1, 100))],
        "ce-source": rng.choice(
            (b"/gateway/eu-1", b'"quoted \\" text"', b"%C3%A9", b"%FF", b"%", b"\xc3\xa9", b"\xff", b'"', b"")
        ),
        "Ce-Type": _name(rng)[1:-1],
        "CE-Subject": _name(rng)[1:-1],
    }
    if rng.random() < 0.5:
        headers["ce-time"] = _time(rng)[1:-1]
    if rng.random() < 0.1:
        headers[rng.choice(("ce-data", "ce-", "ce-tiem", "ce-traceparent", "CE-ID", "ce-" + "x" * 200))] = b"x"
    if rng.random() < 0.05:
        del headers[rng.choice(tuple(headers))]
    return tuple((name, value.decode("latin-1")) for name, value in headers.items())


SHAPES: tuple[Callable[[Random], bytes], ...] = (
    event, event, _array, _array, _lines, _lines, _lines, _cloud_event, _cloud_batch, _envelope, _stream_event,
    _data, _data, lambda rng: _any(rng, 5),
)  # fmt: skip
