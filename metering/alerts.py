"""Alerts as they are kept: the row of each, the messages that tell of it, and the keys and ids of both. Pure.

`usage-aggregator` (pk, sk), beside what metering.rows names:

    TENANT#t    | ALERT#end#name#start#threshold    an alert: one row for each threshold, alert and period
    ALERTS#OPEN | end#id                            an alert that is not resolved yet, by when its period ends
    ALERTS#POST | due#id                            the outbox: a message that is not posted yet, by when it is due

The alert's key says all that makes it one, so that a put on condition of its absence records it once, whoever puts it
and how often. Its ids are digests of the key: a message that is posted again has the id that it had. `end` stands first
in the key, so that a tenant's rows in order of their keys are in the order in which their periods end, the open ones
last.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from hashlib import blake2b

from metering.events import decimal_text, time_text
from metering.local_time import Period
from metering.rows import RowKey, tenant_pk

ALERT_PREFIX = "ALERT#"
OPEN_PK = "ALERTS#OPEN"
POST_PK = "ALERTS#POST"
ID_PREFIX = "alert_"

_ID_BYTES = 16


class Kind(StrEnum):
    """What a message tells."""

    CROSSED = "crossed"
    RESOLVED = "resolved"


class Delivery(StrEnum):
    """What became of a message."""

    PENDING = "pending"
    POSTED = "posted"
    FAILED = "failed"  # given up


@dataclass(frozen=True, slots=True)
class WatchedPeriod:
    """One period of one alert for one tenant: a day or a month of a zone's clock. start, end: aware UTC."""

    tenant_id: str
    name: str
    metric: str
    period: Period
    timezone: str
    start: datetime
    end: datetime

    @property
    def key_prefix(self) -> str:
        """With what the sort keys of all its alerts begin, and no others."""
        return f"{ALERT_PREFIX}{time_text(self.end)}#{self.name}#{time_text(self.start)}#"


@dataclass(frozen=True, slots=True)
class Crossing:
    """That usage reached a threshold within a period.

    threshold: above 0. usage: when it was seen; crossed_at: when that was; as_of: all that the stream held at that time
    was in, None when it was not known.
    """

    watched: WatchedPeriod
    threshold: Decimal
    usage: Decimal
    crossed_at: datetime
    as_of: datetime | None

    @property
    def key(self) -> RowKey:
        return RowKey(tenant_pk(self.watched.tenant_id), f"{self.watched.key_prefix}{decimal_text(self.threshold)}")

    @property
    def alert_id(self) -> str:
        """The same for every record of the same crossing, whatever was seen then."""
        said = "\n".join(self.key)
        return ID_PREFIX + blake2b(said.encode(), digest_size=_ID_BYTES).hexdigest()

    def message_id(self, kind: Kind) -> str:
        """The webhook-id of a message: it holds no full stop, which ends it in what is signed."""
        return f"{self.alert_id}_{kind}"


@dataclass(frozen=True, slots=True)
class Notice:
    """What became of one message of an alert. posted_at: when, None unless it was."""

    delivery: Delivery
    posted_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Alert:
    """An alert as it is kept. resolved_at: None while it is open.

    crossed, resolved: what became of the messages; None where there is nobody to post to, or nothing to tell yet.
    """

    crossing: Crossing
    resolved_at: datetime | None
    crossed: Notice | None
    resolved: Notice | None


@dataclass(frozen=True, slots=True)
class AlertPage:
    """Alerts, those whose period ends last first. cursor: hand it back for the next page; None on the last one."""

    alerts: tuple[Alert, ...]
    cursor: str | None


@dataclass(frozen=True, slots=True)
class Message:
    """A message in the outbox. body: what is posted, byte for byte, every time. alert: the key of its alert.

    attempts: posts that were begun; due_at: when the next one may be. made_at: when it was put here.
    """

    message_id: str
    kind: Kind
    alert: RowKey
    body: bytes
    made_at: datetime
    due_at: datetime
    attempts: int = 0

    def begun(self, *, until: datetime) -> Message:
        """Return it with an attempt more, due again when that is over at the latest."""
        return replace(self, due_at=until, attempts=self.attempts + 1)

    @property
    def sort_key(self) -> str:
        """Where it stands in the outbox: among the earliest that are due."""
        return f"{time_text(self.due_at)}#{self.message_id}"


def open_sort_key(crossing: Crossing) -> str:
    """Return where an alert stands among those that are open: the first are those whose period is over first."""
    return f"{time_text(crossing.watched.end)}#{crossing.alert_id}"
