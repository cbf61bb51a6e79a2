"""The `metering` command."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from functools import wraps
from itertools import islice
from typing import Any, BinaryIO

import click

from metering.errors import MeteringError, SetupError
from metering.logs import configure_logging
from metering.outgoing import BATCH_EVENTS_MAX
from metering.settings import Settings
from operations.alerts import alerts
from operations.export import export
from operations.local import LocalStack, adopt, local_settings
from operations.meters import meters
from operations.plans import plans
from operations.send_files import FORMATS

API_KEY_VARIABLE = "METERING_API_KEY"
"""Where `metering send` finds its key; never on the command line, which everybody on the machine can read."""

local_option = click.option("--local", is_flag=True, help="Use the local stack that is running (`make run`).")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def metering() -> None:
    """Usage metering: events over HTTP, counted exactly once, billed over HTTP."""


for group in (plans, meters, export, alerts):
    metering.add_command(group)


def _one_line_errors(command: Callable[..., Any]) -> Callable[..., Any]:
    """Print an error that a person can mend as one line and end with code 1."""

    @wraps(command)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except MeteringError as error:
            click.echo(f"metering: {error}", err=True)
            sys.exit(1)

    return guarded


@metering.command()
@_one_line_errors
def up() -> None:
    """Run the whole pipeline on this machine: emulators, collector, consumer, billing. Ctrl-C stops all."""
    from operations.up import up as run_up  # its parts are not installed where only a service runs

    run_up(Settings.from_environment(os.environ), os.environ)


@metering.command()
@local_option
@_one_line_errors
def setup(*, local: bool) -> None:
    """Make the stream and the tables that are missing; leave what is there alone."""
    from metering.aws import dynamodb_client, kinesis_client
    from operations.provision import provision

    settings = _settings(local=local)
    configure_logging(settings.log_level)
    provision(dynamodb_client(settings), kinesis_client(settings), settings)
    click.echo(f"ready: stream {settings.stream}, tables of {settings.table} and of {settings.kcl_application}")


@metering.command()
@local_option
@_one_line_errors
def consumer(*, local: bool) -> None:
    """Read the stream and add to the totals, until SIGTERM."""
    from consumer.supervisor import Supervisor
    from metering.meters_file import meters_of
    from operations.preflight import check_resources

    settings = _settings(local=local)
    configure_logging(settings.log_level)
    meters_of(settings)  # each child reads it again: a file that is wrong would end one after the other
    check_resources(settings)
    sys.exit(Supervisor(settings, os.environ).run())


@alerts.command()
@local_option
@_one_line_errors
def run(*, local: bool) -> None:
    """Look at usage every ALERTS_INTERVAL_S, record what crosses a threshold and post it, until SIGTERM."""
    from operations.alerts import run_alerts

    settings = _settings(local=local)
    configure_logging(settings.log_level)
    run_alerts(settings)


@metering.command()
@click.option("--since", metavar="TIME", help="Check what arrived since: 2024-01-15T10:00:00Z, or 90m, 36h, 7d ago.")
@click.option("--strict", is_flag=True, help="End with code 1 when something could not be checked, too.")
@local_option
@_one_line_errors
def audit(*, since: str | None, strict: bool, local: bool) -> None:
    """Recompute all totals from the stream and print what differs; code 0 only when nothing does."""
    from operations.audit_command import run_audit

    settings = _settings(local=local)
    configure_logging(settings.log_level)
    sys.exit(run_audit(settings, since=since, strict=strict))


@metering.command()
@click.argument("file")
@click.option("--url", help="The collector's address.  [default: the local machine's, at COLLECTOR_PORT]")
@click.option("--format", "format_name", type=click.Choice(FORMATS), help="What FILE is, where its name does not tell.")
@click.option("--source", metavar="NAME", help="The name that ids are derived from.  [default: the file's path]")
@click.option(
    "--batch-events", type=click.IntRange(1, BATCH_EVENTS_MAX), default=500, show_default=True, help="Events in a post."
)
@click.option(
    "--retry-s",
    type=click.FloatRange(0.0, min_open=True),
    default=60.0,
    show_default=True,
    help="How long a batch is tried when the collector is away.",
)
@click.option(
    "--api-key-env", metavar="VARIABLE", help="Which variable holds the API key.  [default: METERING_API_KEY]"
)
@local_option
def send(
    *,
    file: str,
    url: str | None,
    format_name: str | None,
    source: str | None,
    batch_events: int,
    retry_s: float,
    api_key_env: str | None,
    local: bool,
) -> None:
    """Send a FILE of events, NDJSON or CSV, - for stdin. Safe to run again: nothing counts twice.

    Ends with code 0 when all were accepted, 1 when some were rejected, 2 when something can't be used as it is, 3 when
    not all could be sent, 130 after Ctrl-C.
    """
    from operations.send import INTERRUPTED, NOT_USABLE, Plan, run_send

    if local and url:
        raise click.UsageError("--local says which collector, and so does --url")
    # The person sees why it takes long on the terminal.
    logging.getLogger("stamina").setLevel(logging.ERROR)
    try:
        settings = Settings.from_environment(os.environ)
        here = f"http://127.0.0.1:{settings.collector_port}"
        api_key = os.environ.get(api_key_env or API_KEY_VARIABLE)
        if api_key_env and not api_key:
            raise SetupError(f"--api-key-env={api_key_env}: this variable is not set")
        plan = Plan(
            name=file,
            url=LocalStack.read(settings.home).collector_url if local else url or here,
            api_key=api_key or None,
            source=source,
            format_name=format_name,
            batch_events_max=batch_events,
            retry_s=retry_s,
        )
        code = run_send(plan)
    except MeteringError as error:
        click.echo(f"metering: {error}", err=True)
        code = NOT_USABLE
    except KeyboardInterrupt:
        code = INTERRUPTED
    sys.exit(code)


@metering.group()
def rejected() -> None:
    """Look after events that were not counted: what they were, why, and putting them back on the stream."""


@rejected.command("list")
@click.option("--tenant", "tenant_id", help="Only events that name this tenant.")
@click.option("--reason", help="Only rows of this reason, as negative_value.")
@click.option("--shard", "shard_id", help="Only rows of this shard.")
@click.option("--since", help="Only what was rejected since then: 90m, 12h, 7d, or an RFC 3339 time.")
@click.option("--all", "replayed", is_flag=True, help="Those that were replayed, too.")
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, help="The newest so many.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line.")
@local_option
@_one_line_errors
def list_rejected(
    *,
    tenant_id: str | None,
    reason: str | None,
    shard_id: str | None,
    since: str | None,
    replayed: bool,
    limit: int,
    as_json: bool,
    local: bool,
) -> None:
    """List rejected events, the newest last."""
    from operations import rejected as rows

    start = rows.since(since, now=datetime.now(UTC)) if since else None
    wanted = rows.Filter(tenant_id, reason, shard_id, start, replayed)
    found = list(islice(rows.found(rows.rejected_store(_settings(local=local)), wanted), limit + 1))
    for row in reversed(found[:limit]):
        click.echo(rows.json_line(row) if as_json else rows.line(row))
    if len(found) > limit:
        click.echo(f"metering: these are the newest {limit}; --limit shows more", err=True)


@rejected.command()
@click.argument("key")
@click.option("--raw", is_flag=True, help="Write what the record held to stdout, byte for byte, and nothing else.")
@local_option
@_one_line_errors
def show(*, key: str, raw: bool, local: bool) -> None:
    """Show all that is known of one rejected event."""
    from metering.places import place_named
    from operations import rejected as rows

    row = rows.row_of(rows.rejected_store(_settings(local=local)), place_named(key))
    if raw:
        sys.stdout.buffer.write(row.raw)
    else:
        click.echo(rows.in_full(row))


@rejected.command()
@click.argument("keys", nargs=-1)
@click.option("--reason", help="All rows of this reason that were not replayed, instead of keys.")
@click.option("--tenant", "tenant_id", help="With --reason: only events that name this tenant.")
@click.option("--set", "fields", multiple=True, metavar="FIELD=VALUE", help="Correct a field; FIELD= takes it away.")
@click.option("--event", type=click.File("rb"), help="Put the event in this file instead, - for stdin; with one key.")
@click.option("--as-new", is_flag=True, help="Count it under an id of its own, whatever id it had.")
@click.option("--dry-run", is_flag=True, help="Say what would be put; change nothing.")
@click.option("--yes", is_flag=True, help="Do not ask before several are replayed.")
@local_option
@_one_line_errors
def replay(
    *,
    keys: tuple[str, ...],
    reason: str | None,
    tenant_id: str | None,
    fields: tuple[str, ...],
    event: BinaryIO | None,
    as_new: bool,
    dry_run: bool,
    yes: bool,
    local: bool,
) -> None:
    """Put rejected events back on the stream, corrected where asked. Safe to run again: nothing counts twice."""
    from metering.places import place_named
    from operations import rejected as rows
    from operations.correction import Correction
    from operations.replay import replay_all, replayer

    if bool(keys) == bool(reason) or (tenant_id and not reason):
        raise click.UsageError("give KEYS, or --reason with or without --tenant")
    if event is not None and len(keys) != 1:
        raise click.UsageError("--event stands in for the event of one KEY")
    pairs = [field.partition("=") for field in fields]
    if not all(name and equals for name, equals, _ in pairs):
        raise click.UsageError("--set takes FIELD=VALUE")
    correction = Correction({name: value for name, _, value in pairs}, event.read() if event else None, as_new)
    places = [place_named(key) for key in dict.fromkeys(keys)]
    settings = _settings(local=local)
    store = rows.rejected_store(settings)
    if reason:
        places = [row.place for row in rows.found(store, rows.Filter(tenant_id, reason))][::-1]
    if len(places) > 1 and not (yes or dry_run):
        click.confirm(f"Replay {len(places)} rejected events?", abort=True)
    done = replay_all(replayer(settings, store), store, places, correction, dry_run=dry_run, say=click.echo)
    sys.exit(0 if done else 1)


def _settings(*, local: bool) -> Settings:
    if not local:
        return Settings.from_environment(os.environ)
    settings, environment = local_settings(os.environ)
    adopt(environment)
    return settings


main = metering

if __name__ == "__main__":
    main()
