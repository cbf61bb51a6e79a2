"""The KCL's record processor for one shard, on amazon_kclpy's v3 interface.

amazon_kclpy prints an exception that a callback raises and then reports the batch as done, so the next checkpoint
would pass it: events lost. Therefore no exception leaves a callback; it ends the process, without a checkpoint, and
the daemon with it. The supervisor starts the daemon again and the batch comes again.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import stamina
from amazon_kclpy.kcl import Checkpointer, CheckpointError
from amazon_kclpy.messages import (
    InitializeInput,
    LeaseLostInput,
    ProcessRecordsInput,
    ShardEndedInput,
    ShutdownRequestedInput,
)
from amazon_kclpy.v3.processor import RecordProcessorBase

from consumer.decoding import ReceivedRecord, in_parts
from consumer.freshness import Freshness
from consumer.pipeline import ShardPipeline
from metering.errors import ServiceUnavailableError, SetupError
from metering.meters import NO_METERS, Meters
from metering.ports import CounterStore, Ledger, Shard, ShardRef, StreamDirectory
from metering.settings import Settings

RETRY_S = 60.0
"""How long a step is retried before the process gives up; the daemon keeps the lease meanwhile."""
PART_BYTES_MAX = 1024 * 1024
"""Data of the records that are applied as one batch: some 5,000 events, a second or two of work."""
HEARTBEAT_INTERVAL = timedelta(seconds=1)
EXIT_FAILED = 1

Message = TypeVar("Message")

_log = logging.getLogger(__name__)

_LEASE_LOST = "ShutdownException"
_CHECKPOINT_AGAIN = frozenset({"ThrottlingException", "KinesisClientLibDependencyException"})


def retry(call: Callable[[], object]) -> None:
    """Run an idempotent call until it succeeds, for RETRY_S seconds at most.

    Waits min(2 s, 50 ms * 2**n + up to 0.5 s of jitter) between attempts, on ServiceUnavailableError alone.
    """
    for attempt in stamina.retry_context(
        on=ServiceUnavailableError, attempts=None, timeout=RETRY_S, wait_initial=0.05, wait_max=2.0, wait_jitter=0.5
    ):
        with attempt:
            call()


class _CheckpointAgainError(Exception):
    """The KCL could not write the checkpoint now."""


def _ends_process_on_error(
    callback: Callable[[UsageRecordProcessor, Message], None],
) -> Callable[[UsageRecordProcessor, Message], None]:
    """Make a callback end the process when it raises: see the module's docstring."""

    @functools.wraps(callback)
    def guarded(self: UsageRecordProcessor, message: Message) -> None:
        try:
            callback(self, message)
        except SetupError as error:
            _log.critical("%s", error)
            self.exit_process(EXIT_FAILED)
        except BaseException:  # noqa: BLE001 - every escape ends the process
            _log.critical("%s failed; the process ends without a checkpoint", callback.__name__, exc_info=True)
            self.exit_process(EXIT_FAILED)

    return guarded


class UsageRecordProcessor(RecordProcessorBase):  # type: ignore[misc]  # amazon_kclpy has no types
    """Hands the deliveries of one shard to a ShardPipeline and checkpoints behind them.

    meters: how metrics are aggregated.
    exit_process: ends it at once; os._exit, since only that and SystemExit leave amazon_kclpy's loop.
    """

    version = 3

    def __init__(
        self,
        store: CounterStore,
        ledger: Ledger,
        directory: StreamDirectory,
        settings: Settings,
        *,
        meters: Meters = NO_METERS,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        exit_process: Callable[[int], Any] = os._exit,
    ) -> None:
        self._store = store
        self._ledger = ledger
        self._directory = directory
        self._settings = settings
        self._meters = meters
        self._clock = clock
        self.exit_process = exit_process
        self._freshness = Freshness()
        self._shard: ShardRef | None = None
        self._pipeline: ShardPipeline | None = None
        self._progress_at: datetime | None = None
        self._lease_lost = False

    @_ends_process_on_error
    def initialize(self, initialize_input: InitializeInput) -> None:
        """Open the shard's progress row; the KCL calls this once, before anything else."""
        shard_id = initialize_input.shard_id
        created_at: list[datetime] = []
        retry(lambda: created_at.append(self._directory.describe().created_at))
        shard = ShardRef(self._settings.stream, created_at[-1], shard_id)
        retry(lambda: self._store.open_shard(shard, complete_until=None, now=self._clock()))
        self._shard = shard
        self._pipeline = ShardPipeline(
            self._store,
            self._ledger,
            shard,
            window_minutes=self._settings.window_minutes,
            age_days_max=self._settings.event_age_days_max,
            claim_events=self._settings.ledger,
            retry=retry,
            clock=self._clock,
            meters=self._meters,
        )
        _log.info(
            "Consumer started, listening for new events",
            extra={"shard": shard_id, "after": initialize_input.sequence_number},
        )

    @_ends_process_on_error
    def process_records(self, process_records_input: ProcessRecordsInput) -> None:
        """Apply a delivery, then checkpoint behind it. An empty one is a heartbeat and needs no checkpoint."""
        if self._lease_lost:
            return
        shard, pipeline = self._opened()
        now = self._clock()
        records = [_received(record) for record in process_records_input.records]
        complete_until = self._freshness.delivered(
            behind_ms=process_records_input.millis_behind_latest,
            newest_arrival_at=max((record.arrived_at for record in records), default=None),
        )
        if records:
            _log.info(
                "Received %d record(s) from Kinesis",
                len(records),
                extra={"shard": shard.shard_id, "behind_ms": process_records_input.millis_behind_latest},
            )
            self._apply(pipeline, records, complete_until, process_records_input.checkpointer)
            self._progress_at = now
        elif self._progress_at is None or now - self._progress_at >= HEARTBEAT_INTERVAL:
            pipeline.heartbeat(complete_until)
            self._progress_at = now
        self._freshness.returned(self._clock())

    @_ends_process_on_error
    def lease_lost(self, lease_lost_input: LeaseLostInput) -> None:
        """Write nothing: another worker has the shard, or this one stops."""
        _log.info("Lease given up or lost; nothing more is written", extra=self._log_fields())

    @_ends_process_on_error
    def shard_ended(self, shard_ended_input: ShardEndedInput) -> None:
        """Open the progress rows of those that come after, close the shard's, checkpoint its end.

        In this order: billing's as_of must never miss both the parent and its children. Without the checkpoint the
        KCL would not begin the children.
        """
        if self._lease_lost:
            return
        shard, _ = self._opened()
        listed: list[Shard] = []
        retry(lambda: listed.extend(self._directory.shards()))
        children = _after_end_of(shard.shard_id, listed, self._freshness.complete_until)
        for child, complete_until in children.items():
            ref = ShardRef(shard.stream, shard.stream_created_at, child)
            retry(
                lambda c=ref, u=complete_until: self._store.open_shard(c, complete_until=u, now=self._clock())  # type: ignore[misc]
            )
        retry(lambda: self._store.close_shard(shard, now=self._clock()))
        self._checkpoint(shard_ended_input.checkpointer)
        _log.info("Shard ended", extra={**self._log_fields(), "children": list(children)})

    @_ends_process_on_error
    def shutdown_requested(self, shutdown_requested_input: ShutdownRequestedInput) -> None:
        """Checkpoint: every delivery so far has been applied."""
        if not self._lease_lost:
            self._checkpoint(shutdown_requested_input.checkpointer)
        _log.info("Consumer stops as asked", extra=self._log_fields())

    def _apply(
        self,
        pipeline: ShardPipeline,
        records: Sequence[ReceivedRecord],
        complete_until: datetime | None,
        checkpointer: Checkpointer,
    ) -> None:
        """Apply a delivery part by part, and checkpoint behind each part.

        A backlog comes as 10 MB at once, which may be a hundred thousand events: as one batch they would take more
        memory, and more time than timeoutInSeconds, and a daemon that ended over them would begin anew for ever. Each
        checkpoint is kept, and sets the daemon's clock back.
        """
        *earlier, last = in_parts(records, bytes_max=PART_BYTES_MAX)
        for part in earlier:
            pipeline.apply(part, None)
            self._checkpoint(checkpointer, part[-1])
            if self._lease_lost:
                return
        pipeline.apply(last, complete_until)
        self._checkpoint(checkpointer)

    def _checkpoint(self, checkpointer: Checkpointer, behind: ReceivedRecord | None = None) -> None:
        """Checkpoint behind a record, or at the end of the last delivery, again while the KCL is throttled.

        A broken pipe or an empty line means that the daemon is gone: those errors end the process, like
        InvalidStateException. ShutdownException means that the lease is lost: nothing more is written.
        """
        for attempt in stamina.retry_context(
            on=_CheckpointAgainError, attempts=None, timeout=RETRY_S, wait_initial=0.1, wait_max=2.0, wait_jitter=0.5
        ):
            with attempt:
                try:
                    if behind is None:
                        checkpointer.checkpoint()
                    else:
                        checkpointer.checkpoint(behind.sequence_number, behind.sub_sequence_number)
                except CheckpointError as error:
                    if error.value == _LEASE_LOST:
                        self._lease_lost = True
                        _log.warning("The checkpoint was refused: the lease is lost", extra=self._log_fields())
                    elif error.value in _CHECKPOINT_AGAIN:
                        raise _CheckpointAgainError(error.value) from error
                    else:
                        raise

    def _opened(self) -> tuple[ShardRef, ShardPipeline]:
        if self._shard is None or self._pipeline is None:
            raise RuntimeError("the daemon used the processor before it initialized it")
        return self._shard, self._pipeline

    def _log_fields(self) -> dict[str, object]:
        return {"shard": self._shard.shard_id if self._shard else None}


def _after_end_of(
    shard_id: str, listed: Sequence[Shard], complete_until: datetime | None
) -> dict[str, datetime | None]:
    """Return the shards that may hold what came after the end of a shard, and the complete_until that they begin with.

    Its children: they held nothing before its end, and complete_until, its own, is earlier than that. All shards, when
    it is too old to be listed itself, for then its children may be so, too. Raises SetupError when it has not ended:
    the KCL takes any shard for ended whose iterator is not known.
    """
    own = next((shard for shard in listed if shard.shard_id == shard_id), None)
    if own is None:
        return dict.fromkeys(shard.shard_id for shard in listed)
    children = {shard.shard_id: complete_until for shard in listed if shard_id in shard.parent_ids}
    if own.open or not children:
        raise SetupError(
            f"the KCL has come to the end of shard {shard_id}, which has not ended: the stream has lost records, or "
            "was made again. The end is not checkpointed; whether the stream knows the checkpoint is looked at next"
        )
    return children


def _received(record: Any) -> ReceivedRecord:
    return ReceivedRecord(
        sequence_number=record.sequence_number,
        data=record.binary_data,
        arrived_at=datetime.fromtimestamp(record.timestamp_millis / 1000, UTC),
        sub_sequence_number=record.sub_sequence_number,
    )
