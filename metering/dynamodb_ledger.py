"""DynamoDB as the ledger of claims.

    INSERT (put if absent), 25 in one BatchExecuteStatement ──► who was there before? ──► BatchGetItem, consistent

One write unit for each claim, and a failed one costs no other: chosen by measurement, see docs/decisions. An INSERT
whose answer was lost is safe to repeat: it finds its own owner.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

from metering.aws import TRANSIENT_PARTS, error_code, store_errors
from metering.claims import BatchContent, Claim, Content, EventContent, Holder, RepeatsWrite
from metering.dynamodb import Item, update_unless_failed
from metering.errors import AccessRefusedError, MissingResourceError, StoreUnavailableError
from metering.events import decimal_text, time_text
from metering.ports import ShardRef
from metering.rows import (
    BATCH_PREFIX,
    REPEATED_PREFIX,
    claim_owner,
    expiry,
    repeated_attribute,
    seen_attribute,
)

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

ROUNDS_MAX = 4
"""A claim is made again when its holder has expired between the insert and the look; more than this is no chance."""

_log = logging.getLogger(__name__)

_HELD = "DuplicateItem"


class DynamoLedger:
    """Ledger on one table with the key pk; thread-safe. ttl_days: how long a claim is kept."""

    def __init__(self, client: DynamoDBClient, *, table: str, ttl_days: int) -> None:
        self._client = client
        self._table = table
        self._ttl_days = ttl_days

    def claim(self, shard: ShardRef, claims: Sequence[Claim], *, now: datetime) -> dict[str, Holder]:
        holders: dict[str, Holder] = {}
        open_claims = {claim.key: claim for claim in claims}
        for _ in range(ROUNDS_MAX):
            held = self._insert(shard, open_claims.values(), now)
            for key, claim in open_claims.items():
                if key not in held:
                    holders[key] = Holder(_owner(shard, claim), claim.content)
            found = self._holders(held) if held else {}
            holders |= found
            open_claims = {key: open_claims[key] for key in held if key not in found}
            if not open_claims:
                return holders
        raise StoreUnavailableError(f"{len(open_claims)} claims are held and not held in the table {self._table!r}")

    def note_repeats(self, shard: ShardRef, write: RepeatsWrite) -> None:
        seen = seen_attribute(shard.stream_created_at, shard.shard_id)
        rest: RepeatsWrite | None = write
        while rest is not None:
            conflicts = sum(repeat.conflict for repeat in rest.repeats)
            try:
                before = update_unless_failed(
                    self._client,
                    self._table,
                    {"pk": {"S": write.key}},
                    update="ADD duplicates :duplicates, conflicts :conflicts SET #repeated = :at, #seen = :last",
                    condition="attribute_exists(pk) AND (attribute_not_exists(#seen) OR #seen < :first)",
                    names={
                        "#seen": seen,
                        "#repeated": repeated_attribute(shard.stream_created_at, shard.shard_id),
                    },
                    values={
                        ":duplicates": {"N": str(len(rest.repeats) - conflicts)},
                        ":conflicts": {"N": str(conflicts)},
                        ":at": {"S": time_text(max(repeat.arrived_at for repeat in rest.repeats))},
                        ":first": {"S": rest.first},
                        ":last": {"S": rest.last},
                    },
                )
            except ClientError as error:
                # A row that someone has written over: the sightings are for people to read, the shard goes on.
                if error_code(error) != "ValidationException":
                    raise
                _log.warning("The ledger's row %r takes no sightings: %s", write.key, error)
                return
            if not before:  # done, or the claim has expired
                return
            rest = rest.beyond(before[seen]["S"])

    def _insert(self, shard: ShardRef, claims: Iterable[Claim], now: datetime) -> list[str]:
        """Put each claim that is absent; return the keys of those that were there."""
        claims = list(claims)
        with store_errors(self._table):
            answer = self._client.batch_execute_statement(
                Statements=[self._insert_statement(shard, claim, now) for claim in claims]
            )
        held = []
        for claim, response in zip(claims, answer["Responses"], strict=True):
            match response.get("Error", {}).get("Code"):
                case None:
                    continue
                case code if code == _HELD:
                    held.append(claim.key)
                case code:
                    self._raise_statement_error(str(code), str(response["Error"].get("Message")))
        return held

    def _insert_statement(self, shard: ShardRef, claim: Claim, now: datetime) -> Any:
        item = {
            "pk": {"S": claim.key},
            "owner": {"S": _owner(shard, claim)},
            **_content_attributes(claim.content),
            **({} if claim.window is None else {"window": {"S": claim.window}}),
            "counted_at": {"S": time_text(now)},
            # A clock that went back must not make the claim expire at once.
            "expires_at": {"N": str(expiry(max(now, claim.arrived_at), self._ttl_days))},
        }
        names = ", ".join(f"'{name}': ?" for name in item)
        return {"Statement": f'INSERT INTO "{self._table}" VALUE {{{names}}}', "Parameters": list(item.values())}

    def _raise_statement_error(self, code: str, message: str) -> None:
        if code in TRANSIENT_PARTS:
            raise StoreUnavailableError(f"the table {self._table!r} is not available: {code}: {message}")
        if code == "ResourceNotFound":
            raise MissingResourceError("table", self._table)
        if code == "AccessDenied":
            raise AccessRefusedError(f"AWS refused access to the table {self._table!r}: {message}")
        raise RuntimeError(f"the table {self._table!r} refused a claim: {code}: {message}")

    def _holders(self, keys: Sequence[str]) -> dict[str, Holder]:
        """Return who holds each of up to CLAIMS_MAX keys; without those that nobody holds any more."""
        with store_errors(self._table):
            answer = self._client.batch_get_item(
                RequestItems={self._table: {"Keys": [{"pk": {"S": key}} for key in keys], "ConsistentRead": True}}
            )
        if answer.get("UnprocessedKeys"):
            raise StoreUnavailableError(f"the table {self._table!r} did not answer for all keys")
        return {item["pk"]["S"]: holder_of(item) for item in answer["Responses"].get(self._table, [])}


def holder_of(item: Item) -> Holder:
    """Return who holds a key by its item in the ledger; the owner is empty when the item names none."""
    owner = item.get("owner", {}).get("S", "")
    return Holder(owner, _content(item) if owner else None)


def last_repeat_at_of(item: Item) -> datetime | None:
    """Return when a claim's event last came again, by its item: each shard notes its own time, the newest counts.

    None when it never did, or when someone has written over the times.
    """
    try:
        times = [datetime.fromisoformat(item[name]["S"]) for name in item if name.startswith(REPEATED_PREFIX)]
    except (KeyError, ValueError):
        return None
    return max(times, default=None)


def _owner(shard: ShardRef, claim: Claim) -> str:
    return claim_owner(shard.stream_created_at, shard.shard_id, claim.place)


def _content_attributes(content: Content) -> dict[str, Any]:
    match content:
        case EventContent(metric, value, timestamp):
            stamp = {} if timestamp is None else {"timestamp": {"S": timestamp}}
            return {"metric": {"S": metric}, "value": {"N": decimal_text(value)}, **stamp}
        case BatchContent(digest, events):
            return {"digest": {"S": digest}, "events": {"N": str(events)}}


def _content(item: Mapping[str, Any]) -> Content | None:
    try:
        if item["pk"]["S"].startswith(BATCH_PREFIX):
            return BatchContent(item["digest"]["S"], int(item["events"]["N"]))
        timestamp = item["timestamp"]["S"] if "timestamp" in item else None
        return EventContent(item["metric"]["S"], Decimal(item["value"]["N"]), timestamp)
    except (KeyError, TypeError, ValueError, ArithmeticError):
        return None
