"""Looks at the KCL's tables and puts right what the KCL does not: the tables and the thread for two rules.

The lock of a lost leader is deleted (consumer/takeover.py), and a handover that stands still is completed
(consumer/handoff.py). Both go by the same look, once a second. consumer/lost_records.py uses the tables, too.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from botocore.exceptions import ClientError

from consumer.handoff import Handoff, HandoffWatch, Lease, handoff_stuck_after_s
from consumer.takeover import LeaderSigns, LeaderWatch, lost_after_s
from metering.aws import dynamodb_client, error_code, store_errors
from metering.settings import Settings

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

LOOK_INTERVAL_S = 1.0
FAILURE_LOGGED_EVERY_S = 300.0
END_S_MAX = 1.0
"""A look takes milliseconds. One that hangs waits for a socket, and neither a stop nor the next daemon waits for it."""
_LOCK = {"key": {"S": "Leader"}}
"""CoordinatorState.LEADER_HASH_KEY of KCL 3.1.3."""
TRIM_HORIZON, SHARD_END = "TRIM_HORIZON", "SHARD_END"
"""Checkpoints that are no sequence numbers (SentinelCheckpoint of KCL 3.1.3)."""

_log = logging.getLogger(__name__)


class WatchedTables(Protocol):
    """What the watcher needs of the KCL's tables. All methods raise what metering.aws.store_errors raises."""

    def leases(self) -> Sequence[Lease]:
        """Return all leases."""

    def leader(self, leases: Iterable[Lease]) -> LeaderSigns | None:
        """Return what the tables show of the leader, None when there is none. leases: read just before."""

    def release(self, signs: LeaderSigns) -> bool:
        """Delete the leader's lock if it is still the one of `signs`; return whether it was."""

    def complete(self, handoff: Handoff) -> bool:
        """Give the lease to its new owner if it is still handed over as `handoff` says; return whether it was."""


class KclTables:
    """The KCL's three tables in DynamoDB (schemas of KCL 3.1.3 and of its lock client), read consistently.

    properties: the daemon's, which name the application and may name the tables.
    """

    def __init__(self, client: DynamoDBClient, properties: Mapping[str, str]) -> None:
        application = properties["applicationName"]
        self._client = client
        self._leases = properties.get("tableName", application)
        self._state = properties.get("coordinatorStateTableName", f"{application}-CoordinatorState")
        self._metrics = properties.get("workerMetricsTableName", f"{application}-WorkerMetricStats")

    def leases(self) -> list[Lease]:
        """See WatchedTables. The table is scanned: a unit for each 4 KB, some ten shards."""
        with store_errors(self._leases):
            pages = self._client.get_paginator("scan").paginate(
                TableName=self._leases,
                ConsistentRead=True,
                ProjectionExpression="leaseKey, leaseCounter, leaseOwner, checkpointOwner",
            )
            items = [item for page in pages for item in page["Items"]]
        return [
            Lease(
                shard=item["leaseKey"]["S"],
                counter=int(item["leaseCounter"]["N"]),
                owner=item["leaseOwner"]["S"] if "leaseOwner" in item else None,
                checkpoint_owner=item["checkpointOwner"]["S"] if "checkpointOwner" in item else None,
            )
            for item in items
        ]

    def checkpoints(self) -> dict[str, str]:
        """Return each shard's checkpoint: a sequence number, or SHARD_END and its like."""
        with store_errors(self._leases):
            pages = self._client.get_paginator("scan").paginate(
                TableName=self._leases, ConsistentRead=True, ProjectionExpression="leaseKey, checkpoint"
            )
            return {item["leaseKey"]["S"]: item["checkpoint"]["S"] for page in pages for item in page["Items"]}

    def rewind(self, shard: str, checkpoint: str) -> bool:
        """Have a shard read from its beginning if its checkpoint is still `checkpoint`; return whether it was."""
        with store_errors(self._leases):
            return _done_if_unchanged(
                lambda: self._client.update_item(
                    TableName=self._leases,
                    Key={"leaseKey": {"S": shard}},
                    UpdateExpression="SET checkpoint = :beginning, checkpointSubSequenceNumber = :zero",
                    ConditionExpression="checkpoint = :seen",
                    ExpressionAttributeValues={
                        ":beginning": {"S": TRIM_HORIZON},
                        ":zero": {"N": "0"},
                        ":seen": {"S": checkpoint},
                    },
                )
            )

    def leader(self, leases: Iterable[Lease]) -> LeaderSigns | None:
        """See WatchedTables."""
        with store_errors(self._state):
            lock = self._client.get_item(TableName=self._state, Key=_LOCK, ConsistentRead=True).get("Item")
        if not lock or "ownerName" not in lock:
            return None
        owner = lock["ownerName"]
        with store_errors(self._metrics):
            report = self._client.get_item(TableName=self._metrics, Key={"wid": owner}, ConsistentRead=True)
        reported_at = report.get("Item", {}).get("lut")
        return LeaderSigns(
            worker_id=owner["S"],
            version=lock["recordVersionNumber"]["S"],
            reported_at=int(reported_at["N"]) if reported_at else None,
            lease_counters=frozenset(
                (lease.shard, lease.counter) for lease in leases if lease.actual_owner == owner["S"]
            ),
        )

    def release(self, signs: LeaderSigns) -> bool:
        """See WatchedTables."""
        with store_errors(self._state):
            return _done_if_unchanged(
                lambda: self._client.delete_item(
                    TableName=self._state,
                    Key=_LOCK,
                    ConditionExpression="ownerName = :owner AND recordVersionNumber = :version",
                    ExpressionAttributeValues={":owner": {"S": signs.worker_id}, ":version": {"S": signs.version}},
                )
            )

    def complete(self, handoff: Handoff) -> bool:
        """See WatchedTables. The write is that of DynamoDBLeaseRefresher.assignLease(lease, lease.leaseOwner()).

        The counter moves under whoever renews the lease, who loses it by that; the new owner finds it as its own.
        ownerSwitchesSinceCheckpoint stays, as it does there when the two owners differ (getDynamoTakeLeaseUpdate).
        """
        with store_errors(self._leases):
            return _done_if_unchanged(
                lambda: self._client.update_item(
                    TableName=self._leases,
                    Key={"leaseKey": {"S": handoff.shard}},
                    UpdateExpression="ADD leaseCounter :one REMOVE checkpointOwner",
                    ConditionExpression="leaseOwner = :to AND checkpointOwner = :from",
                    ExpressionAttributeValues={
                        ":one": {"N": "1"},
                        ":to": {"S": handoff.to_worker},
                        ":from": {"S": handoff.from_worker},
                    },
                )
            )


def _done_if_unchanged(write: Callable[[], object]) -> bool:
    """Return whether the condition of a write held."""
    try:
        write()
    except ClientError as error:
        if error_code(error) != "ConditionalCheckFailedException":
            raise
        return False
    return True


class LeaderWatcher:
    """Watches leader and handovers in a thread of its own for the length of a `with` block, and never fails.

    Not in the supervisor's loop: a look may hang for seconds, and meanwhile the daemon's log would stand still, and
    with it the daemon. The thread ends with the block, for the next daemon should be started by a process that has no
    other (subprocess says so of preexec_fn). tables: makes the tables; called in the thread.
    """

    def __init__(
        self,
        leader: LeaderWatch,
        handoffs: HandoffWatch,
        tables: Callable[[], WatchedTables],
        *,
        interval_s: float = LOOK_INTERVAL_S,
    ) -> None:
        self._leader = leader
        self._handoffs = handoffs
        self._make_tables = tables
        self._tables: WatchedTables | None = None
        self._interval_s = interval_s
        self._failure_logged_at_s: float | None = None
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="leader-watcher", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join(END_S_MAX)

    def _run(self) -> None:
        while not self._end.wait(self._interval_s):
            try:
                self._look()
            except Exception as error:  # noqa: BLE001 - the worker counts with or without a leader
                self._log_failure(error)

    def _look(self) -> None:
        if self._tables is None:
            self._tables = self._make_tables()
        try:
            leases = self._tables.leases()
            signs = self._tables.leader(leases)
        except Exception:
            self._leader.forget()
            self._handoffs.forget()
            raise
        now_s = time.monotonic()
        stuck = self._handoffs.look(leases, now_s)
        if self._leader.look(signs, now_s) and signs is not None:
            self._release(self._tables, signs)
        for handoff in stuck:
            self._complete(self._tables, handoff)

    @staticmethod
    def _release(tables: WatchedTables, signs: LeaderSigns) -> None:
        seen = {"leader": signs.worker_id, "leases": len(signs.lease_counters)}
        if tables.release(signs):
            _log.warning(
                "The leader shows no sign of life; its lock was deleted, another worker takes over", extra=seen
            )
        else:
            _log.info("The leader showed no sign of life, but its lock has changed since", extra=seen)

    @staticmethod
    def _complete(tables: WatchedTables, handoff: Handoff) -> None:
        if tables.complete(handoff):  # else another worker was quicker
            _log.warning(
                "A shard's handover stood still; it was completed",
                extra={"shard": handoff.shard, "from": handoff.from_worker, "to": handoff.to_worker},
            )

    def _log_failure(self, error: Exception) -> None:
        now_s = time.monotonic()
        if self._failure_logged_at_s is None or now_s - self._failure_logged_at_s >= FAILURE_LOGGED_EVERY_S:
            _log.warning("The leader can't be watched: %s", error)
            self._failure_logged_at_s = now_s


def give_back_own_lock(settings: Settings, properties: Mapping[str, str]) -> None:
    """Delete the leader lock of this worker's last daemon; call it only when that daemon is known to be gone.

    A daemon that is started again does not know the lock of the one before: nobody would lead for 120 s. Whoever holds
    the worker's own lock (see Supervisor) and has ended the last daemon's group knows that none of this name lives.
    A failure is logged and stops nothing: the KCL then waits its 120 s.
    """
    try:
        with closing(dynamodb_client(settings, connections_max=1)) as client:
            tables = KclTables(client, properties)
            signs = tables.leader(())  # what it holds does not matter here
            if signs is not None and signs.worker_id == settings.worker_id and tables.release(signs):
                _log.info("The last daemon of this worker led; its lock was deleted, so that one leads again at once")
    except Exception as error:  # noqa: BLE001 - the worker counts with or without a leader
        _log.warning("Whether the last daemon of this worker led is not known: %s", error)


def leader_watcher(settings: Settings, properties: Mapping[str, str]) -> LeaderWatcher:
    """Return the watcher of one worker. properties: its daemon's."""
    return LeaderWatcher(
        LeaderWatch(settings.worker_id, lost_after_s=lost_after_s(properties)),
        HandoffWatch(stuck_after_s=handoff_stuck_after_s(properties)),
        lambda: KclTables(dynamodb_client(settings, connections_max=1), properties),
    )
