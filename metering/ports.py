"""The roles that the outside world plays for us, and the values that pass through them.

Each port has a real adapter (kinesis.py, dynamodb.py) and an in-memory twin (memory.py); one suite of contract tests
runs against both. Every call may raise the errors of metering.errors that its docstring names, and no others but bugs.
Over 300 lines, so that all roles are seen at once; WindowReader alone stands elsewhere, in windows.py beside its rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Protocol

from metering.aggregation import RecordOutcome, RowWrite
from metering.alerts import AlertPage, Crossing, Message, WatchedPeriod
from metering.claims import Claim, EventContent, Holder, RepeatsWrite
from metering.places import StreamPlace
from metering.readings import KeptReading, Reading
from metering.rejected import RejectedPage, RejectedRow
from metering.rows import RowKey
from metering.voids import Void, VoidOutcome
from metering.windows import WindowReader

# ── The stream ───────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class OutgoingRecord:
    """A record to put: `partition` is a virtual partition, `data` at most envelopes.RECORD_BYTES_MAX bytes."""

    partition: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Held:
    """The stream holds the record, durably, at this place."""

    shard_id: str
    sequence_number: str


@dataclass(frozen=True, slots=True)
class NotHeld:
    """The stream refused this record of a call; the same record may be put again. code: Kinesis's error code."""

    code: str


class EventSink(Protocol):
    """Where the collector puts records."""

    def put(self, records: Sequence[OutgoingRecord]) -> list[Held | NotHeld]:
        """Put 1 to 500 records, 5 MiB together, and return one answer for each, in their order.

        Raises StreamUnavailableError when the call as a whole failed: each record may or may not be held.
        Raises MissingResourceError and AccessRefusedError when trying again is no use.
        """

    def check(self) -> None:
        """Return when the stream can be written to now; raise as put does otherwise."""


@dataclass(frozen=True, slots=True)
class Shard:
    """A shard of a stream. parent_ids: none, one (split) or two (merge). open: takes new records."""

    shard_id: str
    parent_ids: tuple[str, ...]
    open: bool
    starting_hash_key: str
    ending_hash_key: str


@dataclass(frozen=True, slots=True)
class StreamDescription:
    """created_at (aware UTC) tells one incarnation of a stream from the next of the same name."""

    name: str
    created_at: datetime
    status: str


class StreamDirectory(Protocol):
    """What the stream says of itself."""

    def describe(self) -> StreamDescription:
        """Raises StreamUnavailableError, MissingResourceError, AccessRefusedError."""

    def shards(self) -> list[Shard]:
        """Return all shards that still hold records or can take some, closed ones included; raises as describe."""


# ── The tables, as the consumer writes them ──────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class ShardRef:
    """One shard of one incarnation of the stream."""

    stream: str
    stream_created_at: datetime
    shard_id: str


@dataclass(frozen=True, slots=True)
class RejectedEvent:
    """An event that could not be counted. index: its place in the record; raw: what the record held of it.

    tenant_id: whom it names, None when nobody. claim_key: what its claim would have been, None when it has no id.
    """

    position: str
    index: int
    reason: str
    detail: str
    raw: bytes
    arrived_at: datetime
    tenant_id: str | None = None
    claim_key: str | None = None


class CounterStore(Protocol):
    """Where the consumer writes. Every call is idempotent: a replay changes nothing.

    All raise StoreUnavailableError (try again), MissingResourceError and AccessRefusedError (no use).
    """

    def apply(self, shard: ShardRef, write: RowWrite, *, now: datetime) -> bool:
        """Add to one row what lies beyond the row's own position of this shard; True when anything was added.

        The row counts what is added as covered by the write's reading, which keep_reading must have been given before.
        Never call it for a row while another call for the same row and shard is under way.
        """

    def keep_reading(self, key: RowKey, reading: Reading) -> bool:
        """Keep a reading in one row unless it keeps a greater one or this one already; True when it was kept.

        A row that nothing was added to is not there for who reads it, whatever it keeps.
        """

    def reject(self, shard: ShardRef, rejected: RejectedEvent, *, now: datetime) -> None:
        """Keep a rejected event, once."""

    def register_tenant(self, tenant_id: str, *, now: datetime) -> None:
        """Enter a tenant in the directory, once."""

    def open_shard(self, shard: ShardRef, *, complete_until: datetime | None, now: datetime) -> None:
        """Make the shard's progress row, unless this incarnation of the shard has one."""

    def record_progress(
        self,
        shard: ShardRef,
        outcomes: Sequence[RecordOutcome],
        *,
        complete_until: datetime | None,
        now: datetime,
    ) -> None:
        """Add the outcomes that lie beyond the row's position, and note the time as a heartbeat.

        outcomes: in order of position; empty for a heartbeat alone.
        complete_until: every event that the shard held at that time is in the rows; None: not known. What the row says
        of it never goes back.
        The shard must have been opened.
        """

    def close_shard(self, shard: ShardRef, *, now: datetime) -> None:
        """Note that the shard has been read to its end."""


CLAIMS_MAX = 25
"""Claims in one call: what BatchExecuteStatement takes (DynamoDB API reference)."""


class Ledger(Protocol):
    """Where the consumer claims events. Idempotent; raises as CounterStore does."""

    def claim(self, shard: ShardRef, claims: Sequence[Claim], *, now: datetime) -> dict[str, Holder]:
        """Claim each key for its place unless it is held, and return the holder of each key.

        claims: 1 to CLAIMS_MAX, all with different keys. Some may have been made when it raises.
        """

    def note_repeats(self, shard: ShardRef, write: RepeatsWrite) -> None:
        """Add the sightings that lie beyond the last one noted of this shard; nothing when the claim is gone.

        Never call it for a key while another call for the same key and shard is under way.
        """


# ── The tables, as billing reads them ────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Total:
    """A counter's total. last_updated: aware UTC, when something was last added. readings: see metering.readings."""

    tenant_id: str
    metric: str
    usage: Decimal
    events: int
    last_updated: datetime
    readings: tuple[KeptReading, ...] = ()


@dataclass(frozen=True, slots=True)
class ShardProgress:
    """How far a shard has been applied. position: BEGINNING when nothing has been.

    counted_by_hour: of `counted`, what arrived in each hour (its start, aware UTC) of the last day, without zeros.
    Hours may be older while no consumer runs: look at those that you ask for.
    """

    shard_id: str
    stream_created_at: datetime
    position: str
    records: int
    events: int
    counted: int
    duplicates: int
    rejected: int
    newest_arrival_at: datetime | None
    complete_until: datetime | None
    heartbeat_at: datetime | None
    closed: bool
    counted_by_hour: Mapping[datetime, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TenantPage:
    """Tenants in order of their ids. cursor: hand it back for the next page; None on the last one."""

    tenant_ids: tuple[str, ...]
    cursor: str | None


class UsageReader(Protocol):
    """Where billing reads; all reads are strongly consistent. Raises as CounterStore does."""

    def tenants(self, *, limit: int, after: str | None) -> TenantPage:
        """Return up to `limit` tenants (1 or more) whose ids sort after `after`."""

    def totals(self, tenant_id: str) -> list[Total]:
        """Return the totals of all metrics of a tenant, in order of the metrics; empty for an unknown tenant."""

    def total(self, tenant_id: str, metric: str) -> Total | None:
        """Return one total, or None when the counter was never seen."""

    def progress(self, stream: str) -> list[ShardProgress]:
        """Return the progress of the shards of the stream's newest incarnation."""

    def check(self) -> None:
        """Return when the table can be read now; raise otherwise."""


# ── Single events, as billing and `metering rejected` read them ──────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class ClaimedEvent:
    """An event that is in the ledger. Times are aware UTC.

    owner: see metering.rows.claim_owner. content: None when the row can't be read as a claim.
    duplicates, conflicts: how often it came again, as the same and with other content; last_repeat_at: when last.
    voided_at, voided_by, void_reason: None unless it was taken out again.
    window: that it was counted in, see metering.rows.window_stamp; None for a claim that is older than this attribute.
    """

    owner: str
    content: EventContent | None
    counted_at: datetime | None
    duplicates: int
    conflicts: int
    last_repeat_at: datetime | None
    voided_at: datetime | None
    voided_by: str | None = None
    void_reason: str | None = None
    window: str | None = None


class EventReader(Protocol):
    """Where one event is looked up; all reads are strongly consistent. Raises as CounterStore does."""

    def claimed(self, key: str) -> ClaimedEvent | None:
        """Return who holds a key of the ledger that metering.rows.event_claim_key made, or None."""

    def rejections(self, key: str, *, limit: int) -> list[RejectedRow]:
        """Return the rejected rows of the event with this ledger key, oldest first; `limit` (1 or more) at most."""

    def rejection(self, place: StreamPlace) -> RejectedRow | None:
        """Return the rejected row of one place, or None."""

    def newest_rejections(self, tenant_id: str, *, limit: int) -> list[RejectedRow]:
        """Return the rejected rows that name a tenant, those that arrived last first; `limit` (1 or more) at most."""


class LeaseReader(Protocol):
    """Where it is seen which worker has which shard. Raises as CounterStore does."""

    def lease_owners(self, shard_ids: Sequence[str]) -> dict[str, str]:
        """Return the worker of each of these shards that has one; none where there are no leases."""


class AlertReader(Protocol):
    """Where a tenant's alerts are read, strongly consistent. Raises as CounterStore does."""

    def alerts(self, tenant_id: str, *, limit: int, after: str | None) -> AlertPage:
        """Return up to `limit` alerts (1 or more), those whose period ends last first.

        after: the cursor of the page before; None for the first.
        """


class BillingReader(UsageReader, WindowReader, EventReader, LeaseReader, AlertReader, Protocol):
    """All that billing reads."""


class EventVoider(Protocol):
    """Where a counted event is taken out again. Raises as CounterStore does."""

    def void(self, void: Void, *, now: datetime) -> VoidOutcome:
        """Take the event out of its total and its window and note it on its claim: all of it or nothing.

        At most once for each claim, whoever asks and how often. When it raises StoreUnavailableError it may have been
        done: ask again, and what the claim says then decides.
        """


class BillingStore(BillingReader, EventVoider, Protocol):
    """All that billing reads, and its one write."""


class AlertStore(AlertReader, Protocol):
    """Where alerts are recorded, and the messages that tell of them wait to be posted. Raises as CounterStore does.

    Each call may be made again after it raised StoreUnavailableError: what it had done then is not done twice.
    """

    def recorded(self, watched: WatchedPeriod) -> frozenset[Decimal]:
        """Return the thresholds whose crossing in this period is recorded."""

    def record(self, crossing: Crossing, message: Message | None) -> bool:
        """Record an alert as open, and put its message into the outbox: both or neither; False when it was there.

        message: None when there is nobody to post to.
        """

    def open_until(self, end: datetime, *, limit: int) -> list[Crossing]:
        """Return up to `limit` open alerts whose period ends at `end` or before, in the order of these ends."""

    def resolve(self, crossing: Crossing, message: Message | None, *, now: datetime) -> bool:
        """Note that an open alert is resolved, and put the message of that into the outbox; False when it was noted."""

    def due_messages(self, now: datetime, *, limit: int) -> list[Message]:
        """Return up to `limit` messages that are due at `now`, in the order of their due times."""

    def move(self, message: Message, later: Message) -> bool:
        """Put `later` into the outbox in the place of `message`, the same one before; True when it was done.

        False when `message` is not in the outbox as given: another runner has it.
        """

    def posted(self, message: Message, *, now: datetime) -> None:
        """Note on its alert that the message was posted, and take it out of the outbox."""

    def give_up(self, message: Message) -> None:
        """Note on its alert that the message will not be posted, and take it out of the outbox."""


class RejectedStore(Protocol):
    """Rejected rows, for those who look after them. Raises as CounterStore does."""

    def shard_ids(self) -> list[str]:
        """Return all shards that were ever opened and so may have rejected rows, of all incarnations of the stream."""

    def page(self, shard_id: str, *, limit: int, before: StreamPlace | None) -> RejectedPage:
        """Return up to `limit` rows (1 or more) of a shard, newest first, all older than `before`."""

    def get(self, place: StreamPlace) -> RejectedRow | None:
        """Return one row, or None; strongly consistent."""

    def begin_replay(self, place: StreamPlace, events: bytes, *, now: datetime) -> bytes | None:
        """Note what a replay is about to put, unless one was noted before.

        Return what is noted now, this or the earlier one; None when the row is gone. 100 KiB at most.
        """

    def mark_replayed(self, place: StreamPlace, event_ids: Sequence[str], *, now: datetime) -> bool:
        """Note that the replay is done; False when that was noted before, or the row is gone."""
