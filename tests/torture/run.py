"""One torture run: a world, a load, the faults, quiet, the comparison, the report."""

from __future__ import annotations

import itertools
import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from pathlib import Path

import requests

from metering.processes import wait_until
from tests.e2e.processes import METERING, ran
from tests.torture.expected import Comparison, compare
from tests.torture.known import Content, Known, KnownEvent
from tests.torture.lanes import Faults, Lanes
from tests.torture.load import Load
from tests.torture.stream import Place
from tests.torture.voids import Voids
from tests.torture.world import World, world

FIRST_READ_S = 120.0
QUIET_S_MAX = 180.0
STILL_S = 3.0
IDLE_REQUESTS_MAX = 1
"""The KCL's own requests never cease; a late one would be the second."""
DIFFERENCES_SHOWN = 20
AUDIT_S_MAX = 600.0


@dataclass
class Report:
    """What a run found."""

    seed: int
    seconds: float
    control: bool
    faults: Faults
    hits: dict[str, int]
    known: Known
    comparison: Comparison
    quiet_s: float | None
    audit: tuple[int, str]
    """The exit code of `metering audit` and what it said."""
    void_answers: Mapping[int | None, int]
    """How often billing answered a void with which status, None for not at all."""

    @property
    def differences(self) -> list[str]:
        found = list(self.comparison.differences)
        found += [f"not recovered from: {kind}" for kind in self.faults.unrecovered]
        if self.quiet_s is None:
            found.append(f"not quiet after {QUIET_S_MAX:.0f} s")
        if self.audit[0] != 0:
            found.append(f"metering audit ended with {self.audit[0]}: {self.audit[1]}")
        return found

    def lines(self) -> list[str]:
        """For a person: one line for each kind of fault, then the sums and the first differences."""
        compared, known = self.comparison, self.known
        lines = [f"{'fault':24}{'count':>6}{'hits':>7}   recovery median / max"]
        for kind, seconds in sorted(self.faults.recovered_s.items()):
            hits = str(self.hits.get(kind, ""))
            lines.append(
                f"{kind:24}{len(seconds):6}{hits:>7}   {statistics.median(seconds):6.1f} s / {max(seconds):6.1f} s"
            )
        control = ", CONTROL: no fence, no claims" if self.control else ""
        rows_percent = 100 * compared.rows_wrong / max(1, compared.rows)
        events = len(known.events) + len(known.without_id)
        lines += [
            f"faults: {self.faults.count} in {self.seconds:.0f} s, seed {self.seed}{control}",
            f"events: {events} sent, {known.posts} POSTs; {compared.events} are to be counted",
            f"duplicates: {compared.duplicates} on the stream, {known.duplicates} of them on purpose",
            f"rejected: {compared.rejected}, {compared.conflicts} of them conflicts",
            f"voided: {len(known.voided)}, in {sum(self.void_answers.values())} POSTs: {dict(self.void_answers)}",
            f"rows wrong: {compared.rows_wrong} of {compared.rows}",
            f"events too many: {compared.events_surplus}, missing: {compared.events_missing}",
            f"error: {self.error_percent:.3f} % of the events, {rows_percent:.1f} % of the rows",
            f"quiet after {self.quiet_s:.0f} s" if self.quiet_s is not None else "never quiet",
            f"metering audit: exit code {self.audit[0]}",
            f"differences: {len(self.differences)}",
        ]
        return lines + [f"  {difference[:400]}" for difference in self.differences[:DIFFERENCES_SHOWN]]

    @property
    def error_percent(self) -> float:
        """How far the counts are off, both directions together."""
        return 100 * (self.comparison.events_surplus + self.comparison.events_missing) / max(1, self.comparison.events)


class Probes:
    """Known events that show that something works again."""

    def __init__(self, run: World, known: Known, load: Load, seed: int) -> None:
        self._world = run
        self._known = known
        self._load = load
        self._numbers = itertools.count()
        self._choose = random.Random(seed)  # noqa: S311

    def put_everywhere(self) -> list[Place]:
        """Put one event on every open shard."""
        return [self._load.put(self._event(), shard.first) for shard in self._world.stream.open_shards()]

    def post_everywhere(self) -> None:
        """Have one event accepted by every collector."""
        with requests.Session() as session:
            for collector in self._world.collectors:
                self._load.post_until_held(self._event(), [collector.url], self._choose, session)

    def _event(self) -> KnownEvent:
        content = Content("probes", Decimal(1), "2024-02-29T12:00:00Z")
        event = KnownEvent("torture-probe", f"probe-{next(self._numbers)}", content, "2024-02-29T12")
        self._known.will_send(event)
        return event


def torture(
    folder: Path,
    urls: tuple[str, str],
    *,
    duration_s: float,
    seed: int,
    events_s: float,
    control: bool = False,
    say: Callable[[str], None],
) -> Report:
    """Run a stack of its own beside the emulators at `urls`, with faults for `duration_s`; return what was found.

    From the main thread: processes end with the thread that started them.
    """
    known = Known()
    with world(folder, urls, name="control" if control else "torture", seed=seed, control=control) as run:
        collectors = [collector.url for collector in run.collectors]
        load = Load(collectors, run.stream, known, seed=seed, events_s=events_s, claimed=partial(_claimed, run))
        probes = Probes(run, known, load, seed)
        _tend_until(run, _applied(run, probes.put_everywhere()), timeout_s=FIRST_READ_S)
        say("every shard is read; load and faults begin")
        lanes = Lanes(run, seed, put_everywhere=probes.put_everywhere, post_everywhere=probes.post_everywhere, say=say)
        begun_at = time.monotonic()
        voids = Voids(run.billing.url, known, seed=seed)
        with load, voids:
            lanes.run(duration_s)
            seconds = time.monotonic() - begun_at
            say("the faults are over; the load ends")
        quiet_s = _quiet(run, probes)
        if not control:  # without their positions, rows can't show that they hold an event
            voids.finish()
        say("comparing")
        comparison = compare(run.tables, known, run.tables.records())
        audit = _audit(run)
        hits = run.proxy.state()["hits"]
    return Report(seed, seconds, control, lanes.faults, hits, known, comparison, quiet_s, audit, voids.answers)


def _claimed(run: World, event: KnownEvent) -> bool:
    key = {"pk": {"S": f"TENANT#{event.tenant_id}#EVENT#{event.event_id}"}}
    table = run.tables.settings.ledger_table
    return "Item" in run.tables.dynamodb.get_item(TableName=table, Key=key, ConsistentRead=True)


def _applied(run: World, places: list[Place]) -> Callable[[], bool]:
    return lambda: run.stream.applied(places)


def _quiet(run: World, probes: Probes) -> float | None:
    """Wait until everything on the stream is in the rows and nothing moves; return the seconds it took.

    None: not in QUIET_S_MAX.
    """
    begun_at = time.monotonic()
    applied = _applied(run, probes.put_everywhere())
    still_since, last = begun_at, -1

    def quiet() -> bool:
        nonlocal still_since, last
        items = run.stream.progress_items()
        open_shards = {shard.shard_id for shard in run.stream.open_shards()}
        ended = all(item["closed"]["BOOL"] for item in items if item["sk"]["S"].rpartition("#")[2] not in open_shards)
        records = sum(int(item["records"]["N"]) for item in items)
        if records != last or not (ended and applied()) or run.proxy.state()["under_way"] > IDLE_REQUESTS_MAX:
            still_since, last = time.monotonic(), records
        return time.monotonic() - still_since > STILL_S

    return time.monotonic() - begun_at if _tend_until(run, quiet, timeout_s=QUIET_S_MAX) else None


def _tend_until(run: World, condition: Callable[[], bool], *, timeout_s: float) -> bool:
    def tended() -> bool:
        run.tend()
        return condition()

    return wait_until(tended, timeout_s=timeout_s, interval_s=0.1)


def _audit(run: World) -> tuple[int, str]:
    code, output, errors = ran([METERING, "audit"], run.environment, timeout_s=AUDIT_S_MAX)
    return code, (output + errors)[-2000:]
