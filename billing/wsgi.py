"""Composition root of billing: the environment, the real reader, the app.

`gunicorn --config python:billing.gunicorn_conf` calls `application` in its worker.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from billing.app import create_app
from metering.aws import dynamodb_client
from metering.dynamodb_events import DynamoBillingReader
from metering.logs import configure_logging
from metering.settings import Settings

if TYPE_CHECKING:
    from flask import Flask

THREADS = 16
"""Requests served at once; each holds one connection to DynamoDB."""


def application() -> Flask:
    """Return the app on DynamoDB, as the environment says.

    Raises InvalidSettingError. Connects to nothing: a missing table shows in /readyz and in answers.
    """
    settings = Settings.from_environment(os.environ)
    configure_logging(settings.log_level)
    client = dynamodb_client(settings, connections_max=THREADS)
    reader = DynamoBillingReader(
        client, table=settings.table, ledger_table=settings.ledger_table, rejected_table=settings.rejected_table
    )
    return create_app(reader, settings)
