"""What the pages share: their headers, how figures and times are written, and errors as pages for who reads pages."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from flask import Blueprint, Response, render_template, request

from billing.answers import time_member
from metering.events import decimal_text
from metering.web import PROBLEM_TYPE, prefers_html

if TYPE_CHECKING:
    from flask import Flask

HTML_TYPE = "text/html; charset=utf-8"
PAGE_HEADERS: Mapping[str, str] = {
    # Nothing runs, and nothing but our own stylesheet and icon is loaded, whatever stands in a name.
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; img-src 'self'; base-uri 'none'; form-action 'self'; "
        "frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}

TEXT_SHOWN_MAX = 128
"""Characters of what a producer wrote: as many as an event_id may have."""

_UNITS = (("day", 86_400_000), ("h", 3_600_000), ("min", 60_000), ("s", 1000))


def add_page_parts(app: Flask) -> None:
    """Add templates, stylesheet and icon to `app`, and give errors as a page to who prefers one (RFC 9110, 12.5.1)."""
    app.register_blueprint(Blueprint("pages", __name__, template_folder="templates", static_folder="static"))
    app.jinja_env.trim_blocks = app.jinja_env.lstrip_blocks = True
    app.jinja_env.filters |= {"number": grouped, "amount": amount_text, "moment": moment_text, "lag": lag_text}
    app.jinja_env.filters["written"] = written_text

    @app.after_request
    def _problem_page(response: Response) -> Response:
        if response.mimetype != PROBLEM_TYPE or not (_is_page() and prefers_html()):
            return response
        problem: dict[str, Any] = response.get_json()
        response.set_data(render_template("problem.html", title=problem["title"], problem=problem))
        response.content_type = HTML_TYPE
        response.headers.update(PAGE_HEADERS)
        response.headers["Vary"] = "Accept"
        return response


def _is_page() -> bool:
    """Whether this request is for a page: whatever is not of the API, and the one part of it that has pages too."""
    return request.endpoint == "invoice" or not request.path.startswith("/v1/")


def page(template: str, *, title: str, **values: Any) -> Response:
    """Return a 200 with a page of `template`."""
    return Response(render_template(template, title=title, **values), content_type=HTML_TYPE, headers=PAGE_HEADERS)


def grouped(value: Decimal | int) -> str:
    """Return a number exactly, its thousands apart: `1,234.5`."""
    return f"{Decimal(decimal_text(Decimal(value))):,f}"


def amount_text(amount: Decimal) -> str:
    """Return an amount with all its digits, its thousands apart: `1,234.50`."""
    return f"{amount:,f}"


def written_text(text: str) -> str:
    """Return what a producer wrote, valid or not, for people: cut at its length, escaped where it can't be printed.

    JSON may hold half a surrogate pair, which no page can.
    """
    cut = text[:TEXT_SHOWN_MAX] + ("…" if len(text) > TEXT_SHOWN_MAX else "")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut)


def moment_text(moment: datetime | None) -> str:
    """Return a time in UTC for people, to the second, cut off; None: `not known yet`."""
    text = time_member(moment)
    return "not known yet" if text is None else f"{text[:10]} {text[11:19]} UTC"


def lag_text(lag_ms: int | None) -> str:
    """Return how long a lag (0 or more) is, cut off after its two largest units: `0.4 s`, `2 min 5 s`, `3 days 1 h`."""
    if lag_ms is None:
        return "not known yet"
    if lag_ms < 10_000:
        return f"{lag_ms // 100 / 10:.1f} s"
    parts = []
    for unit, size_ms in _UNITS:
        count, lag_ms = divmod(lag_ms, size_ms)
        if count:
            parts.append(f"{count} {unit}{'s' if unit == 'day' and count > 1 else ''}")
    return " ".join(parts[:2])
