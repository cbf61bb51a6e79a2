"""Files that a person writes and a setting names: read whole, within a limit."""

from __future__ import annotations

import stat
from pathlib import Path

from metering.errors import SetupError


def file_content(path: Path, *, bytes_max: int) -> bytes:
    """Return what the regular file at `path` holds.

    Raises SetupError, a few words that do not name the file: it can't be read, is no regular file, or has more than
    `bytes_max` bytes.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise SetupError("it is not a regular file")  # opening a pipe would wait for its other end
        with path.open("rb") as file:
            content = file.read(bytes_max + 1)
    except OSError as error:
        raise SetupError(error.strerror or type(error).__name__) from error
    if len(content) > bytes_max:
        raise SetupError(f"it has more than {bytes_max} bytes")
    return content
