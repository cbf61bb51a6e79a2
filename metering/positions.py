"""Positions: Kinesis sequence numbers in a form whose string order is their numeric order.

DynamoDB numbers hold 38 digits and sequence numbers have about 56, so positions are strings. A position is the
sequence number with its length, as three digits, before it: of two numbers without leading zeros the longer one is
greater, and among equals in length string order is numeric order.

Positions are compared within one shard only: a child shard's number space differs from its parent's.
"""

from __future__ import annotations

import re

BEGINNING = ""
"""Sorts before every position: nothing of the shard has been applied."""

DIGITS_MAX = 999
"""Most digits that a sequence number may have here (AWS documents up to 128)."""

_SEQUENCE_NUMBER = re.compile(r"(?:0|[1-9][0-9]*)\Z", re.ASCII)


def position_of(sequence_number: str) -> str:
    """Return the position of a sequence number: decimal digits without leading zeros, 1 to 999 of them.

    Raises ValueError for anything else: a position that compares wrongly would lose or double events.
    """
    if len(sequence_number) > DIGITS_MAX or not _SEQUENCE_NUMBER.match(sequence_number):
        raise ValueError(f"not a sequence number: {sequence_number[:64]!r}")
    return f"{len(sequence_number):03d}{sequence_number}"


def sequence_number_of(position: str) -> str:
    """Return the sequence number that `position` was made of."""
    return position[3:]
