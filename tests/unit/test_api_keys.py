"""The file of API keys: what it says, what is refused, and what becomes of a change while the services run."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shlex
import subprocess
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metering.api_keys import (
    ALL_TENANTS,
    FILE_BYTES_MAX,
    LOOK_INTERVAL_S,
    SETTLED_S,
    KeyFile,
    KeyRing,
    Scope,
    parse_keys,
    read_keys,
)
from metering.errors import InvalidSettingError, SetupError

KEY = b"n2Ew1WbCqkTnSmYb5kJxwJbsiX2mD0cQv3sHkq8G7zY"
OTHER_KEY = b"0Jx7yXgTj5mVnJfS6oWc1h9tQm3bUe2RkZdLp8aNqXs"
PAGE = Path(__file__).resolve().parents[2] / "docs" / "api-keys.md"


def sha256(key: bytes) -> str:
    return hashlib.sha256(key).hexdigest()


def line(key: bytes = KEY, tenant_id: str = "tenant-123", scopes: str = "read") -> bytes:
    return f"{sha256(key)} {tenant_id} {scopes}\n".encode()


def granted(ring: KeyRing, key: bytes = KEY) -> dict[str, set[str]] | None:
    grant = ring.grant_of(key)
    return None if grant is None else {scope: set(ids) for scope, ids in grant.tenants.items()}


# ── What a file says ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_key_may_do_what_its_line_says() -> None:
    ring = parse_keys(line() + line(OTHER_KEY, "*", "write,void"))
    assert len(ring) == 2
    assert granted(ring) == {"read": {"tenant-123"}}
    assert granted(ring, OTHER_KEY) == {"write": {ALL_TENANTS}, "void": {ALL_TENANTS}}


@pytest.mark.parametrize(
    "content",
    [
        line().rstrip(b"\n"),
        line().upper().replace(b"TENANT", b"tenant").replace(b"READ", b"read"),
        line().replace(b"\n", b"\r\n"),
        b"\xef\xbb\xbf" + line(),
        b"\xef\xbb\xbf# who\r\n\r\n" + line().replace(b" ", b"\t"),
        b"# comment, \xc3\xbcber alles\n\n   \n#\n  "
        + line().replace(b" ", b"   ").rstrip(b"\n")
        + b"  # of billing\n\n",
        line() + line(),
    ],
    ids=["no end of line", "upper case", "CRLF", "BOM", "BOM, CRLF, tabs", "comments and blanks", "twice"],
)
def test_the_form_of_the_file_is_not_the_point(content: bytes) -> None:
    ring = parse_keys(content)
    assert len(ring) == 1
    assert granted(ring) == {"read": {"tenant-123"}}


def test_lines_of_one_key_add_up_and_each_scope_keeps_its_own_tenants() -> None:
    ring = parse_keys(line(scopes="read,write") + line(tenant_id="テナント", scopes="read") + line(OTHER_KEY))
    assert granted(ring) == {"read": {"tenant-123", "テナント"}, "write": {"tenant-123"}}
    assert granted(ring, OTHER_KEY) == {"read": {"tenant-123"}}


def test_a_file_without_keys_lets_nobody_in() -> None:
    for content in (b"", b"\xef\xbb\xbf", b"# none yet\n\n"):
        ring = parse_keys(content)
        assert len(ring) == 0
        assert ring.grant_of(KEY) is None


@pytest.mark.parametrize(
    "wrong",
    [
        b"",
        KEY[:-1],
        KEY + b"\n",
        KEY.lower(),
        b"\xff" + KEY,
        b"Bearer " + KEY,
        sha256(KEY).encode(),  # who has read the file has no key
        sha256(KEY).upper().encode(),
        bytes.fromhex(sha256(KEY)),
        b"x" * 100_000,
    ],
)
def test_nothing_but_the_key_itself_opens(wrong: bytes) -> None:
    ring = parse_keys(line() + line(OTHER_KEY))
    assert ring.grant_of(wrong) is None
    assert ring.grant_of(KEY) is not None


@pytest.mark.parametrize("place", range(64))
def test_every_digit_of_a_hash_counts(place: int) -> None:
    digits = sha256(KEY)
    other = digits[:place] + ("1" if digits[place] == "0" else "0") + digits[place + 1 :]
    assert parse_keys(f"{other} * read".encode()).grant_of(KEY) is None


def test_a_key_is_bytes_of_any_kind() -> None:
    for key in (b"\xff\x00\xfe", "ключ".encode(), b"k" * 10_000):
        assert granted(parse_keys(line(key)), key) == {"read": {"tenant-123"}}


# ── What is refused ──────────────────────────────────────────────────────────────────────────────────────────────────

PASTED = "PastedKeyPastedKeyPastedKeyPastedKeyPastedK"


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (PASTED, "three fields"),
        (f"{PASTED} tenant-123", "three fields"),
        (f"{sha256(KEY)} tenant-123 read {PASTED}", "three fields"),
        (f"{sha256(KEY)} tenant-123 read, write", "three fields"),
        (f"{PASTED} tenant-123 read", "64 hexadecimal digits"),
        (f"{sha256(KEY)[:-1]} tenant-123 read", "64 hexadecimal digits"),
        (f"{sha256(KEY)}0 tenant-123 read", "64 hexadecimal digits"),
        (f"0x{sha256(KEY)[2:]} tenant-123 read", "64 hexadecimal digits"),
        (f"{sha256(KEY)[:-1]}٣ tenant-123 read", "64 hexadecimal digits"),
        (f"\ufeff{sha256(KEY)} tenant-123 read", "64 hexadecimal digits"),
        (f"{sha256(KEY)} {PASTED}/ read", "tenant's id, or *"),
        (f"{sha256(KEY)} ** read", "tenant's id, or *"),
        (f"{sha256(KEY)} tenant-* read", "tenant's id, or *"),
        (f"{sha256(KEY)} a,b read", "tenant's id, or *"),
        (f"{sha256(KEY)} {'x' * 129} read", "tenant's id, or *"),
        (f"{sha256(KEY)} tenant-123 *", "one of write, read, void"),
        (f"{sha256(KEY)} tenant-123 Read", "one of write, read, void"),
        (f"{sha256(KEY)} tenant-123 read,", "one of write, read, void"),
        (f"{sha256(KEY)} tenant-123 read,{PASTED}", "one of write, read, void"),
        (f"\x00{sha256(KEY)} tenant-123 read", "64 hexadecimal digits"),
    ],
)
def test_a_bad_line_is_named_by_its_number_and_never_shown(tmp_path: Path, bad: str, why: str) -> None:
    file = tmp_path / "keys"
    file.write_bytes(b"# one\r\n" + line() + bad.encode() + b"\r\n" + line(OTHER_KEY))
    with pytest.raises(InvalidSettingError) as caught:
        read_keys(file)
    text = str(caught.value)
    assert text.startswith(f"API_KEYS_FILE={str(file)!r} can't be used: line 3: ")
    assert why in text
    assert len(text.splitlines()) == 1
    for word in (PASTED, sha256(KEY)[:-1], "tenant-123"):
        assert word not in text
    assert caught.value.__cause__ is None  # nor in a traceback


@pytest.mark.parametrize("content", [b"\n\xff\xfe\n", line() + line()[:70] + b"\xe9 read\n"])
def test_a_line_that_is_not_utf_8_is_refused(content: bytes) -> None:
    with pytest.raises(SetupError, match=r"\Aline 2 is not UTF-8\Z"):
        parse_keys(content)


def test_what_an_editor_saved_as_utf_16_is_refused() -> None:
    with pytest.raises(SetupError, match=r"\Aline 1 is not UTF-8\Z"):
        parse_keys(line().decode().encode("utf-16"))


ANY_REFUSAL = re.compile(
    r"line ([2-9]|\d\d+)(?: is not UTF-8"
    r"|: allowed: three fields, `sha256hex tenant-or-\* scope`"
    r"|: the first field must be the SHA-256 of the key, 64 hexadecimal digits"
    r"|: the second field must be a tenant's id, or \* for every tenant"
    r"|: the third field must be one of write, read, void, or several with commas and no spaces)"
)


@given(st.lists(st.binary(max_size=90) | st.text(max_size=90).map(str.encode), max_size=4))
def test_any_file_is_keys_or_one_line_that_shows_none_of_it(lines: list[bytes]) -> None:
    refused = ""
    try:
        parse_keys(line() + b"\n".join(lines))
    except SetupError as error:
        refused = str(error)
    assert not refused or ANY_REFUSAL.fullmatch(refused)


def test_a_file_that_cannot_be_read_stops_the_start_with_one_line(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    large = tmp_path / "large"
    large.write_bytes(b"#" * (FILE_BYTES_MAX + 1))
    for path, why in (
        (tmp_path / "none", "No such file or directory"),
        (tmp_path, "it is not a regular file"),
        (pipe, "it is not a regular file"),
        (large, "it has more than 1048576 bytes"),
    ):
        with pytest.raises(InvalidSettingError) as caught:
            KeyFile(path)
        assert str(caught.value) == f"API_KEYS_FILE={str(path)!r} can't be used: {why}"


def test_a_file_of_the_greatest_length_is_read(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_bytes(line() + b"#" * (FILE_BYTES_MAX - len(line())))
    assert len(read_keys(file)) == 1


# ── A change while the services run ──────────────────────────────────────────────────────────────────────────────────


class Clock:
    """Stands still until a test moves it."""

    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now

    def later(self) -> None:
        """Go on until a look is due and a file that was written just now has settled."""
        self.now += 10 * (LOOK_INTERVAL_S + SETTLED_S)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_bytes(line())
    return path


@pytest.fixture
def keys(path: Path, clock: Clock) -> KeyFile:
    return KeyFile(path, clock=clock)


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


def test_a_change_is_in_force_without_a_restart(
    keys: KeyFile, path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    assert granted(keys.ring()) == {"read": {"tenant-123"}}
    path.write_bytes(line(OTHER_KEY, "*", "write"))
    clock.later()
    assert keys.ring().grant_of(KEY) is None
    assert granted(keys.ring(), OTHER_KEY) == {"write": {"*"}}
    assert caplog.messages == [f"{path} changed: API keys in force: 1"]


def test_a_change_of_the_same_length_and_time_is_seen(keys: KeyFile, path: Path, clock: Clock) -> None:
    before = path.stat()
    path.write_bytes(line(scopes="void"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    clock.later()
    assert granted(keys.ring()) == {"void": {"tenant-123"}}


def test_another_file_in_its_place_is_seen(keys: KeyFile, path: Path, clock: Clock, tmp_path: Path) -> None:
    new = tmp_path / "new"
    new.write_bytes(line(scopes="void"))
    new.rename(path)
    clock.later()
    assert granted(keys.ring()) == {"void": {"tenant-123"}}


def test_a_link_that_leads_elsewhere_is_seen(tmp_path: Path, clock: Clock) -> None:
    # As Kubernetes changes a secret that is mounted.
    for scope in Scope:
        (tmp_path / scope).write_bytes(line(scopes=scope))
    link = tmp_path / "link"
    link.symlink_to("read")
    keys = KeyFile(link, clock=clock)
    (tmp_path / "next").symlink_to("void")
    (tmp_path / "next").rename(link)
    clock.later()
    assert granted(keys.ring()) == {"void": {"tenant-123"}}


def test_it_looks_no_more_than_once_in_its_interval(keys: KeyFile, path: Path, clock: Clock) -> None:
    clock.later()
    keys.ring()
    path.write_bytes(b"")
    os.utime(path)
    clock.now += LOOK_INTERVAL_S * 0.99  # settled by far: the clock is ahead of the file's time
    assert keys.ring().grant_of(KEY) is not None
    clock.now += LOOK_INTERVAL_S * 0.02
    assert keys.ring().grant_of(KEY) is None


def test_a_clock_that_is_set_back_does_not_end_the_looking(keys: KeyFile, path: Path, clock: Clock) -> None:
    path.write_bytes(b"")
    clock.now -= 3600
    assert keys.ring().grant_of(KEY) is None


def test_a_file_that_is_still_being_written_is_left_alone(keys: KeyFile, path: Path, clock: Clock) -> None:
    path.write_bytes(b"")  # what a plain write does first: not a single key is in force, for a moment
    changed_at = path.stat().st_ctime_ns / 1e9
    clock.now = changed_at + SETTLED_S * 0.9
    keys._looked_at = 0
    assert keys.ring().grant_of(KEY) is not None
    clock.now = changed_at + SETTLED_S * 0.9 + LOOK_INTERVAL_S
    assert keys.ring().grant_of(KEY) is None


def test_a_bad_file_keeps_the_keys_and_is_one_error_for_each_change(
    keys: KeyFile, path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    path.write_bytes(line() + PASTED.encode())
    for _ in range(3):
        clock.later()
        assert granted(keys.ring()) == {"read": {"tenant-123"}}
    (error,) = errors(caplog)
    assert error.startswith(f"API_KEYS_FILE={str(path)!r} can't be used: line 2: ")
    assert error.endswith("; the API keys that were read before stay in force")
    path.write_bytes(PASTED.encode())
    for _ in range(3):
        clock.later()
        assert granted(keys.ring()) == {"read": {"tenant-123"}}
    assert len(errors(caplog)) == 2
    path.write_bytes(line(scopes="void"))
    clock.later()
    assert granted(keys.ring()) == {"void": {"tenant-123"}}
    assert len(errors(caplog)) == 2
    assert PASTED not in caplog.text
    assert all(record.exc_info is None for record in caplog.records)


def test_a_file_that_is_gone_keeps_the_keys_and_may_come_back(
    keys: KeyFile, path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    aside = path.with_name("aside")
    for _ in range(2):
        path.rename(aside)
        for _ in range(3):
            clock.later()
            assert granted(keys.ring()) == {"read": {"tenant-123"}}
        aside.rename(path)
        clock.later()
        keys.ring()
    assert len(errors(caplog)) == 2
    assert all("No such file or directory" in error for error in errors(caplog))
    path.write_bytes(b"")
    clock.later()
    assert keys.ring().grant_of(KEY) is None


def test_a_file_that_cannot_be_opened_is_read_once_it_can(
    keys: KeyFile, path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    # Another kind of file in its place, since the mode of a file is nothing to root.
    path.rename(path.with_name("aside"))
    path.mkdir()
    clock.later()
    assert granted(keys.ring()) == {"read": {"tenant-123"}}
    assert len(errors(caplog)) == 1
    path.rmdir()
    path.with_name("aside").rename(path)
    path.chmod(0o400)
    clock.later()
    caplog.clear()
    caplog.set_level(logging.INFO)
    path.chmod(0o600)  # changes neither content nor modification time, and may be what lets a service read it
    clock.later()
    keys.ring()
    assert caplog.messages == [f"{path} changed: API keys in force: 1"]


def test_an_empty_file_is_a_warning_at_start_and_later(
    path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    said = f"{path} holds no API keys: every request that needs one is refused"
    path.write_bytes(b"# none\n")
    keys = KeyFile(path, clock=clock)
    assert caplog.messages == [said]
    path.write_bytes(line())
    clock.later()
    assert keys.ring().grant_of(KEY) is not None
    path.write_bytes(b"")
    clock.later()
    assert keys.ring().grant_of(KEY) is None
    assert caplog.messages == [said, said]
    assert {record.levelno for record in caplog.records} == {logging.WARNING}


# ── The page that tells how to make one ──────────────────────────────────────────────────────────────────────────────


def test_the_commands_of_the_page_make_a_key_that_is_let_in(tmp_path: Path) -> None:
    blocks = re.findall(r"^```bash\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    made, given = blocks[0], blocks[1]
    done = subprocess.run(["sh", "-euc", made], cwd=tmp_path, capture_output=True, text=True, check=True)
    (file,) = tmp_path.iterdir()
    key = done.stderr.strip() or done.stdout.strip()
    assert re.fullmatch(r"[\w-]{43}", key, re.ASCII)
    assert granted(read_keys(file), key.encode()) == {"write": {"tenant-123"}}
    hashed = subprocess.run(
        ["sh", "-euc", f"KEY={shlex.quote(key)}; {given}"], capture_output=True, text=True, check=True
    )
    assert hashed.stdout.split()[0] == sha256(key.encode())
