"""Looks at the KCL's leader and deletes the lock of a lost one: the tables and the thread for consumer/takeover.py."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from botocore.exceptions import ClientError

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

_log = logging.getLogger(__name__)


class LeaderTables(Protocol):
    """What the watcher needs of the KCL's tables. Both methods raise what metering.aws.store_errors raises."""

    def leader(self) -> LeaderSigns | None:
        """Return what the tables show of the leader, None when there is none."""

    def release(self, signs: LeaderSigns) -> bool:
        """Delete the leader's lock if it is still the one of `signs`; return whether it was."""


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

    def leader(self) -> LeaderSigns | None:
        """See LeaderTables. The lease table is scanned: a unit for each 4 KB, some ten shards."""
        with store_errors(self._state):
            lock = self._client.get_item(TableName=self._state, Key=_LOCK, ConsistentRead=True).get("Item")
        if not lock or "ownerName" not in lock:
            return None
        owner = lock["ownerName"]
        with store_errors(self._metrics):
            report = self._client.get_item(TableName=self._metrics, Key={"wid": owner}, ConsistentRead=True)
        not_handed_over = "attribute_not_exists(checkpointOwner)"
        with store_errors(self._leases):
            pages = self._client.get_paginator("scan").paginate(
                TableName=self._leases,
                ConsistentRead=True,
                # While a lease is handed over, its checkpointOwner still renews it (Lease.actualOwner).
                FilterExpression=f"checkpointOwner = :owner OR ({not_handed_over} AND leaseOwner = :owner)",
                ExpressionAttributeValues={":owner": owner},
                ProjectionExpression="leaseKey, leaseCounter",
            )
            leases = [item for page in pages for item in page["Items"]]
        reported_at = report.get("Item", {}).get("lut")
        return LeaderSigns(
            worker_id=owner["S"],
            version=lock["recordVersionNumber"]["S"],
            reported_at=int(reported_at["N"]) if reported_at else None,
            lease_counters=frozenset((lease["leaseKey"]["S"], int(lease["leaseCounter"]["N"])) for lease in leases),
        )

    def release(self, signs: LeaderSigns) -> bool:
        """See LeaderTables."""
        try:
            with store_errors(self._state):
                self._client.delete_item(
                    TableName=self._state,
                    Key=_LOCK,
                    ConditionExpression="ownerName = :owner AND recordVersionNumber = :version",
                    ExpressionAttributeValues={":owner": {"S": signs.worker_id}, ":version": {"S": signs.version}},
                )
        except ClientError as error:
            if error_code(error) != "ConditionalCheckFailedException":
                raise
            return False
        return True


class LeaderWatcher:
    """Watches the leader in a thread of its own for the length of a `with` block, and never fails.

    Not in the supervisor's loop: a look may hang for seconds, and meanwhile the daemon's log would stand still, and
    with it the daemon. The thread ends with the block, for the next daemon should be started by a process that has no
    other (subprocess says so of preexec_fn). tables: makes the tables; called in the thread.
    """

    def __init__(
        self, watch: LeaderWatch, tables: Callable[[], LeaderTables], *, interval_s: float = LOOK_INTERVAL_S
    ) -> None:
        self._watch = watch
        self._make_tables = tables
        self._tables: LeaderTables | None = None
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
                self._watch.forget()
                self._log_failure(error)

    def _look(self) -> None:
        if self._tables is None:
            self._tables = self._make_tables()
        signs = self._tables.leader()
        if not self._watch.look(signs, time.monotonic()) or signs is None:
            return
        seen = {"leader": signs.worker_id, "leases": len(signs.lease_counters)}
        if self._tables.release(signs):
            _log.warning(
                "The leader shows no sign of life; its lock was deleted, another worker takes over", extra=seen
            )
        else:
            _log.info("The leader showed no sign of life, but its lock has changed since", extra=seen)

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
            signs = tables.leader()
            if signs is not None and signs.worker_id == settings.worker_id and tables.release(signs):
                _log.info("The last daemon of this worker led; its lock was deleted, so that one leads again at once")
    except Exception as error:  # noqa: BLE001 - the worker counts with or without a leader
        _log.warning("Whether the last daemon of this worker led is not known: %s", error)


def leader_watcher(settings: Settings, properties: Mapping[str, str]) -> LeaderWatcher:
    """Return the watcher of one worker. properties: its daemon's."""
    watch = LeaderWatch(settings.worker_id, lost_after_s=lost_after_s(properties))
    return LeaderWatcher(watch, lambda: KclTables(dynamodb_client(settings, connections_max=1), properties))
