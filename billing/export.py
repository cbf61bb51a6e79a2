"""GET /v1/export: the usage of every tenant and metric in a period, a row each, as it is read, with a checksum behind.

    progress ─► as_of ─► the directory, a page at a time ─► each tenant's totals and rows ─► pieces ─► checksum line
                          └─ up to TENANTS_AHEAD_MAX of them are read before their turn ─┘

The answer begins before its last figure is read, so its status can't tell whether all went well: the last line does
(billing.checksum). When a reading fails midway the connection ends there, without it.

Nothing here grows with the number of tenants: a piece waits until the client has taken the ones before it
(metering/gunicorn_client.py). That holds a thread of the service, so there are EXPORTS_MAX at once and no more.
"""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flask import Response, request

from billing.checksum import Checksum
from billing.export_forms import JSON_LINES, ExportRow, encoded, header
from billing.forms import Form, asked_form, freshness_headers
from billing.in_order import in_order
from billing.parameters import period_asked, query_parameters
from billing.ranges import aligned_moment, local_text
from metering.errors import InvalidRangeError, MeteringError
from metering.local_time import Span, first_moment, zone_named
from metering.web import ProblemError
from metering.web_keys import key_tenants
from metering.windows import refuse_zone_unaligned, usage_in

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet
    from zoneinfo import ZoneInfo

    from flask import Flask

    from billing.as_of import AsOf
    from billing.meters import Measures
    from metering.ports import BillingReader

EXPORTS_MAX = 2
"""Exports that a process answers at once: each holds a thread of those that serve requests."""
EXPORT_THREADS = 4
"""For the tenants that are read ahead, of all exports together; each holds one connection to DynamoDB."""
TENANTS_AHEAD_MAX = 2 * EXPORT_THREADS
"""Tenants of one export whose rows may be held before their turn."""
DIRECTORY_PAGE = 1_000
PIECE_BYTES = 32 * 1024
PIECE_S = 1.0
"""After which a piece goes out whatever its size: what stands between may close a connection that is silent."""

_log = logging.getLogger(__name__)


class BrokenOffError(ConnectionResetError):
    """A reading failed after the answer had begun.

    To gunicorn it is a connection that has gone: it closes ours where it is, without the end of a chunked answer.
    """

    def __init__(self) -> None:
        super().__init__(errno.ECONNRESET, "an export broke off")


@dataclass(frozen=True, slots=True)
class _Asked:
    """span: by event time. tenants: those that the key may read, None for all."""

    span: Span
    form: Form
    tenants: AbstractSet[str] | None


def add_export(
    app: Flask, reader: BillingReader, as_of: AsOf, measures: Measures, *, window_minutes: int, slots: int = EXPORTS_MAX
) -> None:
    """Add the export to `app`. window_minutes: USAGE_WINDOW_MINUTES; slots: how many are answered at once."""
    executor = ThreadPoolExecutor(EXPORT_THREADS, "export")
    free = threading.BoundedSemaphore(slots)

    @app.get("/v1/export")
    def export() -> Response:
        parameters = query_parameters(request.args, "period", "from", "to", "timezone", "format", "min_as_of")
        form = asked_form(parameters, json_type=JSON_LINES)
        zone = zone_named(parameters.get("timezone", "UTC"))
        span = _span(parameters, zone, window_minutes)
        headers = {"Period-From": local_text(span.start, zone), "Period-To": local_text(span.end, zone)}
        known = as_of.read(parameters)  # before the figures
        if not free.acquire(blocking=False):
            raise ProblemError(503, "too_many_exports", f"{slots} exports are under way already; try again later")
        pieces = _Pieces(_pieces(reader, measures, executor, _Asked(span, form, key_tenants()), free))
        media_type = JSON_LINES if form is Form.JSON else f"{Form.CSV.media_type}; charset=utf-8; header=present"
        return Response(
            pieces, content_type=media_type, headers=headers | freshness_headers(known) | {"Vary": "Accept"}
        )


class _Pieces:
    """An answer's body; the first piece is made at once, so that a table that is away is a 503 and not half a file."""

    def __init__(self, pieces: Generator[bytes, None, None]) -> None:
        self._pieces = pieces
        self._first: bytes | None = next(pieces)

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if self._first is not None:
            first, self._first = self._first, None
            return first
        try:
            return next(self._pieces)
        except StopIteration:
            raise
        except MeteringError as error:
            _log.warning("an export broke off: %s", error)
            raise BrokenOffError from error
        except Exception as error:
            _log.exception("an export broke off: %s", error)
            raise BrokenOffError from error

    def close(self) -> None:
        """End the reading, whether it is done or not; called once, when the answer is out or its client gone."""
        self._pieces.close()


def _pieces(
    reader: BillingReader, measures: Measures, executor: Executor, asked: _Asked, slot: threading.BoundedSemaphore
) -> Generator[bytes, None, None]:
    """Yield the answer; give `slot` back at its end, however that comes."""
    try:
        checksum, rows = Checksum(asked.form), 0
        piece = bytearray(header(asked.form, measures))
        begun_at = time.monotonic()

        def rows_of(tenant_id: str) -> list[ExportRow]:
            return list(_rows(reader, measures, tenant_id, asked.span))

        tenant_ids = _tenant_ids(reader, asked.tenants)
        with closing(in_order(executor, rows_of, tenant_ids, ahead_max=TENANTS_AHEAD_MAX)) as found:
            for each in found:
                piece += encoded(each, asked.form, measures)
                rows += len(each)
                if len(piece) >= PIECE_BYTES or (piece and time.monotonic() - begun_at >= PIECE_S):
                    yield checksum.add(bytes(piece))
                    piece, begun_at = bytearray(), time.monotonic()
        yield checksum.add(bytes(piece)) + checksum.last_line(rows)
    finally:
        slot.release()


def _tenant_ids(reader: BillingReader, own: AbstractSet[str] | None) -> Iterator[str]:
    """Yield the tenants of the directory, or those of `own`, in the order of the directory."""
    if own is not None:
        yield from sorted(own)  # by code point: the same order as DynamoDB's, of UTF-8 bytes
        return
    after: str | None = None
    while True:
        page = reader.tenants(limit=DIRECTORY_PAGE, after=after)
        yield from page.tenant_ids
        after = page.cursor
        if after is None:
            return


def _rows(reader: BillingReader, measures: Measures, tenant_id: str, span: Span) -> Iterator[ExportRow]:
    for total in reader.totals(tenant_id):
        metric = total.metric
        try:
            window = usage_in(reader, tenant_id, metric, span.start, span.end)
        except InvalidRangeError:  # a border cuts one of its rows: what lies on which side, nobody knows
            yield ExportRow(tenant_id, metric, None, None)
        else:
            yield ExportRow(tenant_id, metric, measures.usage(metric, [window]), window.events)


def _span(parameters: Mapping[str, str], zone: ZoneInfo, window_minutes: int) -> Span:
    """Return what `period`, or `from` and `to`, ask for. Raises ProblemError 400, and InvalidRangeError."""
    given = [name for name in ("from", "to") if name in parameters]
    if "period" in parameters:
        if given:
            raise _invalid_range(f"period is a range of its own: it goes without {given[0]}", given[0])
        period = period_asked(parameters)
        span = Span(first_moment(period.first_day, zone), first_moment(period.next_first_day, zone))
        refuse_zone_unaligned([span], zone.key, window_minutes=window_minutes)
        return span
    if len(given) < 2:
        missing = "to" if given == ["from"] else "from" if given else "period"
        raise _invalid_range("an export needs period, or from and to", missing)
    span = Span(*(aligned_moment(parameters[name], name, zone, window_minutes) for name in given))
    if span.start > span.end:
        raise _invalid_range("from must not be after to", "from")
    return span


def _invalid_range(detail: str, parameter: str) -> InvalidRangeError:
    return InvalidRangeError("invalid_range", detail, parameter)
