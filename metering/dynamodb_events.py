"""DynamoDB as UsageReader and EventReader: the totals, and single events with what became of them."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from metering.aws import store_errors
from metering.claims import EventContent
from metering.dynamodb import DynamoUsageReader, Item
from metering.dynamodb_ledger import holder_of, last_repeat_at_of
from metering.dynamodb_rejected import get_rejected_row
from metering.places import StreamPlace, place_of_pointer
from metering.ports import ClaimedEvent
from metering.rejected import RejectedRow
from metering.rows import tenant_pk

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient


class DynamoEventReader(DynamoUsageReader):
    """UsageReader and EventReader; thread-safe."""

    def __init__(self, client: DynamoDBClient, *, table: str, ledger_table: str, rejected_table: str) -> None:
        super().__init__(client, table=table)
        self._ledger_table = ledger_table
        self._rejected_table = rejected_table

    def claimed(self, key: str) -> ClaimedEvent | None:
        with store_errors(self._ledger_table):
            answer = self._client.get_item(TableName=self._ledger_table, Key={"pk": {"S": key}}, ConsistentRead=True)
        item = answer.get("Item")
        return _claimed_event(item) if item else None

    def rejections(self, key: str, *, limit: int) -> list[RejectedRow]:
        rows = self._pointed_at(key, limit=limit)
        return sorted(rows, key=lambda row: (row.rejected_at, row.place.row_key))

    def newest_rejections(self, tenant_id: str, *, limit: int) -> list[RejectedRow]:
        return self._pointed_at(tenant_pk(tenant_id), limit=limit)

    def _pointed_at(self, pk: str, *, limit: int) -> list[RejectedRow]:
        """Return the rows at which the pointers of a partition point, from its end on."""
        with store_errors(self._rejected_table):
            pointers = self._client.query(
                TableName=self._rejected_table,
                KeyConditionExpression="pk = :pk",
                ExpressionAttributeValues={":pk": {"S": pk}},
                ProjectionExpression="sk",
                ScanIndexForward=False,
                Limit=limit,
                ConsistentRead=True,
            )["Items"]
        found = [self.rejection(place_of_pointer(pointer["sk"]["S"])) for pointer in pointers]
        return [row for row in found if row is not None]  # the two expire apart, so a pointer may be left over

    def rejection(self, place: StreamPlace) -> RejectedRow | None:
        return get_rejected_row(self._client, self._rejected_table, place)


def _claimed_event(item: Item) -> ClaimedEvent:
    # A row that someone has written over says what it can.
    holder = holder_of(item)
    return ClaimedEvent(
        owner=holder.owner,
        content=holder.content if isinstance(holder.content, EventContent) else None,
        counted_at=_time(item, "counted_at"),
        duplicates=_count(item, "duplicates"),
        conflicts=_count(item, "conflicts"),
        last_repeat_at=last_repeat_at_of(item),
        voided_at=_time(item, "voided_at"),
        voided_by=_text(item, "voided_by"),
        void_reason=_text(item, "void_reason"),
        window=_text(item, "window"),
    )


def _text(item: Item, attribute: str) -> str | None:
    text: str | None = item.get(attribute, {}).get("S")
    return text


def _count(item: Item, attribute: str) -> int:
    try:
        return int(item[attribute]["N"])
    except (KeyError, ValueError):
        return 0


def _time(item: Item, attribute: str) -> datetime | None:
    try:
        return datetime.fromisoformat(item[attribute]["S"])
    except (KeyError, ValueError):
        return None
