"""DynamoDB as CounterStore and UsageReader: over 300 lines, so that an item is written and read in one place.

The one write that carries the promise, for each row that a batch touches:

    ADD usage :usage, events :events  SET last_updated = :now, #applied = :last
    IF attribute_not_exists(#applied) OR #applied < :first

If the condition fails, the item comes back with the error: what lies at or below its position is in the row already
and is dropped, the rest is tried again. A write whose answer was lost is therefore safe to repeat.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

from metering.aggregation import RecordOutcome, RowWrite, counted_by_hour, hours_just_past, outcomes_beyond
from metering.aws import error_code, error_item, store_errors
from metering.dynamodb_readings import covered_attribute, keep_update, kept_readings
from metering.errors import StoreUnavailableError
from metering.events import decimal_text, time_text
from metering.ports import RejectedEvent, ShardProgress, ShardRef, TenantPage, Total
from metering.positions import BEGINNING
from metering.readings import Reading
from metering.rows import (
    DIRECTORY_PK,
    METRIC_PREFIX,
    SHARD_PREFIX,
    STREAM_PREFIX,
    RowKey,
    applied_attribute,
    directory_key,
    expiry,
    hour_attribute,
    hour_of_attribute,
    progress_key,
    rejected_key,
    rejected_of_tenant_key,
    rejected_pointer_key,
    tenant_pk,
    total_key,
)

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

RAW_BYTES_MAX = 256 * 1024
"""Bytes of a rejected record that are kept: an item holds 400 KB at most (DynamoDB quotas), a record more."""

_CONDITION_FAILED = "ConditionalCheckFailedException"
Item = Mapping[str, Any]


class DynamoCounterStore:
    """Writes for the consumer; thread-safe."""

    def __init__(self, client: DynamoDBClient, *, table: str, rejected_table: str, rejected_ttl_days: int) -> None:
        self._client = client
        self._table = table
        self._rejected_table = rejected_table
        self._rejected_ttl_days = rejected_ttl_days

    def apply(self, shard: ShardRef, write: RowWrite, *, now: datetime) -> bool:
        applied = applied_attribute(shard.stream_created_at, shard.shard_id)
        add, names = "ADD #usage :usage, #events :events", {"#usage": "usage", "#events": "events", "#applied": applied}
        if write.reading is not None:
            add += ", #covered :events"
            names["#covered"] = covered_attribute(write.reading.aggregation)
        rest: RowWrite | None = write
        while rest is not None:
            before = self._update_unless_failed(
                write.key,
                f"{add} SET last_updated = :now, #applied = :last",
                "attribute_not_exists(#applied) OR #applied < :first",
                names,
                {
                    ":usage": {"N": decimal_text(rest.usage)},
                    ":events": {"N": str(rest.events)},
                    ":now": {"S": time_text(now)},
                    ":first": {"S": rest.first},
                    ":last": {"S": rest.last},
                },
            )
            if before is None:
                return True
            if applied not in before:
                raise StoreUnavailableError(f"the row {write.key} changed while it was written")
            rest = rest.beyond(before[applied]["S"])
        return False

    def keep_reading(self, key: RowKey, reading: Reading) -> bool:
        return update_unless_failed(self._client, self._table, _key(key), **keep_update(reading)) is None

    def reject(self, shard: ShardRef, rejected: RejectedEvent, *, now: datetime) -> None:
        key = rejected_key(shard.shard_id, rejected.position, rejected.index)
        # A clock that went back must not make the row expire at once.
        expires_at = {"N": str(expiry(max(now, rejected.arrived_at), self._rejected_ttl_days))}
        self._put_once(
            self._rejected_table,
            key,
            {
                "reason": {"S": rejected.reason},
                "detail": {"S": rejected.detail},
                "raw": {"B": rejected.raw[:RAW_BYTES_MAX]},
                "raw_bytes": {"N": str(len(rejected.raw))},
                "raw_sha256": {"S": hashlib.sha256(rejected.raw).hexdigest()},
                "arrived_at": {"S": time_text(rejected.arrived_at)},
                "rejected_at": {"S": time_text(now)},
                "stream": {"S": shard.stream},
                "stream_created_at": {"S": time_text(shard.stream_created_at)},
                "expires_at": expires_at,
            },
        )
        pointer = {"reason": {"S": rejected.reason}, "expires_at": expires_at}
        if rejected.claim_key is not None:
            self._put_once(self._rejected_table, rejected_pointer_key(rejected.claim_key, key), pointer)
        if rejected.tenant_id is not None:
            of_tenant = rejected_of_tenant_key(rejected.tenant_id, rejected.arrived_at, key)
            self._put_once(self._rejected_table, of_tenant, pointer)

    def register_tenant(self, tenant_id: str, *, now: datetime) -> None:
        self._put_once(self._table, directory_key(tenant_id), {"first_seen_at": {"S": time_text(now)}})

    def open_shard(self, shard: ShardRef, *, complete_until: datetime | None, now: datetime) -> None:
        item: dict[str, Any] = {
            "stream_created_at": {"S": time_text(shard.stream_created_at)},
            "position": {"S": BEGINNING},
            "opened_at": {"S": time_text(now)},
            "closed": {"BOOL": False},
            **{name: {"N": "0"} for name in ("records", "events", "counted", "duplicates", "rejected")},
        }
        if complete_until is not None:
            item["complete_until"] = {"S": time_text(complete_until)}
        key = progress_key(shard.stream, shard.shard_id)
        try:
            with store_errors(self._table):
                self._client.put_item(
                    TableName=self._table,
                    Item={**_key(key), **item},
                    # An older incarnation's row gives way; this one's stays.
                    ConditionExpression="attribute_not_exists(pk) OR stream_created_at < :created_at",
                    ExpressionAttributeValues={":created_at": item["stream_created_at"]},
                    ReturnValuesOnConditionCheckFailure="ALL_OLD",
                )
        except ClientError as error:
            if error_code(error) != _CONDITION_FAILED:
                raise
            self._forget_hours(shard, error_item(error), now=now)

    def record_progress(
        self,
        shard: ShardRef,
        outcomes: Sequence[RecordOutcome],
        *,
        complete_until: datetime | None,
        now: datetime,
    ) -> None:
        rest, until = list(outcomes), time_text(complete_until) if complete_until is not None else None
        past = {f"#past{n}": hour_attribute(hour) for n, hour in enumerate(hours_just_past(now))}
        while True:
            sets, condition = ["heartbeat_at = :now"], "stream_created_at = :created_at"
            values: dict[str, Any] = {
                ":now": {"S": time_text(now)},
                ":created_at": {"S": time_text(shard.stream_created_at)},
            }
            if until is not None:
                sets.append("complete_until = :until")
                condition += " AND (attribute_not_exists(complete_until) OR complete_until <= :until)"
                values[":until"] = {"S": until}
            update, names = f"REMOVE {', '.join(past)} ", dict(past)
            if rest:
                hours = counted_by_hour(rest, now=now)
                sets += ["#position = :last", "newest_arrival_at = :arrival"]
                condition += " AND #position < :first"
                added = [*_COUNTS, *map(hour_attribute, hours)]
                update += "ADD " + ", ".join(f"#add{n} :add{n}" for n in range(len(added))) + " "
                names |= {f"#add{n}": name for n, name in enumerate(added)} | {"#position": "position"}
                counts = [sum(getattr(outcome, name) for outcome in rest) for name in _COUNTS[1:]]
                values |= {
                    ":first": {"S": rest[0].position},
                    ":last": {"S": rest[-1].position},
                    ":arrival": {"S": time_text(max(outcome.arrived_at for outcome in rest))},
                    **{f":add{n}": {"N": str(count)} for n, count in enumerate([len(rest), *counts, *hours.values()])},
                }
            before = self._update_unless_failed(
                progress_key(shard.stream, shard.shard_id),
                f"{update}SET {', '.join(sets)}",
                condition,
                names,
                values,
            )
            if before is None:
                return
            if before.get("stream_created_at") != values[":created_at"]:
                raise StoreUnavailableError(f"shard {shard.shard_id} has no progress row of this stream's incarnation")
            rest = outcomes_beyond(rest, before["position"]["S"])
            if until is not None and before.get("complete_until", {"S": ""})["S"] > until:
                until = None  # what was complete stays complete: a replay knows less

    def _forget_hours(self, shard: ShardRef, row: Item, *, now: datetime) -> None:
        """Remove the hours that nobody removed while no consumer ran: a row over 1 KB costs more to write."""
        last_past = hours_just_past(now)[-1]
        hours = [name for name in row if (hour := hour_of_attribute(name)) is not None and hour <= last_past]
        if not hours or row["stream_created_at"]["S"] != time_text(shard.stream_created_at):
            return
        self._update_unless_failed(
            progress_key(shard.stream, shard.shard_id),
            "REMOVE " + ", ".join(f"#past{n}" for n in range(len(hours))),
            "stream_created_at = :created_at",
            {f"#past{n}": name for n, name in enumerate(hours)},
            {":created_at": {"S": time_text(shard.stream_created_at)}},
        )

    def close_shard(self, shard: ShardRef, *, now: datetime) -> None:
        self._update_unless_failed(
            progress_key(shard.stream, shard.shard_id),
            "SET closed = :true, closed_at = :now",
            "stream_created_at = :created_at",
            {},
            {
                ":true": {"BOOL": True},
                ":now": {"S": time_text(now)},
                ":created_at": {"S": time_text(shard.stream_created_at)},
            },
        )

    def _update_unless_failed(
        self, key: RowKey, update: str, condition: str, names: Mapping[str, str], values: Mapping[str, Any]
    ) -> Item | None:
        return update_unless_failed(
            self._client, self._table, _key(key), update=update, condition=condition, names=names, values=values
        )

    def _put_once(self, table: str, key: RowKey, attributes: Item) -> None:
        try:
            with store_errors(table):
                self._client.put_item(
                    TableName=table,
                    Item={**_key(key), **attributes},
                    ConditionExpression="attribute_not_exists(pk)",
                )
        except ClientError as error:
            if error_code(error) != _CONDITION_FAILED:
                raise


def update_unless_failed(
    client: DynamoDBClient,
    table: str,
    key: Item,
    *,
    update: str,
    condition: str,
    names: Mapping[str, str],
    values: Mapping[str, Any],
) -> Item | None:
    """Update one item; return None when it was done, the item as it is when the condition failed, empty for none."""
    request: dict[str, Any] = {"ExpressionAttributeNames": dict(names)} if names else {}
    try:
        with store_errors(table):
            client.update_item(
                TableName=table,
                Key=key,
                UpdateExpression=update,
                ConditionExpression=condition,
                ExpressionAttributeValues=values,
                ReturnValuesOnConditionCheckFailure="ALL_OLD",
                **request,
            )
    except ClientError as error:
        if error_code(error) != _CONDITION_FAILED:
            raise
        return error_item(error)
    return None


_COUNTS = ("records", "events", "counted", "duplicates", "rejected")
"""Of a progress row: how many records, and what became of their events, under the names of RecordOutcome."""


class DynamoUsageReader:
    """Reads for billing; thread-safe."""

    def __init__(self, client: DynamoDBClient, *, table: str) -> None:
        self._client = client
        self._table = table

    def tenants(self, *, limit: int, after: str | None) -> TenantPage:
        condition, values = "pk = :pk", {":pk": {"S": DIRECTORY_PK}}
        if after is not None:
            condition += " AND sk > :after"
            values[":after"] = {"S": after}
        items = self._query(condition, values, limit=limit + 1)
        tenant_ids = tuple(item["sk"]["S"] for item in items[:limit])
        return TenantPage(tenant_ids, tenant_ids[-1] if len(items) > limit else None)

    def totals(self, tenant_id: str) -> list[Total]:
        items = self._query(
            "pk = :pk AND begins_with(sk, :metric)",
            {":pk": {"S": tenant_pk(tenant_id)}, ":metric": {"S": METRIC_PREFIX}},
        )
        return [
            _total(tenant_id, item["sk"]["S"].removeprefix(METRIC_PREFIX), item) for item in items if _is_counted(item)
        ]

    def total(self, tenant_id: str, metric: str) -> Total | None:
        with store_errors(self._table):
            answer = self._client.get_item(
                TableName=self._table, Key=_key(total_key(tenant_id, metric)), ConsistentRead=True
            )
        item = answer.get("Item")
        return _total(tenant_id, metric, item) if item and _is_counted(item) else None

    def progress(self, stream: str) -> list[ShardProgress]:
        items = self._query("pk = :pk", {":pk": {"S": STREAM_PREFIX + stream}})
        shards = [_progress(item) for item in items]
        newest = max((shard.stream_created_at for shard in shards), default=None)
        return [shard for shard in shards if shard.stream_created_at == newest]

    def check(self) -> None:
        with store_errors(self._table):
            self._client.get_item(TableName=self._table, Key=_key(directory_key("-")), ConsistentRead=True)

    def _query(self, condition: str, values: Mapping[str, Any], *, limit: int | None = None) -> list[Item]:
        return query_items(self._client, self._table, condition, values, limit=limit)


def query_items(
    client: DynamoDBClient,
    table: str,
    condition: str,
    values: Mapping[str, Any],
    *,
    limit: int | None = None,
    forward: bool = True,
) -> list[Item]:
    """Return all items, or the first `limit`, in order of their sort keys, or in the reverse; strongly consistent."""
    items: list[Item] = []
    request: dict[str, Any] = {}
    while True:
        if limit is not None:
            request["Limit"] = limit - len(items)
        with store_errors(table):
            page = client.query(
                TableName=table,
                KeyConditionExpression=condition,
                ExpressionAttributeValues=values,
                ScanIndexForward=forward,
                ConsistentRead=True,
                **request,
            )
        items += page["Items"]
        if "LastEvaluatedKey" not in page or (limit is not None and len(items) >= limit):
            return items
        request["ExclusiveStartKey"] = page["LastEvaluatedKey"]


def _key(key: RowKey) -> dict[str, Any]:
    return {"pk": {"S": key.pk}, "sk": {"S": key.sk}}


def _is_counted(item: Item) -> bool:
    # A reading is kept before its event is counted: till then there is no usage.
    return "usage" in item


def _total(tenant_id: str, metric: str, item: Item) -> Total:
    # A row that only a person has written to (the troubleshooting guide's update-item) counts no event.
    return Total(
        tenant_id=tenant_id,
        metric=metric,
        usage=Decimal(item["usage"]["N"]),
        events=int(item.get("events", {"N": "0"})["N"]),
        last_updated=datetime.fromisoformat(item["last_updated"]["S"]),
        readings=kept_readings(item),
    )


def _progress(item: Item) -> ShardProgress:
    return ShardProgress(
        shard_id=item["sk"]["S"].removeprefix(SHARD_PREFIX),
        stream_created_at=datetime.fromisoformat(item["stream_created_at"]["S"]),
        position=item["position"]["S"],
        records=int(item["records"]["N"]),
        events=int(item["events"]["N"]),
        counted=int(item["counted"]["N"]),
        duplicates=int(item["duplicates"]["N"]),
        rejected=int(item["rejected"]["N"]),
        newest_arrival_at=_time(item, "newest_arrival_at"),
        complete_until=_time(item, "complete_until"),
        heartbeat_at=_time(item, "heartbeat_at"),
        closed=item["closed"]["BOOL"],
        counted_by_hour={
            hour: int(count["N"]) for name, count in item.items() if (hour := hour_of_attribute(name)) is not None
        },
    )


def _time(item: Item, attribute: str) -> datetime | None:
    return datetime.fromisoformat(item[attribute]["S"]) if attribute in item else None
