"""The control: a record processor that adds without looking. Test code only; what it leaves must differ.

The rows are added to whatever their positions say, and every event's first sighting in a batch counts whoever holds its
claim. All the rest is the real child.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from consumer import child
from metering.aggregation import RowWrite
from metering.aws import store_errors
from metering.claims import Claim, Holder
from metering.dynamodb import DynamoCounterStore
from metering.dynamodb_ledger import DynamoLedger
from metering.events import decimal_text, time_text
from metering.ports import ShardRef
from metering.rows import claim_owner


class UnfencedStore(DynamoCounterStore):
    """Adds whatever comes."""

    def apply(self, shard: ShardRef, write: RowWrite, *, now: datetime) -> bool:
        with store_errors(self._table):
            self._client.update_item(
                TableName=self._table,
                Key={"pk": {"S": write.key.pk}, "sk": {"S": write.key.sk}},
                UpdateExpression="ADD #usage :usage, #events :events SET last_updated = :now",
                ExpressionAttributeNames={"#usage": "usage", "#events": "events"},
                ExpressionAttributeValues={
                    ":usage": {"N": decimal_text(write.usage)},
                    ":events": {"N": str(write.events)},
                    ":now": {"S": time_text(now)},
                },
            )
        return True


class GrantingLedger(DynamoLedger):
    """Makes every claim, as the real one, and grants it whoever holds it."""

    def claim(self, shard: ShardRef, claims: Sequence[Claim], *, now: datetime) -> dict[str, Holder]:
        super().claim(shard, claims, now=now)
        return {c.key: Holder(claim_owner(shard.stream_created_at, shard.shard_id, c.place), c.content) for c in claims}


if __name__ == "__main__":
    vars(child).update(DynamoCounterStore=UnfencedStore, DynamoLedger=GrantingLedger)
    child.main()
