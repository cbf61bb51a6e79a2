"""Bodies as clients send them, and worse: each follows from the seed and its number alone, so it can be made again.

A body is written from a grammar (an event, an array, lines, CloudEvents, an envelope, any JSON), whose texts, numbers
and times lie at the edges of the rules, and is then damaged or left as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from tests.fuzz.grammar import SHAPES, binary_headers, event

_SEED_STEP = 1 << 40  # more bodies than any run has: no number of one seed is a number of another

_PIECES = (
    *(piece.encode("utf-8", "surrogatepass") for piece in (
        '"value":1,', '"value":2', ',"event_id":"x"', ',"event_id":"x},{y"', '"tenant_id":"b",', '"valu\\u0065":1,',
        "},{", "},\n{", "}\n{", "\n", "\r\n", "\n\n", " ", "\t", "[", "]", "{", "}", "[]", "{}", "[[", "]]", ",",
        ",,", ":", '"', '""', "\\", '\\"', "\\u0000", "\\ud800", "\\udc00", "\\ud83d\\ude00", "\\u00e9", "\\x",
        "\\u12", "null", "true", "false", "NaN", "Infinity", "-Infinity", "1e999999999", "1e-999999999",
        "0e999999999", "-0", "-1", "1.50", "\x00", "\x1f", "\x7f", "\x85", "\u2028", "\ud800", "\ufeff", "\U0001d4b3",
        "//", "/*", "'", '"a":1,"a":1', '"events":', '"batch_id":"b",', '"source":"/a",',
        '"received_at":"2024-01-15T10:00:00.000Z",', '"data":',
    )),
    b"\xff", b"\xc3", b"\xc0\x80", b"\xf5\x80\x80\x80", b"\xed\xa0\x80", b"\xe2\x28\xa1",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Sent:
    """What a client sends: a body, headers as WSGI gives them (bytes as Latin-1), and in what pieces the body comes."""

    body: bytes
    headers: tuple[tuple[str, str], ...] = ()
    piece_bytes: int = 64


def sent(seed: int, number: int) -> Sent:
    """Return body `number` (from 0) of `seed`."""
    rng = Random(seed * _SEED_STEP + number)  # noqa: S311 - made again by its seed
    if rng.random() < 0.002:
        return Sent(rng.choice(_LARGE)(rng), piece_bytes=1_000)
    body = rng.choice(SHAPES)(rng)
    if rng.random() < 0.5:
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            damage = _tear if b"}\n{" in body and rng.random() < 0.3 else rng.choice(_DAMAGES)
            body = damage(rng, body)
    return Sent(body, binary_headers(rng) if rng.random() < 0.5 else (), rng.choice((7, 64, 65, 200, 1_000)))


# ── What goes wrong with it ──────────────────────────────────────────────────────────────────────────────────────────


def _place(rng: Random, body: bytes) -> int:
    return rng.randint(0, len(body))


def _flip(rng: Random, body: bytes) -> bytes:
    if not body:
        return body
    at = rng.randrange(len(body))
    return body[:at] + bytes([body[at] ^ 1 << rng.randrange(8)]) + body[at + 1 :]


def _insert(rng: Random, body: bytes) -> bytes:
    at = _place(rng, body)
    return body[:at] + rng.choice(_PIECES) + body[at:]


def _overwrite(rng: Random, body: bytes) -> bytes:
    at, piece = _place(rng, body), rng.choice(_PIECES)
    return body[:at] + piece + body[at + len(piece) :]


def _truncate(rng: Random, body: bytes) -> bytes:
    at = _place(rng, body)
    return body[:at] if rng.random() < 0.7 else body[at:]


def _remove(rng: Random, body: bytes) -> bytes:
    at = _place(rng, body)
    return body[:at] + body[at + rng.choice((1, 1, 2, 8)) :]


def _repeat(rng: Random, body: bytes) -> bytes:
    start, end = sorted((_place(rng, body), _place(rng, body)))
    return body[:end] + body[start:end] * rng.choice((1, 1, 2, 40 if end - start < 9 else 1)) + body[end:]


def _splice(rng: Random, body: bytes) -> bytes:
    other = rng.choice(SHAPES)(rng)
    return body[: _place(rng, body)] + other[_place(rng, other) :]


def _follow(rng: Random, body: bytes) -> bytes:
    return body + rng.choice((b"", b",", b"\n", b",\n")) + rng.choice(SHAPES)(rng)


def _repeat_member(rng: Random, body: bytes) -> bytes:
    """A key twice: what stands between two commas once more, or an event's own key with another value."""
    parts = body.split(b",")
    at = rng.randrange(len(parts))
    return b",".join([*parts[:at], parts[at], rng.choice((parts[at], b'"value":3')), *parts[at + 1 :]])


def _tear(rng: Random, body: bytes) -> bytes:
    """Lines torn where braces meet, in a text perhaps, or grown together; or both, so that there are as many."""
    torn, grown = (b"},{", b"}\n{"), (b"}\n{", b"},{")
    for old, new in rng.choice(((torn,), (grown,), (torn, grown), (grown, torn), (grown, torn))):
        pieces = body.split(old)
        if len(pieces) > 1:
            at = rng.randrange(1, len(pieces))
            body = old.join(pieces[:at]) + new + old.join(pieces[at:])
    return body


def _indent(rng: Random, body: bytes) -> bytes:
    return (
        rng.choice((b" ", b"\n", b"\t", b"\x0b", b"\xef\xbb\xbf", b"\xc2\xa0"))
        + body
        + rng.choice((b" ", b"\n", b"\x00", b""))
    )


def _widen(rng: Random, body: bytes) -> bytes:
    """The same text in another encoding."""
    return body.decode("utf-8", "replace").encode(
        rng.choice(("utf-16", "utf-16-le", "utf-32", "latin-1", "utf-7")), "replace"
    )


def _lengthen(rng: Random, body: bytes) -> bytes:
    """A number, or a text, that is longer by some digits; or white space that is."""
    if rng.random() < 0.5:
        return body.replace(b"1", b"1" * rng.choice((5, 9, 16, 128, 5000)), 1)
    at = rng.choice((0, len(body), _place(rng, body)))
    return body[:at] + b" " * rng.choice((20, 64, 200)) + body[at:]


_DAMAGES: tuple[Callable[[Random, bytes], bytes], ...] = (
    _flip, _flip, _insert, _insert, _overwrite, _truncate, _remove, _repeat, _splice, _follow, _repeat_member, _tear,
    _tear, _tear, _indent, _widen, _lengthen,
)  # fmt: skip
_LARGE: tuple[Callable[[Random], bytes], ...] = (
    lambda rng: rng.choice((b"[", b'{"a":', b'["', b"[{}", b'[{"', b'{"value":[')) * rng.choice((33, 1_000, 100_000)),
    lambda rng: b"[" * (depth := rng.choice((31, 32, 33, 2_000))) + b"]" * depth,
    lambda rng: b'{"tenant_id":"a","metric":"m","value":1e%b}' % (b"9" * rng.choice((8, 9, 10_000))),
    lambda rng: b'{"tenant_id":"a","metric":"m","value":%b}' % (b"1" * rng.choice((4_300, 4_301, 100_000))),
    lambda rng: b"[%b]" % b",".join([event(rng)] * rng.choice((1_000, 1_001, 1_001))),
    lambda rng: b"\n".join([event(rng)] * rng.choice((1_000, 1_001))),
    lambda rng: b'{"a":"%b"}' % (rng.choice((b"\\u0041", b"{", b'\\"', b"\xf0\x9d\x92\xb3")) * 20_000),
    lambda rng: b"{%b}" % b",".join(b'"k%d":%d' % (number, number) for number in range(rng.choice((10, 5_000)))),
)
