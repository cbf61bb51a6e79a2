"""The void of the in-memory twins, see metering.memory."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from metering.aggregation import EXACT
from metering.positions import BEGINNING
from metering.rows import owner_fence
from metering.voids import Void, VoidOutcome

if TYPE_CHECKING:
    from metering.memory import MemoryTables


def void_in_memory(tables: MemoryTables, void: Void, *, now: datetime) -> VoidOutcome:
    """See metering.ports.EventVoider."""
    claim = tables.ledger.claims.get(void.key)
    if claim is None or claim.holder.owner != void.owner or claim.voided_at is not None:
        return VoidOutcome.CLAIM_CHANGED
    applied, position = owner_fence(void.owner)
    if any(tables.readings.get(key) for key in void.rows):
        return VoidOutcome.KEEPS_READING
    touched = [row for key in void.rows if (row := tables.rows.get(key)) is not None]
    if len(touched) < len(void.rows) or not all(
        row.applied.get(applied, BEGINNING) >= position and row.events >= 1 and row.usage >= void.usage
        for row in touched
    ):
        return VoidOutcome.NOT_HELD
    claim.voided_at, claim.voided_by, claim.void_reason = now, void.request.by, void.request.reason
    claim.voided_key = void.key_fingerprint
    for row in touched:
        row.usage = EXACT.subtract(row.usage, void.usage)
        row.events -= 1
        row.voided_usage = EXACT.add(row.voided_usage, void.usage)
        row.voided_events += 1
        row.last_updated = now
    return VoidOutcome.VOIDED
