"""Random interleavings of crashes, takeovers, zombies and duplicates: the count is right in every one of them.

And with any part of the algorithm taken away it is not: a part that no world misses would be of no use, or the
worlds too tame. More worlds, and new ones:  MODEL_WORLDS=5000 pytest tests/model -rP --timeout 0
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from random import Random

import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from consumer import record_processor
from tests.model.parts_taken_away import TAKEN_AWAY
from tests.model.truth import findings
from tests.model.world import Parts, World

WORLDS_ASKED = int(os.environ.get("MODEL_WORLDS", "0"))
WORLDS = WORLDS_ASKED or 300
WHOLE = Parts()
SEARCHED_MAX = 500
"""Worlds searched for a wrong one; the rarest kind is one in fifty."""


@pytest.fixture(autouse=True, scope="module")
def _quiet() -> Iterator[None]:
    """Thousands of crashes are logged otherwise."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(autouse=True, scope="module")
def _small_parts() -> Iterator[None]:
    """Some deliveries are cut into parts, each with a checkpoint of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(record_processor, "PART_BYTES_MAX", 600)
        yield


@pytest.mark.timeout(900)  # a failure is made small before it is shown
@settings(
    max_examples=WORLDS,
    derandomize=not WORLDS_ASKED,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
)
@given(st.randoms(use_true_random=False))
def test_each_event_is_counted_once_whatever_is_killed_late_or_sent_again(random: Random) -> None:
    world = World(random)
    try:
        world.run()
    finally:
        note("\n".join(world.trace))
    assert findings(world) == {}


@pytest.mark.parametrize(("law", "parts"), TAKEN_AWAY.values(), ids=TAKEN_AWAY.keys())
def test_no_part_of_the_algorithm_can_be_taken_away(law: str, parts: Parts) -> None:
    wrong, searched = 0, 0
    for seed in range(WORLDS_ASKED or SEARCHED_MAX):
        searched += 1
        wrong += law in findings(_world(seed, parts))
        if wrong and not WORLDS_ASKED:
            break
    print(f"wrong {law}: {wrong} of {searched} worlds")  # noqa: T201 - seen with -rP
    assert wrong, f"{searched} worlds, and the {law} are right in all of them"


def test_a_seed_is_a_whole_world() -> None:
    once, again = _world(7), _world(7)
    assert (once.trace, once.tables.rows) == (again.trace, again.tables.rows)


def _world(seed: int, parts: Parts = WHOLE) -> World:
    world = World(Random(seed), parts)  # noqa: S311 - a world, no secret
    world.run()
    return world
