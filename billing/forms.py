"""In which form an answer is asked for, and figures as CSV.

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


class Form(StrEnum):
    """How an answer is written, by the value of `format`."""

    JSON = "json"
    CSV = "csv"
    HTML = "html"

    @property
    def media_type(self) -> str:
        return "application/json" if self is Form.JSON else f"text/{self}"


FIGURES_FORMS = (Form.JSON, Form.CSV)


def asked_form(
    parameters: Mapping[str, str], forms: Sequence[Form] = FIGURES_FORMS, *, json_type: str = Form.JSON.media_type
) -> Form:
    """Return which of `forms` this request asks for: by `format`, else by its Accept, else the first.

    json_type: the media type of JSON here.
    Raises ProblemError 400 `invalid_format`, and 406 `not_acceptable` for an Accept that allows none of them.
    """
    if "format" in parameters:
        for form in forms:
            if form == parameters["format"]:
                return form
        raise ProblemError(400, "invalid_format", f"format must be one of {', '.join(forms)}", parameter="format")
    by_type = {json_type if form is Form.JSON else form.media_type: form for form in forms}
    if not request.accept_mimetypes:
        return forms[0]
    best = request.accept_mimetypes.best_match(list(by_type))
    if best is None:
        raise ProblemError(406, "not_acceptable", f"there are {', '.join(by_type)}")
    return by_type[best]


def csv_answer(
    names: Sequence[str], lines: Iterable[Sequence[str | int]], fresh: Freshness, *, next_cursor: str | None = None
) -> Response:
    """Return a 200 with a line of `names` and `lines`, as CSV."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(names)
    writer.writerows(lines)
    response = Response(text.getvalue(), content_type=f"{Form.CSV.media_type}; charset=utf-8; header=present")
    response.headers.update(freshness_headers(fresh))
    if next_cursor is not None:
        response.headers["Next-Cursor"] = next_cursor
    return response


def freshness_headers(fresh: Freshness) -> dict[str, str]:
    """Return As-Of and Lag-Ms, without those that are not known."""
    said = {"As-Of": time_member(fresh.as_of), "Lag-Ms": fresh.lag_ms}
    return {name: str(value) for name, value in said.items() if value is not None}
