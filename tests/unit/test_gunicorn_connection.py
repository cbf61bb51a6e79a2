"""When a request is all in: for every request that can be sent, after its last byte and not before."""

from __future__ import annotations

import random
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from gunicorn.config import Config
from gunicorn.http.errors import LimitRequestHeaders
from hypothesis import given
from hypothesis import strategies as st

from metering.gunicorn_client import SMALL_BYTES
from metering.gunicorn_connection import SPOOLED_FROM_BYTES, Connection

LIMITS: dict[str, Any] = {"head_bytes_max": SMALL_BYTES, "request_bytes_max": 1024 * 1024}


@contextmanager
def connected(spool_folder: str | None = None) -> Iterator[tuple[Connection, socket.socket]]:
    """A connection and the client's end of it."""
    ours, theirs = socket.socketpair()
    conn = Connection(Config(), ours, ("127.0.0.1", 1), ("127.0.0.1", 2), **LIMITS, spool_folder=spool_folder)
    try:
        yield conn, theirs
    finally:
        conn.close()
        theirs.close()


def open_files(folder: Path) -> int:
    """How many files of `folder` this process has open, those without a name too."""
    links = Path("/proc/self/fd").iterdir()
    return sum(link.is_symlink() and link.readlink().is_relative_to(folder) for link in links)


def with_length(body: bytes) -> bytes:
    return b"Content-Length: %d\r\n\r\n%s" % (len(body), body)


def chunked(pieces: list[bytes], extension: bytes, trailer: bytes) -> bytes:
    chunks = b"".join(b"%x%s\r\n%s\r\n" % (len(piece), extension, piece) for piece in pieces)
    return b"Transfer-Encoding: Chunked\r\n\r\n" + chunks + b"0\r\n" + trailer + b"\r\n"


tricky = st.sampled_from([b"\r\n", b"\r\n\r\n", b"0\r\n\r\n", b"5\r\n", b"a", b"\n"])
pieces = st.lists(tricky, min_size=1, max_size=5).map(b"".join)
requests = st.one_of(
    st.just(b"\r\n"),
    pieces.map(with_length),
    st.builds(
        chunked,
        st.lists(pieces, max_size=4),
        st.sampled_from([b"", b";a=b", b" ; a"]),
        st.sampled_from([b"", b"X: 1\r\n"]),
    ),
).map(lambda rest: b"POST /v1/usage HTTP/1.1\r\nHost: x\r\n" + rest)


@given(requests, st.data())
def test_a_request_is_whole_with_its_last_byte_and_not_before(request: bytes, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(1, len(request) - 1), max_size=6)))
    with connected() as (conn, _):
        for begin, end in zip([0, *cuts], [*cuts, len(request)], strict=True):
            assert not conn.whole()
            conn.arrived += request[begin:end]
        assert conn.whole()
        conn.arrived += b"GET / HTTP"  # the next one changes nothing
        assert conn.whole()


@given(st.lists(requests, min_size=2, max_size=4))
def test_what_comes_behind_a_request_belongs_to_the_next(sent: list[bytes]) -> None:
    with connected() as (conn, _):
        conn.arrived += b"".join(sent)
        for request in sent:
            assert conn.whole()
            parsed = next(conn.parser)
            body = request.partition(b"\r\n\r\n")[2]
            if b"Content-Length" in request:
                assert parsed.body.read() == body
            assert conn.parser.finish_body(deadline=time.monotonic() + 10)
            conn.begin()
        assert not conn.arrived


filling = st.integers(0, 3 * SPOOLED_FROM_BYTES)


@given(st.lists(st.tuples(st.booleans(), filling), min_size=1, max_size=3), st.integers(1_000, 200_000))
def test_a_long_body_is_in_a_file_and_comes_out_as_it_came(sizes: list[tuple[bool, int]], step: int) -> None:
    bodies = [random.Random(size).randbytes(size) for _, size in sizes]  # noqa: S311 - bytes, no secrets
    head = b"POST /v1/usage HTTP/1.1\r\nHost: x\r\n"
    sent = b"".join(
        head + (chunked([body] if body else [], b"", b"") if in_chunks else with_length(body))
        for (in_chunks, _), body in zip(sizes, bodies, strict=True)
    )
    with connected() as (conn, _):
        at = 0
        for body in bodies:
            while not conn.whole():
                conn.arrived += sent[at : at + step]
                at += step
                conn.spool()
                assert len(conn.arrived) <= SPOOLED_FROM_BYTES + step
            assert next(conn.parser).body.read() == body
            assert conn.parser.finish_body(deadline=time.monotonic() + 10)
            conn.begin()
            assert conn.size == len(conn.arrived)
        assert not conn.arrived


@pytest.mark.parametrize("ends", ["by close", "by the next request"])
def test_the_file_of_a_body_goes_with_its_request(ends: str, tmp_path: Path) -> None:
    with connected(spool_folder=str(tmp_path)) as (conn, _):
        conn.arrived += b"POST / HTTP/1.1\r\nHost: x\r\n" + with_length(bytes(SPOOLED_FROM_BYTES + 1))
        assert conn.whole()
        conn.spool()
        assert open_files(tmp_path) == 1
        if ends == "by close":
            conn.close()
        else:
            next(conn.parser).body.read()
            conn.begin()
        assert open_files(tmp_path) == 0


def test_the_time_for_a_request_begins_with_its_first_byte() -> None:
    with connected() as (conn, client):
        conn.began_at -= 1000
        client.sendall(b"G")
        conn.receive(10)
        began_at = conn.began_at
        assert time.monotonic() - began_at < 500
        client.sendall(b"E")
        conn.receive(10)
        assert (conn.began_at, conn.moved) == (began_at, 2)


def test_a_body_that_begins_late_does_not_begin_anew() -> None:
    with connected() as (conn, client):
        client.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n")
        conn.receive(1000)
        assert not conn.whole()
        began_at = conn.began_at
        client.sendall(b"a")
        conn.receive(1000)
        assert conn.began_at == began_at


def test_a_head_without_end_is_refused() -> None:
    with connected() as (conn, _):
        conn.arrived += b"GET / HTTP/1.1\r\nX: " + b"a" * SMALL_BYTES
        with pytest.raises(LimitRequestHeaders):
            conn.whole()


@pytest.mark.parametrize("size", [b"zz\r\n", b"-1\r\n", b"\r\n", b"1" * 16 + b"\r\n", b"1" * (SMALL_BYTES + 1)])
def test_a_chunk_that_is_none_is_left_to_the_parser(size: bytes) -> None:
    with connected() as (conn, _):
        conn.arrived += b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + size
        assert conn.whole()


def test_an_answer_leaves_in_one_piece_and_a_large_one_before_it_is_complete() -> None:
    with connected() as (conn, client):
        client.setblocking(False)
        conn.sock.sendall(b"head")
        with pytest.raises(BlockingIOError):
            client.recv(100)
        conn.sock.sendall(b"body")
        conn.sock.flush()
        assert client.recv(100) == b"headbody"
        conn.sock.sendall(bytes(SMALL_BYTES + 1))
        assert client.recv(100)
