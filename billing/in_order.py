"""Work side by side whose results come in order, with so much under way and no more."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Executor, Future
from typing import TypeVar

Given = TypeVar("Given")
Made = TypeVar("Made")


def in_order(
    executor: Executor, make: Callable[[Given], Made], given: Iterable[Given], *, ahead_max: int
) -> Generator[Made, None, None]:
    """Yield `make` of each of `given`, in their order; up to `ahead_max` (1 or more) are begun before they are needed.

    Takes from `given` as it goes. Raises what `make` or `given` raises, where it would stand. When it is closed or has
    raised, nothing more is begun; what is under way in `executor` comes to its end there.
    """
    under_way: deque[Future[Made]] = deque()
    try:
        for each in given:
            under_way.append(executor.submit(make, each))
            if len(under_way) >= ahead_max:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
    finally:
        for future in under_way:
            future.cancel()
