"""API keys: the file that says who may do what, and the keys in force. No HTTP.

Each line is the SHA-256 of a key, a tenant, and what the key may do for that tenant:

    # the collector's client of tenant-123, made 2024-01-15
    5f0c3d…  tenant-123  write
    91b7aa…  *           read,void

`#` begins a comment, blank lines are allowed, the 64 digits may be upper case. `*` is every tenant. Scopes are named
one by one: a wildcard would give old keys a scope that comes later. A key may have several lines, and may do what any
of them says. A file without keys is valid: nobody may do anything.

One SHA-256 is enough, where a password would need a slow hash with a salt: a key is not chosen by a person but random
and long, so that nobody gets from the hash to the key by trying, and no two keys are alike.
"""

from __future__ import annotations

import hashlib
import logging
import re
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from hmac import compare_digest
from pathlib import Path

from metering.errors import InvalidEventError, InvalidSettingError, SetupError
from metering.events import parse_name
from metering.files import file_content

FILE_BYTES_MAX = 1024 * 1024
LOOK_INTERVAL_S = 1.0
SETTLED_S = 1.0
"""A file that changed less than this ago may be half written; a part of it that ends with a line would look whole."""
ALL_TENANTS = "*"
"""No tenant's id: an id has no such character."""

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_SHA256_HEX = re.compile(r"[0-9a-fA-F]{64}\Z")

_log = logging.getLogger(__name__)


class Scope(StrEnum):
    """What a key may do; none implies another."""

    WRITE = "write"  # send events
    READ = "read"  # read totals, events and bills
    VOID = "void"  # take an event out again


@dataclass(frozen=True, slots=True)
class Grant:
    """What one key may do. tenants: for each of its scopes the ids, or ALL_TENANTS. key_id: the hash, for counting."""

    key_id: str = field(repr=False)
    tenants: Mapping[Scope, frozenset[str]]


class KeyRing:
    """The keys of one file. Immutable."""

    def __init__(self, grants: Mapping[bytes, Grant]) -> None:
        """grants: by the SHA-256 of the key."""
        self._grants = tuple(grants.items())

    def __len__(self) -> int:
        return len(self._grants)

    def grant_of(self, key: bytes) -> Grant | None:
        """Return what the holder of `key` may do, or None for a key that is not on the ring.

        The time does not depend on which key it is, nor on how much of a hash agrees: every one is compared, in
        constant time. It grows with their number: about 30 µs for 1,000 keys.
        """
        presented = hashlib.sha256(key).digest()
        found = None
        for digest, grant in self._grants:
            if compare_digest(digest, presented):
                found = grant
        return found


def parse_keys(content: bytes) -> KeyRing:
    """Return the keys of a file's content, which is UTF-8 with or without a byte order mark, and LF or CRLF.

    Raises SetupError for the first line that breaks the form: it gives the line's number and never what stands there,
    which may be a key that was pasted in by mistake.
    """
    tenants: dict[bytes, dict[Scope, set[str]]] = defaultdict(lambda: defaultdict(set))
    for number, line in enumerate(content.removeprefix(_BYTE_ORDER_MARK).split(b"\n"), 1):
        try:
            fields = line.decode().partition("#")[0].split()
            if fields:
                digest, tenant_id, scopes = _entry(fields)
                for scope in scopes:
                    tenants[digest][scope].add(tenant_id)
        except UnicodeDecodeError:
            raise SetupError(f"line {number} is not UTF-8") from None
        except SetupError as error:
            raise SetupError(f"line {number}: {error}") from None
    return KeyRing(
        {
            digest: Grant(digest.hex(), {scope: frozenset(ids) for scope, ids in scopes.items()})
            for digest, scopes in tenants.items()
        }
    )


def _entry(fields: list[str]) -> tuple[bytes, str, set[Scope]]:
    if len(fields) != 3:
        raise SetupError("allowed: three fields, `sha256hex tenant-or-* scope`")
    digest, tenant_id, scopes = fields
    if not _SHA256_HEX.match(digest):
        raise SetupError("the first field must be the SHA-256 of the key, 64 hexadecimal digits")
    if tenant_id != ALL_TENANTS:
        try:
            parse_name(tenant_id, "tenant_id")
        except InvalidEventError:
            raise SetupError(f"the second field must be a tenant's id, or {ALL_TENANTS} for every tenant") from None
    try:
        return bytes.fromhex(digest), tenant_id, {Scope(scope) for scope in scopes.split(",")}
    except ValueError:
        allowed = ", ".join(Scope)
        raise SetupError(f"the third field must be one of {allowed}, or several with commas and no spaces") from None


def read_keys(path: Path) -> KeyRing:
    """Return the keys in the file at `path`, FILE_BYTES_MAX at most.

    Raises InvalidSettingError, one line that names the file, and the line at fault by its number.
    """
    try:
        return parse_keys(file_content(path, bytes_max=FILE_BYTES_MAX))
    except SetupError as error:
        raise InvalidSettingError("API_KEYS_FILE", str(path), str(error)) from None


@dataclass(frozen=True, slots=True)
class _FileState:
    """By what a change shows. changed_at: the kernel's own (ctime), which a new mode or owner changes as well."""

    inode: int
    size: int
    modified_ns: int
    changed_ns: int

    @classmethod
    def of(cls, path: Path) -> _FileState | None:
        """Return the state of the file at `path`, None when there is none to be had."""
        try:
            found = path.stat()
        except OSError:
            return None
        return cls(found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


class KeyFile:
    """The keys in force: those of the file, which is read again once it has changed.

    A file that can't be used, or is gone, is one ERROR line, and the keys read before stay in force. Thread-safe.
    It has no thread of its own: it looks when a request asks for the keys, once each LOOK_INTERVAL_S at most.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        """clock: seconds since the epoch, as the file system counts them. Raises InvalidSettingError as read_keys."""
        self._path = path
        self._clock = clock
        self._looking = threading.Lock()
        self._looked_at = clock()
        self._seen = _FileState.of(path)  # before the content: a change in between is found by the next look
        self._ring = read_keys(path)
        if not self._ring:
            self._warn_of_no_keys()

    def ring(self) -> KeyRing:
        """Return the keys in force."""
        now = self._clock()
        # A clock that was set back must not end the looking.
        due = not 0 <= now - self._looked_at < LOOK_INTERVAL_S
        if due and self._looking.acquire(blocking=False):
            try:
                self._looked_at = now
                self._look(now)
            finally:
                self._looking.release()
        return self._ring

    def _look(self, now: float) -> None:
        state = _FileState.of(self._path)
        if state == self._seen or (state and 0 <= now - state.changed_ns / 1e9 < SETTLED_S):
            return
        try:
            ring = read_keys(self._path)
        except InvalidSettingError as error:
            self._seen = state
            _log.error("%s; the API keys that were read before stay in force", error)
            return
        if _FileState.of(self._path) != state:
            return  # it changed while it was read
        self._seen = state
        self._ring = ring
        if ring:
            _log.info("%s changed: API keys in force: %d", self._path, len(ring))
        else:
            self._warn_of_no_keys()

    def _warn_of_no_keys(self) -> None:
        _log.warning("%s holds no API keys: every request that needs one is refused", self._path)
