"""The in-memory twins of WindowReader and LeaseReader, on the rows of metering.memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal

from metering.meters import Aggregation
from metering.readings import KeptReading, Reading
from metering.rows import RowKey, tenant_pk
from metering.windows import WindowRow, row_of_stamp, sort_key


@dataclass
class MemoryRow:
    """A counter row: `applied` maps the attribute of a shard to the position applied.

    covered: how many of its events had been offered as readings when they were counted.
    """

    usage: Decimal = Decimal(0)
    events: int = 0
    voided_usage: Decimal = Decimal(0)
    voided_events: int = 0
    last_updated: datetime = datetime.min.replace(tzinfo=UTC)  # noqa: RUF009 - immutable
    applied: dict[str, str] = field(default_factory=dict)
    covered: dict[Aggregation, int] = field(default_factory=dict)


class MemoryWindows:
    """WindowReader and LeaseReader on dictionaries. leases: the worker of each shard.

    readings: by row, apart from `rows`, since a row that nothing was added to is not there.
    """

    window_minutes = 60
    rows: dict[RowKey, MemoryRow]
    readings: dict[RowKey, dict[Aggregation, Reading]]
    leases: dict[str, str]

    def windows(
        self, tenant_id: str, metric: str, *, start: datetime, end: datetime, at_once: bool = False
    ) -> Iterator[WindowRow]:
        yield from (row for row in self._windows(tenant_id, metric) if row.start < end and row.end > start)

    def window_ends(self, tenant_id: str, metric: str) -> tuple[WindowRow, WindowRow] | None:
        found = self._windows(tenant_id, metric)
        return (found[0], found[-1]) if found else None

    def lease_owners(self, shard_ids: Sequence[str]) -> dict[str, str]:
        return {shard_id: self.leases[shard_id] for shard_id in shard_ids if shard_id in self.leases}

    def kept_readings(self, key: RowKey) -> tuple[KeptReading, ...]:
        """Return what a row keeps, in the order of the aggregations."""
        kept, row = self.readings.get(key, {}), self.rows.get(key, MemoryRow())
        covered = {each: row.covered.get(each, 0) - row.voided_events for each in Aggregation}
        return tuple(KeptReading(kept[each], covered[each]) for each in Aggregation if each in kept)

    def _windows(self, tenant_id: str, metric: str) -> list[WindowRow]:
        """Return all rows of a counter in the order of their keys."""
        prefix = sort_key(metric, "")
        keys = sorted(key for key in self.rows if key.pk == tenant_pk(tenant_id) and key.sk.startswith(prefix))
        return [
            row_of_stamp(
                key.sk.removeprefix(prefix),
                self.rows[key].usage,
                self.rows[key].events,
                tuple(map(_without_place, self.kept_readings(key))),
                window_minutes=self.window_minutes,
            )
            for key in keys
        ]


def _without_place(kept: KeptReading) -> KeptReading:
    """Return what WindowReader reads: of a maximum the value alone."""
    reading = kept.reading
    return kept if reading.aggregation is not Aggregation.MAX else kept._replace(reading=reading._replace(at=""))
