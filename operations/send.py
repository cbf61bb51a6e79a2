"""The command `metering send`: a file of events to a collector, so that a second run counts nothing twice.

    record ─► id: its own, or derived ─► batch ─► BatchSender ─► all final ─► progress noted, rejected lines printed
                                                            └──► some unsent ─► stop, code 3: run it again

A derived id is `file:` + SHA-256 of (source, number of the line, event as sent), cut to 128 bits, + the line's number.
source: --source, else the file's path without links. So ids are the same in a second run, and for the lines that were
there when the file grows at its end; the same line twice is two events; a line that was mended in place is a new event.
Its limits stand in docs/sending.md: a file that moved, and lines that moved within it, look new.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import count
from pathlib import Path
from typing import BinaryIO, Self

import click

from metering.errors import InvalidEventError, SetupError
from metering.sending import Accepted, BatchSender, KeyedEvent, Outcome, Rejected, Unsent
from operations.named_files import STDIN, standard_input
from operations.rejected import printable
from operations.send_files import Record, RecordFile, format_of, open_records, with_event_id
from operations.send_progress import REJECTED_RANGES_MAX, Delivery, Progress, ProgressFile

BATCH_BYTES_MAX = 1024 * 1024
"""A batch of this size is sent, however few events it has: memory stays bounded, and a proxy's limit is seldom met."""
ALL_ACCEPTED, SOME_REJECTED, NOT_USABLE, NOT_SENT, INTERRUPTED = 0, 1, 2, 3, 130
"""Exit codes; click ends with NOT_USABLE for a wrong option, and shells say INTERRUPTED after Ctrl-C."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What the options say. source, format_name: None when not given. url: the collector's."""

    name: str
    url: str
    api_key: str | None
    source: str | None
    format_name: str | None
    batch_events_max: int
    retry_s: float


@dataclass(slots=True)
class Tally:
    """earlier: accepted in an earlier run. repeated: accepted after having been posted more than once."""

    accepted: int = 0
    earlier: int = 0
    repeated: int = 0
    rejected: int = 0

    def __str__(self) -> str:
        earlier = f" ({self.earlier} in an earlier run)" if self.earlier else ""
        accepted = f"accepted {self.accepted + self.earlier}{earlier}"
        return f"{accepted}, duplicate-safe {self.repeated}, rejected {self.rejected}"


def run_send(plan: Plan) -> int:
    """Send a file, print each rejected line and a summary on stdout, and return the exit code.

    Raises SetupError, before anything is sent, when a part of the plan can't be used.
    """
    with contextlib.ExitStack() as opened:
        stream = standard_input() if plan.name == STDIN else opened.enter_context(_open(plan.name))
        # What is no file of its own (a pipe) has no name to derive ids from, and no place for a note beside it.
        path = Path(plan.name).resolve() if plan.name != STDIN and _is_regular(stream) else None
        format_name = plan.format_name or ("ndjson" if path is None else format_of(plan.name))
        source = plan.source or (None if path is None else str(path))
        terminal = _Terminal(None if path is None else os.fstat(stream.fileno()).st_size)
        sender = BatchSender(plan.url, api_key=plan.api_key, retry_s=plan.retry_s, on_retry=terminal.retrying)
        opened.callback(sender.close)
        note = _Note(path, Delivery(sender.url, source or "", format_name), stream)
        file = open_records(stream, format_name)
        sending = _Sending(plan, source, file=file, sender=sender, note=note, terminal=terminal)
        with terminal:
            code = sending.run()
    click.echo(str(sending.tally))
    return code


@dataclass(frozen=True, slots=True)
class _Entry:
    record: Record
    event: KeyedEvent | InvalidEventError


class _Sending:
    def __init__(
        self,
        plan: Plan,
        source: str | None,
        *,
        file: RecordFile,
        sender: BatchSender,
        note: _Note,
        terminal: _Terminal,
    ) -> None:
        self.tally = Tally()
        self._plan = plan
        self._source = source
        self._file = file
        self._sender = sender
        self._note = note
        self._terminal = terminal

    def run(self) -> int:
        try:
            for batch in self._batches():
                outcomes = self._outcomes(batch)
                self._count(batch, outcomes)
                unsent = next((outcome for outcome in outcomes if isinstance(outcome, Unsent)), None)
                if unsent is not None:
                    line = batch[outcomes.index(unsent)].record.line
                    self._terminal.say(f"not sent, from line {line} on: {unsent.reason}; run it again to go on")
                    return NOT_SENT
                self._note.batch_is_final(batch, outcomes)
                self._terminal.read(self._file.bytes_read)
        except KeyboardInterrupt:
            self._terminal.say("interrupted; run it again to go on")
            return INTERRUPTED
        except SetupError as error:
            self._terminal.say(str(error))
            return NOT_USABLE
        return SOME_REJECTED if self.tally.rejected else ALL_ACCEPTED

    def _batches(self) -> Iterator[list[_Entry]]:
        batch: list[_Entry] = []
        size = 0
        for record in self._file.records():
            if self._note.progress.has_accepted(record.line):
                self.tally.earlier += 1
                continue
            batch.append(self._entry(record))
            size += len(record.raw)
            if len(batch) >= self._plan.batch_events_max or size >= BATCH_BYTES_MAX:
                yield batch
                batch, size = [], 0
        if batch:
            yield batch

    def _entry(self, record: Record) -> _Entry:
        try:
            event = self._file.event(record)
        except InvalidEventError as error:
            return _Entry(record, error)
        if event.has_id:
            return _Entry(record, KeyedEvent(event.event_id, event.encoded))
        if self._source is None:
            raise SetupError(
                f"line {record.line} has no event_id, and a pipe has no name to derive one from: say --source NAME, "
                "and the same when you send the same again"
            )
        event_id = derived_id(self._source, record.line, event.encoded)
        return _Entry(record, KeyedEvent(event_id, with_event_id(event.encoded, event_id)))

    def _outcomes(self, batch: Sequence[_Entry]) -> list[Outcome]:
        sent = iter(self._sender.send([entry.event for entry in batch if isinstance(entry.event, KeyedEvent)]))
        return [
            next(sent) if isinstance(entry.event, KeyedEvent) else Rejected(entry.event.code, entry.event.detail)
            for entry in batch
        ]

    def _count(self, batch: Sequence[_Entry], outcomes: Sequence[Outcome]) -> None:
        for entry, outcome in zip(batch, outcomes, strict=True):
            if isinstance(outcome, Accepted):
                self.tally.accepted += 1
                self.tally.repeated += outcome.repeated
            elif isinstance(outcome, Rejected):
                self.tally.rejected += 1
                self._terminal.print(f"line {entry.record.line}: {outcome.code}: {outcome.detail}")


def derived_id(source: str, line: int, encoded: bytes) -> str:
    """Return the id of an event that has none; see the top of this module. encoded: without the id."""
    digest = sha256(b"%b\0%d\0%b" % (os.fsencode(source), line, encoded)).hexdigest()
    return f"file:{digest[:32]}:{line}"


class _Note:
    """The progress of this delivery, and the note of it; without a path it is kept nowhere."""

    def __init__(self, path: Path | None, delivery: Delivery, stream: BinaryIO) -> None:
        self._file = None if path is None else ProgressFile(path)
        self.progress = Progress(delivery)
        found = None if self._file is None else self._found(self._file, delivery, stream)
        if found is not None:
            self.progress = found

    def batch_is_final(self, batch: Sequence[_Entry], outcomes: Sequence[Outcome]) -> None:
        """Note a batch, all of whose outcomes are final."""
        if self._file is None:
            return
        accepted: list[Record] = []
        rejected: list[Record] = []
        for entry, outcome in zip(batch, outcomes, strict=True):
            (accepted if isinstance(outcome, Accepted) else rejected).append(entry.record)
        self.progress = self.progress.noting(accepted, rejected)
        try:
            if len(self.progress.rejected) > REJECTED_RANGES_MAX:
                raise OSError(errno.EFBIG, "too many rejected lines")
            self._file.write(self.progress)
        except OSError as error:
            _warn(f"{self._file.path} is kept no longer ({error.strerror}): a second run sends again what follows")
            self._file = None

    @staticmethod
    def _found(file: ProgressFile, delivery: Delivery, stream: BinaryIO) -> Progress | None:
        try:
            found = file.read()
        except (OSError, ValueError) as error:
            _warn(f"{file.path} is ignored: {error}")
            return None
        if found is not None and found.delivery != delivery:
            _warn(f"{file.path} is ignored: it is of {found.delivery}, not of {delivery}")
            return None
        if found is not None and not found.is_of(open_records(stream, delivery.format).records()):
            _warn(
                f"{file.path} is ignored: what was accepted of the first {found.lines} lines is no longer there as it "
                "was. Lines that kept their number and text count once; lines that moved count again"
            )
            found = None
        stream.seek(0)
        return found


def _warn(text: str) -> None:
    click.echo(f"metering: {printable(text)}", err=True)


class _Terminal:
    """A progress bar on stderr, where that is a terminal, and lines that do not run into it."""

    def __init__(self, length_bytes: int | None) -> None:
        self._shown = sys.stderr.isatty()
        self._last_reason = ""
        self._read_bytes = 0
        self._bar = click.progressbar(
            count(),
            length=length_bytes,
            label="sending",
            file=sys.stderr,
            hidden=not self._shown,
        )

    def __enter__(self) -> Self:
        self._bar.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.render_finish()

    def read(self, bytes_read: int) -> None:
        """Show that so much of the file is done."""
        self._bar.update(bytes_read - self._read_bytes)
        self._read_bytes = bytes_read
        self._last_reason = ""

    def retrying(self, reason: str) -> None:
        """Tell a person why it takes long, once for each batch and reason."""
        if self._shown and reason != self._last_reason:
            self._last_reason = reason
            self.say(f"{reason}; trying again")

    def say(self, text: str) -> None:
        self._clear()
        click.echo(f"metering: {printable(text)}", err=True)

    def print(self, text: str) -> None:
        self._clear()
        click.echo(printable(text))

    def _clear(self) -> None:
        if self._shown:
            click.echo("\r\x1b[2K", nl=False, err=True)


def _open(name: str) -> BinaryIO:
    try:
        return Path(name).open("rb")
    except OSError as error:
        raise SetupError(f"{name} can't be read: {error.strerror}") from error


def _is_regular(stream: BinaryIO) -> bool:
    return stat.S_ISREG(os.fstat(stream.fileno()).st_mode)
