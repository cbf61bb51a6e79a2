"""Voids: a counted event that is taken out of its total and its window again, once, and by whom and why.

    claim     SET voided_at, voided_by, void_reason   REMOVE expires_at       IF it is the one that was read, not voided
    total     usage - value, events - 1; voided_usage + value, voided_events + 1              IF it holds the event
    window    the same                                                                        IF it holds the event

All three or none; and none where a row keeps a reading (metering.readings), from which nothing can be taken. The
positions by which a row fences itself stay as they are, so a replay is dropped as before; and the claim stays, now for
good, so a retry is a duplicate as before. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from enum import Enum

from metering.claims import EventContent
from metering.errors import InvalidEventError
from metering.events import JsonNumber, decode_json
from metering.rows import RowKey, stamped_window_key, total_key

TEXT_LENGTH_MAX = 256
VOID_FIELDS = frozenset({"by", "reason"})


@dataclass(frozen=True, slots=True)
class VoidRequest:
    """Who voids and why, in their own words: 1 to TEXT_LENGTH_MAX printable characters each."""

    by: str
    reason: str


@dataclass(frozen=True, slots=True)
class Void:
    """One event to take out.

    key, owner: of its claim, as it was read. rows: those that it was counted in. usage: what it added to each of them.
    key_fingerprint: of the API key that asked, None when none is needed.
    """

    key: str
    owner: str
    rows: tuple[RowKey, ...]
    usage: Decimal
    request: VoidRequest
    key_fingerprint: str | None


class VoidOutcome(Enum):
    """What has become of a void."""

    VOIDED = "voided"
    CLAIM_CHANGED = "the claim is not the one that was read, or is voided"
    NOT_HELD = "a row does not hold the event"
    KEEPS_READING = "a row keeps a maximum or a latest value, and nobody knows which was the one before"


def parse_void(body: bytes) -> VoidRequest:
    """Return what the body of a request to void says.

    Raises InvalidEventError: `malformed_json`, `invalid_void` for what is no object, `unknown_field`, `missing_field`,
    `invalid_by`, `invalid_reason`.
    """
    raw = decode_json(body)
    if not isinstance(raw, dict):
        raise InvalidEventError("invalid_void", "a void is a JSON object with by and reason")
    for name in raw:
        if name not in VOID_FIELDS:
            raise InvalidEventError("unknown_field", f"there is no field {name[:64]!r} in a void", name[:64])
    for field in sorted(VOID_FIELDS - raw.keys()):
        raise InvalidEventError("missing_field", f"{field} is required", field)
    return VoidRequest(_void_text(raw["by"], "by", "invalid_by"), _void_text(raw["reason"], "reason", "invalid_reason"))


def counted_rows(tenant_id: str, content: EventContent, window: str) -> tuple[RowKey, RowKey]:
    """Return the total and the window that an event was counted in. window: as its claim keeps it."""
    return total_key(tenant_id, content.metric), stamped_window_key(tenant_id, content.metric, window)


def _void_text(raw: object, field: str, code: str) -> str:
    if (
        not isinstance(raw, str)
        or isinstance(raw, JsonNumber)
        or not 1 <= len(raw) <= TEXT_LENGTH_MAX
        or not raw.isprintable()
    ):
        raise InvalidEventError(code, f"{field} must be 1 to {TEXT_LENGTH_MAX} printable characters", field)
    return raw
