"""What the tables and the stream hold, read without the product's own readers, so that a mistake can't hide in both."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from types import TracebackType
from typing import Any, Self

from metering.aws import dynamodb_client, kinesis_client
from metering.settings import Settings

Rows = dict[tuple[str, str], tuple[Decimal, int]]
"""(pk, sk) of totals and windows: usage and events."""


@dataclass(frozen=True)
class Progress:
    """A shard's progress row."""

    shard_id: str
    position: str
    records: int
    events: int
    counted: int
    duplicates: int
    rejected: int
    complete_until: datetime | None
    closed: bool


class Tables:
    """Tables and stream of one pipeline; closes its clients at the end of a `with` block."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.dynamodb = dynamodb_client(settings)
        self.kinesis = kinesis_client(settings)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.dynamodb.close()
        self.kinesis.close()

    def items(self, table: str) -> list[dict[str, Any]]:
        pages = self.dynamodb.get_paginator("scan").paginate(TableName=table, ConsistentRead=True)
        return [dict(item) for page in pages for item in page["Items"]]

    def rows(self) -> Rows:
        """All totals and windows."""
        return {
            (item["pk"]["S"], item["sk"]["S"]): (Decimal(item["usage"]["N"]), int(item["events"]["N"]))
            for item in self.items(self.settings.table)
            if item["pk"]["S"].startswith("TENANT#") and "events" in item
        }

    def counted(self, prefix: str) -> int:
        """How many events were ever counted in the rows whose sort keys begin with `prefix`, voided ones too."""
        return sum(
            int(item["events"]["N"]) + int(item.get("voided_events", {"N": "0"})["N"])
            for item in self.items(self.settings.table)
            if item["pk"]["S"].startswith("TENANT#") and item["sk"]["S"].startswith(prefix) and "events" in item
        )

    def directory(self) -> set[str]:
        return {item["sk"]["S"] for item in self.items(self.settings.table) if item["pk"]["S"] == "TENANTS"}

    def progress(self) -> dict[str, Progress]:
        found = {}
        for item in self.items(self.settings.table):
            if item["pk"]["S"] == f"STREAM#{self.settings.stream}":
                shard_id = item["sk"]["S"].removeprefix("SHARD#")
                until = item.get("complete_until")
                counts = ("records", "events", "counted", "duplicates", "rejected")
                found[shard_id] = Progress(
                    shard_id=shard_id,
                    position=item["position"]["S"],
                    complete_until=datetime.fromisoformat(until["S"]) if until else None,
                    closed=item["closed"]["BOOL"],
                    **{name: int(item[name]["N"]) for name in counts},
                )
        return found

    def rejected(self) -> dict[tuple[str, str], tuple[str, bytes]]:
        """Reason and raw bytes of each rejected event."""
        return {
            (item["pk"]["S"], item["sk"]["S"]): (item["reason"]["S"], item["raw"]["B"])
            for item in self.items(self.settings.rejected_table)
            if item["pk"]["S"].startswith("SHARD#")  # the others point at these
        }

    def checkpoints(self) -> dict[str, str]:
        """The sequence number of each shard's lease."""
        return {
            item["leaseKey"]["S"]: item["checkpoint"]["S"]
            for item in self.items(self.settings.kcl_application)
            if "checkpoint" in item
        }

    def owners(self) -> dict[str, str]:
        """The worker that holds each lease; the old one while it is handed over, nothing while nobody holds it."""
        return {
            item["leaseKey"]["S"]: item.get("checkpointOwner", item["leaseOwner"])["S"]
            for item in self.items(self.settings.kcl_application)
            if "leaseOwner" in item
        }

    def begin_handover(self, shard_id: str, *, from_worker: str, to_worker: str) -> None:
        """Make `from_worker` the checkpointOwner of a lease that `to_worker` holds, who loses it by that."""
        self.dynamodb.update_item(
            TableName=self.settings.kcl_application,
            Key={"leaseKey": {"S": shard_id}},
            UpdateExpression="SET checkpointOwner = :from ADD leaseCounter :one",
            ConditionExpression="leaseOwner = :to AND attribute_not_exists(checkpointOwner)",
            ExpressionAttributeValues={":from": {"S": from_worker}, ":to": {"S": to_worker}, ":one": {"N": "1"}},
        )

    def renew_handover(self, shard_id: str) -> bool:
        """Move the counter of a lease with a checkpointOwner, as a worker that renews it; False when it has none."""
        try:
            self.dynamodb.update_item(
                TableName=self.settings.kcl_application,
                Key={"leaseKey": {"S": shard_id}},
                UpdateExpression="ADD leaseCounter :one",
                ConditionExpression="attribute_exists(checkpointOwner)",
                ExpressionAttributeValues={":one": {"N": "1"}},
            )
        except self.dynamodb.exceptions.ConditionalCheckFailedException:
            return False
        return True

    def leader(self) -> str | None:
        """The worker that holds the KCL's leader lock."""
        table = f"{self.settings.kcl_application}-CoordinatorState"
        owners = [item["ownerName"]["S"] for item in self.items(table) if "ownerName" in item]
        assert len(owners) <= 1, owners
        return owners[0] if owners else None

    def records(self) -> dict[str, list[tuple[str, bytes]]]:
        """Sequence number and data of all records of each shard, from the oldest on."""
        found: dict[str, list[tuple[str, bytes]]] = {}
        for shard in self.kinesis.list_shards(StreamName=self.settings.stream)["Shards"]:
            records = found[shard["ShardId"]] = []
            iterator: str | None = self.kinesis.get_shard_iterator(
                StreamName=self.settings.stream, ShardId=shard["ShardId"], ShardIteratorType="TRIM_HORIZON"
            )["ShardIterator"]
            while iterator:
                page = self.kinesis.get_records(ShardIterator=iterator)
                records += [(record["SequenceNumber"], record["Data"]) for record in page["Records"]]
                iterator = page.get("NextShardIterator") if page["MillisBehindLatest"] or page["Records"] else None
        return found
