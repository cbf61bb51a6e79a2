"""DynamoDB as BillingReader: all that billing reads, and the KCL's leases among it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from datetime import datetime
from typing import TYPE_CHECKING, Any

from metering.alerts import AlertPage
from metering.aws import store_errors
from metering.dynamodb_alerts import DynamoAlertStore
from metering.dynamodb_events import DynamoEventReader
from metering.dynamodb_windows import DynamoWindowReader
from metering.errors import MissingResourceError, StoreUnavailableError
from metering.settings import Settings
from metering.windows import WindowRow

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

KEYS_MAX = 100
"""Keys in one call: what BatchGetItem takes (DynamoDB API reference)."""


class DynamoBillingReader(DynamoEventReader):
    """BillingReader; thread-safe. executor: see DynamoWindowReader."""

    def __init__(self, client: DynamoDBClient, settings: Settings, *, executor: Executor | None = None) -> None:
        super().__init__(
            client,
            table=settings.table,
            ledger_table=settings.ledger_table,
            rejected_table=settings.rejected_table,
        )
        self._windows = DynamoWindowReader(
            client, table=settings.table, window_minutes=settings.window_minutes, executor=executor
        )
        self._alerts = DynamoAlertStore(client, table=settings.table)
        self._lease_table = settings.kcl_application

    def windows(
        self, tenant_id: str, metric: str, *, start: datetime, end: datetime, at_once: bool = False
    ) -> Iterator[WindowRow]:
        return self._windows.windows(tenant_id, metric, start=start, end=end, at_once=at_once)

    def window_ends(self, tenant_id: str, metric: str) -> tuple[WindowRow, WindowRow] | None:
        return self._windows.window_ends(tenant_id, metric)

    def alerts(self, tenant_id: str, *, limit: int, after: str | None) -> AlertPage:
        return self._alerts.alerts(tenant_id, limit=limit, after=after)

    def lease_owners(self, shard_ids: Sequence[str]) -> dict[str, str]:
        """See LeaseReader. The table is the KCL's (schema of KCL 3.1.3): its key is the shard's id."""
        try:
            return {
                item["leaseKey"]["S"]: item["leaseOwner"]["S"]
                for start in range(0, len(shard_ids), KEYS_MAX)
                for item in self._leases(shard_ids[start : start + KEYS_MAX])
                if "leaseOwner" in item
            }
        except MissingResourceError:
            return {}  # no consumer has run yet

    def _leases(self, shard_ids: Sequence[str]) -> list[Any]:
        with store_errors(self._lease_table):
            answer = self._client.batch_get_item(
                RequestItems={
                    self._lease_table: {
                        "Keys": [{"leaseKey": {"S": shard_id}} for shard_id in shard_ids],
                        "ProjectionExpression": "leaseKey, leaseOwner",
                        "ConsistentRead": True,
                    }
                }
            )
        if answer.get("UnprocessedKeys"):
            raise StoreUnavailableError(f"the table {self._lease_table!r} did not answer for all keys")
        return list(answer["Responses"].get(self._lease_table, []))
