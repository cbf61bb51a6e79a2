"""Places: what the keys, receipts and names say is read back as it was, and nothing else is."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metering.errors import InvalidEventError
from metering.places import (
    OwnerPlace,
    StreamPlace,
    place_named,
    place_of_owner,
    place_of_pointer,
    place_of_receipt,
    place_of_row,
)
from metering.positions import position_of
from metering.rows import claim_owner, event_claim_key, place, rejected_of_tenant_key, rejected_pointer_key

shard_ids = st.integers(0, 10**12 - 1).map(lambda number: f"shardId-{number:012d}")
places = st.builds(
    StreamPlace, shard_ids, st.integers(0, 10**56).map(lambda number: position_of(str(number))), st.integers(0, 99_999)
)


@given(places, st.integers(0, 2**33))
def test_every_form_of_a_place_leads_back_to_it(where: StreamPlace, created_at_s: int) -> None:
    assert place_named(where.name) == where
    assert place_of_receipt(f"kinesis:{where.shard_id}:{where.sequence_number}:{where.index}") == where
    assert place_of_row(where.row_key) == where
    for key in (event_claim_key("t", "a#1#b"), event_claim_key("t", "x", "s")):
        assert place_of_pointer(rejected_pointer_key(key, where.row_key).sk) == where
    arrived_at = datetime.fromtimestamp(created_at_s, UTC)
    assert place_of_pointer(rejected_of_tenant_key("t", arrived_at, where.row_key).sk) == where
    owner = claim_owner(datetime.fromtimestamp(created_at_s, UTC), where.shard_id, place(where.position, where.index))
    assert place_of_owner(owner) == OwnerPlace(created_at_s, where)


@pytest.mark.parametrize(
    "receipt",
    [
        "kinesis:",
        "kinesis:shardId-000000000000",
        "kinesis:shardId-000000000000:49:",
        "kinesis:shardId-000000000000:049:0",
        "kinesis:shardId-000000000000:-1:0",
        "kinesis:shardId-000000000000:49:00",
        "kinesis:shardId-000000000000:49:100000",
        "kinesis:shardId-000000000000:4\u0669:0",
        "kinesis:shardId-000000000000:49:\u0660",
        "kinesis::49:0",
        "kinesis:a b:49:0",
        "kinesis:x:y:49:0",
    ],
)
def test_what_is_no_receipt_is_refused_as_an_event_id(receipt: str) -> None:
    with pytest.raises(InvalidEventError, match="invalid_event_id"):
        place_of_receipt(receipt)


@pytest.mark.parametrize("name", ["", "a", "shardId-0/1", "shardId-0/x/0", "shardId-0/1/0/0", "shard#0/1/0"])
def test_what_is_no_key_is_refused(name: str) -> None:
    with pytest.raises(InvalidEventError, match="invalid_key"):
        place_named(name)


@pytest.mark.parametrize(
    "owner", ["", "someone", "a.b@c", "x@1#2", "!.0@0011#00000", "a.@0011#00000", "a.0@0011#x", "a_b.0@0011#00000"]
)
def test_what_is_no_owner_names_no_place(owner: str) -> None:
    assert place_of_owner(owner) is None


def test_a_shard_that_is_no_number_goes_by_its_id() -> None:
    owner = claim_owner(datetime.fromtimestamp(36, UTC), "Shard_X", place("0011", 3))
    assert place_of_owner(owner) == OwnerPlace(36, StreamPlace("Shard_X", "0011", 3))
