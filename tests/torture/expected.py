"""What the tables must hold, from what was sent and what the stream holds; and every difference to what they do hold.

What the stream holds decides which events without an id count (a POST that was not answered may have put one or not),
and where a rejected event's row must be. Everything else follows from what was sent.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from decimal import Context, Decimal
from typing import Any

from tests.e2e.tables import Rows, Tables
from tests.torture.known import Content, Key, Known, KnownEvent

EXACT = Context(prec=60)
Sought = dict[Any, Any]
Records = dict[str, list[tuple[str, bytes]]]
"""Sequence numbers and data by shard, from the oldest on."""


@dataclass
class Sighting:
    """One event of one record. place: position#index."""

    shard_id: str
    place: str
    conflict: bool = False

    @property
    def owner_end(self) -> tuple[int, str]:
        return int(self.shard_id.rpartition("-")[2]), self.place


@dataclass
class Expected:
    """What a finished run must have left."""

    seen: dict[tuple[str, str], list[Sighting]] = field(default_factory=lambda: defaultdict(list))
    """Of each event with an id, in no order."""
    batches: dict[str, list[Sighting]] = field(default_factory=lambda: defaultdict(list))
    batch_events: dict[str, set[tuple[str, Decimal]]] = field(default_factory=lambda: defaultdict(set))
    bare: list[tuple[str, Decimal]] = field(default_factory=list)
    rejected: dict[tuple[str, str], tuple[str, bytes | None]] = field(default_factory=dict)
    entries: int = 0
    """Events on the stream, each copy; an undecodable record is one."""
    problems: list[str] = field(default_factory=list)


def expected(known: Known, records: Records) -> Expected:
    """Read the stream, from sequence numbers and data by shard, in the light of what was sent."""
    found = Expected()
    for shard_id, held in records.items():
        for number, data in held:
            _read(known, found, shard_id, f"{len(number):03d}{number}", data)
    for key in known.accepted - found.seen.keys():
        found.problems.append(f"accepted, but not on the stream: {known.events[key]}")
    times: dict[tuple[str, Decimal], int] = defaultdict(int)
    for event in [*found.bare, *(event for events in found.batch_events.values() for event in events)]:
        times[event] += 1
    for event, count in times.items():
        if count > 1:
            found.problems.append(f"{event} was put under {count} batch ids")
    for lost in known.accepted_without_id - times.keys():
        found.problems.append(f"accepted, but not on the stream: {lost}")
    found.problems += [f"the load failed: {failure}" for failure in known.failures]
    found.problems += [
        f"malformed, but not on the stream: {data!r}"
        for data in known.malformed.keys() - {data for held in records.values() for _, data in held}
    ]
    return found


def _read(known: Known, found: Expected, shard_id: str, position: str, data: bytes) -> None:
    refused = {refusal.index: refusal.reason for refusal in known.malformed.get(data, ())}
    for index, reason in refused.items():
        whole = data if reason == "malformed_record" else None
        found.rejected[f"SHARD#{shard_id}", f"{position}#{index:05d}"] = (reason, whole)
    if "malformed_record" in refused.values():
        found.entries += 1
        return
    document = json.loads(data)
    batch_id = document.get("batch_id")
    held = document.get("events", [document])
    found.entries += len(held)
    first_of_batch = True
    for index, fields in enumerate(held):
        if index in refused:
            continue
        sighting = Sighting(shard_id, f"{position}#{index:05d}")
        content = Content(fields["metric"], Decimal(fields["value"]), fields.get("timestamp"))
        event_id = fields.get("event_id")
        if event_id is None:
            _read_without_id(known, found, fields["tenant_id"], content, batch_id)
            if batch_id is not None and first_of_batch:
                found.batches[batch_id].append(sighting)
                first_of_batch = False
            continue
        key = (fields["tenant_id"], event_id)
        event = known.events.get(key)
        if event is not None and content != event.content and content in known.conflicts.get(key, ()):
            sighting.conflict = True
            found.rejected[f"SHARD#{shard_id}", sighting.place] = ("event_id_conflict", None)
        elif event is None or content != event.content:
            found.problems.append(f"on the stream, but never sent: {fields}")
            continue
        elif content.timestamp is None and fields.get("received_at", "")[:13] != event.window:
            found.problems.append(f"received in another hour than {event.window}: {fields}")
        found.seen[key].append(sighting)


def _read_without_id(known: Known, found: Expected, tenant_id: str, content: Content, batch_id: str | None) -> None:
    event = (tenant_id, content.value)
    sent = known.without_id.get(event)
    if sent is None or sent.content != content:
        found.problems.append(f"on the stream, but never sent: {tenant_id} {content}")
    elif batch_id is None:
        found.bare.append(event)
    else:
        found.batch_events[batch_id].add(event)


def counted_events(known: Known, found: Expected) -> Iterator[KnownEvent]:
    """Each event that counts, once."""
    yield from (known.events[key] for key in found.seen)
    yield from (known.without_id[event] for event in found.bare)
    for events in found.batch_events.values():
        yield from (known.without_id[event] for event in events)


def rows_of(events: Iterable[KnownEvent], voided: Collection[Key]) -> Rows:
    """The totals and windows that these events make; a voided one has been in them, and leaves nothing."""
    rows: Rows = {}
    for event in events:
        void = event.event_id is not None and (event.tenant_id, event.event_id) in voided
        value, times = (Decimal(0), 0) if void else (event.content.value, 1)
        for sk in (f"METRIC#{event.content.metric}", f"HOUR#{event.content.metric}#{event.window}"):
            usage, count = rows.get((f"TENANT#{event.tenant_id}", sk), (Decimal(0), 0))
            rows[f"TENANT#{event.tenant_id}", sk] = (EXACT.add(usage, value), count + times)
    return rows


@dataclass
class Comparison:
    """Expected and found, by kind of item; differences: those that are not equal, as text."""

    events: int
    rejected: int
    duplicates: int
    conflicts: int
    rows: int
    entries: int
    rows_wrong: int = 0
    events_surplus: int = 0
    events_missing: int = 0
    differences: list[str] = field(default_factory=list)

    @property
    def sums(self) -> dict[str, int]:
        """What the shards' progress must add up to."""
        return {
            "events": self.entries,
            "counted": self.events,
            "duplicates": self.duplicates,
            "rejected": self.rejected,
        }

    def differ(self, what: str, wanted: Sought, found: Sought) -> int:
        """Note what differs between two dictionaries; return how many keys do."""
        keys = [key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key)]
        self.differences += [
            f"{what} {key}: expected {wanted.get(key)}, found {found.get(key)}" for key in sorted(keys, key=str)
        ]
        return len(keys)


def compare(tables: Tables, known: Known, records: Records) -> Comparison:
    """Compare every row, ledger entry, rejected row and progress row with what they must be."""
    found = expected(known, records)
    counted = list(counted_events(known, found))
    wanted_rows, rows = rows_of(counted, known.voided), tables.rows()
    total = len(counted)
    sightings = sum(map(len, found.seen.values())) + sum(
        len(found.batches[batch_id]) * len(events) for batch_id, events in found.batch_events.items()
    )
    conflicts = sum(sighting.conflict for places in found.seen.values() for sighting in places)
    result = Comparison(
        events=total,
        rejected=len(found.rejected),
        duplicates=sightings + len(found.bare) - conflicts - total,
        conflicts=conflicts,
        rows=len(wanted_rows),
        entries=found.entries,
        differences=list(found.problems),
    )
    result.rows_wrong = result.differ("row", wanted_rows, rows)
    for key in (key for key in wanted_rows.keys() | rows.keys() if key[1].startswith("METRIC#")):
        surplus = rows.get(key, (0, 0))[1] - wanted_rows.get(key, (0, 0))[1]
        result.events_surplus += max(0, surplus)
        result.events_missing += max(0, -surplus)
    kept = tables.rejected()
    raws = {
        key: (reason, raw if found.rejected.get(key, ("", None))[1] else None) for key, (reason, raw) in kept.items()
    }
    result.differ("rejected", found.rejected, raws)
    _compare_ledger(result, tables.items(tables.settings.ledger_table), known, found)
    _compare_progress(result, tables, records)
    return result


def _compare_progress(result: Comparison, tables: Tables, records: Records) -> None:
    """Each shard is at its end, and its progress says how as many records and events as the stream holds have ended."""
    progress = tables.progress()
    wanted: Sought = {}
    found: Sought = {}
    for shard_id in records.keys() | progress.keys():
        held, shard = records.get(shard_id, []), progress.get(shard_id)
        last = held[-1][0] if held else ""
        wanted[shard_id] = (len(held), f"{len(last):03d}{last}" if last else "", 0)
        if shard is not None:
            unended = shard.events - shard.counted - shard.duplicates - shard.rejected
            found[shard_id] = (shard.records, shard.position, unended)
    result.differ("progress (records, position, events of no end)", wanted, found)
    sums = {
        name: sum(getattr(shard, name) for shard in progress.values())
        for name in ("events", "counted", "duplicates", "rejected")
    }
    result.differ("sum of", dict(result.sums), sums)


def _compare_ledger(result: Comparison, items: list[dict[str, Any]], known: Known, found: Expected) -> None:
    """Exactly one entry for each id and each batch, held by one of its places, with its content and its repeats."""
    wanted: Sought = {}
    places: dict[str, set[tuple[int, str]]] = {}
    for (tenant_id, event_id), sightings in found.seen.items():
        key = f"TENANT#{tenant_id}#EVENT#{event_id}"
        conflicts = sum(sighting.conflict for sighting in sightings)
        content = known.events[tenant_id, event_id].content
        voided = (tenant_id, event_id) in known.voided
        wanted[key] = (content, len(sightings) - conflicts - 1, conflicts, voided)
        places[key] = {sighting.owner_end for sighting in sightings if not sighting.conflict}
    for batch_id, sightings in found.batches.items():
        wanted[f"BATCH#{batch_id}"] = (None, len(sightings) - 1, 0, False)
        places[f"BATCH#{batch_id}"] = {sighting.owner_end for sighting in sightings}
    held: Sought = {}
    for item in items:
        key = item["pk"]["S"]
        if key not in places:
            held[key] = item
            continue
        shard, _, place = item["owner"]["S"].partition("@")
        owner = (int(shard.rpartition(".")[2], 36), place)
        if owner not in places[key]:
            result.differences.append(f"ledger {key}: held by {owner}, which is none of {places[key]}")
        held[key] = (
            _content(item) if key.startswith("TENANT#") else None,
            int(item.get("duplicates", {"N": "0"})["N"]),
            int(item.get("conflicts", {"N": "0"})["N"]),
            "voided_at" in item,
        )
    result.differ("ledger", wanted, held)


def _content(item: dict[str, Any]) -> Content:
    timestamp = item.get("timestamp", {}).get("S")
    return Content(item["metric"]["S"], Decimal(item["value"]["N"]), timestamp)
