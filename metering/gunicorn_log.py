"""gunicorn's logs as the system's own: JSON lines on stderr, one for each request, without query, headers or body.

The access log is on by default, whatever gunicorn's `accesslog` says: who is asked "did my event arrive?" looks there
first. LOG_LEVEL=WARNING turns it off. What probes and scrapers ask every few seconds, and are answered, is logged at
DEBUG, so that the log is not theirs; a probe that fails is logged like any other request.
"""

from __future__ import annotations

import logging
import re
from datetime import timedelta
from typing import Any
from urllib.parse import quote

from gunicorn.glogging import Logger

from metering.logs import configure_logging

PATH_CHARACTERS_MAX = 256
PROBES = frozenset({"/healthz", "/readyz", "/metrics"})
_CUT = "..."
_PLAIN = "/:@!$&'()*+,;=~"
"""What may stand in a path (RFC 3986, section 3.3) beside letters, digits and `_.-`; all else is percent-encoded."""


class JsonLinesLogger(Logger):  # type: ignore[misc]  # gunicorn ships no types
    """Hands everything to the root logger, which writes JSON lines."""

    def setup(self, cfg: Any) -> None:
        super().setup(cfg)
        configure_logging(cfg.loglevel.upper())
        for log in (self.error_log, self.access_log):
            log.handlers.clear()
            log.propagate = True
            log.setLevel(cfg.loglevel.upper())  # gunicorn holds the access log at INFO

    def warning(self, msg: Any, *args: Any, **kwargs: Any) -> None:
        """Log what gunicorn has to say, without the header line that it quotes: a key may stand in it."""
        if str(msg).startswith("Invalid request from ip="):
            msg = re.split("['\"]", str(msg), maxsplit=1)[0].rstrip(": ")
        super().warning(msg, *args, **kwargs)

    def access(self, resp: Any, _req: Any, environ: dict[str, Any], request_time: timedelta) -> None:
        """Log one request. bytes_in: its Content-Length, null without one; a chunked body has none."""
        status = int(str(resp.status).split(maxsplit=1)[0])
        path = environ.get("PATH_INFO")
        level = logging.DEBUG if path in PROBES and status < 400 else logging.INFO
        if not self.access_log.isEnabledFor(level):
            return
        self.access_log.log(
            level,
            "request",
            extra={
                "method": environ.get("REQUEST_METHOD"),
                "path": None if path is None else _shown(path),
                "status": status,
                "bytes_in": _announced(environ),
                "bytes_out": resp.sent,
                "duration_ms": round(request_time.total_seconds() * 1000, 1),
                "client": environ.get("REMOTE_ADDR"),
            },
        )


def _shown(path: str) -> str:
    """Return a path of WSGI (bytes as latin-1) as ASCII that can't break a line or a terminal, within the limit."""
    shown = quote(path[: PATH_CHARACTERS_MAX + 1].encode("latin-1", "replace"), safe=_PLAIN)
    return shown if len(shown) <= PATH_CHARACTERS_MAX else shown[: PATH_CHARACTERS_MAX - len(_CUT)] + _CUT


def _announced(environ: dict[str, Any]) -> int | None:
    length = environ.get("CONTENT_LENGTH", "")
    return int(length) if length.isdigit() and len(length) <= 18 else None
