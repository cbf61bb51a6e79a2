"""EventVoider: an event leaves its total and its window and its claim says so, all of it or nothing, once.

On the twin, on moto and on DynamoDB Local; moto knows no PartiQL with parameters (5.1): there a claim is put as it is.
"""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
import stamina
from botocore.exceptions import ClientError
from botocore.stub import ANY, Stubber
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from consumer.decoding import ReceivedRecord
from consumer.pipeline import ShardPipeline
from metering.aggregation import Contribution, RowWrite
from metering.aws import TRANSIENT_PARTS
from metering.claims import Claim, EventContent, Repeat, RepeatsWrite
from metering.dynamodb_ledger import DynamoLedger
from metering.errors import AccessRefusedError, MissingResourceError, StoreUnavailableError
from metering.memory import MemoryTables
from metering.metered import metered_usage
from metering.meters import Aggregation
from metering.positions import sequence_number_of
from metering.readings import Reading
from metering.rows import (
    RowKey,
    applied_attribute,
    claim_owner,
    event_claim_key,
    place,
    stamped_window_key,
    total_key,
)
from metering.voids import Void, VoidOutcome, VoidRequest
from tests.builders import CREATED_AT, NOW, TTL_DAYS, at, shard
from tests.contract.conftest import dynamo_of

if TYPE_CHECKING:
    from metering.ports import BillingStore, CounterStore
    from tests.contract.conftest import DynamoOn, DynamoTables

pytestmark = pytest.mark.contract

LATER = NOW + timedelta(minutes=1)
STAMP = "2024-01-15T10"
DAY = datetime(2024, 1, 15, tzinfo=UTC)
ASKED = VoidRequest("ana", "a test run")
VOIDED, CHANGED, NOT_HELD = VoidOutcome.VOIDED, VoidOutcome.CLAIM_CHANGED, VoidOutcome.NOT_HELD
Row = tuple[Decimal, int, Decimal, int]
"""usage, events, voided usage, voided events"""


def keys(tenant_id: str = "tenant-123") -> tuple[RowKey, RowKey]:
    return total_key(tenant_id, "api_calls"), stamped_window_key(tenant_id, "api_calls", STAMP)


def claim_of(number: int, tenant_id: str = "tenant-123", value: str = "0.1") -> Claim:
    content = EventContent("api_calls", Decimal(value), None)
    return Claim(event_claim_key(tenant_id, f"req-{number}"), place(at(number), 0), content, NOW, STAMP)


def owner(number: int) -> str:
    return claim_owner(CREATED_AT, shard().shard_id, place(at(number), 0))


def void_of(number: int, tenant_id: str = "tenant-123", **changed: Any) -> Void:
    void = Void(claim_of(number, tenant_id).key, owner(number), keys(tenant_id), Decimal("0.1"), ASKED, "00c0ffee0000")
    return replace(void, **changed)


def writes(*numbers: int, tenant_id: str = "tenant-123") -> list[RowWrite]:
    """The total and the window of an event of 0.1 from each of the records `numbers`."""
    return [RowWrite(key, tuple(Contribution(at(n), Decimal("0.1"), 1) for n in numbers)) for key in keys(tenant_id)]


@dataclass
class Backend:
    store: CounterStore
    voids: BillingStore
    claim: Callable[[Claim], object]
    row: Callable[[RowKey], Row]
    forget: Callable[[RowKey], object]

    def count(self, *numbers: int, tenant_id: str = "tenant-123") -> None:
        for number in numbers:
            self.claim(claim_of(number, tenant_id))
        self.apply(*numbers, tenant_id=tenant_id)

    def apply(self, *numbers: int, tenant_id: str = "tenant-123") -> list[bool]:
        return [self.store.apply(shard(), write, now=NOW) for write in writes(*numbers, tenant_id=tenant_id)]

    def rows(self, tenant_id: str = "tenant-123") -> list[Row]:
        return [self.row(key) for key in keys(tenant_id)]


def on_memory() -> Backend:
    tables = MemoryTables()

    def row(key: RowKey) -> Row:
        found = tables.rows[key]
        return found.usage, found.events, found.voided_usage, found.voided_events

    def claim(each: Claim) -> object:
        return tables.ledger.claim(shard(), [each], now=NOW)

    return Backend(tables, tables, claim, row, tables.rows.pop)


def on_dynamo(tables: DynamoTables) -> Backend:
    names = tables.settings

    def claim(each: Claim) -> object:
        if names.dynamodb_endpoint is not None:
            return DynamoLedger(tables.client, table=names.ledger_table, ttl_days=TTL_DAYS).claim(
                shard(), [each], now=NOW
            )
        assert isinstance(each.content, EventContent)
        return tables.client.put_item(
            TableName=names.ledger_table,
            Item={
                "pk": {"S": each.key},
                "owner": {"S": claim_owner(CREATED_AT, shard().shard_id, each.place)},
                "metric": {"S": each.content.metric},
                "value": {"N": str(each.content.value)},
                "window": {"S": STAMP},
                "expires_at": {"N": "99999999999"},
            },
        )

    def item(key: RowKey) -> dict[str, Any]:
        return {"TableName": names.table, "Key": {"pk": {"S": key.pk}, "sk": {"S": key.sk}}}

    def row(key: RowKey) -> Row:
        found = tables.client.get_item(**item(key), ConsistentRead=True)["Item"]
        usage, events, *voided = (
            found.get(name, {"N": "0"})["N"] for name in ("usage", "events", "voided_usage", "voided_events")
        )
        return Decimal(usage), int(events), Decimal(voided[0]), int(voided[1])

    return Backend(tables.store, tables.reader, claim, row, lambda key: tables.client.delete_item(**item(key)) and None)


@pytest.fixture(params=["memory", "moto", "dynamodb-local"])
def backend(request: pytest.FixtureRequest, dynamo_on: DynamoOn) -> Iterator[Backend]:
    if request.param == "memory":
        yield on_memory()
        return
    with dynamo_on(request.param) as tables:
        yield on_dynamo(tables)


@pytest.fixture
def local(dynamo_on: DynamoOn) -> Iterator[DynamoTables]:
    with dynamo_on("dynamodb-local") as tables:
        yield tables


def row(usage: str, events: int, voided_usage: str, voided_events: int) -> Row:
    return Decimal(usage), events, Decimal(voided_usage), voided_events


class TestReadings:
    """A row that keeps a maximum or a latest value, see metering.readings."""

    @pytest.mark.parametrize("aggregation", [Aggregation.MAX, Aggregation.LATEST])
    @pytest.mark.parametrize("which", [0, 1])
    def test_nothing_is_taken_from_a_row_that_keeps_one(
        self, backend: Backend, aggregation: Aggregation, which: int
    ) -> None:
        backend.count(1, 2)
        backend.store.keep_reading(keys()[which], Reading(aggregation, Decimal("0.1"), "2024-01-15T10:00:00.000000Z#x"))
        assert backend.voids.void(void_of(1), now=LATER) is VoidOutcome.KEEPS_READING
        assert backend.rows() == [row("0.2", 2, "0", 0)] * 2
        found = backend.voids.claimed(claim_of(1).key)
        assert found is not None
        assert found.voided_at is None

    def test_of_an_event_that_was_voided_before_the_reading_came_the_claim_tells(self, backend: Backend) -> None:
        backend.count(1, 2)
        assert backend.voids.void(void_of(1), now=NOW) is VOIDED
        for key in keys():
            backend.store.keep_reading(key, Reading(Aggregation.MAX, Decimal("0.1"), "2024-01-15T10:00:00.000000Z#x"))
        assert backend.voids.void(void_of(1), now=LATER) is CHANGED

    def test_what_was_voided_is_never_taken_for_offered(self, backend: Backend) -> None:
        """It was counted without its meter, voided, and offered by a replay with it; another one was covered."""
        backend.count(1)
        assert backend.voids.void(void_of(1), now=NOW) is VOIDED
        of_voided = Reading(Aggregation.MAX, Decimal("0.1"), "2024-01-15T10:00:00.000000Z#x")
        for write in writes(2):
            backend.store.keep_reading(write.key, of_voided)
            backend.store.apply(shard(), replace(write, reading=of_voided), now=NOW)
        total = backend.voids.total("tenant-123", "api_calls")
        assert total is not None
        windows = list(backend.voids.windows("tenant-123", "api_calls", start=DAY, end=DAY + timedelta(days=1)))
        for found in [total, *windows]:
            assert (found.events, [kept.events for kept in found.readings]) == (1, [0])
            assert metered_usage(Aggregation.MAX, [found]) is None


class TestVoid:
    def test_the_event_leaves_both_rows_and_its_claim_says_who_and_why(self, backend: Backend) -> None:
        backend.count(1, 2)
        assert backend.voids.void(void_of(1), now=LATER) is VOIDED
        assert backend.rows() == [row("0.1", 1, "0.1", 1)] * 2
        found = backend.voids.claimed(claim_of(1).key)
        assert found is not None
        assert (found.voided_at, found.voided_by, found.void_reason) == (LATER, "ana", "a test run")
        assert (found.owner, found.window) == (owner(1), STAMP)
        other = backend.voids.claimed(claim_of(2).key)
        assert other is not None
        assert (other.voided_at, other.voided_by, other.void_reason) == (None, None, None)
        total = backend.voids.total("tenant-123", "api_calls")
        assert total is not None
        assert (total.usage, total.events, total.last_updated) == (Decimal("0.1"), 1, LATER)

    def test_once_whoever_asks_again(self, backend: Backend) -> None:
        backend.count(1, 2)
        assert backend.voids.void(void_of(1), now=NOW) is VOIDED
        for again in (void_of(1), void_of(1, request=VoidRequest("bob", "another"))):
            assert backend.voids.void(again, now=LATER) is CHANGED
        assert backend.rows() == [row("0.1", 1, "0.1", 1)] * 2
        found = backend.voids.claimed(claim_of(1).key)
        assert found is not None
        assert (found.voided_at, found.voided_by) == (NOW, "ana")

    def test_the_last_event_of_a_row_leaves_zeros(self, backend: Backend) -> None:
        backend.count(1)
        assert backend.voids.void(void_of(1), now=NOW) is VOIDED
        assert backend.rows() == [row("0", 0, "0.1", 1)] * 2
        assert backend.voids.void(void_of(1), now=NOW) is CHANGED

    def test_a_claim_that_is_gone_or_another_ones_is_not_voided(self, backend: Backend) -> None:
        backend.count(1, 2)
        for changed in ({"owner": owner(2)}, {"key": claim_of(9).key}):
            assert backend.voids.void(void_of(1, **changed), now=NOW) is CHANGED
        assert backend.rows() == [row("0.2", 2, "0", 0)] * 2
        assert backend.voids.claimed(claim_of(9).key) is None

    @pytest.mark.parametrize("which", [0, 1])
    def test_a_row_that_is_not_there_leaves_all_as_it_is(self, backend: Backend, which: int) -> None:
        backend.count(1, 2)
        backend.forget(keys()[which])
        assert backend.voids.void(void_of(1), now=NOW) is NOT_HELD
        assert backend.row(keys()[1 - which]) == row("0.2", 2, "0", 0)
        found = backend.voids.claimed(claim_of(1).key)
        assert found is not None
        assert found.voided_at is None

    @pytest.mark.parametrize("which", [0, 1])
    def test_a_row_that_has_not_been_applied_up_to_the_event_does_not_hold_it(
        self, backend: Backend, which: int
    ) -> None:
        backend.count(1)
        backend.claim(claim_of(2))
        backend.store.apply(shard(), writes(2)[which], now=NOW)
        assert backend.voids.void(void_of(2), now=NOW) is NOT_HELD
        assert backend.row(keys()[which]) == row("0.2", 2, "0", 0)
        backend.store.apply(shard(), writes(2)[1 - which], now=NOW)
        assert backend.voids.void(void_of(2), now=NOW) is VOIDED

    def test_more_than_a_row_holds_is_not_taken_out(self, backend: Backend) -> None:
        backend.count(1, 2)
        assert backend.voids.void(void_of(1, usage=Decimal("0.3")), now=NOW) is NOT_HELD
        assert backend.rows() == [row("0.2", 2, "0", 0)] * 2

    def test_a_row_without_events_holds_none_of_zero_either(self, backend: Backend) -> None:
        backend.claim(claim_of(1))
        backend.count(2)
        assert backend.voids.void(void_of(2), now=NOW) is VOIDED
        assert backend.voids.void(void_of(1, usage=Decimal(0)), now=NOW) is NOT_HELD
        assert backend.rows() == [row("0", 0, "0.1", 1)] * 2

    def test_a_value_of_zero_and_the_largest_are_exact(self, backend: Backend) -> None:
        for number, value in ((1, "0"), (2, "999999999999999.999999999")):
            backend.claim(claim_of(number, value=value))
            for key in keys():
                write = RowWrite(key, (Contribution(at(number), Decimal(value), 1),))
                backend.store.apply(shard(), write, now=NOW)
            assert backend.voids.void(void_of(number, usage=Decimal(value)), now=NOW) is VOIDED
        assert backend.rows() == [row("0", 0, "999999999999999.999999999", 2)] * 2

    def test_a_replay_is_dropped_and_what_is_new_is_added(self, backend: Backend) -> None:
        backend.count(1, 2)
        backend.voids.void(void_of(2), now=NOW)
        assert backend.apply(1, 2) == [False, False]
        backend.claim(claim_of(3))
        assert backend.apply(1, 2, 3) == [True, True]
        assert backend.rows() == [row("0.2", 2, "0.1", 1)] * 2


operations = st.lists(st.tuples(st.sampled_from(["apply", "void"]), st.integers(0, 4)), min_size=1, max_size=12)
fresh = itertools.count()


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(operations)
def test_dynamodb_and_the_twin_agree_on_every_void(local: DynamoTables, steps: list[tuple[str, int]]) -> None:
    tenant_id, real, twin = f"tenant-v-{next(fresh)}", on_dynamo(local), on_memory()
    for step, number in steps:
        for backend in (real, twin):
            backend.claim(claim_of(number, tenant_id))
        if step == "apply":
            assert real.apply(number, tenant_id=tenant_id) == twin.apply(number, tenant_id=tenant_id)
        else:
            void = void_of(number, tenant_id)
            assert real.voids.void(void, now=NOW) is twin.voids.void(void, now=NOW)
    if any(step == "apply" for step, _ in steps):
        assert real.rows(tenant_id) == twin.rows(tenant_id)


class TestLedgerRow:
    """What stays in the ledger, for the audit and for people."""

    def test_it_has_no_end_any_more_and_keeps_the_keys_fingerprint(self, local: DynamoTables) -> None:
        backend = on_dynamo(local)
        backend.count(1, 2)
        backend.voids.void(void_of(1), now=NOW)
        backend.voids.void(void_of(2, key_fingerprint=None), now=NOW)
        items = {item["pk"]["S"]: item for item in local.items(local.settings.ledger_table)}
        first, second = items[claim_of(1).key], items[claim_of(2).key]
        assert "expires_at" not in first
        assert first["voided_key"] == {"S": "00c0ffee0000"}
        assert "voided_key" not in second
        assert first["window"] == {"S": STAMP}

    def test_it_is_still_held_and_notes_what_comes_again(self, local: DynamoTables) -> None:
        backend = on_dynamo(local)
        backend.count(1)
        backend.voids.void(void_of(1), now=NOW)
        ledger = DynamoLedger(local.client, table=local.settings.ledger_table, ttl_days=TTL_DAYS)
        again = replace(claim_of(1), place=place(at(5), 0))
        assert ledger.claim(shard(), [again], now=LATER)[again.key].owner == owner(1)
        ledger.note_repeats(shard(), RepeatsWrite(again.key, (Repeat(again.place, conflict=False, arrived_at=LATER),)))
        found = backend.voids.claimed(again.key)
        assert found is not None
        assert (found.duplicates, found.voided_at) == (1, NOW)

    def test_positions_stay_as_they_are(self, local: DynamoTables) -> None:
        backend = on_dynamo(local)
        backend.count(1, 2)
        before = [item for item in local.items(local.settings.table) if item["pk"]["S"] == keys()[0].pk]
        backend.voids.void(void_of(1), now=NOW)
        after = [item for item in local.items(local.settings.table) if item["pk"]["S"] == keys()[0].pk]
        attribute = applied_attribute(CREATED_AT, shard().shard_id)
        assert [item[attribute] for item in after] == [item[attribute] for item in before]


# ── At once ──────────────────────────────────────────────────────────────────────────────────────────────────────────

EVENTS, VOIDERS = 30, 6


def test_of_many_voids_at_once_beside_a_consumer_each_counts_once_and_the_sums_are_exact(local: DynamoTables) -> None:
    backend = on_dynamo(local)
    backend.count(*range(EVENTS // 2))
    outcomes: dict[int, list[VoidOutcome]] = {number: [] for number in range(EVENTS)}
    begun = threading.Barrier(VOIDERS + 1)
    patiently = stamina.retry(on=StoreUnavailableError, attempts=None, timeout=60, wait_initial=0.01, wait_max=0.1)

    def consume() -> None:
        begun.wait()
        for number in range(EVENTS // 2, EVENTS):
            backend.claim(claim_of(number))
            for write in writes(number - 1, number):  # the one before it is a replay
                patiently(backend.store.apply)(shard(), write, now=NOW)

    def void(order: list[int]) -> None:
        begun.wait()
        for number in order:
            outcomes[number].append(patiently(backend.voids.void)(void_of(number), now=NOW))

    with ThreadPoolExecutor(VOIDERS + 1) as pool:
        running = [pool.submit(consume)]
        running += [pool.submit(void, list(range(0, EVENTS, 2))[:: (-1) ** n]) for n in range(VOIDERS)]
        for each in running:
            each.result()
    voided = sum(each.count(VOIDED) for each in outcomes.values())
    assert {each.count(VOIDED) for number, each in outcomes.items() if number % 2 == 0 and number < EVENTS // 2} == {1}
    assert max(each.count(VOIDED) for each in outcomes.values()) == 1
    usage = Decimal("0.1")
    assert backend.rows() == [(usage * (EVENTS - voided), EVENTS - voided, usage * voided, voided)] * 2
    noted = [item for item in local.items(local.settings.ledger_table) if "voided_at" in item]
    assert len(noted) == voided


# ── What DynamoDB may answer ─────────────────────────────────────────────────────────────────────────────────────────


def cancelled(*codes: str) -> dict[str, Any]:
    return {"CancellationReasons": [{"Code": code} for code in codes]}


FAILED, NONE = "ConditionalCheckFailed", "None"


class TestCancelled:
    @pytest.fixture
    def moto(self, dynamo_on: DynamoOn) -> Iterator[DynamoTables]:
        with dynamo_on("moto") as tables:
            yield tables

    def void(self, tables: DynamoTables, code: str, status: int = 400, **modeled: Any) -> VoidOutcome:
        with Stubber(tables.client) as stubber:
            stubber.add_client_error(
                "transact_write_items",
                code,
                http_status_code=status,
                expected_params={"TransactItems": ANY},
                modeled_fields=modeled,
            )
            return tables.reader.void(void_of(1), now=NOW)

    @pytest.mark.parametrize("reason", sorted(TRANSIENT_PARTS))
    @pytest.mark.parametrize("which", [0, 1, 2])
    def test_what_passes_is_tried_again(self, moto: DynamoTables, reason: str, which: int) -> None:
        codes = [NONE] * 3
        codes[which] = reason
        with pytest.raises(StoreUnavailableError):
            self.void(moto, "TransactionCanceledException", **cancelled(*codes))

    @pytest.mark.parametrize(
        ("codes", "outcome"),
        [
            ((FAILED, NONE, NONE), CHANGED),
            ((FAILED, FAILED, FAILED), CHANGED),
            ((NONE, FAILED, NONE), NOT_HELD),
            ((NONE, NONE, FAILED), NOT_HELD),
        ],
    )
    def test_a_condition_that_fails_says_whose_it_was(
        self, moto: DynamoTables, codes: tuple[str, ...], outcome: VoidOutcome
    ) -> None:
        assert self.void(moto, "TransactionCanceledException", **cancelled(*codes)) is outcome

    @pytest.mark.parametrize("codes", [("TransactionConflict", FAILED, NONE), (FAILED, "TransactionConflict", NONE)])
    def test_a_conflict_beside_a_failed_condition_says_nothing_yet(
        self, moto: DynamoTables, codes: tuple[str, ...]
    ) -> None:
        """The claim may be under way to being voided by another request, which has taken the event out of a row."""
        with pytest.raises(StoreUnavailableError):
            self.void(moto, "TransactionCanceledException", **cancelled(*codes))

    @pytest.mark.parametrize(
        ("code", "error"),
        [
            ("TransactionInProgressException", StoreUnavailableError),
            ("ProvisionedThroughputExceededException", StoreUnavailableError),
            ("ThrottlingException", StoreUnavailableError),
            ("ResourceNotFoundException", MissingResourceError),
            ("AccessDeniedException", AccessRefusedError),
            ("IdempotentParameterMismatchException", ClientError),
            ("ValidationException", ClientError),
        ],
    )
    def test_of_the_call_as_a_whole(self, moto: DynamoTables, code: str, error: type[Exception]) -> None:
        with pytest.raises(error):
            self.void(moto, code)

    def test_a_row_that_cannot_be_added_to_is_a_bug_and_no_service_that_is_away(self, moto: DynamoTables) -> None:
        with pytest.raises(ClientError):
            self.void(moto, "TransactionCanceledException", **cancelled(NONE, "ValidationError", NONE))


def test_botocore_sends_its_own_retry_under_the_same_token_and_the_first_attempt_stands(local: DynamoTables) -> None:
    lost = [1]
    bodies: list[bytes] = []

    def lose_the_first_answer(**_: Any) -> int | None:
        return lost.pop() * 0 if lost else None  # seconds until the next attempt; None: no other attempt

    def look(request: Any, **_: Any) -> None:
        bodies.append(request.body)

    backend = on_dynamo(local)
    backend.count(1, 2)
    events: Any = local.client.meta.events
    events.register_first("needs-retry.dynamodb.TransactWriteItems", lose_the_first_answer)
    events.register("before-send.dynamodb.TransactWriteItems", look)
    try:
        assert backend.voids.void(void_of(1), now=NOW) is VOIDED
    finally:
        events.unregister("needs-retry.dynamodb.TransactWriteItems", lose_the_first_answer)
        events.unregister("before-send.dynamodb.TransactWriteItems", look)
    assert (len(bodies), len(set(bodies))) == (2, 1)
    assert backend.rows() == [row("0.1", 1, "0.1", 1)] * 2


class Conflicting:
    """A client whose writes each meet an ongoing transaction once, as single calls and as statements do."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self.met: list[str] = []

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._client, name)
        if name not in {"update_item", "put_item", "batch_execute_statement"} or self.met[-1:] == [name]:
            self.met.append("")
            return call
        self.met.append(name)

        def conflict(**request: Any) -> Any:
            if name == "batch_execute_statement":
                error = {"Error": {"Code": "TransactionConflict", "Message": "Transaction is ongoing for the item"}}
                return {"Responses": [error] * len(request["Statements"])}
            raise ClientError({"Error": {"Code": "TransactionConflictException", "Message": "ongoing"}}, name)

        return conflict


def test_a_consumer_that_meets_a_void_under_way_tries_again_and_skips_nothing(local: DynamoTables) -> None:
    names, client = local.settings, Conflicting(local.client)
    store = dynamo_of(client, names).store  # type: ignore[arg-type]
    ledger = DynamoLedger(client, table=names.ledger_table, ttl_days=TTL_DAYS)  # type: ignore[arg-type]
    pipeline = ShardPipeline(
        store,
        ledger,
        shard(),
        window_minutes=60,
        age_days_max=None,
        claim_events=True,
        retry=stamina.retry(on=StoreUnavailableError, attempts=9, wait_initial=0, wait_jitter=0, wait_max=0)(
            lambda call: call()
        ),
        clock=lambda: NOW,
        writers=1,
        claimers=1,
    )
    event = {"tenant_id": "tenant-123", "metric": "api_calls", "value": "0.1", "received_at": "2024-01-15T10:00:00Z"}
    again = json.dumps(event | {"event_id": "req-1"}).encode()
    records = [ReceivedRecord(sequence_number_of(at(number)), again, NOW) for number in (1, 2)]
    local.store.open_shard(shard(), complete_until=None, now=NOW)
    pipeline.apply(records, NOW)
    assert {"update_item", "put_item", "batch_execute_statement"} <= set(client.met)
    backend = on_dynamo(local)
    assert backend.rows() == [row("0.1", 1, "0", 0)] * 2
    found = backend.voids.claimed(claim_of(1).key)
    assert found is not None
    assert (found.owner, found.duplicates) == (owner(1), 1)
    [progress] = local.reader.progress("usage-events")
    assert (progress.records, progress.counted, progress.duplicates) == (2, 1, 1)
