"""Query parameters and cursors, read strictly: a mistyped parameter must not give a wrong bill. Pure."""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING

from billing.plans import PERIODS_ALLOWED, Period, parse_period
from metering.errors import InvalidEventError
from metering.events import parse_name
from metering.web import ProblemError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from werkzeug.datastructures import MultiDict

PAGE_LIMIT_DEFAULT = 100
PAGE_LIMIT_MAX = 1000

_CURSOR_PREFIX = "after:"


def query_parameters(query: MultiDict[str, str], *allowed: str) -> Mapping[str, str]:
    """Return the parameters that have a value; an empty one counts as not given.

    Raises ProblemError 400, naming the parameter: `unknown_parameter` for one that is not `allowed`,
    `repeated_parameter` for one that stands twice.
    """
    parameters: dict[str, str] = {}
    for name, values in query.lists():
        shown = name[:64]
        if name not in allowed:
            takes = f"it takes {', '.join(allowed)}" if allowed else "it takes none"
            detail = f"there is no parameter {shown!r} here; {takes}"
            raise ProblemError(400, "unknown_parameter", detail, parameter=shown)
        if len(values) > 1:
            detail = f"{name} is given {len(values)} times"
            raise ProblemError(400, "repeated_parameter", detail, parameter=name)
        if values[0]:
            parameters[name] = values[0]
    return parameters


def period_asked(parameters: Mapping[str, str], default: str = "") -> Period:
    """Return the month that `period` asks for. Raises ProblemError 400 `invalid_period`."""
    period = parse_period(parameters.get("period", default))
    if period is None:
        raise ProblemError(400, "invalid_period", f"period must be {PERIODS_ALLOWED}", parameter="period")
    return period


def page_limit(parameters: Mapping[str, str], *, default: int = PAGE_LIMIT_DEFAULT, most: int = PAGE_LIMIT_MAX) -> int:
    """Return `limit`, 1 to `most`, `default` when it is not given. Raises ProblemError 400 `invalid_limit`."""
    text = parameters.get("limit", str(default))
    limit = int(text) if text.isascii() and text.isdigit() and len(text) <= len(str(most)) else 0
    if not 1 <= limit <= most:
        detail = f"limit must be a whole number from 1 to {most}"
        raise ProblemError(400, "invalid_limit", detail, parameter="limit")
    return limit


def page_start(parameters: Mapping[str, str]) -> str | None:
    """Return the tenant after which the page that `cursor` asks for begins, None for the first page.

    Raises ProblemError 400 `invalid_cursor` for anything that cursor_after did not make.
    """
    tenant_id = cursor_text(parameters, _CURSOR_PREFIX)
    try:
        return None if tenant_id is None else parse_name(tenant_id, "tenant_id")
    except InvalidEventError as error:
        raise _invalid_cursor() from error


def cursor_after(tenant_id: str) -> str:
    """Return the cursor of the page that begins after `tenant_id`: opaque to clients, safe in a URL."""
    return cursor_of(_CURSOR_PREFIX, tenant_id)


def cursor_text(parameters: Mapping[str, str], prefix: str) -> str | None:
    """Return what cursor_of put into `cursor`, None without one.

    Raises ProblemError 400 `invalid_cursor` for anything that it did not make with this prefix.
    """
    cursor = parameters.get("cursor")
    if cursor is None:
        return None
    try:
        text = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError) as error:
        raise _invalid_cursor() from error
    inner = text.removeprefix(prefix)
    if cursor_of(prefix, inner) != cursor:
        raise _invalid_cursor()
    return inner


def cursor_of(prefix: str, text: str) -> str:
    """Return a cursor that holds `text`: opaque to clients, safe in a URL. prefix: tells one endpoint's from others."""
    return base64.urlsafe_b64encode(f"{prefix}{text}".encode()).rstrip(b"=").decode()


def _invalid_cursor() -> ProblemError:
    return ProblemError(
        400, "invalid_cursor", "cursor must be a next_cursor of this endpoint, unchanged", parameter="cursor"
    )
