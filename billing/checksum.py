"""The last line of an export: a checksum of all bytes before it, by which a whole file is told from a part. Pure.

    CSV      #sha256=<64 hexadecimal digits>,rows=<n>
    NDJSON   {"sha256":"<64 hexadecimal digits>","rows":<n>}

The bytes before it are hashed as they are, line ends included: `head -n -1 FILE | sha256sum` gives the same digits.
Nothing else in an export can look like it: a tenant's name begins with no `#`, and a row has no `sha256`.
"""

from __future__ import annotations

import re
from hashlib import sha256
from typing import BinaryIO

from billing.forms import Form
from metering.errors import MeteringError

LINE_BYTES_MAX = 64 * 1024
"""A row has far less; what is no export may have no line ends at all."""

_CSV_LINE = re.compile(rb"#sha256=(?P<sha256>[0-9a-f]{64}),rows=(?P<rows>0|[1-9][0-9]{0,17})\r\n")
_JSON_LINE = re.compile(rb'\{"sha256":"(?P<sha256>[0-9a-f]{64})","rows":(?P<rows>0|[1-9][0-9]{0,17})\}\n')
_HEADER_LINES = {_CSV_LINE: 1, _JSON_LINE: 0}


class NotWholeError(MeteringError):
    """A file is not the export that it was, or not all of it; the message says how that is seen."""


class Checksum:
    """Hashes an export as it is written. form: CSV or JSON."""

    def __init__(self, form: Form) -> None:
        self._form = form
        self._hash = sha256()

    def add(self, piece: bytes) -> bytes:
        """Take in the next bytes and return them."""
        self._hash.update(piece)
        return piece

    def last_line(self, rows: int) -> bytes:
        """Return the last line. rows: how many there are, the line of names left out."""
        digits = self._hash.hexdigest()
        if self._form is Form.CSV:
            return f"#sha256={digits},rows={rows}\r\n".encode()
        return f'{{"sha256":"{digits}","rows":{rows}}}\n'.encode()


def whole_rows(file: BinaryIO) -> int:
    """Return how many rows an export has, read to its end; memory does not grow with it.

    Raises NotWholeError when it lacks its last line, or that line does not go with the bytes before it.
    """
    hashed, lines, before, last = sha256(), 0, b"", b""
    while piece := file.readline(LINE_BYTES_MAX):
        hashed.update(last)
        lines += last.endswith(b"\n")
        before, last = last, piece
    if not last:
        raise NotWholeError("it is empty")
    pattern = next((each for each in _HEADER_LINES if each.fullmatch(last)), None)
    found = pattern and pattern.fullmatch(last)
    if pattern is None or found is None or (before and not before.endswith(b"\n")):
        raise NotWholeError("its last line is no checksum: it was broken off")
    if found["sha256"].decode() != hashed.hexdigest():
        raise NotWholeError("its checksum is another: it was changed, or a part is missing")
    rows = lines - _HEADER_LINES[pattern]
    if rows != int(found["rows"]):
        raise NotWholeError(f"its last line was changed: it says {int(found['rows'])} rows, and there are {rows}")
    return rows
