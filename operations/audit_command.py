"""The command `metering audit`: wires an audit, shows how far it is, prints what it found."""

from __future__ import annotations

import contextlib
import sys
from datetime import UTC, datetime

import click

from metering.aws import dynamodb_client, kinesis_client
from metering.errors import SetupError
from metering.events import time_text
from metering.kinesis import KinesisStreamDirectory
from metering.settings import Settings
from operations.audit import SHARDS_AT_ONCE, Advance, Audit
from operations.audit_report import report_lines
from operations.audit_stream import AuditedStream
from operations.audit_tables import AuditedTables
from operations.rejected import since as moment_of


def run_audit(settings: Settings, *, since: str | None, strict: bool) -> int:
    """Audit and print the report on stdout; return the exit code: 0 without a difference, else 1.

    since: see operations.rejected.since. strict: 1 as well when something could not be checked.
    Raises InvalidEventError and SetupError for a `since` that is no time, or is to come.
    """
    now = datetime.now(UTC)
    since_at = None if since is None else moment_of(since, now=now)
    if since_at is not None and since_at > now:
        raise SetupError(f"--since={since!r} can't be used: it is {time_text(now)} now")
    kinesis = kinesis_client(settings, connections_max=SHARDS_AT_ONCE)
    audit = Audit(
        settings,
        KinesisStreamDirectory(kinesis, settings.stream),
        AuditedStream(kinesis, settings),
        AuditedTables(dynamodb_client(settings, connections_max=SHARDS_AT_ONCE), settings),
        clock=lambda: datetime.now(UTC),
    )
    with contextlib.ExitStack() as shown:

        def start(records: int) -> Advance:
            bar = click.progressbar(
                length=records, label="records", file=sys.stderr, hidden=not sys.stderr.isatty(), show_pos=True
            )
            return shown.enter_context(bar).update

        report = audit.run(since=since_at, start=start)
    for line in report_lines(report):
        click.echo(line)
    return 1 if report.differences or (strict and not report.checked_all) else 0
