"""The `metering` command."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

import click

from metering.errors import MeteringError
from metering.logs import configure_logging
from metering.settings import Settings
from operations.local import adopt, local_settings

local_option = click.option("--local", is_flag=True, help="Use the local stack that is running (`make run`).")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def metering() -> None:
    """Usage metering: events over HTTP, counted exactly once, billed over HTTP."""


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
    from operations.preflight import check_resources

    settings = _settings(local=local)
    configure_logging(settings.log_level)
    check_resources(settings)
    sys.exit(Supervisor(settings, os.environ).run())


def _settings(*, local: bool) -> Settings:
    if not local:
        return Settings.from_environment(os.environ)
    settings, environment = local_settings(os.environ)
    adopt(environment)
    return settings


main = metering

if __name__ == "__main__":
    main()
