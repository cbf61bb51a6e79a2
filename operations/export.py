"""`metering export`: whether an export is whole."""

from __future__ import annotations

import stat
import sys
from pathlib import Path
from typing import BinaryIO

import click

from metering.errors import SetupError
from operations.named_files import STDIN, shown_name, standard_input


@click.group()
def export() -> None:
    """Look after exports, what billing's /v1/export answers (docs/export.md)."""


@export.command()
@click.argument("file")
def check(*, file: str) -> None:
    """Say whether FILE, - for stdin, is a whole export, and how many rows it has; code 0 only when it is."""
    name = shown_name(file)
    try:
        if file == STDIN:
            rows = _rows(standard_input(), name)
        else:
            path = Path(file)
            if stat.S_ISDIR(path.stat().st_mode):
                raise IsADirectoryError(None, "Is a directory")
            with path.open("rb") as opened:
                rows = _rows(opened, name)
    except OSError as error:
        click.echo(f"metering: {file}: {error.strerror or type(error).__name__}", err=True)
        sys.exit(1)
    except SetupError as error:
        click.echo(f"metering: {file}: {error}", err=True)
        sys.exit(1)
    click.echo(f"{name}: whole, rows: {rows}")


def _rows(file: BinaryIO, name: str) -> int:
    """Return how many rows `file` has; print what it lacks and end with code 1 when it is not whole."""
    from billing.checksum import NotWholeError, whole_rows

    try:
        return whole_rows(file)
    except NotWholeError as error:
        click.echo(f"{name}: not whole: {error}")
        sys.exit(1)
