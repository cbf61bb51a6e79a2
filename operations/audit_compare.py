"""Rows and shards as they are against what the stream says of them: what differs, and what can't be told. Pure.

What is past the stream's retention can't be read again. A row that holds some of it is held to what was read: it may
hold more, never less. But a window that starts late enough holds only what can be read, and is held to it exactly:

    ──────── past retention ────────┤ readable from here on
                                    │◄─ FUTURE_TOLERANCE + CLOCKS_MARGIN ─►├─ windows that start here are exact
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from metering.events import FUTURE_TOLERANCE, decimal_text
from metering.meters import NO_METERS, Meters
from metering.ports import ShardProgress
from metering.rows import WINDOW_PREFIX, RowKey, applied_attribute
from operations.audit_readings import ReadingAudit
from operations.audit_tally import ZERO, Amount, AuditedRow, AuditedShard, Tally, total_of, voided_in_windows

CLOCKS_MARGIN = timedelta(minutes=15)
"""How far a collector's clock may be ahead of Kinesis's: an event is that much older than its time says."""
SHOWN_MAX = 100
_NEVER = datetime.max.replace(tzinfo=UTC) - timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that is not as it must be. key: the row's or shard's."""

    key: str
    what: str
    expected: str
    found: str

    def __str__(self) -> str:
        return f"{self.key}: {self.what}: expected {self.expected}, found {self.found}"


@dataclass(slots=True)
class Differences:
    """The first SHOWN_MAX differences, and how many there are."""

    shown: list[Difference] = field(default_factory=list)
    count: int = 0

    def add(self, key: str, what: str, expected: object, found: object) -> None:
        self.count += 1
        if len(self.shown) < SHOWN_MAX:
            self.shown.append(Difference(key, what, str(expected), str(found)))


@dataclass(frozen=True, slots=True)
class History:
    """What the stream still tells.

    readable_from: all that arrived since then was read (aware UTC).
    shared: another stream is counted in the same table.
    """

    created_at: datetime
    readable_from: datetime
    shared: bool = False

    @property
    def whole(self) -> bool:
        """Whether nothing of this incarnation of the stream can be gone."""
        return self.readable_from <= self.created_at


@dataclass(slots=True)
class Checked:
    """How well the rows could be checked: each row counts once, by the first of these that holds.

    at_least: of these, some records can't be read again. within: of some events it is not known whether they counted.
    uncovered: rows, counted above as well, of whose max or latest nothing can be told: they have events from before.
    """

    exactly: int = 0
    within: int = 0
    at_least: int = 0
    uncovered: int = 0


class Comparison:
    """Compares once. unlisted: progress rows of this incarnation whose shards the stream does not list any more."""

    def __init__(
        self, tally: Tally, history: History, unlisted: list[ShardProgress], meters: Meters = NO_METERS
    ) -> None:
        self._tally = tally
        self._history = history
        self._unlisted = unlisted
        self.differences = Differences()
        self.checked = Checked()
        self._by_attribute = {shard.attribute: shard for shard in tally.shards.values()}
        self._this_incarnation = applied_attribute(history.created_at, "")
        self._different: set[RowKey] = set()
        self._readings = ReadingAudit(meters, self._by_attribute)

    def compare(self) -> None:
        """Check all shards, then all rows, then that each total is the sum of its windows."""
        for shard in self._tally.shards.values():
            self._check_shard(shard)
        for progress in self._unlisted:
            self._check_invariant(progress)
        for key in sorted(self._tally.rows):
            self._check_row(key, self._tally.rows[key])
        self._check_sums()
        self.checked.uncovered = self._readings.uncovered
        for key, expected, found in self._readings.differing_totals():
            if key not in self._different:
                self._differs(key, "total", expected, found)

    def gone(self, shard: AuditedShard) -> int:
        """Return how many of a shard's records are in the rows and can't be read again."""
        return max(0, shard.progress.records - shard.records) if shard.progress else 0

    # ── Shards ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _check_shard(self, shard: AuditedShard) -> None:
        key, progress = shard.shard.shard_id, shard.progress
        if progress is None:
            if shard.limit:
                self.differences.add(key, "progress row", f"at least {_position(shard.last)}", "none")
            return
        self._check_invariant(progress)
        whole = self._history.whole
        known = {"counted": shard.counted, "duplicates": shard.duplicates, "rejected": shard.rejected}
        for name, least in {"records": shard.records, "events": sum(known.values()) + shard.unknown}.items():
            self._check_number(key, name, least, least if whole or not self.gone(shard) else None, progress)
        for name, least in known.items():
            most = least + shard.unknown if whole or not self.gone(shard) else None
            self._check_number(key, name, least, most, progress)
        if self._is_whole(shard) and shard.applied > shard.last:
            self.differences.add(key, "position", _position(shard.last), _position(shard.applied))

    def _check_number(self, key: str, name: str, least: int, most: int | None, progress: ShardProgress) -> None:
        found: int = getattr(progress, name)
        if found < least or (most is not None and found > most):
            self.differences.add(key, name, _between(str(least), None if most is None else str(most)), found)

    def _check_invariant(self, progress: ShardProgress) -> None:
        ended = progress.counted + progress.duplicates + progress.rejected
        if progress.events != ended:
            parts = f"counted {progress.counted} + duplicates {progress.duplicates} + rejected {progress.rejected}"
            self.differences.add(progress.shard_id, "events", f"{ended} ({parts})", progress.events)

    def _is_whole(self, shard: AuditedShard) -> bool:
        if self._history.whole:
            return True
        return shard.progress is not None and shard.progress.records == shard.records

    # ── Rows ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _check_row(self, key: RowKey, row: AuditedRow) -> None:
        before = self.differences.count
        exact = self._reads_all_of(key, row)
        if row.found is None:
            if row.counted.events:
                self._differs(key, "row", _amount(row.counted), "none")
        elif row.found.usage is None or row.found.events is None:
            found = f"usage {_text(row.found.usage)}, events {_text(row.found.events)}"
            self._differs(key, "row", _amount(row.counted) if row.counted.events else "none", found)
        elif exact and not row.counted.events and not row.unknown.events:
            self._differs(key, "row", "none", _amount(Amount(row.found.usage, row.found.events)))
        else:
            self._check_amount(key, row, row.found.usage, row.found.events, exact=exact)
            self._check_voided(key, row, row.found.voided, exact=exact)
            for what, expected, found in self._readings.differences(key, total_of(key), row, exact=exact):
                self._differs(key, what, expected, found)
        if self.differences.count > before:
            self._different.add(total_of(key))
        if not exact:
            self.checked.at_least += 1
        elif row.unknown.events:
            self.checked.within += 1
        else:
            self.checked.exactly += 1

    def _check_amount(self, key: RowKey, row: AuditedRow, usage: Decimal, events: int, *, exact: bool) -> None:
        voided = row.found.voided if row.found else ZERO
        least = row.counted.minus(voided)
        most = least.plus(row.unknown) if exact else None
        if usage < least.usage or (most and usage > most.usage):
            wanted = _between(decimal_text(least.usage), decimal_text(most.usage) if most else None)
            self._differs(key, "usage", wanted, decimal_text(usage))
        if events < least.events or (most and events > most.events):
            wanted = _between(str(least.events), str(most.events) if most else None)
            self._differs(key, "events", wanted, str(events))
        if row.behind is not None:
            self._differs(key, f"position of {row.behind}", "that of its last event there or later", "an earlier one")
        for attribute, position in row.found.applied.items() if row.found else ():
            shard = self._by_attribute.get(attribute)
            if shard and self._is_whole(shard) and position > shard.last:
                name = f"position of {shard.shard.shard_id}"
                self._differs(key, name, f"at most {_position(shard.last)}", _position(position))

    def _check_voided(self, key: RowKey, row: AuditedRow, voided: Amount, *, exact: bool) -> None:
        """Check that what was taken out of the row is what is voided in the ledger, see audit_tally."""
        if row.voided.exceeds(row.voided_now):
            self._differs(key, "voided", _amount(row.voided), _amount(row.voided_now))
        elif exact and voided.exceeds(row.voided):
            self._differs(key, "voided", _amount(row.voided), _amount(voided))

    def _reads_all_of(self, key: RowKey, row: AuditedRow) -> bool:
        """Return whether all records that may be in the row were read."""
        horizons = [self._horizon(attribute) for attribute in row.found.applied] if row.found else []
        horizon = max((moment for moment in horizons if moment), default=None)
        if horizon is None:
            return True
        start = _window_start(key)
        return start is not None and start >= horizon + FUTURE_TOLERANCE + CLOCKS_MARGIN

    def _horizon(self, attribute: str) -> datetime | None:
        """Return from when on all that the attribute's shard held was read; None: from its first record on."""
        shard = self._by_attribute.get(attribute)
        if shard is not None:
            return None if self._is_whole(shard) else self._history.readable_from
        if attribute.startswith(self._this_incarnation):
            return self._history.readable_from
        # Of the stream of that name that was deleted before this one was made; another one may go on.
        return _NEVER if self._history.shared else self._history.created_at

    def _check_sums(self) -> None:
        """Check that totals are the sums of their windows, without what lies beyond the progress rows."""
        windows: dict[RowKey, Amount] = {}
        for key, row in self._tally.rows.items():
            total = total_of(key)
            ever = row.found.ever_counted if row.found else None
            if total != key and ever is not None:
                amount = ever.minus(row.late)
                windows[total] = windows[total].plus(amount) if total in windows else amount
        voided = voided_in_windows(self._tally.rows, lambda row: row.found.voided if row.found else ZERO)
        voided_now = voided_in_windows(self._tally.rows, lambda row: row.voided_now)
        totals = {key for key in self._tally.rows if total_of(key) == key}
        for key in sorted((windows.keys() | totals) - self._different):
            of_windows = windows.get(key, ZERO)
            row = self._tally.rows.get(key, AuditedRow(None))
            ever = row.found.ever_counted if row.found else None
            of_total = ever.minus(row.late) if ever is not None else ZERO
            if of_total != of_windows:
                self._differs(key, "total", f"{_amount(of_windows)} in its windows", _amount(of_total))
            of_row, in_windows = row.found.voided if row.found else ZERO, voided_now.get(key, ZERO)
            if of_row.exceeds(in_windows.plus(row.voided_late)) or voided.get(key, ZERO).exceeds(row.voided_now):
                self._differs(key, "voided", f"{_amount(in_windows)} in its windows", _amount(row.voided_now))

    def _differs(self, key: RowKey, what: str, expected: str, found: str) -> None:
        self.differences.add(_name(key), what, expected, found)


def _window_start(key: RowKey) -> datetime | None:
    if not key.sk.startswith(WINDOW_PREFIX):
        return None
    try:
        return datetime.fromisoformat(key.sk.rpartition("#")[2]).replace(tzinfo=UTC)
    except ValueError:
        return None


def _name(key: RowKey) -> str:
    return f"{key.pk} {key.sk}"


def _amount(amount: Amount) -> str:
    return f"usage {decimal_text(amount.usage)}, events {amount.events}"


def _text(value: Decimal | int | None) -> str:
    return "none" if value is None else decimal_text(Decimal(value))


def _between(least: str, most: str | None) -> str:
    if most is None:
        return f"at least {least}"
    return least if least == most else f"{least} to {most}"


def _position(position: str) -> str:
    return position[3:] or "none"
