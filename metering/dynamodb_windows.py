"""DynamoDB as WindowReader: the rows of a counter are one range of one partition's keys, so Queries and never a Scan.

A long range is asked for in up to QUERIES_MAX parts side by side: DynamoDB answers 1 MB at a time, a year of hours is
about two of those, and the parts of a range together cost what one Query of all of it does. What each part answers
first is held until its turn comes; whatever is left of it is read when that has been used up.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import Executor
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from metering.aws import store_errors
from metering.dynamodb_readings import USAGE_ATTRIBUTES, kept_readings
from metering.rows import tenant_pk
from metering.windows import WindowRow, parts, row_of_stamp, sort_key, stamps

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

QUERIES_MAX = 4
"""Parts of one range; more make it no quicker, measured."""
ROWS_EACH = 1_000
"""Rows for which a part is worth its Query: a month of hours is asked for at once."""

_NAMES = {f"#{name}": name for name in ("sk", "usage", "events", *USAGE_ATTRIBUTES)}
_NOTHING = Decimal(0)
_COUNTED_ATTRIBUTES = 3  # an item without readings has no more of those


class DynamoWindowReader:
    """WindowReader; thread-safe.

    window_minutes: USAGE_WINDOW_MINUTES. executor: where parts are asked for side by side; None: one after the other.
    """

    def __init__(
        self, client: DynamoDBClient, *, table: str, window_minutes: int, executor: Executor | None = None
    ) -> None:
        self._client = client
        self._table = table
        self._window_minutes = window_minutes
        self._executor = executor

    def windows(
        self, tenant_id: str, metric: str, *, start: datetime, end: datetime, at_once: bool = False
    ) -> Iterator[WindowRow]:
        parts_max = 1 if at_once else QUERIES_MAX
        ranges = [
            _range(tenant_id, metric, stamps(*part))
            for part in parts(start, end, rows_each=ROWS_EACH, parts_max=parts_max, window_minutes=self._window_minutes)
        ]
        for page in self._pages(ranges):
            rows = self._rows(page, len(sort_key(metric, "")))
            yield from rows if start.minute == 0 else (row for row in rows if row.end > start)

    def window_ends(self, tenant_id: str, metric: str) -> tuple[WindowRow, WindowRow] | None:
        whole = _range(tenant_id, metric, ("", "~"))  # after every digit
        pages = [self._query(whole | {"ScanIndexForward": forward, "Limit": 1}) for forward in (True, False)]
        if not all(page["Items"] for page in pages):
            return None
        [first], [last] = (self._rows(page, len(sort_key(metric, ""))) for page in pages)
        return first, last

    def _pages(self, ranges: list[dict[str, Any]]) -> Iterator[Mapping[str, Any]]:
        """Yield what is answered for all ranges, in their order: the first pages of all are asked for at once."""
        side_by_side = self._executor.map if self._executor is not None and len(ranges) > 1 else map
        answers: Iterator[Mapping[str, Any]] = side_by_side(self._query, ranges)
        for asked, answer in zip(ranges, answers, strict=True):
            page = answer
            yield page
            while "LastEvaluatedKey" in page:
                page = self._query(asked | {"ExclusiveStartKey": page["LastEvaluatedKey"]})
                yield page

    def _query(self, asked: dict[str, Any]) -> Mapping[str, Any]:
        with store_errors(self._table):
            return self._client.query(
                TableName=self._table,
                KeyConditionExpression="pk = :pk AND sk BETWEEN :first AND :last",
                ProjectionExpression=", ".join(_NAMES),
                ExpressionAttributeNames=_NAMES,
                ConsistentRead=True,
                **asked,
            )

    def _rows(self, page: Mapping[str, Any], prefix_length: int) -> list[WindowRow]:
        return [
            row_of_stamp(
                item["sk"]["S"][prefix_length:],
                Decimal(item["usage"]["N"]) if "usage" in item else _NOTHING,  # a reading is kept before it is counted
                int(item["events"]["N"]) if "events" in item else 0,  # a row that a person has written counts none
                kept_readings(item) if len(item) > _COUNTED_ATTRIBUTES else (),
                window_minutes=self._window_minutes,
            )
            for item in page["Items"]
        ]


def _range(tenant_id: str, metric: str, between: tuple[str, str]) -> dict[str, Any]:
    first, last = between
    return {
        "ExpressionAttributeValues": {
            ":pk": {"S": tenant_pk(tenant_id)},
            ":first": {"S": sort_key(metric, first)},
            ":last": {"S": sort_key(metric, last)},
        }
    }
