"""The tables as an audit reads them: consistently, and nothing is written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from itertools import islice
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import stamina

from metering.aws import store_errors
from metering.dynamodb import DynamoUsageReader, Item
from metering.dynamodb_ledger import holder_of
from metering.dynamodb_readings import kept_readings
from metering.errors import ServiceUnavailableError, StoreUnavailableError
from metering.events import time_text
from metering.ports import ShardProgress
from metering.rows import APPLIED_PREFIX, METRIC_PREFIX, STREAM_PREFIX, TENANT_PREFIX, WINDOW_PREFIX, RowKey
from metering.settings import Settings
from operations.audit_claims import HeldClaim
from operations.audit_tally import ZERO, Amount, FoundRow

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

KEYS_MAX = 100
"""Keys in one BatchGetItem (DynamoDB API reference)."""
RETRY_S = 120.0

Answer = TypeVar("Answer")
Key = TypeVar("Key")
Arguments = ParamSpec("Arguments")


def patiently(call: Callable[Arguments, Answer], *args: Arguments.args, **kwargs: Arguments.kwargs) -> Answer:
    """Return what an idempotent call returns, made again while a service is away, RETRY_S seconds at most."""
    return stamina.retry(
        on=ServiceUnavailableError, attempts=None, timeout=RETRY_S, wait_initial=0.2, wait_max=5.0, wait_jitter=0.5
    )(call)(*args, **kwargs)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Progress rows of this incarnation of the stream, and the rows as they were afterwards, each at its own time.

    other_streams: whether another stream is counted in the same table.
    """

    progress: list[ShardProgress]
    rows: dict[RowKey, FoundRow]
    other_streams: bool


class AuditedTables:
    """Reads the tables; thread-safe. Waits for a table that is away, and raises as UsageReader does in the end."""

    def __init__(self, client: DynamoDBClient, settings: Settings) -> None:
        self._client = client
        self._settings = settings
        self._reader = DynamoUsageReader(client, table=settings.table)

    def snapshot(self, stream_created_at: datetime) -> Snapshot:
        """Read the progress rows, then all others: a row is then never older than the progress."""
        created_at = time_text(stream_created_at)
        progress = [
            shard
            for shard in patiently(self._reader.progress, self._settings.stream)
            if time_text(shard.stream_created_at) == created_at
        ]
        rows: dict[RowKey, FoundRow] = {}
        names: dict[str, str] = {}  # one string for each attribute: there are as many rows as counters and hours
        own_progress, other_streams = STREAM_PREFIX + self._settings.stream, False
        for item in self._items():
            pk, sk = item["pk"]["S"], item["sk"]["S"]
            other_streams |= pk.startswith(STREAM_PREFIX) and pk != own_progress
            counted = pk.startswith(TENANT_PREFIX) and sk.startswith((METRIC_PREFIX, WINDOW_PREFIX))
            if counted and not _only_keeps_readings(item):
                rows[RowKey(pk, sk)] = _found_row(item, names)
        return Snapshot(progress, rows, other_streams)

    def held(self, keys: Iterable[str]) -> dict[str, HeldClaim]:
        """Return the claims of those keys that are held."""
        return {
            item["pk"]["S"]: HeldClaim(holder_of(item), _time(item, "counted_at"), "voided_at" in item)
            for item in self._batch_get(self._settings.ledger_table, ({"pk": {"S": key}} for key in keys))
        }

    def voided_now(self, key: RowKey) -> Amount:
        """Return what a row says was taken out of it.

        In a transaction: a plain read may still find a row as it was before a void whose claim has been read already.
        """
        item = patiently(self._get_settled, key)
        return ZERO if item is None else _voided(item)

    def rejected_reasons(self, keys: Iterable[RowKey]) -> dict[RowKey, str]:
        """Return the reasons of those rejected events that have a row."""
        wanted = ({"pk": {"S": key.pk}, "sk": {"S": key.sk}} for key in keys)
        return {
            RowKey(item["pk"]["S"], item["sk"]["S"]): item.get("reason", {}).get("S", "")
            for item in self._batch_get(self._settings.rejected_table, wanted, attributes="pk, sk, reason")
        }

    def _items(self) -> Iterator[Item]:
        request: dict[str, Any] = {}
        while True:
            page = patiently(self._scan, request)
            yield from page["Items"]
            if "LastEvaluatedKey" not in page:
                return
            request = {"ExclusiveStartKey": page["LastEvaluatedKey"]}

    def _scan(self, request: Mapping[str, Any]) -> Any:
        with store_errors(self._settings.table):
            return self._client.scan(TableName=self._settings.table, ConsistentRead=True, **request)

    def _get_settled(self, key: RowKey) -> Item | None:
        table = self._settings.table
        wanted: Any = {"Get": {"TableName": table, "Key": {"pk": {"S": key.pk}, "sk": {"S": key.sk}}}}
        with store_errors(table):
            [found] = self._client.transact_get_items(TransactItems=[wanted])["Responses"]
        return found.get("Item")

    def _batch_get(self, table: str, keys: Iterable[Item], *, attributes: str | None = None) -> Iterator[Item]:
        projection = {"ProjectionExpression": attributes} if attributes else {}
        for chunk in _chunks(keys, KEYS_MAX):
            rest: dict[str, Any] = {table: {"Keys": chunk, "ConsistentRead": True, **projection}}
            while rest:
                answer = patiently(self._get_some, table, rest)
                yield from answer["Responses"].get(table, [])
                rest = answer.get("UnprocessedKeys") or {}

    def _get_some(self, table: str, request: Mapping[str, Any]) -> Any:
        with store_errors(table):
            answer = self._client.batch_get_item(RequestItems=request)
        if not answer["Responses"].get(table) and answer.get("UnprocessedKeys"):
            raise StoreUnavailableError(f"the table {table!r} answered for no key")
        return answer


def _found_row(item: Item, names: dict[str, str]) -> FoundRow:
    applied = {
        names.setdefault(name, name): value["S"]
        for name, value in item.items()
        if name.startswith(APPLIED_PREFIX) and "S" in value
    }
    usage, events = _number(item, "usage"), _number(item, "events")
    return FoundRow(
        usage,
        None if events is None or events % 1 else int(events),
        applied,
        voided=_voided(item),
        readings=kept_readings(item),
    )


def _voided(item: Item) -> Amount:
    usage, events = _number(item, "voided_usage"), _number(item, "voided_events")
    return ZERO if usage is None or events is None else Amount(usage, int(events))


def _only_keeps_readings(item: Item) -> bool:
    """Return whether nothing was added to the row yet: a reading is kept before its event is counted."""
    return bool(kept_readings(item)) and not item.keys() & {"usage", "events"}


def _number(item: Item, attribute: str) -> Decimal | None:
    text = item.get(attribute, {}).get("N")
    return None if text is None else Decimal(text)


def _time(item: Item, attribute: str) -> datetime | None:
    try:
        found = datetime.fromisoformat(item[attribute]["S"])
    except (KeyError, ValueError):
        return None
    return found if found.tzinfo else None


def _chunks(each: Iterable[Key], size: int) -> Iterator[list[Key]]:
    rest = iter(each)
    while chunk := list(islice(rest, size)):
        yield chunk
