"""`metering meters`: what is wrong with a file of meters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from operations.named_files import shown_name
from operations.yaml_check import read_or_exit

if TYPE_CHECKING:
    from metering.meters import Meters


@click.group()
def meters() -> None:
    """Look after meters, the file that METERS_FILE names (docs/meters.md)."""


@meters.command()
@click.argument("file")
def check(*, file: str) -> None:
    """Print what is wrong with FILE, - for stdin, as FILE:LINE:COLUMN: sentence; code 0 only when nothing is."""
    from metering.meters_file import METERS_FILE

    for line in _summary(shown_name(file), read_or_exit(METERS_FILE, file)):
        click.echo(line)


def _summary(name: str, found: Meters) -> Iterator[str]:
    yield f"{name}: meters: {len(found.by_metric)}"
    for meter in found.by_metric.values():
        yield f"  {meter.metric}: {meter.aggregation}, unit {meter.unit or 'none'}"
