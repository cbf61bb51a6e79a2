"""Composition root of billing: the environment, the real reader, the app.

`gunicorn --config python:billing.gunicorn_conf` calls `application` in its worker.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from billing.app import create_app
from billing.export import EXPORT_THREADS
from billing.invoices import INVOICE_THREADS
from metering.aws import dynamodb_client
from metering.dynamodb_voids import DynamoBillingStore
from metering.logs import configure_logging
from metering.settings import Settings

if TYPE_CHECKING:
    from flask import Flask

THREADS = 16
"""Requests served at once; each holds one connection to DynamoDB."""
RANGE_THREADS = 8
"""For the parts of long ranges, of all requests together; each holds one connection more."""


def application() -> Flask:
    """Return the app on DynamoDB, as the environment says.

    Raises InvalidSettingError. Connects to nothing: a missing table shows in /readyz and in answers.
    """
    settings = Settings.from_environment(os.environ)
    configure_logging(settings.log_level)
    connections = THREADS + RANGE_THREADS + EXPORT_THREADS + INVOICE_THREADS
    client = dynamodb_client(settings, connections_max=connections)
    executor = ThreadPoolExecutor(RANGE_THREADS, "range")
    return create_app(DynamoBillingStore(client, settings, executor=executor), settings)
