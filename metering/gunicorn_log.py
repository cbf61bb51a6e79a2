"""gunicorn's logs as the system's own: JSON lines on stderr, one for each request, without query, headers or body."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from gunicorn.glogging import Logger

from metering.logs import configure_logging


class JsonLinesLogger(Logger):  # type: ignore[misc]  # gunicorn ships no types
    """Hands everything to the root logger, which writes JSON lines."""

    def setup(self, cfg: Any) -> None:
        super().setup(cfg)
        configure_logging(cfg.loglevel.upper())
        for log in (self.error_log, self.access_log):
            log.handlers.clear()
            log.propagate = True

    def access(self, resp: Any, _req: Any, environ: dict[str, Any], request_time: timedelta) -> None:
        self.access_log.info(
            "request",
            extra={
                "method": environ.get("REQUEST_METHOD"),
                "path": environ.get("PATH_INFO"),
                "status": int(str(resp.status).split(maxsplit=1)[0]),
                "bytes": resp.sent,
                "duration_ms": round(request_time.total_seconds() * 1000, 1),
                "client": environ.get("REMOTE_ADDR"),
            },
        )
