"""DynamoDB as RejectedStore, and how an item of the table of rejected events is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from metering.aws import store_errors
from metering.dynamodb import Item, update_unless_failed
from metering.events import time_text
from metering.places import StreamPlace, place_of_row
from metering.rejected import RejectedPage, RejectedRow
from metering.rows import SHARD_PREFIX, STREAM_PREFIX, RowKey

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient


class DynamoRejectedStore:
    """RejectedStore on the tables of one stream. table: of the totals, whose progress rows name the shards."""

    def __init__(self, client: DynamoDBClient, *, stream: str, table: str, rejected_table: str) -> None:
        self._client = client
        self._stream = stream
        self._table = table
        self._rejected_table = rejected_table

    def shard_ids(self) -> list[str]:
        shard_ids: list[str] = []
        request: dict[str, Any] = {}
        while True:
            with store_errors(self._table):
                page = self._client.query(
                    TableName=self._table,
                    KeyConditionExpression="pk = :pk",
                    ExpressionAttributeValues={":pk": {"S": STREAM_PREFIX + self._stream}},
                    ProjectionExpression="sk",
                    ConsistentRead=True,
                    **request,
                )
            shard_ids += [item["sk"]["S"].removeprefix(SHARD_PREFIX) for item in page["Items"]]
            if "LastEvaluatedKey" not in page:
                return shard_ids
            request["ExclusiveStartKey"] = page["LastEvaluatedKey"]

    def page(self, shard_id: str, *, limit: int, before: StreamPlace | None) -> RejectedPage:
        condition, values = "pk = :pk", {":pk": {"S": SHARD_PREFIX + shard_id}}
        if before is not None:
            condition += " AND sk < :before"
            values[":before"] = {"S": before.row_key.sk}
        with store_errors(self._rejected_table):
            page = self._client.query(
                TableName=self._rejected_table,
                KeyConditionExpression=condition,
                ExpressionAttributeValues=values,
                ScanIndexForward=False,
                Limit=limit,  # or fewer: a page ends at 1 MB (DynamoDB API reference, Query)
                ConsistentRead=True,
            )
        return RejectedPage(tuple(map(rejected_row, page["Items"])), bool(page.get("LastEvaluatedKey")))

    def get(self, place: StreamPlace) -> RejectedRow | None:
        return get_rejected_row(self._client, self._rejected_table, place)

    def begin_replay(self, place: StreamPlace, events: bytes, *, now: datetime) -> bytes | None:
        before = self._update(
            place,
            "SET replay_events = :events, replay_begun_at = :now",
            "attribute_exists(pk) AND attribute_not_exists(replay_events)",
            {":events": {"B": events}, ":now": {"S": time_text(now)}},
        )
        if before is None:
            return events
        return bytes(before["replay_events"]["B"]) if before else None

    def mark_replayed(self, place: StreamPlace, event_ids: Sequence[str], *, now: datetime) -> bool:
        before = self._update(
            place,
            "SET replayed_at = :now, replayed_as = :ids",
            "attribute_exists(pk) AND attribute_not_exists(replayed_at)",
            {":ids": {"L": [{"S": event_id} for event_id in event_ids]}, ":now": {"S": time_text(now)}},
        )
        return before is None

    def _update(self, place: StreamPlace, update: str, condition: str, values: Mapping[str, Any]) -> Item | None:
        return update_unless_failed(
            self._client,
            self._rejected_table,
            _key(place.row_key),
            update=update,
            condition=condition,
            names={},
            values=values,
        )


def get_rejected_row(client: DynamoDBClient, table: str, place: StreamPlace) -> RejectedRow | None:
    """Return the row of one place, or None; strongly consistent. Raises as CounterStore does."""
    with store_errors(table):
        answer = client.get_item(TableName=table, Key=_key(place.row_key), ConsistentRead=True)
    item = answer.get("Item")
    return rejected_row(item) if item else None


def rejected_row(item: Item) -> RejectedRow:
    """Return the row that an item holds, as DynamoCounterStore.reject writes it."""
    return RejectedRow(
        place=place_of_row(RowKey(item["pk"]["S"], item["sk"]["S"])),
        reason=item["reason"]["S"],
        detail=item["detail"]["S"],
        raw=bytes(item["raw"]["B"]),
        raw_bytes=int(item["raw_bytes"]["N"]),
        raw_sha256=item["raw_sha256"]["S"],
        arrived_at=datetime.fromisoformat(item["arrived_at"]["S"]),
        rejected_at=datetime.fromisoformat(item["rejected_at"]["S"]),
        stream=item["stream"]["S"],
        stream_created_at=datetime.fromisoformat(item["stream_created_at"]["S"]),
        replay_begun_at=_time(item, "replay_begun_at"),
        replay_events=bytes(item["replay_events"]["B"]) if "replay_events" in item else None,
        replayed_at=_time(item, "replayed_at"),
        replayed_as=tuple(event_id["S"] for event_id in item.get("replayed_as", {"L": []})["L"]),
    )


def _key(key: RowKey) -> dict[str, Any]:
    return {"pk": {"S": key.pk}, "sk": {"S": key.sk}}


def _time(item: Item, attribute: str) -> datetime | None:
    return datetime.fromisoformat(item[attribute]["S"]) if attribute in item else None
