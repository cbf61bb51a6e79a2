"""What a claim costs: the three ways that DynamoDB offers side by side, and write units for each thousand events.

On DynamoDB Local, which has no limits of its own but those of this machine: the ratios count, not the rates. Its
answers to PartiQL carry no consumed capacity, so an INSERT's units are measured on a PutItem of the same item.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from botocore.exceptions import ClientError

from bench.pipeline import Figure
from consumer.decoding import ReceivedRecord
from consumer.pipeline import ShardPipeline
from consumer.record_processor import retry
from devstack.tools import dynamodb_local_command
from metering.aws import dynamodb_client
from metering.claims import Claim, EventContent
from metering.dynamodb import DynamoCounterStore
from metering.dynamodb_ledger import DynamoLedger
from metering.events import time_text
from metering.ports import CLAIMS_MAX, ShardRef
from metering.rows import event_claim_key, place, total_key
from metering.settings import Settings
from operations.provision import make_tables, tables
from tests.builders import at
from tests.local_stack import free_port, running

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

CLAIMS = 3_000
TRANSACTION_MAX = 100
"""Actions in one TransactWriteItems (DynamoDB API reference)."""
SHARES = (0, 5, 50, 100)
"""Percent of duplicates."""
EVENTS = 5_000
BATCHES = (100, 500)
"""Events in a delivery."""
COUNTERS = 20

Kind = TypeVar("Kind")
Ledger = Callable[[Sequence[Claim]], object]


def claims() -> Iterator[Figure]:
    """Claims a second and CPU of this process for each, one thread, at several shares of duplicates."""
    with _dynamodb() as (client, settings):
        ledger = DynamoLedger(client, table=settings.ledger_table, ttl_days=settings.ledger_ttl_days)
        shard = _shard(settings)
        ways: dict[str, tuple[Ledger, int]] = {
            "INSERT x25 (PartiQL)": (lambda c: ledger.claim(shard, c, now=datetime.now(UTC)), CLAIMS_MAX),
            "TransactWriteItems x100": (lambda c: _transact(client, settings.ledger_table, c), TRANSACTION_MAX),
            "PutItem": (lambda c: _put(client, settings.ledger_table, c[0]), 1),
        }
        for share in SHARES:
            for name, (way, size) in ways.items():
                rate, cpu_ms = _timed(way, size, f"{name}-{share}", share)
                yield Figure(f"claims, {share} % duplicates: {name}", [rate], "claims/s", "-")
                yield Figure("  CPU of this process", [cpu_ms], "ms/claim", "-")


def units() -> Iterator[Figure]:
    """Write units for each thousand events, by ReturnConsumedCapacity: the old way, the ledger off and on."""
    yield Figure("one UpdateItem for each event (the old way)", [_old_way()], "WCU/1000", "-")
    for batch in BATCHES:
        off = _pipeline(batch, ledger=False, duplicates=0)
        yield Figure(f"LEDGER=off, {batch} events a delivery", [off.rows], "WCU/1000", "-")
        for share in (0, 50):
            on = _pipeline(batch, ledger=True, duplicates=share)
            what = f"LEDGER=on, {batch} events a delivery, {share} % duplicates"
            yield Figure(what, [on.rows + on.inserts], "WCU/1000", "-")
            yield Figure("  of these for the claims themselves", [on.inserts], "WCU/1000", "-")


def burst() -> Iterator[Figure]:
    """Events a second through the whole of a shard's pipeline at several shares of duplicates."""
    off = _pipeline(BATCHES[-1], ledger=False, duplicates=0)
    yield Figure("LEDGER=off", [off.events_s], "events/s", "-")
    for share in SHARES:
        on = _pipeline(BATCHES[-1], ledger=True, duplicates=share)
        yield Figure(f"LEDGER=on, {share} % duplicates", [on.events_s], "events/s", "-")


def _timed(way: Ledger, size: int, name: str, share: int) -> tuple[float, float]:
    old = [_claim(n, f"{name}-old") for n in range(CLAIMS * share // 100)]
    for start in range(0, len(old), size):
        way(old[start : start + size])
    again = [replace(claim, place=place(at(9), n)) for n, claim in enumerate(old)]
    mixed = list(_mixed(again, (_claim(n, f"{name}-new") for n in range(CLAIMS)), CLAIMS))
    begun_at, cpu = time.perf_counter(), time.process_time()
    for start in range(0, CLAIMS, size):
        way(mixed[start : start + size])
    return CLAIMS / (time.perf_counter() - begun_at), (time.process_time() - cpu) * 1000 / CLAIMS


def _transact(client: DynamoDBClient, table: str, claims_: Sequence[Claim]) -> None:
    """Put all that are absent: after a cancelled transaction those without a failed condition are tried again."""
    rest = list(claims_)
    while rest:
        puts: list[Any] = [
            {
                "Put": {
                    "TableName": table,
                    "Item": _item(claim),
                    "ConditionExpression": "attribute_not_exists(pk)",
                    "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
                }
            }
            for claim in rest
        ]
        try:
            client.transact_write_items(TransactItems=puts)
        except client.exceptions.TransactionCanceledException as error:
            reasons = error.response["CancellationReasons"]
            rest = [claim for claim, reason in zip(rest, reasons, strict=True) if reason["Code"] == "None"]
        else:
            return


def _put(client: DynamoDBClient, table: str, claim: Claim) -> None:
    with suppress(client.exceptions.ConditionalCheckFailedException):
        client.put_item(
            TableName=table,
            Item=_item(claim),
            ConditionExpression="attribute_not_exists(pk)",
            ReturnValuesOnConditionCheckFailure="ALL_OLD",
        )


def _old_way() -> float:
    with _dynamodb() as (client, settings):
        spent = 0.0
        for n in range(EVENTS // 10):
            key = total_key(f"tenant-{n % COUNTERS}", "api_calls")
            answer = client.update_item(
                TableName=settings.table,
                Key={"pk": {"S": key.pk}, "sk": {"S": key.sk}},
                UpdateExpression="ADD #usage :value SET last_updated = :now",
                ExpressionAttributeNames={"#usage": "usage"},
                ExpressionAttributeValues={":value": {"N": "10"}, ":now": {"S": time_text(datetime.now(UTC))}},
                ReturnConsumedCapacity="TOTAL",
            )
            spent += answer["ConsumedCapacity"]["CapacityUnits"]
        return spent * 1000 / (EVENTS // 10)


@dataclass(frozen=True)
class _Run:
    """rows: write units for each thousand events, for all but the INSERTs; inserts: for those."""

    rows: float
    inserts: float
    events_s: float


def _pipeline(batch: int, *, ledger: bool, duplicates: int) -> _Run:
    with _dynamodb() as (client, settings):
        spent = _Capacity(client)
        store = DynamoCounterStore(client, table=settings.table, rejected_table="-", rejected_ttl_days=1)
        shard = _shard(settings)
        store.open_shard(shard, complete_until=None, now=datetime.now(UTC))
        pipeline = ShardPipeline(
            store,
            DynamoLedger(client, table=settings.ledger_table, ttl_days=settings.ledger_ttl_days),
            shard,
            window_minutes=60,
            age_days_max=None,
            claim_events=ledger,
            retry=retry,
            clock=lambda: datetime.now(UTC),
        )
        old = [f"0190b5c6-7d8e-7f00-8000-{n:012d}" for n in range(EVENTS * duplicates // 100)]
        for start in range(0, len(old), batch):
            pipeline.apply(_records(old[start : start + batch], start), None)
        new = (f"0190b5c6-7d8e-7f00-9000-{n:012d}" for n in range(EVENTS))
        records = _records(_mixed(old, new, EVENTS), EVENTS)
        spent.units = spent.inserts = 0
        begun_at = time.perf_counter()
        for start in range(0, EVENTS, batch):
            pipeline.apply(records[start : start + batch], None)
        seconds = time.perf_counter() - begun_at
        rows = spent.units
        _put(client, settings.ledger_table, _claim(0, "one"))
        return _Run(rows * 1000 / EVENTS, spent.inserts * (spent.units - rows) * 1000 / EVENTS, EVENTS / seconds)


class _Capacity:
    """Adds up what the answers of a client say was consumed by writes, and counts the INSERTs."""

    def __init__(self, client: DynamoDBClient) -> None:
        self.units, self.inserts = 0.0, 0
        events = client.meta.events
        for call in ("UpdateItem", "PutItem"):
            events.register(f"provide-client-params.dynamodb.{call}", self._ask)
            events.register(f"after-call.dynamodb.{call}", self._add)
        events.register("provide-client-params.dynamodb.BatchExecuteStatement", self._count)

    def _ask(self, params: dict[str, Any], **_: object) -> dict[str, Any]:
        return {**params, "ReturnConsumedCapacity": "TOTAL"}

    def _add(self, parsed: dict[str, Any], **_: object) -> None:
        # A write whose condition failed is billed like one that was done, and its answer says nothing.
        self.units += parsed.get("ConsumedCapacity", {}).get("CapacityUnits", 1)

    def _count(self, params: dict[str, Any], **_: object) -> dict[str, Any]:
        self.inserts += len(params["Statements"])
        return params


def _records(ids: Iterable[str], start: int) -> list[ReceivedRecord]:
    """Return a record for each event id; start: what their sequence numbers begin at."""
    now = datetime.now(UTC)
    return [
        ReceivedRecord(
            str(10**55 + start + n),
            json.dumps(
                {
                    "tenant_id": f"tenant-{int(event_id[-12:]) % COUNTERS}",
                    "metric": "api_calls",
                    "value": "10",
                    "timestamp": "2024-01-15T10:00:00Z",
                    "event_id": event_id,
                }
            ).encode(),
            now,
        )
        for n, event_id in enumerate(ids)
    ]


def _mixed(old: Sequence[Kind], new: Iterable[Kind], count: int) -> Iterator[Kind]:
    """Yield `count` of both, all of `old` spread evenly among them."""
    again, fresh = iter(old), iter(new)
    for n in range(count):
        yield next(again if n * len(old) // count != (n + 1) * len(old) // count else fresh)


def _claim(n: int, run: str) -> Claim:
    key = event_claim_key("tenant-123", f"{run}-{n:08d}")
    content = EventContent("api_calls", Decimal(10), "2024-01-15T10:00:00Z")
    return Claim(key, place(f"056{10**55 + n}", 0), content, datetime.now(UTC))


def _item(claim: Claim) -> dict[str, Any]:
    """The same attributes as DynamoLedger writes."""
    return {
        "pk": {"S": claim.key},
        "owner": {"S": f"s6k2o0.0@{claim.place}"},
        "metric": {"S": "api_calls"},
        "value": {"N": "10"},
        "timestamp": {"S": "2024-01-15T10:00:00Z"},
        "counted_at": {"S": time_text(claim.arrived_at)},
        "expires_at": {"N": str(int((claim.arrived_at + timedelta(days=35)).timestamp()))},
    }


def _shard(settings: Settings) -> ShardRef:
    return ShardRef(settings.stream, datetime(2026, 1, 1, tzinfo=UTC), "shardId-000000000000")


@contextmanager
def _dynamodb() -> Iterator[tuple[DynamoDBClient, Settings]]:
    with tempfile.TemporaryDirectory() as folder:
        port = free_port()
        with running(dynamodb_local_command(port, Path(folder) / "tables"), port, Path(folder) / "log") as endpoint:
            settings = replace(Settings.from_environment({}), dynamodb_endpoint=endpoint)
            client = dynamodb_client(settings, connections_max=16)
            try:
                make_tables(client, tables(settings)[:3])
                yield client, settings
            except ClientError:
                client.close()
                raise
