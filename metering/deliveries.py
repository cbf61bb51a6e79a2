"""Events as a program submits them, and what becomes of them: the words of metering.client. No I/O."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal

from metering.errors import InvalidEventError, MeteringError, ServiceUnavailableError
from metering.events import encode_json, parse_event, stream_form, time_text
from metering.sending import Accepted, KeyedEvent, Outcome, Rejected, Unsent

NAMED_MAX = 5
"""Events named in an error's text; the error itself holds all."""

_END_OF_TIME = datetime(9999, 12, 31, 23, 54, tzinfo=UTC)
"""Rules about time are the collector's to apply, by its own clock; before this one no timestamp is in the future."""


@dataclass(frozen=True, slots=True)
class Undelivered:
    """An event that is not accepted, and why. fields: what submit takes; with their event_id it is safe to repeat."""

    fields: dict[str, str]
    outcome: Rejected | Unsent

    def __str__(self) -> str:
        why = self.outcome
        words = f"{why.code}: {why.detail}" if isinstance(why, Rejected) else why.reason
        return f"{self.fields['event_id']!r} of {self.fields['tenant_id']}: {words}"


class UndeliveredEventsError(MeteringError):
    """Events that were submitted are not accepted, and no callback took them: they are in `events`, and only there."""

    def __init__(self, events: Sequence[Undelivered]) -> None:
        named = "; ".join(map(str, events[:NAMED_MAX])) + (" …" if len(events) > NAMED_MAX else "")
        super().__init__(f"{len(events)} event(s) were not accepted: {named}")
        self.events = tuple(events)

    @property
    def rejected(self) -> tuple[Undelivered, ...]:
        """Those that the collector refused: to be corrected, or given up."""
        return tuple(event for event in self.events if isinstance(event.outcome, Rejected))

    @property
    def unsent(self) -> tuple[Undelivered, ...]:
        """Those that may be held or not: submit them again under their event_id, when the collector is back."""
        return tuple(event for event in self.events if isinstance(event.outcome, Unsent))


class BufferFullError(ServiceUnavailableError):
    """The buffer has no room; the event was not taken."""


class FlushTimeoutError(ServiceUnavailableError):
    """Some events have no outcome yet. They are still in the buffer, and still being sent."""


@dataclass(frozen=True, slots=True)
class Counts:
    """How many events were submitted, and how many ended so far, as what."""

    submitted: int = 0
    accepted: int = 0
    rejected: int = 0
    unsent: int = 0

    @property
    def settled(self) -> int:
        """How many have ended."""
        return self.accepted + self.rejected + self.unsent

    def with_submitted(self) -> Counts:
        """Return the counts after one more was submitted."""
        return Counts(self.submitted + 1, self.accepted, self.rejected, self.unsent)

    def with_outcomes(self, outcomes: Sequence[Outcome]) -> Counts:
        """Return the counts after events ended."""
        kinds = [type(outcome) for outcome in outcomes]
        return Counts(
            self.submitted,
            self.accepted + kinds.count(Accepted),
            self.rejected + kinds.count(Rejected),
            self.unsent + kinds.count(Unsent),
        )


def keyed_event(
    tenant_id: str,
    metric: str,
    value: int | Decimal | str,
    timestamp: datetime | str | None,
    event_id: str | None,
    *,
    now: datetime,
) -> KeyedEvent:
    """Return an event that keeps every rule but those about time, under `event_id` or a new one.

    now (aware UTC): its timestamp, when it has neither a timestamp nor an id. With an id of the caller's it has to be
    the same content when it is submitted again, so there the timestamp stays out.
    Raises InvalidEventError.
    """
    if isinstance(value, bool) or not isinstance(value, int | Decimal | str):
        raise InvalidEventError("invalid_value", "value must be exact: an int, a Decimal or a decimal string", "value")
    if isinstance(timestamp, datetime):
        if timestamp.tzinfo is None:
            raise InvalidEventError("invalid_timestamp", "timestamp must be an aware time", "timestamp")
        timestamp = timestamp.astimezone(UTC).isoformat()
    if event_id is None:
        timestamp = time_text(now) if timestamp is None else timestamp
        event_id = str(uuid.uuid4())
    text = value if isinstance(value, str) else str(Decimal(value))
    fields = {"tenant_id": tenant_id, "metric": metric, "value": text, "event_id": event_id}
    if timestamp is not None:
        fields["timestamp"] = timestamp
    form = stream_form(parse_event(fields, now=_END_OF_TIME))
    del form["received_at"]
    return KeyedEvent(event_id, encode_json(form))
