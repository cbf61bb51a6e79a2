"""When a request is all in: for every request that can be sent, after its last byte and not before."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from gunicorn.config import Config
from gunicorn.http.errors import LimitRequestHeaders
from hypothesis import given
from hypothesis import strategies as st

from metering.gunicorn_connection import SMALL_BYTES, Connection

LIMITS = {"head_bytes_max": SMALL_BYTES, "request_bytes_max": 1024 * 1024}


@contextmanager
def connected() -> Iterator[tuple[Connection, socket.socket]]:
    """A connection and the client's end of it."""
    ours, theirs = socket.socketpair()
    conn = Connection(Config(), ours, ("127.0.0.1", 1), ("127.0.0.1", 2), **LIMITS)
    try:
        yield conn, theirs
    finally:
        conn.close()
        theirs.close()


def chunked(pieces: list[bytes], extension: bytes, trailer: bytes) -> bytes:
    chunks = b"".join(b"%x%s\r\n%s\r\n" % (len(piece), extension, piece) for piece in pieces)
    return b"Transfer-Encoding: Chunked\r\n\r\n" + chunks + b"0\r\n" + trailer + b"\r\n"


tricky = st.sampled_from([b"\r\n", b"\r\n\r\n", b"0\r\n\r\n", b"5\r\n", b"a", b"\n"])
pieces = st.lists(tricky, min_size=1, max_size=5).map(b"".join)
requests = st.one_of(
    st.just(b"\r\n"),
    pieces.map(lambda body: b"Content-Length: %d\r\n\r\n%s" % (len(body), body)),
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
