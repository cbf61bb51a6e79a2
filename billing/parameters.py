"""Query parameters and cursors, read strictly: a mistyped parameter must not give a wrong bill. Pure."""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING

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
    cursor = parameters.get("cursor")
    if cursor is None:
        return None
    try:
        text = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode()
        tenant_id = parse_name(text.removeprefix(_CURSOR_PREFIX), "tenant_id")
    except (binascii.Error, ValueError, InvalidEventError) as error:
        raise _invalid_cursor() from error
    if cursor_after(tenant_id) != cursor:
        raise _invalid_cursor()
    return tenant_id


def cursor_after(tenant_id: str) -> str:
    """Return the cursor of the page that begins after `tenant_id`: opaque to clients, safe in a URL."""
    return base64.urlsafe_b64encode(f"{_CURSOR_PREFIX}{tenant_id}".encode()).rstrip(b"=").decode()


def _invalid_cursor() -> ProblemError:
    return ProblemError(
        400, "invalid_cursor", "cursor must be a next_cursor of this endpoint, unchanged", parameter="cursor"
    )
