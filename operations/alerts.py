"""`metering alerts`: what is wrong with a file of alerts and quotas, and the process that looks at usage by it."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import click

from metering.errors import InvalidSettingError
from metering.events import decimal_text
from metering.settings import Settings
from operations.named_files import shown_name
from operations.yaml_check import read_or_exit

if TYPE_CHECKING:
    from billing.alerts import Alerts
    from billing.webhook import Webhook

ALIVE_INTERVAL_S = 2.0

_log = logging.getLogger(__name__)


@click.group()
def alerts() -> None:
    """Look after alerts and quotas, the file that ALERTS_FILE names (docs/alerts.md)."""


@alerts.command()
@click.argument("file")
def check(*, file: str) -> None:
    """Print what is wrong with FILE, - for stdin, as FILE:LINE:COLUMN: sentence; code 0 only when nothing is.

    USAGE_WINDOW_MINUTES decides which time zones will do.
    """
    from billing.alerts import refuse_alerts_unaligned
    from billing.alerts_file import ALERTS_FILE

    def refuse(found: Alerts) -> None:
        window_minutes = Settings.from_environment(os.environ).window_minutes
        refuse_alerts_unaligned(found, window_minutes=window_minutes, now=datetime.now(UTC))

    for line in _summary(shown_name(file), read_or_exit(ALERTS_FILE, file, refuse=refuse)):
        click.echo(line)


def _summary(name: str, found: Alerts) -> Iterator[str]:
    own, default = found.own_quotas or {}, found.default_quotas or {}
    quotas = f"quotas: {len(default)} for all tenants, {len(own)} for single ones"
    yield f"{name}: alerts: {len(found.rules)}; {quotas}; days and months in {found.timezone}"
    for rule in found.rules:
        whom = "every tenant" if rule.tenants is None else f"{len(rule.tenants)} tenant(s)"
        reached = ", ".join(map(decimal_text, rule.thresholds))
        yield f"  {rule.name}: {whom}, {rule.metric} by {rule.period}, at {reached}"
    for metric, quota in default.items():
        yield f"  quota: {metric} by {quota.period}, {decimal_text(quota.limit)}"


def run_alerts(settings: Settings) -> None:
    """Do a round every ALERTS_INTERVAL_S, until SIGTERM or SIGINT.

    Raises InvalidSettingError without ALERTS_FILE and for one that can't be used, MissingResourceError and
    AccessRefusedError.
    """
    from billing.alerting import AlertRunner
    from billing.alerts_file import alerts_of
    from metering.aws import dynamodb_client
    from metering.dynamodb_alerts import DynamoAlertStore
    from metering.dynamodb_billing import DynamoBillingReader
    from metering.meters_file import meters_of

    if settings.alerts_file is None:
        raise InvalidSettingError("ALERTS_FILE", "", "allowed: a file of alerts and quotas, see docs/alerts.md")
    found, meters, poster = alerts_of(settings, now=datetime.now(UTC)), meters_of(settings), _webhook(settings)
    life = Life(settings.home / "alerts")
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: life.end())
    client = dynamodb_client(settings)
    runner = AlertRunner(
        DynamoBillingReader(client, settings),
        DynamoAlertStore(client, table=settings.table),
        found,
        meters,
        settings.stream,
        poster=poster,
        now=lambda: datetime.now(UTC),
        goes_on=life.goes_on,
    )
    whom = "nobody" if settings.alerts_webhook_url is None else urlsplit(settings.alerts_webhook_url).hostname
    _log.info("%d alerts from %s, every %d s, posted to %s", len(found.rules), settings.alerts_file,
              settings.alerts_interval_s, whom)  # fmt: skip
    while life.goes_on():
        begun_s = time.monotonic()
        runner.round()
        life.rest(begun_s + settings.alerts_interval_s - time.monotonic())
    _log.info("Alerts stopped")


def _webhook(settings: Settings) -> Webhook | None:
    from billing.webhook import Webhook

    if settings.alerts_webhook_url is None or settings.alerts_webhook_secret is None:
        return None
    return Webhook(settings.alerts_webhook_url, settings.alerts_webhook_secret)


class Life:
    """Until when it goes on, and the file `alive` in `folder` that shows that it does."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._alive = folder / "alive"
        self._touched_s = -ALIVE_INTERVAL_S
        self._end = threading.Event()

    def end(self) -> None:
        """Ask for the end."""
        self._end.set()

    def goes_on(self) -> bool:
        if time.monotonic() - self._touched_s >= ALIVE_INTERVAL_S:
            self._alive.touch()
            self._touched_s = time.monotonic()
        return not self._end.is_set()

    def rest(self, seconds: float) -> None:
        """Wait, with signs of life, until the end is asked for at most."""
        until_s = time.monotonic() + seconds
        while self.goes_on() and (left_s := until_s - time.monotonic()) > 0:
            self._end.wait(min(left_s, ALIVE_INTERVAL_S))
