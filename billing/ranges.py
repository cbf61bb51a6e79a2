"""Which windows are asked for: from, to, window, timezone and the cursor, as parameters of a query. Pure.

    from, to     RFC 3339 with an offset, or a local date or month, which stands for its first moment
    open from    begins with the window of the counter's first row
    open to      ends with the window of its last row or that of now, whichever is later
    cursor       holds the whole range as it was resolved for the first page, and where the next page begins

So an open range stays what it was while events come in. What a cursor holds is no secret and gives no right: nothing
is signed, and its digest tells a mistake, or a cursor of another question, from one of this one.
"""

from __future__ import annotations

import base64
import binascii
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from hashlib import blake2b
from itertools import islice
from zoneinfo import ZoneInfo

from metering.errors import InvalidEventError, InvalidRangeError
from metering.events import parse_timestamp
from metering.local_time import Period, Span, ceiling, first_moment, floor, local, spans, zone_named
from metering.windows import WindowRow, refuse_unaligned, refuse_zone_unaligned

RANGE_PARAMETERS = ("from", "to", "window", "timezone")
PAGE_PARAMETERS = ("limit", "cursor")
WINDOWS_DEFAULT = 1_000
WINDOWS_MAX = 10_000
"""Windows in a page: a year of hours is one page."""

_EPOCH = datetime(1, 1, 1, tzinfo=UTC)
_MINUTE = timedelta(minutes=1)
_LOCAL_DATE = re.compile(r"[0-9]{4}-[0-9]{2}(-[0-9]{2})?\Z", re.ASCII)
_CURSOR = struct.Struct(">QQQ8s")


@dataclass(frozen=True, slots=True)
class AskedRange:
    """What is asked for. start, end: aware UTC, or None where the range is open; period: None for one sum.

    identity: the question to the letter, which a cursor belongs to.
    """

    start: datetime | None
    end: datetime | None
    period: Period | None
    zone: ZoneInfo
    identity: tuple[str, ...]

    @property
    def is_open(self) -> bool:
        return self.start is None or self.end is None


@dataclass(frozen=True, slots=True)
class Page:
    """spans: what is answered for, in order, empty for an empty range; whole: the range that all pages make up.

    cursor: of the next page, None on the last.
    """

    spans: tuple[Span, ...]
    whole: Span
    cursor: str | None


def asked_range(
    parameters: Mapping[str, str], tenant_id: str, metric: str, *, window_minutes: int
) -> AskedRange | None:
    """Return the range that `parameters` ask for, None when they ask for none: for all time, in one sum.

    window_minutes: USAGE_WINDOW_MINUTES. Raises InvalidRangeError for what can't be answered.
    """
    period = _period(parameters.get("window"))
    if period is None and (lonely := next((each for each in PAGE_PARAMETERS if each in parameters), None)):
        raise InvalidRangeError("missing_window", f"{lonely} is for pages of windows: it needs window", "window")
    if not any(name in parameters for name in RANGE_PARAMETERS):
        return None
    zone = zone_named(parameters.get("timezone", "UTC"))
    start, end = (
        aligned_moment(parameters[name], name, zone, window_minutes) if name in parameters else None
        for name in ("from", "to")
    )
    if start is not None and end is not None and start > end:
        raise InvalidRangeError("invalid_range", "from must not be after to", "from")
    identity = (tenant_id, metric, *(parameters.get(name, "") for name in RANGE_PARAMETERS))
    return AskedRange(start, end, period, zone, identity)


def moment_of(text: str, parameter: str, zone: ZoneInfo) -> datetime:
    """Return the time (aware UTC) that a parameter names: RFC 3339, a local date, or a local month.

    Raises InvalidRangeError `invalid_time` and `time_out_of_range`.
    """
    if _LOCAL_DATE.match(text):
        try:
            day = date.fromisoformat(text if len(text) > len("2024-01") else f"{text}-01")
        except ValueError as error:
            raise _invalid_time(parameter, f"{text} is not a date that exists") from error
        return first_moment(day, zone)
    return instant_of(text, parameter, "or a local date or month, as 2024-01-15 or 2024-01")


def aligned_moment(text: str, parameter: str, zone: ZoneInfo, window_minutes: int) -> datetime:
    """Return the time (aware UTC) that a parameter names, where rows of `window_minutes` begin.

    Raises InvalidRangeError as moment_of does, `unaligned_time` and `timezone_needs_smaller_windows`.
    """
    moment = moment_of(text, parameter, zone)
    if _LOCAL_DATE.match(text):
        refuse_zone_unaligned([Span(moment, moment)], zone.key, window_minutes=window_minutes)
    else:
        refuse_unaligned(moment, parameter, window_minutes=window_minutes)
    return moment


def instant_of(text: str, parameter: str, otherwise: str = "") -> datetime:
    """Return the time (aware UTC) of a parameter that is RFC 3339. Raises InvalidRangeError `invalid_time`.

    otherwise: what else it may be, for the error.
    """
    try:
        return parse_timestamp(text, field=parameter)
    except InvalidEventError as error:
        blank = "; a + in a URL must be written as %2B" if " " in text else ""
        rest = f" {otherwise}" if otherwise else ""
        detail = f"{parameter} must be RFC 3339 with an offset, as 2024-01-15T10:00:00Z,{rest}"
        raise _invalid_time(parameter, detail.rstrip(",") + blank) from error


def resolved(asked: AskedRange, ends: tuple[WindowRow, WindowRow] | None, *, now: datetime) -> Span:
    """Return the whole range, its open ends filled in. ends: the counter's first and last row, None when it has none.

    Raises InvalidRangeError `time_out_of_range`.
    """
    # A range in one sum has no windows of its own: it begins and ends with a full hour.
    period, zone = (asked.period, asked.zone) if asked.period else (Period.HOUR, zone_named("UTC"))
    start, end = asked.start, asked.end
    if start is None:
        start = floor(ends[0].start if ends else now, period, zone)
        start = start if end is None else min(start, end)
    if end is None:
        latest = max(ends[1].start, now) if ends else now
        end = max(start, ceiling(latest, period, zone))
    return Span(start, end)


def first_page(asked: AskedRange, whole: Span, *, windows_max: int, window_minutes: int) -> Page:
    """Return the first page of a range. Raises InvalidRangeError `timezone_needs_smaller_windows`."""
    return _page(asked, whole, whole.start, windows_max, window_minutes)


def page_after(asked: AskedRange, cursor: str, *, windows_max: int, window_minutes: int) -> Page:
    """Return the page that a cursor leads to. Raises InvalidRangeError `invalid_cursor`, and as first_page does."""
    try:
        packed = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        *minutes, _ = _CURSOR.unpack(packed)
        start, end, after = (_EPOCH + each * _MINUTE for each in minutes)
    except (binascii.Error, ValueError, struct.error, OverflowError) as error:
        raise _invalid_cursor() from error
    whole = Span(start, end)
    if cursor != _cursor(asked, whole, after):
        raise _invalid_cursor()
    return _page(asked, whole, after, windows_max, window_minutes)


def local_text(moment: datetime, zone: ZoneInfo) -> str:
    """Return a time as RFC 3339 in the zone's offset of that time: `2024-01-15T00:00:00+01:00`.

    Raises InvalidRangeError where the zone went by the sun, with an offset in seconds that RFC 3339 can't show.
    """
    text = local(moment, zone).isoformat()
    if len(text) != len("2024-01-15T00:00:00+01:00"):
        detail = f"{zone.key} has an offset in seconds at {moment.isoformat()}; no USAGE_WINDOW_MINUTES would do"
        raise InvalidRangeError("timezone_needs_smaller_windows", detail, "timezone")
    return text


def _page(asked: AskedRange, whole: Span, begin: datetime, windows_max: int, window_minutes: int) -> Page:
    found = tuple(islice(spans(begin, whole.end, asked.period, asked.zone), windows_max))
    if asked.period is not None:
        refuse_zone_unaligned(found, asked.zone.key, window_minutes=window_minutes)
    more = bool(found) and found[-1].end < whole.end
    return Page(found, whole, _cursor(asked, whole, found[-1].end) if more else None)


def _cursor(asked: AskedRange, whole: Span, after: datetime) -> str:
    minutes = [(each - _EPOCH) // _MINUTE for each in (*whole, after)]
    said = "\n".join((*asked.identity, *map(str, minutes)))
    packed = _CURSOR.pack(*minutes, blake2b(said.encode(), digest_size=8).digest())
    return base64.urlsafe_b64encode(packed).rstrip(b"=").decode()


def _period(text: str | None) -> Period | None:
    if text is None:
        return None
    try:
        return Period(text)
    except ValueError as error:
        detail = f"window must be one of {', '.join(Period)}"
        raise InvalidRangeError("invalid_window", detail, "window") from error


def _invalid_time(parameter: str, detail: str) -> InvalidRangeError:
    return InvalidRangeError("invalid_time", detail, parameter)


def _invalid_cursor() -> InvalidRangeError:
    detail = "cursor must be a next_cursor, unchanged, with the same from, to, window and timezone"
    return InvalidRangeError("invalid_cursor", detail, "cursor")
