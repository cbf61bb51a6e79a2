"""Records that the Kinesis Producer Library aggregated, taken apart as the KCL does before a consumer sees them. Pure.

    magic F3 89 9A C2 │ protobuf AggregatedRecord │ MD5 of the protobuf

    AggregatedRecord: 1 partition keys, 2 explicit hash keys, 3 records
    record:           1 index of its partition key, 2 index of its explicit hash key if it has one, 3 data

Source: AggregatorUtil of KCL 3.1.3 and aggregation-format.md of the KPL. Our own collector does not aggregate.
"""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import md5

MAGIC = b"\xf3\x89\x9a\xc2"

_DIGEST_BYTES = 16
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_VARINT_BYTES_MAX = 10


class _MalformedError(ValueError):
    """The bytes are no protobuf message."""


def parts_of(data: bytes) -> list[bytes] | None:
    """Return the data of each record that `data` holds, or None when it is not an aggregated record.

    As in the KCL, after a part that names no key none is read. The KCL could drop parts that belong to another shard;
    with skipShardSyncAtWorkerInitializationIfLeasesExist it does not know a shard's hash keys and delivers all.
    """
    message = data[len(MAGIC) : -_DIGEST_BYTES]
    if not data.startswith(MAGIC) or not message or _md5(message) != data[-_DIGEST_BYTES:]:
        return None
    try:
        fields = [(number, value) for number, value in _fields(message) if isinstance(value, bytes)]
        keys = [value.decode() for number, value in fields if number == 1]
        records = [dict(_fields(value)) for number, value in fields if number == 3]
    except (_MalformedError, UnicodeDecodeError):
        return None
    parts: list[bytes] = []
    for record in records:
        key_index, part = record.get(1), record.get(3)
        if not isinstance(key_index, int) or not isinstance(part, bytes):
            return None  # both are required: no record of the KPL
        if key_index >= len(keys):
            return parts
        parts.append(part)
    return parts


def _md5(data: bytes) -> bytes:
    return md5(data, usedforsecurity=False).digest()


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield number and value of each field of a protobuf message."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        number, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            value, at = _varint(message, at)
            yield number, value
            continue
        if kind == _BYTES:
            length, at = _varint(message, at)
        elif kind in {_FIXED64, _FIXED32}:
            length = 8 if kind == _FIXED64 else 4
        else:
            raise _MalformedError
        if at + length > len(message):
            raise _MalformedError
        yield number, message[at : at + length]
        at += length


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift, byte in enumerate(message[at : at + _VARINT_BYTES_MAX]):
        value |= (byte & 0x7F) << 7 * shift
        if byte < 0x80:
            return value, at + shift + 1
    raise _MalformedError
