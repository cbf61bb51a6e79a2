"""The KPL's aggregated records are taken apart as by the KCL: what it delivers, what it leaves alone."""

from __future__ import annotations

from hashlib import md5

import pytest

from operations.audit_aggregated import parts_of
from tests.aggregated import MAGIC, aggregated, field, framed


@pytest.mark.parametrize("held", [(b"a",), (b"a", b"", b"b" * 300), tuple(bytes([n]) for n in range(200))])
def test_the_parts_come_out_in_order(held: tuple[bytes, ...]) -> None:
    assert parts_of(aggregated(*held)) == list(held)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b'{"tenant_id": "t"}',
        MAGIC,
        MAGIC + b"x" * 15,
        MAGIC + md5(b"", usedforsecurity=False).digest(),
        aggregated(b"a")[:-1] + b"?",
        framed(b"\xff" * 12),
        framed(field(3, b"\x08\x00")),
        framed(field(3, field(3, b"no key"))),
        framed(b"\x1a\x7fshort"),
        framed(b"\x0b"),
        framed(field(1, b"\xff")),
    ],
)
def test_what_is_no_aggregated_record_is_left_alone(data: bytes) -> None:
    assert parts_of(data) is None


def test_fields_that_are_not_known_are_passed_over() -> None:
    tags = field(4, field(1, b"tag"))
    record = b"\x08\x00" + field(3, b"a") + tags + b"\x28\x01" + b"\x31" + b"8 bytes." + b"\x3d" + b"4by."
    assert parts_of(framed(field(1, b"key") + field(3, record) + field(9, b"?"))) == [b"a"]


@pytest.mark.parametrize("hash_keys", [("0",), ("5", str(2**128 - 1)), ()])
def test_parts_come_out_whatever_shard_they_were_for(hash_keys: tuple[str, ...]) -> None:
    assert parts_of(aggregated(b"a", b"b", b"c", hash_keys=hash_keys)) == [b"a", b"b", b"c"]


def test_a_part_that_names_no_key_ends_the_record() -> None:
    record = [field(3, bytes([0x08, key]) + field(3, part)) for key, part in ((0, b"a"), (7, b"b"), (0, b"c"))]
    assert parts_of(framed(field(1, b"key") + b"".join(record))) == [b"a"]
