"""Records as the Kinesis Producer Library aggregates them (its aggregation-format.md)."""

from __future__ import annotations

from hashlib import md5

MAGIC = b"\xf3\x89\x9a\xc2"


def aggregated(*parts: bytes, hash_keys: tuple[str, ...] = ("0",)) -> bytes:
    """Return one record of these parts, each with one of the explicit hash keys in turn; with none, without one."""
    message = field(1, b"key") + b"".join(field(2, key.encode()) for key in hash_keys)
    for number, part in enumerate(parts):
        explicit = bytes([0x10, number % len(hash_keys)]) if hash_keys else b""
        message += field(3, b"\x08\x00" + explicit + field(3, part))
    return framed(message)


def framed(message: bytes) -> bytes:
    """Return a message of the KPL's protobuf as the record that holds it."""
    return MAGIC + message + md5(message, usedforsecurity=False).digest()


def field(number: int, value: bytes) -> bytes:
    """Return a field of protobuf that has a length."""
    length, size = len(value), b""
    while length >= 0x80:
        size += bytes([length & 0x7F | 0x80])
        length >>= 7
    return bytes([number << 3 | 2]) + size + bytes([length]) + value
