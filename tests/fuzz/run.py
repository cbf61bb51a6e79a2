"""Many bodies, in one process or several; what they came to, and the bodies that broke a law."""

from __future__ import annotations

import time
import traceback
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tests.fuzz.bodies import Sent, sent
from tests.fuzz.checks import check

CHUNK_BODIES = 5_000
FAILURES_SHOWN_MAX = 20


@dataclass(frozen=True, slots=True)
class Failure:
    """A body that broke a law. number: from which, with the seed, it can be made again; kind: what went wrong."""

    number: int
    kind: str
    words: str
    body: bytes
    headers: tuple[tuple[str, str], ...]

    def lines(self) -> list[str]:
        return [
            f"body {self.number}: {self.words}",
            f"  hex: {self.body.hex()}",
            *(f"  header: {name}: {value!r}" for name, value in self.headers),
        ]


@dataclass(slots=True)
class Report:
    """What a run came to. tally: events accepted, and refusals by code, of each parser."""

    bodies: int = 0
    duration_s: float = 0.0
    tally: Counter[tuple[str, str]] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)

    def add(self, other: Report) -> None:
        self.bodies += other.bodies
        self.tally.update(other.tally)
        self.failures.extend(other.failures)

    def lines(self) -> list[str]:
        kinds = Counter(failure.kind for failure in self.failures)
        first = {failure.kind: failure for failure in reversed(self.failures)}
        found = [f"{count} times: {kind}" for kind, count in kinds.most_common()]
        shown = [line for failure in list(first.values())[:FAILURES_SHOWN_MAX] for line in failure.lines()]
        counts = [f"{parser:16} {outcome:20} {count:>10,}" for (parser, outcome), count in sorted(self.tally.items())]
        rate = self.bodies / self.duration_s if self.duration_s else 0.0
        return [
            *counts,
            *shown,
            *found,
            f"{self.bodies:,} bodies in {self.duration_s:,.0f} s, {rate:,.0f}/s; {len(self.failures)} broke a law",
        ]


def run(seed: int, bodies: int, *, first: int = 0, processes: int = 1) -> Report:
    """Check the bodies `first` and following of `seed`; a body that breaks a law does not stop the run."""
    began_at = time.monotonic()
    starts = range(first, first + bodies, CHUNK_BODIES)
    sizes = [min(CHUNK_BODIES, first + bodies - start) for start in starts]
    seeds = [seed] * len(starts)
    report = Report()
    if processes == 1:
        for part in map(_chunk, seeds, starts, sizes):
            report.add(part)
    else:
        with ProcessPoolExecutor(processes) as pool:
            for part in pool.map(_chunk, seeds, starts, sizes):
                report.add(part)
    report.duration_s = time.monotonic() - began_at
    return report


def _failure(number: int, error: Exception, given: Sent) -> Failure:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    kind = f"{type(error).__name__} in {frame.name} ({Path(frame.filename).name}:{frame.lineno})"
    return Failure(number, kind, f"{kind}: {error}", given.body, given.headers)


def _chunk(seed: int, first: int, bodies: int) -> Report:
    report = Report(bodies)
    for number in range(first, first + bodies):
        given = sent(seed, number)
        try:
            check(given, report.tally)
        except Exception as error:  # noqa: BLE001 - any of them is what is looked for
            report.failures.append(_failure(number, error, given))
    return report
