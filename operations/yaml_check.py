"""A file that a person has written, read for a command: what is wrong with it is printed, and ends the command."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from metering.errors import InvalidRangeError, MeteringError
from operations.named_files import STDIN, shown_name, standard_input

if TYPE_CHECKING:
    from metering.yaml_kinds import YamlKind

T = TypeVar("T")


def read_or_exit(kind: YamlKind[T], file: str, *, refuse: Callable[[T], None] = lambda _: None) -> T:
    """Return what FILE says, - for stdin; else print each fault, `FILE:LINE:COLUMN: sentence`, and end with code 1.

    refuse: raises InvalidRangeError for what has no place in the file.
    """
    from metering.files import file_content
    from metering.yaml_files import FILE_BYTES_MAX, InvalidFileError

    try:
        if file == STDIN:
            content = standard_input().read(FILE_BYTES_MAX + 1)
        else:
            content = file_content(Path(file), bytes_max=FILE_BYTES_MAX)
        found = kind.parse(content, name=shown_name(file))
        refuse(found)
    except InvalidFileError as error:
        for line in error.lines:
            click.echo(line)
    except InvalidRangeError as error:
        click.echo(f"{shown_name(file)}: {error.detail}")
    except MeteringError as error:
        click.echo(f"metering: {file}: {error}", err=True)
    else:
        return found
    sys.exit(1)
