"""Logging: JSON lines on stderr, each once, times in UTC.

A line holds at least timestamp, level, logger and message; whatever is passed as `extra` becomes further fields.
"""

from __future__ import annotations

import logging
import sys
import time

from pythonjsonlogger.json import JsonFormatter


def json_formatter() -> logging.Formatter:
    """Return the formatter that all processes of the system use."""
    formatter = JsonFormatter(
        "{asctime}{levelname}{name}{message}",
        style="{",
        rename_fields={"asctime": "timestamp", "levelname": "level", "name": "logger"},
        json_ensure_ascii=False,
    )
    formatter.converter = time.gmtime
    formatter.default_time_format = "%Y-%m-%dT%H:%M:%S"  # with a datefmt, milliseconds would be left out
    formatter.default_msec_format = "%s.%03dZ"
    return formatter


def configure_logging(level: str) -> None:
    """Send all log records of this process at `level` or above to stderr as JSON lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(json_formatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    # Their DEBUG lines hold request bodies, and INFO tells nothing that ours do not.
    for chatty in ("botocore", "boto3", "urllib3"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
