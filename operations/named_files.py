"""FILE as commands take it: `-` is standard input."""

from __future__ import annotations

import sys
from typing import BinaryIO

from metering.errors import SetupError

STDIN = "-"


def shown_name(file: str) -> str:
    """Return what a command calls FILE in what it prints."""
    return "stdin" if file == STDIN else file


def standard_input() -> BinaryIO:
    """Return standard input, as bytes. Raises SetupError when it was closed by whoever started the command."""
    if sys.stdin is None:
        raise SetupError("standard input is closed")
    return sys.stdin.buffer
