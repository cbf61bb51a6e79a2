"""The body of a request as bytes: its size bounded, gzip undone, read at once or line by line.

Everything below counts inflated bytes too: a few kilobytes of gzip may stand for gigabytes.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import suppress
from typing import IO

from flask import Response, request
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from metering.web import ProblemError

BODY_BYTES_MAX = 5 * 1024 * 1024
"""Of a body as it is sent, and of what it inflates to."""
LINE_BYTES_MAX = 64 * 1024
"""Of a line of NDJSON: an event without a source has 2 KiB at most, and escaped throughout 12."""
LINES_MAX = BODY_BYTES_MAX // 40
"""Blank ones too. No event has fewer than 40 bytes, so a body of events alone never has as many; a line that is none
costs a result of twenty times its bytes."""
DISCARDED_BYTES_MAX = 2 * BODY_BYTES_MAX

_READ_BYTES = 64 * 1024
_SHORT_DIGITS = 5
"""A Content-Length of fewer digits is a short body."""
_TOO_LONG = b"x" * (LINE_BYTES_MAX + 1)
_GZIP = 16 + zlib.MAX_WBITS


class Line(bytes):
    """A line without its end; `number` counts from 1. One that was longer than LINE_BYTES_MAX is another such text."""

    number: int


def body_pieces() -> Iterator[bytes]:
    """Yield the request's body, inflated, in pieces of 64 KiB at most.

    Raises ProblemError: 413 `too_large` once it is longer than BODY_BYTES_MAX, 415 for a Content-Encoding other than
    gzip, 400 when it can't be read to its end or is no gzip.
    """
    coding = request.environ.get("HTTP_CONTENT_ENCODING", "").strip().lower()
    if coding in {"", "identity"}:
        pieces = _sent_pieces()
    elif coding in {"gzip", "x-gzip"}:
        pieces = _inflated(_sent_pieces())
    else:
        raise ProblemError(415, "unsupported_media_type", "Content-Encoding may be gzip or identity")
    size = 0
    for piece in pieces:
        size += len(piece)
        if size > BODY_BYTES_MAX:
            raise _too_large()
        yield piece


def whole_body() -> bytes:
    """Return the request's body, inflated; raises as body_pieces."""
    environ = request.environ
    length = environ.get("CONTENT_LENGTH", "")
    if len(length) < _SHORT_DIGITS and length.isdecimal() and "HTTP_CONTENT_ENCODING" not in environ:
        return _short_body(environ["wsgi.input"], int(length))
    return b"".join(body_pieces())


def _short_body(stream: IO[bytes], length: int) -> bytes:
    """Return a body of a few kilobytes, as most are, without the cost of the way for long ones."""
    try:
        body = stream.read(length)
    except Exception as error:
        raise _torn() from error
    if len(body) != length:
        raise _torn()
    return body


def body_lines() -> Iterator[Line]:
    """Yield the lines of the body that are not blank. Holds one line and one piece at a time.

    Raises as body_pieces, and ProblemError 413 `too_large` after LINES_MAX lines.
    """
    number, line = 1, b""
    for piece in body_pieces():
        first, *others = piece.split(b"\n")
        line += first
        for following in others:
            yield from _line(line, number)
            number, line = number + 1, following
            if number > LINES_MAX:
                raise ProblemError(413, "too_large", f"a body may have at most {LINES_MAX} lines")
        if len(line) > LINE_BYTES_MAX:
            line = _TOO_LONG  # and so it stays, whatever else comes of it
    yield from _line(line, number)


def _line(text: bytes, number: int) -> Iterator[Line]:
    # Too long as it came: a part of it, or what is left of it without blanks, may be an event, and another one.
    if text := _TOO_LONG if len(text) > LINE_BYTES_MAX else text.strip(b" \t\r"):
        line = Line(text)
        line.number = number
        yield line


def discard_body(response: Response) -> Response:
    """Read what is left of a refused body, within DISCARDED_BYTES_MAX.

    A client that is still sending would meet a closed connection before it looks for the answer.
    """
    if response.status_code >= 400:
        left = DISCARDED_BYTES_MAX
        with suppress(Exception):  # as in _sent_pieces; the answer stands
            while left > 0 and (piece := request.environ["wsgi.input"].read(min(left, _READ_BYTES))):
                left -= len(piece)
    return response


def _sent_pieces() -> Iterator[bytes]:
    read = None
    while True:
        try:
            read = read or request.stream.read
            piece = read(_READ_BYTES)
        except RequestEntityTooLarge as error:
            raise _too_large() from error
        except HTTPException:
            raise
        except Exception as error:
            # A torn connection, a malformed chunk: WSGI (PEP 3333) names no errors for them, each server has its own.
            raise _torn() from error
        if not piece:
            return
        yield piece


def _inflated(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Yield what gzip members, one after the other (RFC 1952, section 2.2), inflate to."""
    member = zlib.decompressobj(_GZIP)
    begun = False
    try:
        for sent in pieces:
            left = sent
            while left:
                if member.eof:
                    member = zlib.decompressobj(_GZIP)
                begun = True
                yield member.decompress(left, _READ_BYTES)
                left = member.unconsumed_tail or member.unused_data
        while not member.eof and (piece := member.decompress(b"", _READ_BYTES)):
            yield piece
    except zlib.error as error:
        raise ProblemError(400, "bad_request", "the body is not gzip, as its Content-Encoding says") from error
    if not begun or not member.eof:
        raise ProblemError(400, "bad_request", "the gzip body breaks off before its end")


def _torn() -> ProblemError:
    return ProblemError(400, "bad_request", "the body could not be read to its end")


def _too_large() -> ProblemError:
    return ProblemError(413, "too_large", f"a body may have at most {BODY_BYTES_MAX} bytes, inflated too")
