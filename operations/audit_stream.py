"""The stream as an audit reads it: plain GetShardIterator and GetRecords, no KCL, at a pace that leaves room for it.

On AWS a shard gives 2 MB and 5 reads a second to all its readers together (Kinesis quotas). An audit takes half of the
bytes and one of the reads, so that the consumer keeps up while it runs.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from botocore.exceptions import ClientError

from consumer.decoding import ReceivedRecord
from metering.aws import error_code, stream_errors
from metering.events import to_milliseconds
from metering.ports import Shard
from metering.positions import position_of
from metering.settings import Settings
from operations.audit_aggregated import parts_of
from operations.audit_tables import patiently

if TYPE_CHECKING:
    from mypy_boto3_kinesis import KinesisClient

READ_INTERVAL_S = 1.0
PAGE_BYTES_TARGET = 1024 * 1024
RECORDS_MAX = 10_000
"""Records in one GetRecords call (Kinesis API reference)."""
RECORDS_FIRST = 100
"""Asked for while the size of the records is not known."""


@dataclass(frozen=True, slots=True)
class Page:
    """Records of one read, in order, up to the position asked for.

    records: how many they are for the stream: several parts of an aggregated one are one.
    """

    received: list[ReceivedRecord]
    records: int


class AuditedStream:
    """Reads one stream; thread-safe. Waits for a stream that is away, and raises as StreamDirectory does in the end."""

    def __init__(self, client: KinesisClient, settings: Settings) -> None:
        self._client = client
        self._stream = settings.stream
        endpoint = settings.kinesis_endpoint
        # An emulator knows no quota: it speaks plain HTTP, AWS and its private endpoints never do.
        emulator = endpoint is not None and urlsplit(endpoint).scheme == "http"
        self._read_interval_s = 0.0 if emulator else READ_INTERVAL_S

    def retention(self) -> timedelta:
        """Return for how long the stream keeps a record."""
        return patiently(self._retention)

    def pages(self, shard: Shard, *, since: datetime | None, until: str) -> Iterator[Page]:
        """Yield a shard's records, from its oldest or from those that arrived at `since`, to the position `until`."""
        for records in self._reads(shard.shard_id, since, until):
            received: list[ReceivedRecord] = []
            for record in records:
                number = record["SequenceNumber"]
                # As the KCL hands it to the consumer.
                arrived_at = to_milliseconds(record["ApproximateArrivalTimestamp"].astimezone(UTC))
                parts = parts_of(record["Data"])
                received += [
                    ReceivedRecord(number, data, arrived_at) for data in ([record["Data"]] if parts is None else parts)
                ]
            yield Page(received, len(records))

    def _reads(self, shard_id: str, since: datetime | None, until: str) -> Iterator[list[Any]]:
        start: dict[str, Any] = {"ShardIteratorType": "TRIM_HORIZON"}
        if since is not None:
            start = {"ShardIteratorType": "AT_TIMESTAMP", "Timestamp": since}
        iterator: str | None = patiently(self._iterator, shard_id, start)
        limit = RECORDS_FIRST
        while iterator:
            read_at = time.monotonic()
            try:
                page = patiently(self._read, iterator, limit)
            except ClientError as error:
                if error_code(error) != "ExpiredIteratorException":
                    raise
                iterator = patiently(self._iterator, shard_id, start)
                continue
            records = page["Records"]
            wanted = [record for record in records if position_of(record["SequenceNumber"]) <= until]
            if wanted:
                yield wanted
            if len(wanted) < len(records) or (wanted and position_of(wanted[-1]["SequenceNumber"]) == until):
                return
            if not records and not page.get("MillisBehindLatest"):
                return  # the tip: what was applied and is not here is past retention
            if records:
                start = {
                    "ShardIteratorType": "AFTER_SEQUENCE_NUMBER",
                    "StartingSequenceNumber": records[-1]["SequenceNumber"],
                }
                size = sum(len(record["Data"]) for record in records) // len(records) + 1
                limit = max(1, min(RECORDS_MAX, PAGE_BYTES_TARGET // size))
            iterator = page.get("NextShardIterator")
            time.sleep(max(0.0, read_at + self._read_interval_s - time.monotonic()))

    def _retention(self) -> timedelta:
        with stream_errors(self._stream):
            summary = self._client.describe_stream_summary(StreamName=self._stream)["StreamDescriptionSummary"]
        return timedelta(hours=summary["RetentionPeriodHours"])

    def _iterator(self, shard_id: str, start: dict[str, Any]) -> str:
        with stream_errors(self._stream):
            answer = self._client.get_shard_iterator(StreamName=self._stream, ShardId=shard_id, **start)
        return answer["ShardIterator"]

    def _read(self, iterator: str, limit: int) -> Any:
        with stream_errors(self._stream):
            return self._client.get_records(ShardIterator=iterator, Limit=limit)
