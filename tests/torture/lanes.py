"""The fault loop: lanes side by side, each with one fault after the other, all of it chosen by the seed.

    inject ──► the fault is on ──► over ──► new records on every open shard and collector ──► all in the rows: recovered
                                    └────────────────── recovery time ──────────────────────────┘

A killed or terminated process's fault is over at once; a stopped one's when it goes on; a proxy's when it is off. The
time to recovery is what a user sees: that of whatever else is on at the same time is in it.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from tests.torture.faults import PROCESS_FAULTS, RESHARDS_MAX, SHARD_FAULTS, WIRE_FAULTS, Fault, Scene, possible
from tests.torture.stream import Place
from tests.torture.world import World

Steps = Generator[None, None, None]
RECOVERY_S_MAX = 180.0
RECOVERIES_MAX = 20
"""A lane that does not wait for recoveries has this many under way at most."""
TICK_S = 0.02


@dataclass
class Faults:
    """What was done: seconds to recovery of each fault by kind, and what was never recovered from."""

    recovered_s: dict[str, list[float]] = field(default_factory=dict)
    unrecovered: list[str] = field(default_factory=list)

    @property
    def count(self) -> int:
        return sum(map(len, self.recovered_s.values())) + len(self.unrecovered)


@dataclass(frozen=True)
class Lane:
    """Faults one after the other. recoveries_max: 1 when each waits for the recovery from the one before it."""

    name: str
    kinds: Mapping[str, Fault]
    pause_s_max: float
    recoveries_max: int


class Lanes:
    """Runs the faults against a world. say: prints progress.

    put_everywhere: puts one known event on every open shard. post_everywhere: has one known event accepted by every
    collector; it runs in a thread.
    """

    def __init__(
        self,
        world: World,
        seed: int,
        *,
        put_everywhere: Callable[[], list[Place]],
        post_everywhere: Callable[[], None],
        say: Callable[[str], None],
    ) -> None:
        self.faults = Faults()
        self._world = world
        self._seed = seed
        self._put_everywhere = put_everywhere
        self._post_everywhere = post_everywhere
        self._say = say
        self._recoveries: list[Steps] = []
        self._under_way: Counter[str] = Counter()

    def run(self, seconds: float) -> None:
        """Begin faults for `seconds`, and await the recovery from the last. From the main thread."""
        until = time.monotonic() + seconds
        lanes = [
            Lane("process", PROCESS_FAULTS, 1.0, 1),
            Lane("shards", SHARD_FAULTS, seconds / RESHARDS_MAX, 1),
            Lane("wire", WIRE_FAULTS, 5.0, RECOVERIES_MAX),
        ]
        threads = ThreadPoolExecutor(sum(lane.recoveries_max for lane in lanes))
        running = [self._run(lane, until, threads) for lane in lanes]
        try:
            while running or self._recoveries:
                self._world.tend()
                running = _advanced(running)
                self._recoveries = _advanced(self._recoveries)
                time.sleep(TICK_S)
        finally:
            for lane_run in running:
                lane_run.close()  # whoever was stopped goes on
            threads.shutdown(wait=False, cancel_futures=True)

    def _run(self, lane: Lane, until: float, threads: ThreadPoolExecutor) -> Steps:
        choose = random.Random(f"{self._seed} {lane.name}")  # noqa: S311 - the same faults for the same seed
        scene = Scene(self._world, choose, self._put_everywhere)
        bag: list[str] = []
        while time.monotonic() < until:
            bag = bag or choose.sample(sorted(lane.kinds), len(lane.kinds))
            kind = bag.pop()
            pause_until = time.monotonic() + choose.uniform(0.0, lane.pause_s_max)
            if possible(kind, scene) and (yield from lane.kinds[kind](scene)):
                self._under_way[lane.name] += 1
                self._recoveries.append(self._recovery(lane, kind, threads))
            while self._under_way[lane.name] >= lane.recoveries_max or time.monotonic() < min(pause_until, until):
                yield
            yield

    def _recovery(self, lane: Lane, kind: str, threads: ThreadPoolExecutor) -> Steps:
        over_at = time.monotonic()
        places = self._put_everywhere()
        posted = threads.submit(self._post_everywhere)
        while not (posted.done() and self._world.stream.applied(places) and self._world.whole()):
            if time.monotonic() - over_at > RECOVERY_S_MAX:
                self.faults.unrecovered.append(kind)
                self._say(f"{kind}: NOT recovered after {RECOVERY_S_MAX:.0f} s")
                break
            yield
        else:
            posted.result()
            seconds = time.monotonic() - over_at
            self.faults.recovered_s.setdefault(kind, []).append(seconds)
            self._say(f"{kind}: recovered after {seconds:.1f} s")
        self._under_way[lane.name] -= 1


def _advanced(steps: list[Steps]) -> list[Steps]:
    """Let each go on; return those that are not done."""
    return [one for one in steps if next(one, "done") is None]
