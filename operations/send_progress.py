"""How far a file has been sent, noted beside it, so that a second run skips what is known to be accepted.

It saves time and nothing else: what is sent again has the same ids. So it may be lost, and is ignored when in doubt.
It never says more than is true: a batch is noted once all of it is final, in one step (a rename).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from hashlib import sha256
from pathlib import Path

import msgspec

from operations.send_files import Record

SUFFIX = ".metering-progress"
REJECTED_RANGES_MAX = 10_000
"""With more of them no further batch is noted: the note is written anew for each."""


class Delivery(msgspec.Struct, frozen=True):
    """What is sent whereto. What is known of one delivery says nothing of another."""

    collector: str
    source: str
    format: str

    def __str__(self) -> str:
        return f"{self.source!r} as {self.format} to {self.collector}"


class Progress(msgspec.Struct):
    """How far one delivery has come. A record is known by the line in which it begins.

    lines: what begins there or before is final. rejected: ranges of lines among them. All else of it is accepted.
    digest: of the accepted records. Rejected ones may be mended, and are sent again by a second run.
    """

    delivery: Delivery
    lines: int = 0
    rejected: list[tuple[int, int]] = []
    digest: str = "0"

    def has_accepted(self, line: int) -> bool:
        """Return whether the record that begins in this line is known to be accepted."""
        place = bisect_right(self.rejected, line, key=lambda lines: lines[0]) - 1
        return line <= self.lines and not (place >= 0 and line <= self.rejected[place][1])

    def is_of(self, records: Iterable[Record]) -> bool:
        """Return whether a file, of which these are all records, still holds what was accepted."""
        total = 0
        for record in records:
            if record.line > self.lines:
                break
            if self.has_accepted(record.line):
                total += _number_of(record)
        return _text_of(total) == self.digest

    def noting(self, accepted: Sequence[Record], rejected: Sequence[Record]) -> Progress:
        """Return the progress after a batch that is final: 1 or more records, in their order.

        They are all from the first one's line to the last one's that were not known to be accepted, and all before is
        final. A last record that lacks its line end is left out: it changes when the file grows.
        """
        accepted, rejected = _ended(accepted), _ended(rejected)
        lines = [record.line for record in (*accepted, *rejected)]
        if not lines:
            return self
        first, last = min(lines), max(lines)
        ranges = [
            *((start, min(end, first - 1)) for start, end in self.rejected if start < first),
            *((record.line, record.line) for record in rejected),
            *((max(start, last + 1), end) for start, end in self.rejected if end > last),
        ]
        merged: list[tuple[int, int]] = []
        for start, end in ranges:
            if merged and merged[-1][1] == start - 1:
                merged[-1] = (merged[-1][0], end)
            else:
                merged.append((start, end))
        total = int(self.digest, 16) + sum(map(_number_of, accepted))
        return Progress(self.delivery, max(self.lines, last), merged, _text_of(total))


class ProgressFile:
    """The note beside a file, named as the file with SUFFIX behind it."""

    def __init__(self, file: Path) -> None:
        self.path = file.with_name(file.name + SUFFIX)

    def read(self) -> Progress | None:
        """Return what the note says, None when there is none. Raises OSError, and ValueError for what is no note."""
        try:
            progress = msgspec.json.decode(self.path.read_bytes(), type=Progress)
            int(progress.digest, 16)
        except FileNotFoundError:
            return None
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise ValueError(f"it is not a note of progress: {error}") from error
        return progress

    def write(self, progress: Progress) -> None:
        """Replace the note in one step. Raises OSError."""
        part = self.path.with_name(self.path.name + ".part")
        # Without fsync: what a power cut leaves is an older note, or one that can't be read and is ignored.
        part.write_bytes(msgspec.json.encode(progress) + b"\n")
        part.replace(self.path)


def _ended(records: Sequence[Record]) -> list[Record]:
    return [record for record in records if record.ended]


def _number_of(record: Record) -> int:
    """Return what a record adds to the digest: a sum does not mind in which order lines were accepted."""
    return int.from_bytes(sha256(b"%d:%b" % (record.line, record.raw)).digest())


def _text_of(total: int) -> str:
    return f"{total % (1 << 256):x}"
