"""Which readings a batch offers to the rows that it touches: one at most for each row. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from consumer.claiming import SettledRecord
from metering.aggregation import row_keys
from metering.meters import Meters
from metering.ports import ShardRef
from metering.readings import Reading, reading_place
from metering.rows import RowKey, claim_owner, place


def batch_readings(
    shard: ShardRef, settled: Iterable[SettledRecord], meters: Meters, *, window_minutes: int
) -> dict[RowKey, Reading]:
    """Return the greatest reading for each row whose meter is max or latest, of the events that count."""
    greatest: dict[RowKey, Reading] = {}
    for record in settled:
        for placed in record.counted:
            aggregation = meters.for_metric(placed.event.metric).aggregation
            if not aggregation.keeps_reading:
                continue
            where = place(record.decoded.position, placed.index)
            owner = claim_owner(shard.stream_created_at, shard.shard_id, where)
            at = reading_place(placed.event, arrived_at=record.decoded.arrived_at, owner=owner)
            reading = Reading(aggregation, placed.event.value, at)
            for key in row_keys(placed.event, window_minutes=window_minutes):
                if key not in greatest or reading.exceeds(greatest[key]):
                    greatest[key] = reading
    return greatest
