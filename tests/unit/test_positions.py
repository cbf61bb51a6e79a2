"""String order of positions is the numeric order of sequence numbers: everything about replays rests on it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metering.positions import BEGINNING, position_of, sequence_number_of

lengths = st.integers(1, 128)
numbers = lengths.flatmap(lambda n: st.integers(10 ** (n - 1), 10**n - 1)) | st.integers(0, 1000)


@given(numbers, numbers)
def test_string_order_is_numeric_order(one: int, other: int) -> None:
    assert (position_of(str(one)) < position_of(str(other))) == (one < other)


@given(numbers)
def test_neighbours_keep_their_order_across_powers_of_ten(number: int) -> None:
    assert BEGINNING < position_of(str(number)) < position_of(str(number + 1))


@pytest.mark.parametrize("digits", range(1, 129))
def test_a_longer_number_is_greater(digits: int) -> None:
    assert position_of("9" * digits) < position_of("1" + "0" * digits)


@given(numbers)
def test_the_sequence_number_can_be_had_back(number: int) -> None:
    assert sequence_number_of(position_of(str(number))) == str(number)


def test_the_form_of_a_position_stands_in_tables_and_does_not_change() -> None:
    number = "49590338271490256608559692538361571095921575989136588898"
    assert position_of(number) == "056" + number
    assert position_of("0") == "0010"


@pytest.mark.parametrize(
    "text", ["", "01", "00", "-1", "+1", "1 ", "1\n", "1.0", "1e5", "x", "٣", "1_0", "TRIM_HORIZON", "1" * 1000]
)
def test_what_is_no_sequence_number_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a sequence number"):
        position_of(text)
