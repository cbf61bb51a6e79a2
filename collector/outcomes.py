"""Why an event that was submitted is not held by the stream."""

from __future__ import annotations

from metering.errors import MeteringError, StreamUnavailableError


class EventNotHeldError(StreamUnavailableError):
    """Events were given up, or their answer is overdue.

    maybe_held: the answer to a put was lost or is still out, so the stream may hold them all the same;
    False: it does not, and never will.
    """

    def __init__(self, detail: str, *, maybe_held: bool) -> None:
        super().__init__(detail)
        self.maybe_held = maybe_held


class TooManyPendingError(MeteringError):
    """As many events as MAX_PENDING_EVENTS allows are waiting for the stream; these were not taken."""
