"""A shard whose checkpoint the stream does not know is read from its beginning again.

Kinesis loses nothing. But a kinesis-mock that was killed comes back as it was up to ten minutes ago, and a stream that
was deleted and made again knows none of the numbers of the one before. The KCL takes either for the end of the shard:
it would never read it again, and nobody would be told. Runs in the supervisor, and touches checkpoints alone.

    the lease's checkpoint ──► a number that the stream knows, or TRIM_HORIZON ──► left
                         └───► a number that it does not know ────────────────┐
                         └───► SHARD_END, but the stream lists it as open ────┴──► TRIM_HORIZON

Reading a shard again does no harm: the rows drop what they hold already. It is looked at before each start of a daemon,
since a child that comes to an end that is none ends the daemon (record_processor.shard_ended).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import closing
from typing import TYPE_CHECKING

from botocore.exceptions import ClientError

from consumer.leader_watcher import SHARD_END, KclTables
from metering.aws import dynamodb_client, error_code, kinesis_client
from metering.kinesis import KinesisStreamDirectory
from metering.settings import Settings

if TYPE_CHECKING:
    from mypy_boto3_kinesis import KinesisClient

_UNKNOWN = frozenset({"ResourceNotFoundException", "InvalidArgumentException"})
"""The first is kinesis-mock's answer, the second Kinesis's own to another stream's number."""

_log = logging.getLogger(__name__)


def rewind_lost(settings: Settings, properties: Mapping[str, str]) -> None:
    """Set the checkpoints that the stream does not know back to TRIM_HORIZON. properties: the daemon's.

    A failure is logged and stops nothing.
    """
    try:
        with (
            closing(dynamodb_client(settings, connections_max=1)) as dynamodb,
            closing(kinesis_client(settings, connections_max=1)) as kinesis,
        ):
            _rewind_lost(KclTables(dynamodb, properties), kinesis, settings.stream)
    except Exception as error:  # noqa: BLE001 - the daemon finds out by itself what it can't read
        _log.warning("Whether the stream knows all checkpoints can't be told: %s", error)


def _rewind_lost(tables: KclTables, kinesis: KinesisClient, stream: str) -> None:
    listed = {shard.shard_id: shard for shard in KinesisStreamDirectory(kinesis, stream).shards()}
    for shard_id, checkpoint in tables.checkpoints().items():
        shard = listed.get(shard_id)
        if shard is None:
            continue
        lost = shard.open if checkpoint == SHARD_END else not _known(kinesis, stream, shard_id, checkpoint)
        if lost and tables.rewind(shard_id, checkpoint):
            _log.warning(
                "The stream does not know the checkpoint of a shard: it has lost records, or was made again. The shard "
                "is read from its beginning; what the rows hold already is not counted again",
                extra={"shard": shard_id, "checkpoint": checkpoint},
            )


def _known(kinesis: KinesisClient, stream: str, shard_id: str, checkpoint: str) -> bool:
    if not checkpoint.isdecimal():
        return True
    try:
        kinesis.get_shard_iterator(
            StreamName=stream,
            ShardId=shard_id,
            ShardIteratorType="AFTER_SEQUENCE_NUMBER",
            StartingSequenceNumber=checkpoint,
        )
    except ClientError as error:
        if error_code(error) not in _UNKNOWN:
            raise
        return False
    return True
