"""What a request with several events is answered: one result for each event, in the request's order.

    {"accepted": 1, "rejected": 1, "results": [{"index": 0, "status": "accepted", "event_id": "…"},
                                               {"index": 1, "status": "rejected", "code": "…", "detail": "…"}]}

    202  all were accepted
    207  some were accepted, the others break a rule
    422  none was accepted, each breaks a rule
    503  some, which kept the rules, the stream does not hold, or may not: {"index": 2, "status": "unavailable",
         "held": "no" | "unknown"}; send these again, with the same event_id

202 and 207 are plain JSON, 422 and 503 the same members in a problem (RFC 9457). Results wait in a file once they take
more than RESULTS_BYTES_MAX, so that memory does not grow with the number of events.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from tempfile import TemporaryFile
from typing import IO

import msgspec
from flask import Response

from collector.outcomes import EventNotHeldError
from collector.submissions import Submission, receipt
from metering.errors import InvalidEventError, SetupError
from metering.outgoing import OutgoingEvent
from metering.ports import Held
from metering.web import problem, setup_code

RESULTS_BYTES_MAX = 512 * 1024
"""Results of a thousand events of ordinary ids fit in this."""
_COPY_BYTES = 64 * 1024


class Result(msgspec.Struct, omit_defaults=True, gc=False):
    """How one event ended. line: of NDJSON, from 1. held: `no` or `unknown`, for status `unavailable`."""

    index: int
    status: str
    line: int | None = None
    event_id: str | None = None
    code: str | None = None
    detail: str | None = None
    held: str | None = None


class BatchAnswer:
    """Gathers results, and makes the response of them. Not for more than one thread."""

    def __init__(self) -> None:
        self.accepted = 0
        self.rejected: Counter[str] = Counter()
        self.unavailable = 0
        self._setup_code: str | None = None
        self._encoder = msgspec.json.Encoder()
        # The results as JSON, with commas between: in memory, or all of them in the file.
        self._parts: list[bytes] = []
        self._bytes = 0
        self._file: IO[bytes] | None = None

    @property
    def events(self) -> int:
        """How many events have a result."""
        return self.accepted + self.rejected.total() + self.unavailable

    def add(
        self,
        entries: Sequence[OutgoingEvent | InvalidEventError],
        submission: Submission | None,
        lines: Sequence[int] | None = None,
    ) -> None:
        """Add the results of events, in their order.

        submission: of those entries that keep the rules, None when none does; what has not ended in it yet is
        unavailable. lines: the line of each.
        """
        base = self.events
        kept = [index for index, entry in enumerate(entries) if isinstance(entry, OutgoingEvent)]
        results: dict[int, Result] = {}
        for ending in tuple(submission.endings) if submission else ():
            indexes = [kept[index] for index in ending.indexes]
            if isinstance(ending.outcome, Held):
                self.accepted += len(indexes)
                for offset, index in enumerate(indexes):
                    event_id = entries[index].event_id or receipt(ending.outcome, ending.first + offset)  # type: ignore[union-attr]
                    results[index] = Result(base + index, "accepted", event_id=event_id)
            else:
                held = self._not_held(ending.outcome)
                for index in indexes:
                    results[index] = Result(base + index, "unavailable", held=held)
        for index, entry in enumerate(entries):
            if isinstance(entry, InvalidEventError):
                self.rejected[entry.code] += 1
                results[index] = Result(base + index, "rejected", code=entry.code, detail=entry.detail)
            elif index not in results:
                results[index] = Result(base + index, "unavailable", held="unknown")
        self.unavailable += len(entries) - (self.events - base)
        ordered = [results[index] for index in range(len(entries))]
        for result, line in zip(ordered, lines or (), strict=False):
            result.line = line
        self._write((b"," if base else b"") + self._encoder.encode(ordered)[1:-1])

    def response(self, **members: object) -> Response:
        """Return the answer; `members` are added to a 503."""
        counts = {"accepted": self.accepted, "rejected": self.rejected.total()}
        if self.unavailable:
            detail = f"the stream does not hold {self.unavailable} event(s), or may not; send these again as they were"
            head = problem(503, self._setup_code or "unavailable", detail, **counts, **members)
        elif not self.accepted:
            head = problem(422, "no_event_accepted", "each event breaks a rule; the results name it", **counts)
        else:
            body = self._encoder.encode(counts)
            head = Response(body, status=207 if self.rejected else 202, content_type="application/json")
        return self.into(head)

    def into(self, head: Response) -> Response:
        """Return `head`, a response whose body is a JSON object, with the results as its last member."""
        start, end = head.get_data().rstrip()[:-1] + b',"results":[', b"]}\n"
        if self._file is None:
            head.set_data(b"".join((start, *self._parts, end)))
            return head
        self._file.seek(0)
        head.response = self._pieces(self._file, start, end)
        head.content_length = len(start) + self._bytes + len(end)
        head.call_on_close(self._file.close)
        return head

    def _write(self, results: bytes) -> None:
        self._bytes += len(results)
        if self._file is None and self._bytes > RESULTS_BYTES_MAX:
            self._file = TemporaryFile()  # noqa: SIM115 - read when the answer goes out
            self._file.writelines(self._parts)
            self._parts.clear()
        if self._file is None:
            self._parts.append(results)
        else:
            self._file.write(results)

    def _not_held(self, error: Exception) -> str:
        """Return whether the stream may hold events that ended with `error`: `no` or `unknown`."""
        if isinstance(error, SetupError):
            self._setup_code = setup_code(error)
            return "no"
        return "no" if isinstance(error, EventNotHeldError) and not error.maybe_held else "unknown"

    @staticmethod
    def _pieces(results: IO[bytes], start: bytes, end: bytes) -> Iterator[bytes]:
        yield start
        while piece := results.read(_COPY_BYTES):
            yield piece
        yield end
