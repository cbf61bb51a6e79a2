"""What rows keep for meters that are max or latest, against what the stream says of it. Pure.

A reading is kept before its event is counted, so a row may be ahead of its own position by a batch that is under way:

    a shard's records ─────────────────────────────────────────────────────────────────►
                                            this row's own position │
    may be the row's reading   ◄──────────────── counted ───────────┴─ ahead: not yet ─►

A row that counts fewer of its events as covered than it has was counted before its metric had this meter, in part or
altogether: what it keeps may be too small, and can't be told. Too great it can't be.

A row whose events have all been voided has no usage, whatever it keeps: nothing is asked of it.
"""

from __future__ import annotations

from collections.abc import Mapping

from metering.events import decimal_text
from metering.meters import Meters
from metering.positions import BEGINNING
from metering.readings import KeptReading, Reading
from metering.rows import APPLIED_PREFIX, METRIC_PREFIX, RowKey
from operations.audit_tally import AuditedRow, AuditedShard


class ReadingAudit:
    """Checks rows one by one, then totals against their windows. shards: those that were read, by their attribute."""

    def __init__(self, meters: Meters, shards: Mapping[str, AuditedShard]) -> None:
        self._meters = meters
        self._shards = shards
        self._windows: dict[RowKey, Reading] = {}
        self._totals: dict[RowKey, Reading] = {}
        self._uncovered: set[RowKey] = set()
        self.uncovered = 0

    def differences(self, key: RowKey, total: RowKey, row: AuditedRow, *, exact: bool) -> list[tuple[str, str, str]]:
        """Return what differs of a row that has events, as (what, expected, found). total: the key of its total.

        exact: all records that may be in the row were read.
        """
        aggregation = self._meters.for_metric(total.sk.removeprefix(METRIC_PREFIX)).aggregation
        if not aggregation.keeps_reading or row.found is None or not row.found.events:
            return []
        kept = next((each for each in row.found.readings if each.reading.aggregation is aggregation), None)
        covered, events = kept.events if kept else 0, row.found.events
        if covered > events:
            return [(f"{aggregation}_events", f"at most {events}", str(covered))]
        if covered < events:
            self.uncovered += 1
            self._uncovered.add(total)
        self._note(key, total, row, kept)
        found, expected = kept.reading if kept else None, row.reading
        too_small = covered == events and expected and (found is None or expected.exceeds(found))
        if too_small or (exact and found and self._is_too_great(found, row)):
            return [(aggregation.value, _text(expected), _text(found))]
        return []

    def differing_totals(self) -> list[tuple[RowKey, str, str]]:
        """Return the totals that don't keep the greatest of their windows, as (key, expected, found)."""
        differing = []
        for key in sorted((self._windows.keys() | self._totals.keys()) - self._uncovered):
            of_windows, of_total = self._windows.get(key), self._totals.get(key)
            if of_windows == of_total:
                continue
            greater = of_windows if of_total is None or (of_windows and of_windows.exceeds(of_total)) else of_total
            if greater is None or not self._is_late(greater):
                differing.append((key, f"{_text(of_windows)} in its windows", _text(of_total)))
        return differing

    def _note(self, key: RowKey, total: RowKey, row: AuditedRow, kept: KeptReading | None) -> None:
        if kept is None:
            return
        if key == total:
            self._totals[key] = kept.reading
        elif total not in self._windows or kept.reading.exceeds(self._windows[total]):
            self._windows[total] = kept.reading

    def _is_too_great(self, found: Reading, row: AuditedRow) -> bool:
        attribute, position = _place(found)
        shard = self._shards.get(attribute)
        own = row.found.applied.get(attribute, BEGINNING) if row.found else BEGINNING
        if position > max(own, shard.applied if shard else BEGINNING):
            return False
        return not any(each == found or each.exceeds(found) for each in (row.reading, row.unknown_reading) if each)

    def _is_late(self, found: Reading) -> bool:
        """Return whether it may have come between the reads of two rows: it lies beyond the shard's progress row."""
        attribute, position = _place(found)
        shard = self._shards.get(attribute)
        return shard is not None and position > shard.applied


def _place(reading: Reading) -> tuple[str, str]:
    """Return the attribute of the shard and the position there of the reading's record; "" for what is no place."""
    owner = reading.at.rpartition("Z#")[2]
    tag, _, place = owner.partition("@")
    return APPLIED_PREFIX + tag, place.partition("#")[0]


def _text(reading: Reading | None) -> str:
    return "none" if reading is None else f"{decimal_text(reading.value)} of {reading.at.partition('#')[0]}"
