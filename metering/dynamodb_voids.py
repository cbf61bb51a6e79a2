"""DynamoDB as BillingStore: what DynamoBillingReader reads, and the void of an event.

One TransactWriteItems of three updates, see metering.voids. The condition on the claim makes it safe to ask again, for
as long as the claim is there, which is for good; a ClientRequestToken of ours would do so for ten minutes. (botocore
makes one for each call, and sends it again with its own retries: these are told that the first attempt went through.)
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

from metering.aws import cancellation_reasons, store_errors
from metering.dynamodb_billing import DynamoBillingReader
from metering.dynamodb_readings import kept_readings
from metering.events import decimal_text, time_text
from metering.meters import Aggregation
from metering.rows import RowKey, owner_fence
from metering.voids import Void, VoidOutcome

if TYPE_CHECKING:
    from mypy_boto3_dynamodb.type_defs import TransactWriteItemTypeDef

_CONDITION_FAILED = "ConditionalCheckFailed"
_ROW_HOLDS_EVENT = "#applied >= :position AND #events >= :one AND #usage >= :usage"
"""A row holds exactly the records up to its own position. The rest is true unless somebody has written over it."""
_ROW_KEEPS_NO_READING = "attribute_not_exists(#max) AND attribute_not_exists(#latest)"


class DynamoBillingStore(DynamoBillingReader):
    """BillingStore; thread-safe."""

    def void(self, void: Void, *, now: datetime) -> VoidOutcome:
        try:
            with store_errors(self._table):
                self._client.transact_write_items(
                    TransactItems=[
                        self._claim_update(void, now),
                        *(self._row_update(void, key, now) for key in void.rows),
                    ]
                )
        except ClientError as error:
            claim, *rows = cancellation_reasons(error) or [("", {})]
            if claim[0] == _CONDITION_FAILED:
                return VoidOutcome.CLAIM_CHANGED
            if any(kept_readings(row) for _, row in rows):
                return VoidOutcome.KEEPS_READING
            if any(code == _CONDITION_FAILED for code, _ in rows):
                return VoidOutcome.NOT_HELD
            raise
        return VoidOutcome.VOIDED

    def _claim_update(self, void: Void, now: datetime) -> TransactWriteItemTypeDef:
        noted: dict[str, Any] = {
            "voided_at": {"S": time_text(now)},
            "voided_by": {"S": void.request.by},
            "void_reason": {"S": void.request.reason},
        }
        if void.key_fingerprint is not None:
            noted["voided_key"] = {"S": void.key_fingerprint}
        return {
            "Update": {
                "TableName": self._ledger_table,
                "Key": {"pk": {"S": void.key}},
                # Without an end: the audit has to find it for as long as the stream holds the event.
                "UpdateExpression": f"SET {', '.join(f'{name} = :{name}' for name in noted)} REMOVE expires_at",
                "ConditionExpression": "#owner = :owner AND attribute_not_exists(voided_at)",
                "ExpressionAttributeNames": {"#owner": "owner"},
                "ExpressionAttributeValues": {
                    ":owner": {"S": void.owner},
                    **{f":{name}": value for name, value in noted.items()},
                },
            }
        }

    def _row_update(self, void: Void, key: RowKey, now: datetime) -> TransactWriteItemTypeDef:
        applied, position = owner_fence(void.owner)
        return {
            "Update": {
                "TableName": self._table,
                "Key": {"pk": {"S": key.pk}, "sk": {"S": key.sk}},
                "UpdateExpression": "ADD #usage :minus_usage, #events :minus_one, voided_usage :usage, "
                "voided_events :one SET last_updated = :now",
                "ConditionExpression": f"{_ROW_HOLDS_EVENT} AND {_ROW_KEEPS_NO_READING}",
                "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
                "ExpressionAttributeNames": {
                    "#usage": "usage",
                    "#events": "events",
                    "#applied": applied,
                    "#max": Aggregation.MAX.value,
                    "#latest": Aggregation.LATEST.value,
                },
                "ExpressionAttributeValues": {
                    ":usage": {"N": decimal_text(void.usage)},
                    ":minus_usage": {"N": decimal_text(-void.usage)},
                    ":one": {"N": "1"},
                    ":minus_one": {"N": "-1"},
                    ":position": {"S": position},
                    ":now": {"S": time_text(now)},
                },
            }
        }
