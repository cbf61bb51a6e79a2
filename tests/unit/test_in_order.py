"""Work side by side: its results come in order, so much is begun and no more, and what is not needed is not begun."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any

import pytest

from billing.in_order import in_order


class Begun(Executor):
    """Does at once what is below `done_below`, and never comes to the rest."""

    def __init__(self, done_below: int) -> None:
        self._done_below = done_below
        self.futures: list[Future[Any]] = []

    def submit(self, make: Callable[..., Any], /, *given: Any, **_: Any) -> Future[Any]:
        future: Future[Any] = Future()
        if given[0] < self._done_below:
            try:
                future.set_result(make(*given))
            except ValueError as error:
                future.set_exception(error)
        self.futures.append(future)
        return future


@pytest.mark.parametrize("ahead_max", [1, 2, 5])
def test_so_much_is_begun_before_it_is_needed_and_no_more(ahead_max: int) -> None:
    executor = Begun(100)
    results = in_order(executor, str, range(20), ahead_max=ahead_max)
    for number in range(20):
        assert next(results) == str(number)
        assert len(executor.futures) == min(20, number + ahead_max)
    assert list(results) == []


def test_what_has_not_begun_when_it_is_closed_does_not_begin() -> None:
    executor = Begun(1)
    results = in_order(executor, str, range(20), ahead_max=4)
    assert next(results) == "0"
    results.close()
    assert [future.cancelled() for future in executor.futures] == [False, True, True, True]


def test_an_error_stands_where_its_result_would_and_ends_the_rest() -> None:
    executor = Begun(3)

    def make(number: int) -> int:
        if number == 2:
            raise ValueError("two")
        return number

    found: list[int] = []
    with pytest.raises(ValueError, match="two"):
        found.extend(in_order(executor, make, range(20), ahead_max=4))
    assert found == [0, 1]
    assert [future.cancelled() for future in executor.futures] == [False] * 3 + [True] * 3
