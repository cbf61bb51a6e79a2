"""The KCL's tables as the watcher sees and mends them, on moto and DynamoDB Local, in rows as KCL 3.1.3 writes them."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pytest
from moto import mock_aws

from consumer.handoff import Handoff, Lease
from consumer.leader_watcher import KclTables, give_back_own_lock
from consumer.takeover import LeaderSigns
from metering.errors import MissingResourceError
from metering.settings import Settings
from operations.provision import make_tables, tables

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

_numbers = itertools.count()


@dataclass
class Kcl:
    """The KCL's three tables, empty at first."""

    client: DynamoDBClient
    application: str
    settings: Settings

    def tables(self, **properties: str) -> KclTables:
        return KclTables(self.client, {"applicationName": self.application, **properties})

    def leader(self) -> LeaderSigns | None:
        return self.tables().leader(self.tables().leases())

    def lock(self, worker_id: str, version: str) -> None:
        self.client.put_item(
            TableName=f"{self.application}-CoordinatorState",
            Item={
                "key": {"S": "Leader"},
                "ownerName": {"S": worker_id},
                "recordVersionNumber": {"S": version},
                "leaseDuration": {"S": "120000"},
            },
        )

    def locked(self) -> bool:
        table = f"{self.application}-CoordinatorState"
        return "Item" in self.client.get_item(TableName=table, Key={"key": {"S": "Leader"}}, ConsistentRead=True)

    def migration(self) -> None:
        self.client.put_item(
            TableName=f"{self.application}-CoordinatorState",
            Item={"key": {"S": "Migration3.0"}, "cv": {"S": "CLIENT_VERSION_3X"}, "mb": {"S": "w-1"}},
        )

    def report(self, worker_id: str, at: int) -> None:
        self.client.put_item(
            TableName=f"{self.application}-WorkerMetricStats",
            Item={"wid": {"S": worker_id}, "lut": {"N": str(at)}, "sts": {"M": {}}, "opr": {"M": {}}},
        )

    def lease(self, number: int, worker_id: str | None, counter: int, *, handed_over_by: str | None = None) -> None:
        owner = {"leaseOwner": {"S": worker_id}} if worker_id else {}
        if handed_over_by:
            owner["checkpointOwner"] = {"S": handed_over_by}
        self.client.put_item(
            TableName=self.application,
            Item={
                "leaseKey": {"S": f"shardId-{number:012d}"},
                "checkpoint": {"S": "TRIM_HORIZON"},
                "leaseCounter": {"N": str(counter)},
                **owner,  # type: ignore[dict-item]
            },
        )


@pytest.fixture(params=["moto", "dynamodb-local"])
def kcl(
    request: pytest.FixtureRequest, settings: Settings, clients: Callable[[Settings], DynamoDBClient]
) -> Iterator[Kcl]:
    names = replace(settings, kcl_application=f"consumer-{next(_numbers)}")
    with contextlib.ExitStack() as stack:
        if request.param == "moto":
            stack.enter_context(mock_aws())
        else:
            names = replace(names, dynamodb_endpoint=request.getfixturevalue("dynamodb_local"))
        client = clients(names)
        make_tables(client, tables(names)[3:])
        yield Kcl(client, names.kcl_application, names)


def test_without_a_lock_there_is_no_leader(kcl: Kcl) -> None:
    kcl.migration()
    kcl.lease(0, "w-1", 5)
    kcl.report("w-1", 1_700_000_000)
    assert kcl.leader() is None


def test_the_leaders_report_and_its_own_leases_are_seen(kcl: Kcl) -> None:
    kcl.migration()
    kcl.lock("w-1", "version-1")
    kcl.report("w-1", 1_700_000_000)
    kcl.report("w-2", 1_700_000_009)
    kcl.lease(0, "w-1", 5)
    kcl.lease(1, "w-2", 6)
    kcl.lease(2, None, 0)
    kcl.lease(3, "w-1", 7)
    leases = frozenset({("shardId-000000000000", 5), ("shardId-000000000003", 7)})
    assert kcl.leader() == LeaderSigns("w-1", "version-1", 1_700_000_000, leases)


def test_a_leader_that_has_reported_nothing_and_holds_nothing_is_seen(kcl: Kcl) -> None:
    kcl.lock("w-1", "version-1")
    assert kcl.leader() == LeaderSigns("w-1", "version-1", None, frozenset())


def test_a_counter_that_moves_is_another_sign(kcl: Kcl) -> None:
    kcl.lock("w-1", "version-1")
    kcl.lease(0, "w-1", 5)
    before = kcl.leader()
    kcl.lease(0, "w-1", 6)
    assert kcl.leader() != before


def test_a_lease_that_is_being_handed_over_is_still_the_one_of_whoever_renews_it(kcl: Kcl) -> None:
    kcl.lock("w-1", "version-1")
    kcl.lease(0, "w-2", 5, handed_over_by="w-1")
    kcl.lease(1, "w-1", 6, handed_over_by="w-2")
    seen = kcl.leader()
    assert seen
    assert seen.lease_counters == {("shardId-000000000000", 5)}


def test_leases_of_many_pages_are_all_seen(kcl: Kcl) -> None:
    kcl.lock("w-1", "version-1")
    for number in range(30):
        kcl.lease(number, "w-1" if number % 2 else "w-2", number)
        kcl.client.update_item(  # 30 items of 50 KB: more than the 1 MB of one page
            TableName=kcl.application,
            Key={"leaseKey": {"S": f"shardId-{number:012d}"}},
            UpdateExpression="SET padding = :padding",
            ExpressionAttributeValues={":padding": {"S": "x" * 50_000}},
        )
    seen = kcl.leader()
    assert seen
    assert {counter for _, counter in seen.lease_counters} == set(range(1, 30, 2))


def test_the_lock_that_was_seen_is_deleted_and_nothing_else(kcl: Kcl) -> None:
    kcl.migration()
    kcl.lock("w-1", "version-1")
    kcl.report("w-1", 1_700_000_000)
    kcl.lease(0, "w-1", 5)
    seen = kcl.leader()
    assert seen
    assert kcl.tables().release(seen)
    assert not kcl.locked()
    assert [item["key"]["S"] for item in items(kcl, f"{kcl.application}-CoordinatorState")] == ["Migration3.0"]
    assert len(items(kcl, kcl.application)) == len(items(kcl, f"{kcl.application}-WorkerMetricStats")) == 1
    assert not kcl.tables().release(seen)


@pytest.mark.parametrize(("worker_id", "version"), [("w-1", "version-2"), ("w-2", "version-1"), ("w-2", "version-2")])
def test_a_lock_that_was_renewed_or_taken_since_is_left(kcl: Kcl, worker_id: str, version: str) -> None:
    kcl.lock("w-1", "version-1")
    seen = kcl.leader()
    assert seen
    kcl.lock(worker_id, version)
    assert not kcl.tables().release(seen)
    assert kcl.locked()


def test_tables_that_the_properties_rename_are_the_ones_that_are_read(kcl: Kcl) -> None:
    kcl.lock("w-1", "version-1")
    kcl.report("w-1", 1_700_000_000)
    kcl.lease(0, "w-1", 5)
    renamed = {
        "tableName": kcl.application,
        "coordinatorStateTableName": f"{kcl.application}-CoordinatorState",
        "workerMetricsTableName": f"{kcl.application}-WorkerMetricStats",
    }
    tables = kcl.tables(**renamed | {"applicationName": "another"})
    assert tables.leader(tables.leases()) == kcl.leader()


def test_a_table_that_is_missing_is_named(kcl: Kcl) -> None:
    with pytest.raises(MissingResourceError, match="no-such-table"):
        kcl.tables(coordinatorStateTableName="no-such-table").leader(())
    with pytest.raises(MissingResourceError, match="no-such-table"):
        kcl.tables(tableName="no-such-table").leases()


@pytest.mark.parametrize(("owner", "left"), [("me", False), ("another", True)])
def test_a_worker_gives_back_the_lock_of_its_own_last_daemon_and_no_other(kcl: Kcl, owner: str, left: bool) -> None:  # noqa: FBT001
    kcl.lock(owner, "version-1")
    give_back_own_lock(replace(kcl.settings, worker_id="me"), {"applicationName": kcl.application})
    assert kcl.locked() is left


def test_without_a_lock_there_is_nothing_to_give_back(kcl: Kcl) -> None:
    give_back_own_lock(replace(kcl.settings, worker_id="me"), {"applicationName": kcl.application})
    assert not kcl.locked()


def test_a_lock_that_cannot_be_given_back_is_said_and_stops_nothing(kcl: Kcl, caplog: pytest.LogCaptureFixture) -> None:
    give_back_own_lock(replace(kcl.settings, worker_id="me"), {"applicationName": "no-such-application"})
    assert "Whether the last daemon of this worker led is not known" in caplog.text


# ── Handovers ────────────────────────────────────────────────────────────────────────────────────────────────────────

SHARD = "shardId-000000000007"
HANDOFF = Handoff(SHARD, from_worker="w-0", to_worker="w-1")


def test_all_leases_are_seen_with_both_owners(kcl: Kcl) -> None:
    kcl.lease(0, "w-0", 5)
    kcl.lease(1, None, 0)
    kcl.lease(7, "w-1", 6, handed_over_by="w-0")
    leases = sorted(kcl.tables().leases(), key=lambda lease: lease.shard)
    assert leases == [
        Lease("shardId-000000000000", 5, "w-0", None),
        Lease("shardId-000000000001", 0, None, None),
        Lease(SHARD, 6, "w-1", "w-0"),
    ]
    assert [lease.handoff for lease in leases] == [None, None, HANDOFF]


def test_a_handover_is_completed_as_the_kcl_does_it_and_nothing_else_is_touched(kcl: Kcl) -> None:
    kcl.lease(7, "w-1", 6, handed_over_by="w-0")
    kcl.lease(8, "w-1", 6, handed_over_by="w-0")
    switches = {"ownerSwitchesSinceCheckpoint": {"N": "2"}}
    kcl.client.put_item(TableName=kcl.application, Item=lease_item(kcl) | switches)  # type: ignore[arg-type]
    before = lease_item(kcl)
    assert kcl.tables().complete(HANDOFF)
    del before["checkpointOwner"]
    assert lease_item(kcl) == before | {"leaseCounter": {"N": "7"}}
    assert [lease.shard for lease in kcl.tables().leases() if lease.handoff] == ["shardId-000000000008"]
    assert not kcl.tables().complete(HANDOFF)
    assert lease_item(kcl)["leaseCounter"] == {"N": "7"}


def test_a_handover_whose_counter_has_moved_is_completed_all_the_same(kcl: Kcl) -> None:
    kcl.lease(7, "w-1", 6, handed_over_by="w-0")
    (seen,) = kcl.tables().leases()
    kcl.lease(7, "w-1", 9, handed_over_by="w-0")
    assert seen.handoff
    assert kcl.tables().complete(seen.handoff)
    assert lease_item(kcl)["leaseCounter"] == {"N": "10"}


@pytest.mark.parametrize(
    ("owner", "handed_over_by"),
    [("w-1", None), ("w-0", None), (None, None), ("w-2", "w-0"), ("w-1", "w-2"), ("w-0", "w-1")],
)
def test_a_lease_whose_owners_have_changed_since_is_left(
    kcl: Kcl, owner: str | None, handed_over_by: str | None
) -> None:
    kcl.lease(7, owner, 6, handed_over_by=handed_over_by)
    before = lease_item(kcl)
    assert not kcl.tables().complete(HANDOFF)
    assert lease_item(kcl) == before


def test_a_lease_that_is_gone_is_not_made_anew(kcl: Kcl) -> None:
    assert not kcl.tables().complete(HANDOFF)
    assert items(kcl, kcl.application) == []


def test_completing_in_a_table_that_is_missing_names_it(kcl: Kcl) -> None:
    with pytest.raises(MissingResourceError, match="no-such-table"):
        kcl.tables(tableName="no-such-table").complete(HANDOFF)


def lease_item(kcl: Kcl) -> dict[str, dict[str, str]]:
    return next(item for item in items(kcl, kcl.application) if item["leaseKey"] == {"S": SHARD})


def items(kcl: Kcl, table: str) -> list[dict[str, dict[str, str]]]:
    return [dict(item) for item in kcl.client.scan(TableName=table, ConsistentRead=True)["Items"]]  # type: ignore[arg-type]
