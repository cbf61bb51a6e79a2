"""JSON or CSV: which of the two is asked for, and figures as CSV.

CSV is RFC 4180 in UTF-8: a line of names, then one line for each total or window, CRLF at the ends. What is said once
of a whole answer is no column: As-Of, Lag-Ms and Next-Cursor are headers of the response, absent where JSON has null.
Cells stand as they are. A spreadsheet takes one that begins with `@` or `-` for a formula, but a tenant or metric has
no characters of which one could call, reach out or compute more than other cells; and a name that was changed for the
spreadsheet's sake would be another name to every program.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum

from flask import Response, request

from billing.answers import time_member
from billing.freshness import Freshness
from metering.web import ProblemError

CSV_TYPE = "text/csv"
_JSON_TYPE = "application/json"


class Form(StrEnum):
    """How an answer is written."""

    JSON = "json"
    CSV = "csv"


def asked_form(parameters: Mapping[str, str]) -> Form:
    """Return the form that this request asks for: by `format`, else by its Accept, else JSON.

    Raises ProblemError 400 `invalid_format`, and 406 `not_acceptable` for an Accept that allows neither.
    """
    if "format" in parameters:
        try:
            return Form(parameters["format"])
        except ValueError as error:
            detail = f"format must be one of {', '.join(Form)}"
            raise ProblemError(400, "invalid_format", detail, parameter="format") from error
    if not request.accept_mimetypes:
        return Form.JSON
    match request.accept_mimetypes.best_match([_JSON_TYPE, CSV_TYPE]):
        case None:
            raise ProblemError(406, "not_acceptable", f"there are {_JSON_TYPE} and {CSV_TYPE}")
        case best:
            return Form.CSV if best == CSV_TYPE else Form.JSON


def csv_answer(
    names: Sequence[str], lines: Iterable[Sequence[str | int]], fresh: Freshness, *, next_cursor: str | None = None
) -> Response:
    """Return a 200 with a line of `names` and `lines`, as CSV."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(names)
    writer.writerows(lines)
    response = Response(text.getvalue(), content_type=f"{CSV_TYPE}; charset=utf-8; header=present")
    said = {"As-Of": time_member(fresh.as_of), "Lag-Ms": fresh.lag_ms, "Next-Cursor": next_cursor}
    for name, value in said.items():
        if value is not None:
            response.headers[name] = str(value)
    return response
