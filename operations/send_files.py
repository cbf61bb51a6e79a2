"""Files of usage events, NDJSON and CSV, read record by record: memory does not grow with the file.

A record is what one event should stand in: a line of NDJSON, a row of CSV (RFC 4180), which may hold line ends within
quotes. Blank lines are none. What can't be read as an event costs no other one: it is an InvalidEventError of its own.
Whether an event keeps the rules is the collector's to say; here it is only made sure that it can travel in a batch.
"""

from __future__ import annotations

import csv
import json
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import PurePath
from typing import BinaryIO, Protocol

from metering.errors import InvalidEventError, SetupError
from metering.events import EVENT_FIELDS, NESTING_MAX, decode_json, encode_json

FORMATS = ("ndjson", "csv")
LINE_BYTES_MAX = 1024 * 1024
"""A longer line, or CSV record, is rejected unread; a valid event takes less than 3 KB."""

_SUFFIXES = {".ndjson": "ndjson", ".jsonl": "ndjson", ".csv": "csv"}
_REQUIRED_COLUMNS = ("tenant_id", "metric", "value")
_OPTIONAL_COLUMNS = frozenset({"timestamp", "event_id"})
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_SPACE = b" \t\r\n"


@dataclass(frozen=True, slots=True)
class Record:
    """line: where it begins, counted from 1. ended: by a line end, not by the file's.

    raw: its bytes with the line ends. cells: of a CSV record. error: why it could not be taken apart.
    """

    line: int
    ended: bool
    raw: bytes
    cells: tuple[str, ...] = ()
    error: InvalidEventError | None = None


@dataclass(frozen=True, slots=True)
class FileEvent:
    """An event as the file has it. encoded: a JSON object. has_id: it holds event_id; event_id: if that is a string."""

    encoded: bytes
    has_id: bool
    event_id: str | None = None


class RecordFile(Protocol):
    """A file in one of the formats."""

    @property
    def bytes_read(self) -> int:
        """How much of the file has been read."""

    def records(self) -> Iterator[Record]:
        """Yield all records, once."""

    def event(self, record: Record) -> FileEvent:
        """Return the event of a record. Raises InvalidEventError for one that can't travel in a batch."""


def format_of(name: str) -> str:
    """Return the format that a file's suffix means. Raises SetupError when it means none."""
    suffix = PurePath(name).suffix.lower()
    if suffix not in _SUFFIXES:
        raise SetupError(f"{name}: what is in it? Name it {', '.join(_SUFFIXES)}, or say --format")
    return _SUFFIXES[suffix]


def open_records(stream: BinaryIO, format_name: str) -> RecordFile:
    """Return what reads `stream`, from where it stands. Raises SetupError for a CSV header that can't be used."""
    return CsvFile(stream) if format_name == "csv" else NdjsonFile(stream)


def with_event_id(encoded: bytes, event_id: str) -> bytes:
    """Return a JSON object with an event_id added, all else byte for byte as it was."""
    rest = encoded[1:].lstrip(_SPACE)
    return b'{"event_id":%b%b%b' % (encode_json(event_id), b"" if rest[:1] == b"}" else b",", rest)


@dataclass(frozen=True, slots=True)
class _Line:
    number: int
    raw: bytes
    ended: bool
    too_long: bool


class _Lines:
    """The lines of a file. Of one that is too long, the first LINE_BYTES_MAX bytes, and a digest for the others."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.bytes_read = 0

    def __iter__(self) -> Iterator[_Line]:
        number = 0
        while piece := self._piece():
            number += 1
            raw = piece.removeprefix(_BYTE_ORDER_MARK) if number == 1 else piece
            too_long = len(piece) == LINE_BYTES_MAX and piece[-1:] != b"\n"
            if too_long:
                rest = sha256()
                while piece[-1:] != b"\n" and (piece := self._piece()):
                    rest.update(piece)
                raw += rest.digest()
            yield _Line(number, raw, ended=piece[-1:] == b"\n", too_long=too_long)

    def _piece(self) -> bytes:
        piece = self._stream.readline(LINE_BYTES_MAX)
        self.bytes_read += len(piece)
        return piece


class NdjsonFile:
    """One JSON object per line. Its bytes go on as they are, so no number changes on the way."""

    def __init__(self, stream: BinaryIO) -> None:
        self._lines = _Lines(stream)

    @property
    def bytes_read(self) -> int:
        return self._lines.bytes_read

    def records(self) -> Iterator[Record]:
        for line in self._lines:
            if line.raw.strip(_SPACE):
                error = _too_large("a line") if line.too_long else None
                yield Record(line.number, line.ended, line.raw, error=error)

    def event(self, record: Record) -> FileEvent:
        if record.error is not None:
            raise record.error
        encoded = record.raw.strip(_SPACE)
        try:
            decoded = decode_json(encoded)
            if encoded.count(b"[") + encoded.count(b"{") >= NESTING_MAX:
                decode_json(b"[%b]" % encoded)  # one level deeper in a batch, where it would cost all the others
        except InvalidEventError as error:
            cause = error.__cause__
            if not isinstance(cause, json.JSONDecodeError):
                raise
            raise InvalidEventError(error.code, f"this is not JSON: {cause.msg} (column {cause.colno})") from error
        if not isinstance(decoded, dict):
            raise InvalidEventError("invalid_event", "an event is a JSON object")
        event_id = decoded.get("event_id")
        return FileEvent(encoded, "event_id" in decoded, event_id if type(event_id) is str else None)


class CsvFile:
    """Rows under a header that names the fields. All cells are text; an empty timestamp or event_id is none.

    Raises SetupError for a header that is missing, or names other columns.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._lines = _Lines(stream)
        self._feed = _CsvFeed(self._lines)
        self._records = self._all_records()
        header = next(self._records, None)
        if header is None or header.error is not None:
            raise SetupError("a CSV file begins with a row that names its columns, as tenant_id,metric,value")
        self._columns = header.cells
        for column in self._columns:
            if column not in EVENT_FIELDS:
                raise SetupError(f"there is no column {column[:64]!r}; allowed: {','.join(sorted(EVENT_FIELDS))}")
        if len(set(self._columns)) < len(self._columns):
            raise SetupError("a column stands twice in the header")
        for column in _REQUIRED_COLUMNS:
            if column not in self._columns:
                raise SetupError(f"the column {column} is missing")

    @property
    def bytes_read(self) -> int:
        return self._lines.bytes_read

    def records(self) -> Iterator[Record]:
        return self._records

    def event(self, record: Record) -> FileEvent:
        if record.error is not None:
            raise record.error
        if len(record.cells) != len(self._columns):
            raise InvalidEventError(
                "malformed_csv", f"the header names {len(self._columns)} columns, this row has {len(record.cells)}"
            )
        fields = {
            name: cell
            for name, cell in zip(self._columns, record.cells, strict=True)
            if cell or name not in _OPTIONAL_COLUMNS
        }
        try:
            # In one order, whatever the columns' is: a derived id depends on it.
            encoded = encode_json(dict(sorted(fields.items())))
        except UnicodeEncodeError as error:
            raise InvalidEventError("malformed_csv", "this row is not UTF-8") from error
        return FileEvent(encoded, "event_id" in fields, fields.get("event_id"))

    def _all_records(self) -> Iterator[Record]:
        """Yield the header and the records."""
        rows = csv.reader(self._feed, strict=True)
        while True:
            error: InvalidEventError | None = None
            cells: tuple[str, ...] = ()
            self._feed.begin_record()
            try:
                cells = tuple(next(rows))
            except StopIteration:
                return
            except csv.Error as cause:
                error = InvalidEventError("malformed_csv", f"this is not CSV: {cause}")
                # A quote that nothing closes takes in the lines that follow it: they are to cost nothing.
                self._feed.give_back_all_but_one()
                rows = csv.reader(self._feed, strict=True)
            lines = self._feed.taken
            if cells or error:
                raw = b"".join(line.raw for line in lines)
                yield Record(lines[0].number, lines[-1].ended, raw, cells, error)


class _CsvFeed:
    """Lines as csv.reader takes them, one by one; `taken` are those of the record that it is at."""

    def __init__(self, lines: _Lines) -> None:
        self._lines = iter(lines)
        self._given_back: deque[_Line] = deque()
        self.taken: list[_Line] = []
        self._taken_bytes = 0

    def __iter__(self) -> _CsvFeed:
        return self

    def __next__(self) -> str:
        line = self._given_back.popleft() if self._given_back else next(self._lines)
        self.taken.append(line)
        self._taken_bytes += len(line.raw)
        if self._taken_bytes > LINE_BYTES_MAX:
            raise csv.Error(f"a record may have {LINE_BYTES_MAX} bytes at most")
        return line.raw.decode("utf-8", "surrogateescape")

    def begin_record(self) -> None:
        """Forget the lines of the record before."""
        self.taken.clear()
        self._taken_bytes = 0

    def give_back_all_but_one(self) -> None:
        """Let the lines behind the first one be taken again."""
        self._given_back.extendleft(reversed(self.taken[1:]))
        del self.taken[1:]


def _too_large(what: str) -> InvalidEventError:
    return InvalidEventError("too_large", f"{what} may have {LINE_BYTES_MAX} bytes at most")
