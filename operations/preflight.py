"""What a consumer needs to be there before it starts: said in one line, instead of by the KCL in a hundred.

A progress row for each shard is made where there is none: billing's as_of waits for no shard that has none.
"""

from __future__ import annotations

import logging

import stamina

from metering.aws import dynamodb_client, kinesis_client, store_errors
from metering.errors import ServiceUnavailableError
from metering.kinesis import KinesisStreamDirectory
from metering.settings import Settings
from operations.provision import open_shards, tables

WAIT_S = 300.0

_log = logging.getLogger(__name__)


def check_resources(settings: Settings) -> None:
    """Return when the stream and all tables can be described.

    Enters shards that have no progress row. Waits while a service is away, WAIT_S seconds at most. Raises
    MissingResourceError (which says what is missing and that `metering setup` makes it) and AccessRefusedError at once.
    """
    kinesis, dynamodb = kinesis_client(settings), dynamodb_client(settings)
    for attempt in stamina.retry_context(
        on=ServiceUnavailableError, attempts=None, timeout=WAIT_S, wait_initial=0.2, wait_max=5.0
    ):
        with attempt:
            directory = KinesisStreamDirectory(kinesis, settings.stream)
            description = directory.describe()
            for table in tables(settings):
                with store_errors(table.name):
                    dynamodb.describe_table(TableName=table.name)
            open_shards(dynamodb, settings, description, directory.shards())
