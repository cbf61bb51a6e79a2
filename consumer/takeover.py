"""When the KCL's leader is lost: says so by what the KCL's own tables show, and gives its lock back for it.

The leader assigns the shards. Its lock, a row in `<application>-CoordinatorState`, outlives it by 120 s, and in 3.1.3
no property changes that: until then nobody takes over its shards, or those of any other worker that is lost. A leader
that stops in order deletes the row itself. This does the same for one that no longer can
(docs/decisions/0008-lost-leader.md):

    look ─► look ─► look ─► … nothing of the leader has moved for lost_after_s ─► delete the row if it is still the same
      │ moved, another leader, a look that failed, a gap between looks: the time starts again

All else stays the KCL's affair: who leads next, when leases run out, who gets them. This module is the rule alone;
consumer/leader_watcher.py looks and deletes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from metering.errors import SetupError

GAP_S_MAX = 4.0
"""Looks that lie further apart prove nothing: whoever could not look may have slept, and the leader beside it too."""
LOST_AFTER_S_MIN = 8.0
KCL_DEFAULTS_MS = {
    "failoverTimeMillis": 10_000,
    "workerMetricsReporterFreqInMillis": 30_000,
    "gracefulLeaseHandoffTimeoutMillis": 30_000,
}
"""What KCL 3.1.3 takes when a property is not set (LeaseManagementConfig)."""


@dataclass(frozen=True, slots=True)
class LeaderSigns:
    """What the KCL's tables show of its leader at one moment.

    worker_id, version: the owner and the recordVersionNumber of the lock, which a live leader renews every 30 s.
    reported_at: `lut` of its row in the metrics table, written every workerMetricsReporterFreqInMillis, in seconds
    since 1970; None when it has none. lease_counters: each of its leases with its counter, which moves three times
    within failoverTimeMillis; empty when it holds none.
    """

    worker_id: str
    version: str
    reported_at: int | None
    lease_counters: frozenset[tuple[str, int]]


class LeaderWatch:
    """Tells from looks at the leader whether it is lost; the clock is the watcher's own and monotonic.

    worker_id: the watcher's own worker, which is never called lost. lost_after_s: see the function of that name.
    """

    def __init__(self, worker_id: str, *, lost_after_s: float) -> None:
        self._worker_id = worker_id
        self._lost_after_s = lost_after_s
        self._signs: LeaderSigns | None = None
        self._unmoved_since_s = 0.0
        self._looked_at_s = 0.0

    def look(self, signs: LeaderSigns | None, now_s: float) -> bool:
        """Take what was read, and the time after it was; return whether the leader is lost.

        signs: None when there is no leader. Once it has said that a leader is lost, it begins again.
        """
        gap_s, self._looked_at_s = now_s - self._looked_at_s, now_s
        if signs is None or signs.worker_id == self._worker_id:
            self.forget()
            return False
        if signs != self._signs or gap_s > GAP_S_MAX:
            self._signs, self._unmoved_since_s = signs, now_s
            return False
        if now_s - self._unmoved_since_s < self._lost_after_s:
            return False
        self.forget()
        return True

    def forget(self) -> None:
        """Begin again: a look failed, or what was seen is no longer so."""
        self._signs = None


def lost_after_s(properties: Mapping[str, str]) -> float:
    """Return for how long nothing of a leader must have moved, in seconds, from the daemon's properties.

    Longer than failoverTimeMillis, so that the KCL itself holds all of its leases for lost by then, and longer than
    three of its reports to the metrics table: one may be late, and lut has whole seconds only. Raises SetupError when
    one of the two properties is no number.
    """
    failover_ms = milliseconds(properties, "failoverTimeMillis")
    report_ms = milliseconds(properties, "workerMetricsReporterFreqInMillis")
    return max(LOST_AFTER_S_MIN, failover_ms / 1000 + 2, 3 * report_ms / 1000 + 1)


def milliseconds(properties: Mapping[str, str], name: str) -> int:
    """Return what the daemon takes for one of KCL_DEFAULTS_MS; raises SetupError when it is no number."""
    value = properties.get(name, str(KCL_DEFAULTS_MS[name])).strip()
    if not (value.isascii() and value.isdigit()):
        raise SetupError(f"the KCL's property {name}={value!r} can't be used: allowed: a whole number of milliseconds")
    return int(value)
