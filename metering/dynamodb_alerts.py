"""DynamoDB as AlertStore; the keys are those of metering.alerts.

What must happen together is one TransactWriteItems, on a condition that holds once:

    record           put the alert IF it is absent             put it among the open     put its message
    resolve          SET state = resolved IF it is open        delete it from the open   put its message
    move             delete the message IF it is there         put it again, due later

What may happen twice is two writes, in the order that loses nothing:

    posted, give_up  note it on the alert ─► delete the message. A crash in between posts it once more.

A transaction whose answer was lost is asked again in the next round: its condition fails then, which is the answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

from metering.alerts import (
    ALERT_PREFIX,
    OPEN_PK,
    POST_PK,
    Alert,
    AlertPage,
    Crossing,
    Delivery,
    Kind,
    Message,
    Notice,
    WatchedPeriod,
    open_sort_key,
)
from metering.aws import cancellation_reasons, store_errors
from metering.dynamodb import query_items, update_unless_failed
from metering.events import decimal_text, time_text
from metering.local_time import Period
from metering.rows import RowKey, tenant_pk

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

_CONDITION_FAILED = "ConditionalCheckFailed"
_BEFORE_ALL, _AFTER_ALL = "0", "~"
"""Of keys that begin with a time, and of what comes after a prefix; a key can't be empty."""
_OPEN, _RESOLVED = "open", "resolved"
Item = Mapping[str, Any]


class DynamoAlertStore:
    """AlertStore; thread-safe."""

    def __init__(self, client: DynamoDBClient, *, table: str) -> None:
        self._client = client
        self._table = table

    def alerts(self, tenant_id: str, *, limit: int, after: str | None) -> AlertPage:
        # Between: a key that begins like no alert's is never read.
        last = ALERT_PREFIX + (_AFTER_ALL if after is None else after)
        items = self._query(tenant_pk(tenant_id), ALERT_PREFIX, last, limit=limit + 2, forward=False)
        rows = [item for item in items if after is None or item["sk"]["S"] != last]
        cursor = rows[limit - 1]["sk"]["S"].removeprefix(ALERT_PREFIX) if len(rows) > limit else None
        return AlertPage(tuple(map(_alert, rows[:limit])), cursor)

    def recorded(self, watched: WatchedPeriod) -> frozenset[Decimal]:
        prefix = watched.key_prefix
        items = self._query(tenant_pk(watched.tenant_id), prefix, prefix + _AFTER_ALL)
        return frozenset(Decimal(item["threshold"]["N"]) for item in items)

    def record(self, crossing: Crossing, message: Message | None) -> bool:
        said = _said(crossing)
        row = {**said, "state": {"S": _OPEN}, **_pending(message)}
        return self._together(
            {"Put": self._put(_key(crossing.key), row, ConditionExpression="attribute_not_exists(pk)")},
            {"Put": self._put(_open_key(crossing), said)},
            message,
        )

    def open_until(self, end: datetime, *, limit: int) -> list[Crossing]:
        return list(map(_crossing, self._query(OPEN_PK, _BEFORE_ALL, time_text(end) + _AFTER_ALL, limit=limit)))

    def resolve(self, crossing: Crossing, message: Message | None, *, now: datetime) -> bool:
        noted = {"state": {"S": _RESOLVED}, "resolved_at": {"S": time_text(now)}, **_pending(message)}
        done = self._together(
            {
                "Update": {
                    "TableName": self._table,
                    "Key": _key(crossing.key),
                    "UpdateExpression": "SET " + ", ".join(f"#{name} = :{name}" for name in noted),
                    "ConditionExpression": "#state = :open",
                    "ExpressionAttributeNames": {f"#{name}": name for name in noted},
                    "ExpressionAttributeValues": {
                        ":open": {"S": _OPEN},
                        **{f":{name}": value for name, value in noted.items()},
                    },
                }
            },
            {"Delete": {"TableName": self._table, "Key": _open_key(crossing)}},
            message,
        )
        if not done:  # another runner was faster, or a person has deleted the alert, and this would come for ever
            self._delete(_open_key(crossing))
        return done

    def due_messages(self, now: datetime, *, limit: int) -> list[Message]:
        return list(map(_message, self._query(POST_PK, _BEFORE_ALL, time_text(now) + _AFTER_ALL, limit=limit)))

    def move(self, message: Message, later: Message) -> bool:
        if message.sort_key == later.sort_key:  # a transaction takes no two writes of one item
            return True
        return self._together(
            {
                "Delete": {
                    "TableName": self._table,
                    "Key": _message_key(message),
                    "ConditionExpression": "attribute_exists(pk)",
                }
            },
            None,
            later,
        )

    def posted(self, message: Message, *, now: datetime) -> None:
        self._note(
            message,
            f"SET {_delivery(message.kind)} = :posted, {message.kind}_posted_at = :now",
            "attribute_exists(pk)",
            {":posted": {"S": Delivery.POSTED.value}, ":now": {"S": time_text(now)}},
        )

    def give_up(self, message: Message) -> None:
        self._note(
            message,
            f"SET {_delivery(message.kind)} = :failed",
            f"{_delivery(message.kind)} = :pending",
            {":failed": {"S": Delivery.FAILED.value}, ":pending": {"S": Delivery.PENDING.value}},
        )

    def _note(self, message: Message, update: str, condition: str, values: Item) -> None:
        # Where the condition fails there is nothing to note: a person deleted the alert, or it was posted after all.
        update_unless_failed(
            self._client, self._table, _key(message.alert), update=update, condition=condition, names={}, values=values
        )
        self._delete(_message_key(message))

    def _delete(self, key: Item) -> None:
        with store_errors(self._table):
            self._client.delete_item(TableName=self._table, Key=key)

    def _put(self, key: Item, item: Item, **condition: str) -> dict[str, Any]:
        return {"TableName": self._table, "Item": {**key, **item}, **condition}

    def _together(self, first: Any, second: Any, message: Message | None) -> bool:
        """Do all or nothing; False when the condition of `first` failed."""
        put = None if message is None else {"Put": self._put(_message_key(message), _message_item(message))}
        parts: list[Any] = [part for part in (first, second, put) if part is not None]
        try:
            with store_errors(self._table):
                self._client.transact_write_items(TransactItems=parts)
        except ClientError as error:
            if (reasons := cancellation_reasons(error)) and reasons[0][0] == _CONDITION_FAILED:
                return False
            raise
        return True

    def _query(self, pk: str, first: str, last: str, *, limit: int | None = None, forward: bool = True) -> list[Item]:
        """Return the items between two sort keys, both included, or the first `limit` of them."""
        condition = "pk = :pk AND sk BETWEEN :first AND :last"
        values = {":pk": {"S": pk}, ":first": {"S": first}, ":last": {"S": last}}
        return query_items(self._client, self._table, condition, values, limit=limit, forward=forward)


# ── Items ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _key(key: RowKey) -> dict[str, Any]:
    return {"pk": {"S": key.pk}, "sk": {"S": key.sk}}


def _open_key(crossing: Crossing) -> dict[str, Any]:
    return _key(RowKey(OPEN_PK, open_sort_key(crossing)))


def _message_key(message: Message) -> dict[str, Any]:
    return _key(RowKey(POST_PK, message.sort_key))


def _delivery(kind: Kind) -> str:
    return f"{kind}_delivery"


def _pending(message: Message | None) -> dict[str, Any]:
    return {} if message is None else {_delivery(message.kind): {"S": Delivery.PENDING.value}}


def _said(crossing: Crossing) -> dict[str, Any]:
    watched = crossing.watched
    as_of = {} if crossing.as_of is None else {"as_of": {"S": time_text(crossing.as_of)}}
    return {
        "alert_id": {"S": crossing.alert_id},
        "tenant_id": {"S": watched.tenant_id},
        "name": {"S": watched.name},
        "metric": {"S": watched.metric},
        "period": {"S": watched.period.value},
        "timezone": {"S": watched.timezone},
        "start": {"S": time_text(watched.start)},
        "end": {"S": time_text(watched.end)},
        "threshold": {"N": decimal_text(crossing.threshold)},
        "usage": {"N": decimal_text(crossing.usage)},
        "crossed_at": {"S": time_text(crossing.crossed_at)},
        **as_of,
    }


def _crossing(item: Item) -> Crossing:
    watched = WatchedPeriod(
        tenant_id=item["tenant_id"]["S"],
        name=item["name"]["S"],
        metric=item["metric"]["S"],
        period=Period(item["period"]["S"]),
        timezone=item["timezone"]["S"],
        start=_time(item, "start"),
        end=_time(item, "end"),
    )
    return Crossing(
        watched=watched,
        threshold=Decimal(item["threshold"]["N"]),
        usage=Decimal(item["usage"]["N"]),
        crossed_at=_time(item, "crossed_at"),
        as_of=_time(item, "as_of") if "as_of" in item else None,
    )


def _alert(item: Item) -> Alert:
    return Alert(
        crossing=_crossing(item),
        resolved_at=_time(item, "resolved_at") if "resolved_at" in item else None,
        crossed=_notice(item, Kind.CROSSED),
        resolved=_notice(item, Kind.RESOLVED),
    )


def _notice(item: Item, kind: Kind) -> Notice | None:
    if _delivery(kind) not in item:
        return None
    posted_at = f"{kind}_posted_at"
    return Notice(Delivery(item[_delivery(kind)]["S"]), _time(item, posted_at) if posted_at in item else None)


def _message_item(message: Message) -> dict[str, Any]:
    return {
        "message_id": {"S": message.message_id},
        "kind": {"S": message.kind.value},
        "alert_pk": {"S": message.alert.pk},
        "alert_sk": {"S": message.alert.sk},
        "body": {"S": message.body.decode()},
        "made_at": {"S": time_text(message.made_at)},
        "due_at": {"S": time_text(message.due_at)},
        "attempts": {"N": str(message.attempts)},
    }


def _message(item: Item) -> Message:
    return Message(
        message_id=item["message_id"]["S"],
        kind=Kind(item["kind"]["S"]),
        alert=RowKey(item["alert_pk"]["S"], item["alert_sk"]["S"]),
        body=item["body"]["S"].encode(),
        made_at=_time(item, "made_at"),
        due_at=_time(item, "due_at"),
        attempts=int(item["attempts"]["N"]),
    )


def _time(item: Item, name: str) -> datetime:
    return datetime.fromisoformat(item[name]["S"])
