"""When the handover of a shard stands still: says so by what the KCL's lease table shows, and completes it.

To move a shard from a worker that lives, the leader makes the new one its lease's `leaseOwner` and the old one its
`checkpointOwner`. The old one checkpoints, stops reading and removes `checkpointOwner`, at the latest after
gracefulLeaseHandoffTimeoutMillis; only then does the new one read. In 3.1.3 that last write can fail to come, and is
never made up for: one of the two renews the lease for ever, and nobody reads the shard
(docs/decisions/0011-stuck-handoff.md):

    look ─► look ─► look ─► … the same handover for stuck_after_s ─► remove checkpointOwner if it is still the same
      │ another owner or checkpointOwner, a look that failed, a gap between looks: the time starts again

This module is the rule alone; consumer/leader_watcher.py looks and writes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from consumer.takeover import GAP_S_MAX, milliseconds

MARGIN_S = 10.0
"""For the old owner to notice that its lease is asked back (at its next renewal) and to act on its own timeout."""


@dataclass(frozen=True, slots=True)
class Handoff:
    """A shard on its way from one live worker to another."""

    shard: str
    from_worker: str
    to_worker: str


@dataclass(frozen=True, slots=True)
class Lease:
    """What the KCL's lease table shows of one shard at one moment; an owner is None when there is none."""

    shard: str
    counter: int
    owner: str | None
    checkpoint_owner: str | None

    @property
    def actual_owner(self) -> str | None:
        """Who reads the shard and renews the lease: while it is handed over, still the old one (Lease.actualOwner)."""
        return self.checkpoint_owner or self.owner

    @property
    def handoff(self) -> Handoff | None:
        if self.owner is None or self.checkpoint_owner is None:
            return None
        return Handoff(self.shard, from_worker=self.checkpoint_owner, to_worker=self.owner)


class HandoffWatch:
    """Tells from looks at the leases which handovers stand still; the clock is the watcher's own and monotonic.

    stuck_after_s: see the function of that name.
    """

    def __init__(self, *, stuck_after_s: float) -> None:
        self._stuck_after_s = stuck_after_s
        self._since_s: dict[Handoff, float] = {}
        self._looked_at_s = 0.0

    def look(self, leases: Iterable[Lease], now_s: float) -> list[Handoff]:
        """Take what was read, and the time after it was; return the handovers that stand still.

        One that stands still is returned at each look until it is gone, so that a write that failed is tried again.
        """
        gap_s, self._looked_at_s = now_s - self._looked_at_s, now_s
        if gap_s > GAP_S_MAX:
            self.forget()
        under_way = [lease.handoff for lease in leases if lease.handoff]
        self._since_s = {handoff: self._since_s.get(handoff, now_s) for handoff in under_way}
        return [handoff for handoff, since_s in self._since_s.items() if now_s - since_s >= self._stuck_after_s]

    def forget(self) -> None:
        """Begin again: a look failed."""
        self._since_s = {}


def handoff_stuck_after_s(properties: Mapping[str, str]) -> float:
    """Return for how long a handover must have stood in the table, in seconds, from the daemon's properties.

    Longer than the KCL's own timeout, after which the old owner gives the lease away unasked. Raises SetupError when
    the property is no number.
    """
    return milliseconds(properties, "gracefulLeaseHandoffTimeoutMillis") / 1000 + MARGIN_S
