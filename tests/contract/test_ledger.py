"""Ledger: a claim may be made any number of times, by whoever replays the record, and has one owner.

On the twin and on DynamoDB Local; moto knows no PartiQL with parameters (5.1).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest

from metering.claims import BatchContent, Claim, EventContent, Holder, Repeat, RepeatsWrite
from metering.dynamodb_ledger import DynamoLedger, last_repeat_at_of
from metering.events import parse_event
from metering.memory import MemoryLedger
from metering.ports import CLAIMS_MAX
from metering.rows import batch_claim_key, claim_owner, event_claim_key, place
from tests.builders import CREATED_AT, NOW, TTL_DAYS, at, shard

if TYPE_CHECKING:
    from metering.ports import Ledger
    from tests.contract.conftest import DynamoOn, DynamoTables

pytestmark = pytest.mark.contract

LATER = NOW + timedelta(minutes=1)
TTL = timedelta(days=TTL_DAYS)
KEY = event_claim_key("tenant-123", "req-1")


@dataclass(frozen=True)
class Noted:
    """What a claim's row says of sightings."""

    duplicates: int
    conflicts: int
    last_repeat_at: datetime | None


@dataclass
class Backend:
    ledger: Ledger
    noted: Callable[[str], Noted]
    forget: Callable[[str], None]


@pytest.fixture
def local(dynamo_on: DynamoOn) -> Iterator[DynamoTables]:
    with dynamo_on("dynamodb-local") as tables:
        yield tables


def ledger_on(tables: DynamoTables, client: Any = None) -> DynamoLedger:
    return DynamoLedger(client or tables.client, table=tables.settings.ledger_table, ttl_days=TTL.days)


def item(tables: DynamoTables, key: str = KEY) -> dict[str, Any]:
    return dict(tables.client.get_item(TableName=tables.settings.ledger_table, Key={"pk": {"S": key}})["Item"])


@pytest.fixture(params=["memory", "dynamodb-local"])
def backend(request: pytest.FixtureRequest) -> Backend:
    if request.param == "memory":
        twin = MemoryLedger()
        return Backend(
            twin,
            lambda key: Noted(*(getattr(twin.claims[key], name) for name in Noted.__annotations__)),
            lambda key: twin.claims.pop(key) and None,
        )
    tables: DynamoTables = request.getfixturevalue("local")

    def noted(key: str) -> Noted:
        row = item(tables, key)
        return Noted(
            int(row.get("duplicates", {"N": "0"})["N"]),
            int(row.get("conflicts", {"N": "0"})["N"]),
            last_repeat_at_of(row),
        )

    def forget(key: str) -> None:
        tables.client.delete_item(TableName=tables.settings.ledger_table, Key={"pk": {"S": key}})

    return Backend(ledger_on(tables), noted, forget)


def content(value: str = "10", *, metric: str = "api_calls", timestamp: str | None = None) -> EventContent:
    return EventContent(metric, Decimal(value), timestamp)


def claim(number: int, index: int = 0, *, key: str = KEY, of: EventContent | BatchContent | None = None) -> Claim:
    return Claim(key, place(at(number), index), of or content(), NOW)


def owner(number: int, index: int = 0, *, on: int = 0, created_at: datetime = CREATED_AT) -> str:
    return claim_owner(created_at, f"shardId-{on:012d}", place(at(number), index))


class TestClaim:
    def test_the_first_place_is_the_owner_whoever_asks_and_how_often(self, backend: Backend) -> None:
        for _ in range(2):
            assert backend.ledger.claim(shard(), [claim(1)], now=NOW) == {KEY: Holder(owner(1), content())}
        for other, where in ((claim(2), shard()), (claim(1, 1), shard()), (claim(1), shard(1))):
            assert backend.ledger.claim(where, [other], now=LATER)[KEY].owner == owner(1)

    def test_an_earlier_place_does_not_take_a_claim_over(self, backend: Backend) -> None:
        backend.ledger.claim(shard(), [claim(5)], now=NOW)
        assert backend.ledger.claim(shard(), [claim(1)], now=NOW)[KEY].owner == owner(5)

    def test_the_same_place_of_another_incarnation_is_another_owner(self, backend: Backend) -> None:
        again = CREATED_AT + timedelta(days=7)
        backend.ledger.claim(shard(), [claim(1)], now=NOW)
        assert backend.ledger.claim(shard(created_at=again), [claim(1)], now=NOW)[KEY].owner == owner(1)
        assert owner(1) != owner(1, created_at=again)

    @pytest.mark.parametrize(
        "first",
        [
            content(),
            content("0.000000001", metric="ü-calls", timestamp="2024-01-15T10:00:00Z"),
            content("999999999999999.999999999"),
        ],
    )
    def test_the_holder_comes_back_with_what_it_claimed(self, backend: Backend, first: EventContent) -> None:
        backend.ledger.claim(shard(), [claim(1, of=first)], now=NOW)
        assert backend.ledger.claim(shard(), [claim(2, of=content("7"))], now=NOW)[KEY].content == first

    def test_numbers_that_are_equal_are_the_same_content(self, backend: Backend) -> None:
        backend.ledger.claim(shard(), [claim(1, of=content("1.50"))], now=NOW)
        assert backend.ledger.claim(shard(), [claim(2)], now=NOW)[KEY].content == content("1.5")

    def test_a_batch_is_claimed_by_its_digest(self, backend: Backend) -> None:
        key, of = batch_claim_key("b-1"), BatchContent("00ff", 3)
        backend.ledger.claim(shard(), [claim(1, key=key, of=of)], now=NOW)
        assert backend.ledger.claim(shard(), [claim(2, key=key, of=of)], now=NOW)[key] == Holder(owner(1), of)

    def test_ids_of_two_tenants_and_of_two_sources_are_apart(self, backend: Backend) -> None:
        keys = [event_claim_key("a", "1"), event_claim_key("b", "1"), event_claim_key("a", "1", "/x")]
        keys += [event_claim_key("a", "1", "/y"), batch_claim_key("1")]
        assert len(set(keys)) == 5
        for number, key in enumerate(keys):
            of = BatchContent("00", 1) if key == keys[-1] else content()
            assert backend.ledger.claim(shard(), [claim(number, key=key, of=of)], now=NOW)[key].owner == owner(number)

    def test_old_and_new_claims_in_one_call_keep_apart(self, backend: Backend) -> None:
        claims = [claim(1, n, key=event_claim_key("t", f"id-{n}")) for n in range(CLAIMS_MAX)]
        backend.ledger.claim(shard(), claims[::2], now=NOW)
        again = [replace(c, place=place(at(9), n)) for n, c in enumerate(claims)]
        holders = backend.ledger.claim(shard(1), again, now=NOW)
        assert [holders[c.key].owner for c in claims] == [
            owner(1, n) if n % 2 == 0 else owner(9, n, on=1) for n in range(CLAIMS_MAX)
        ]

    @pytest.mark.parametrize("event_id", ["a'b\"c#d?e{f}\\", "x" * 128, "\U0001f600" * 128, "é/%20&"])
    def test_any_id_that_is_allowed_works_up_to_its_limit(self, backend: Backend, event_id: str) -> None:
        raw = {"tenant_id": "ü" * 128, "metric": "m", "value": "1", "event_id": event_id}
        event = parse_event(raw, now=NOW)
        key = event_claim_key(event.tenant_id, event_id, "s" * 1024)
        assert len(key.encode()) <= 2048, "the longest key that DynamoDB takes"
        for number in (1, 2):
            assert backend.ledger.claim(shard(), [claim(number, key=key)], now=NOW)[key].owner == owner(1)

    def test_a_claim_that_has_expired_is_made_anew(self, backend: Backend) -> None:
        backend.ledger.claim(shard(), [claim(1)], now=NOW)
        backend.forget(KEY)
        assert backend.ledger.claim(shard(), [claim(2)], now=LATER)[KEY].owner == owner(2)


class TestNoteRepeats:
    def repeats(self, *places: tuple[int, int], conflict: bool = False) -> RepeatsWrite:
        found = (Repeat(place(at(n), i), conflict, NOW + timedelta(seconds=n)) for n, i in places)
        return RepeatsWrite(KEY, tuple(found))

    def test_sightings_add_up_and_say_when_the_last_was(self, backend: Backend) -> None:
        backend.ledger.claim(shard(), [claim(1)], now=NOW)
        backend.ledger.note_repeats(shard(), self.repeats((2, 0), (2, 1)))
        backend.ledger.note_repeats(shard(), self.repeats((3, 0), conflict=True))
        assert backend.noted(KEY) == Noted(2, 1, NOW + timedelta(seconds=3))

    def test_a_replay_is_noted_once_whatever_its_borders(self, backend: Backend) -> None:
        backend.ledger.claim(shard(), [claim(1)], now=NOW)
        backend.ledger.note_repeats(shard(), self.repeats((2, 0), (4, 0)))
        for again in ([(2, 0)], [(2, 0), (4, 0)], [(4, 0), (4, 1), (7, 0)], [(2, 0), (7, 0)]):
            backend.ledger.note_repeats(shard(), self.repeats(*again))
        assert backend.noted(KEY).duplicates == 4

    def test_shards_are_noted_apart(self, backend: Backend) -> None:
        backend.ledger.claim(shard(), [claim(1)], now=NOW)
        for where in (shard(1), shard(), shard(1)):
            backend.ledger.note_repeats(where, self.repeats((9, 0)))
        assert backend.noted(KEY).duplicates == 2

    def test_the_last_sighting_is_the_newest_whichever_shard_is_read_later(self, backend: Backend) -> None:
        backend.ledger.claim(shard(), [claim(1)], now=NOW)
        backend.ledger.note_repeats(shard(1), self.repeats((9, 0)))
        backend.ledger.note_repeats(shard(), self.repeats((2, 0), (3, 0)))
        assert backend.noted(KEY) == Noted(3, 0, NOW + timedelta(seconds=9))

    def test_an_expired_claim_gets_no_sightings(self, backend: Backend) -> None:
        backend.ledger.note_repeats(shard(), self.repeats((2, 0)))
        assert backend.ledger.claim(shard(), [claim(3)], now=NOW)[KEY].owner == owner(3)
        assert backend.noted(KEY) == Noted(0, 0, None)


class TestOnDynamoDB:
    def test_a_claim_says_what_it_is_and_when_it_expires(self, local: DynamoTables) -> None:
        ledger_on(local).claim(shard(), [claim(1, of=content(timestamp="2024-01-15T10:00:00Z"))], now=LATER)
        assert item(local) == {
            "pk": {"S": "TENANT#tenant-123#EVENT#req-1"},
            "owner": {"S": owner(1)},
            "metric": {"S": "api_calls"},
            "value": {"N": "10"},
            "timestamp": {"S": "2024-01-15T10:00:00Z"},
            "counted_at": {"S": "2024-01-15T10:31:00.000Z"},
            "expires_at": {"N": str(int((LATER + TTL).timestamp()))},
        }

    def test_a_clock_that_went_back_does_not_make_a_claim_expire(self, local: DynamoTables) -> None:
        ledger_on(local).claim(shard(), [claim(1)], now=datetime(1970, 1, 2, tzinfo=UTC))
        assert int(item(local)["expires_at"]["N"]) == int((NOW + TTL).timestamp())

    def test_a_clock_that_went_ahead_keeps_a_claim_longer(self, local: DynamoTables) -> None:
        ahead = NOW + timedelta(days=3650)
        ledger_on(local).claim(shard(), [claim(1)], now=ahead)
        assert int(item(local)["expires_at"]["N"]) == int((ahead + TTL).timestamp())

    @pytest.mark.parametrize(
        "row",
        [
            {},
            {"owner": {"S": ""}},
            {"owner": {"N": "1"}},
            {"owner": {"S": "someone"}},
            {"owner": {"S": "someone"}, "metric": {"S": "m"}, "value": {"S": "ten"}},
            {"owner": {"S": "someone"}, "metric": {"N": "1"}, "value": {"N": "1"}},
            {"owner": {"S": "x"}, "metric": {"S": "m"}, "value": {"N": "1"}, "timestamp": {"BOOL": True}},
        ],
    )
    def test_a_row_that_cannot_be_read_is_held_by_nobody_known(self, local: DynamoTables, row: dict[str, Any]) -> None:
        local.client.put_item(TableName=local.settings.ledger_table, Item={"pk": {"S": KEY}, **row})
        holder = ledger_on(local).claim(shard(), [claim(1)], now=NOW)[KEY]
        assert holder.content is None
        assert holder.owner != owner(1)

    def test_sightings_of_a_row_that_cannot_take_them_do_not_stop_the_shard(self, local: DynamoTables) -> None:
        ledger_on(local).claim(shard(), [claim(1)], now=NOW)
        local.client.put_item(
            TableName=local.settings.ledger_table, Item={**item(local), "duplicates": {"S": "several"}}
        )
        repeat = Repeat(place(at(2), 0), conflict=False, arrived_at=NOW)
        ledger_on(local).note_repeats(shard(), RepeatsWrite(KEY, (repeat,)))
        assert item(local)["duplicates"] == {"S": "several"}

    def test_a_claim_that_expires_between_insert_and_look_is_made_again(self, local: DynamoTables) -> None:
        class Expiring:
            """Deletes the row before each look, `times` times."""

            def __init__(self, times: int) -> None:
                self.times = times

            def __getattr__(self, name: str) -> Any:
                if name == "batch_get_item" and self.times:
                    self.times -= 1
                    local.client.delete_item(TableName=local.settings.ledger_table, Key={"pk": {"S": KEY}})
                return getattr(local.client, name)

        ledger_on(local).claim(shard(), [claim(1)], now=NOW)
        holders = ledger_on(local, Expiring(1)).claim(shard(), [claim(2)], now=NOW)
        assert holders == {KEY: Holder(owner(2), content())}

    def test_an_answer_that_was_lost_finds_its_own_claim(self, local: DynamoTables) -> None:
        class Losing:
            def __getattr__(self, name: str) -> Any:
                call = getattr(local.client, name)
                if name != "batch_execute_statement":
                    return call

                def lost(**request: Any) -> Any:
                    call(**request)
                    raise ConnectionError

                return lost

        with contextlib.suppress(ConnectionError):
            ledger_on(local, Losing()).claim(shard(), [claim(1)], now=NOW)
        assert ledger_on(local).claim(shard(), [claim(1)], now=NOW)[KEY].owner == owner(1)
