"""Slow clients under a real gunicorn: none of them costs a thread, and HTTP/1.1 goes on working as it did.

Over 300 lines, since all of it needs the same sockets, read byte by byte.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.client import HTTPResponse
from pathlib import Path

import pytest
import requests

from metering.gunicorn_worker import BufferingWorker
from tests.live.slow_live_app import BIG_BYTES, NarrowWorker
from tests.live.test_collector_live import BOOT_S, ROOT, LiveCollector, free_port, gunicorn
from tests.unit.collector_support import WAIT_S, until

SLOW_CLIENTS = 200
THREADS = 4
GET = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
CLOSING = GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
POST = b"POST /echo HTTP/1.1\r\nHost: x\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
LONG_HEAD = b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: " + b"a" * 10_000
LONG_BODY = POST + b"Content-Length: 100000\r\n\r\n"
SLOW = {
    "head": (b"", LONG_HEAD),
    "body": (LONG_BODY, b"a" * 10_000),
    "chunks": (CHUNKED, b"fff\r\n" + b"0\r\n\r\n" * 800),
    "expected body": (POST + b"Content-Length: 100000\r\nExpect: 100-continue\r\n\r\n", b"a" * 10_000),
    "nothing": (b"", b""),
}


@contextmanager
def live(tmp_path: Path, worker: str = "", *arguments: str, threads: int = THREADS) -> Iterator[LiveCollector]:
    """The app under one worker, of our own class or one of tests/live/slow_live_app.py."""
    port = free_port()
    log_path = tmp_path / "gunicorn.log"
    own = ["--worker-class", f"tests.live.slow_live_app.{worker}"] if worker else []
    app = "tests.live.slow_live_app:create()"
    with gunicorn(
        log_path, *own, "--threads", str(threads), *arguments, app, port=port, WEB_CONCURRENCY="1"
    ) as process:
        service = LiveCollector(process, port, log_path)
        until(service.alive, BOOT_S)
        yield service
        assert "Traceback" not in service.log()


@contextmanager
def clients(service: LiveCollector, number: int) -> Iterator[list[socket.socket]]:
    with ExitStack() as stack:
        yield [
            stack.enter_context(socket.create_connection(("127.0.0.1", service.port), timeout=WAIT_S))
            for _ in range(number)
        ]


@contextmanager
def client(service: LiveCollector) -> Iterator[socket.socket]:
    with clients(service, 1) as (one,):
        yield one


def answer(connection: socket.socket, method: str = "POST") -> HTTPResponse:
    """Read one answer. What http.client buffers beyond it is lost: the next one must not be sent before."""
    response = HTTPResponse(connection, method=method)
    response.begin()
    return response


def received_answer(connection: socket.socket) -> bytes:
    """The bytes of one answer that has a length, and of whatever came before it."""
    received = b""
    while not (head := re.search(rb"(?s)content-length: (\d+)(?=\r\n).*?\r\n\r\n", received, re.IGNORECASE)) or len(
        received
    ) < head.end() + int(head[1]):
        received += connection.recv(65_536)
    return received


def ended(connection: socket.socket) -> bytes:
    """All that comes until the other side closes."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := connection.recv(65_536):
            received += piece
    return received


def open_still(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        return connection.recv(65_536).startswith(b"HTTP/1.1 100 ")
    except BlockingIOError:
        return True
    finally:
        connection.settimeout(WAIT_S)


def served(service: LiveCollector) -> bool:
    """Whether requests that are not slow are answered: on a connection of their own, of both kinds."""
    url = f"http://127.0.0.1:{service.port}"
    posted = requests.post(f"{url}/echo", data=b"a" * 100_000, timeout=WAIT_S)
    return service.alive() and posted.json()["bytes"] == 100_000


@pytest.mark.parametrize("kind", SLOW)
def test_slow_requests_hold_no_thread(tmp_path: Path, kind: str) -> None:
    begin, rest = SLOW[kind]
    with live(tmp_path) as service, clients(service, SLOW_CLIENTS) as slow:
        for connection in slow:
            connection.sendall(begin)
        for at in range(8):
            for connection in slow:
                connection.sendall(rest[at : at + 1])
            assert served(service)
        assert all(open_still(connection) for connection in slow)


@pytest.mark.parametrize("kind", SLOW)
def test_slow_requests_are_closed_after_their_deadline(tmp_path: Path, kind: str) -> None:
    begin, rest = SLOW[kind]
    with live(tmp_path, "HastyWorker") as service, clients(service, SLOW_CLIENTS) as slow:
        for connection in slow:
            connection.sendall(begin + rest[:10])
        for connection in slow:
            received = ended(connection)
            if kind == "nothing":
                assert received == b""
            else:
                head, _, body = received.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n").partition(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 408 ")
                assert json.loads(body)["code"] == "request_timeout"
        assert served(service)


def test_bytes_now_and_then_do_not_put_the_deadline_off(tmp_path: Path) -> None:
    # A client whose byte comes just before each look for slow ones is in a thread when the look is taken.
    with live(tmp_path, "BlindWorker") as service, client(service) as slow:
        slow.settimeout(0.05)
        received = b""
        for at in range(200):
            with contextlib.suppress(TimeoutError):
                slow.sendall(LONG_HEAD[at : at + 1])
                received = slow.recv(65_536)
                break
        assert received.startswith(b"HTTP/1.1 408 ")


def test_answers_that_nobody_reads_hold_no_thread(tmp_path: Path) -> None:
    with live(tmp_path) as service, clients(service, 3 * THREADS) as slow:
        for connection in slow:
            connection.sendall(b"GET /big HTTP/1.1\r\nHost: x\r\n\r\n")
        until(lambda: all(connection.recv(1, socket.MSG_PEEK) for connection in slow))
        assert served(service)
        response = answer(slow[0], "GET")
        assert len(response.read()) == BIG_BYTES
        slow[0].sendall(GET)
        assert answer(slow[0], "GET").status == 200


def test_answers_that_nobody_reads_are_cut_off(tmp_path: Path) -> None:
    with live(tmp_path, "HastyWorker") as service, clients(service, 2) as slow:
        for connection in slow:
            connection.sendall(b"GET /big HTTP/1.1\r\nHost: x\r\n\r\n")
        until(lambda: "Closing 2 connection(s) that were too slow" in service.log())
        for connection in slow:
            assert len(ended(connection)) < BIG_BYTES


def test_clients_that_do_not_close_hold_nothing_up(tmp_path: Path) -> None:
    with live(tmp_path) as service, clients(service, SLOW_CLIENTS) as slow:
        for connection in slow:
            connection.sendall(CLOSING)
        for connection in slow:
            assert ended(connection).startswith(b"HTTP/1.1 200 ")
        assert served(service)


def test_new_clients_find_room_among_idle_ones(tmp_path: Path) -> None:
    with live(tmp_path, "", "--worker-connections", "20") as service, ExitStack() as stack:
        for _ in range(5):
            idle = stack.enter_context(clients(service, 15))
            kept = stack.enter_context(clients(service, 15))
            for connection in kept:
                with contextlib.suppress(ConnectionError):
                    connection.sendall(GET)
            assert served(service)
            assert len(idle) == 15


def test_large_requests_have_a_limit_in_all(tmp_path: Path) -> None:
    most = NarrowWorker.held_bytes_max
    with live(tmp_path, "NarrowWorker") as service, requests.Session() as session:

        def posted(size: int, by: requests.Session | None = None) -> requests.Response:
            url = f"http://127.0.0.1:{service.port}/echo"
            return (by or requests).post(url, data=b"a" * size, timeout=WAIT_S)

        assert posted(most - 100_000, session).status_code == 200

        def late() -> bytes:
            with client(service) as slow:
                with contextlib.suppress(ConnectionError):
                    slow.sendall(POST + b"Content-Length: %d\r\n\r\n" % most + b"a" * (most - 100_000))
                return ended(slow)

        # What is served is no longer held, soon after its answer, nor is what is late.
        until(lambda: posted(most - 100_000).status_code == 200)
        until(lambda: late().startswith(b"HTTP/1.1 408 "))
        until(lambda: posted(most - 100_000).status_code == 200)
        refused = posted(2 * most)
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "2")
        assert refused.json()["code"] == "unavailable"
        assert served(service)


def test_a_long_body_that_finds_no_room_is_sent_again_later(tmp_path: Path) -> None:
    with live(tmp_path, "RoomlessWorker") as service:
        refused = requests.post(f"http://127.0.0.1:{service.port}/echo", data=bytes(1024 * 1024), timeout=WAIT_S)
        assert (refused.status_code, refused.json()["code"], refused.headers["Retry-After"]) == (
            503,
            "unavailable",
            "2",
        )
        assert "No room for a request in /nowhere: " in service.log()
        assert served(service)


def test_long_bodies_that_are_held_take_no_memory(tmp_path: Path) -> None:
    size = 4 * 1024 * 1024
    with live(tmp_path) as service, clients(service, 20) as slow:
        before = service.memory_bytes()
        for number, connection in enumerate(slow):
            if number % 2:
                connection.sendall(LONG_BODY.replace(b"100000", b"%d" % size) + bytes(size - 1))
            else:
                connection.sendall(CHUNKED + b"%x\r\n" % size + bytes(size - 1))
        assert served(service)
        assert service.memory_bytes() - before < len(slow) * size / 4
        for number, connection in enumerate(slow):
            connection.sendall(bytes(1) if number % 2 else b"\0\r\n0\r\n\r\n")
        for connection in slow:
            assert json.loads(answer(connection).read()) == {
                "bytes": size,
                "sha256": hashlib.sha256(bytes(size)).hexdigest(),
            }


def test_one_connection_takes_many_requests(tmp_path: Path) -> None:
    with live(tmp_path) as service, client(service) as connection:
        for size in (0, 1, 100_000, 3_000_000, 7):
            body = bytes(size)
            connection.sendall(POST + b"Content-Length: %d\r\n\r\n" % size + body)
            response = answer(connection)
            assert json.loads(response.read())["sha256"] == hashlib.sha256(body).hexdigest()
            assert response.headers["Connection"] == "keep-alive"


def test_pipelined_requests_are_answered_in_order(tmp_path: Path) -> None:
    bodies = [b"a" * size for size in (1, 20, 300, 70_000)]
    lengths = [POST + b"Content-Length: %d\r\n\r\n" % len(body) + body for body in bodies]
    pipelined = b"".join(lengths) + CHUNKED + b"2\r\nhi\r\n0\r\n\r\n" + CLOSING
    with live(tmp_path) as service:
        for cut in (1, 30, 100, len(pipelined) - 3, len(pipelined)):
            with client(service) as connection:
                connection.sendall(pipelined[:cut])
                connection.sendall(pipelined[cut:])
                received = ended(connection).decode()
            sizes = [json.loads(line)["bytes"] for line in received.splitlines() if line.startswith('{"bytes"')]
            assert sizes == [1, 20, 300, 70_000, 2]
            assert received.endswith('{"status":"alive"}\n')


def test_a_body_is_asked_for_once_and_only_when_it_is_wanted(tmp_path: Path) -> None:
    with live(tmp_path) as service, client(service) as connection:
        for framing, body in ((b"Content-Length: 2", b"hi"), (b"Transfer-Encoding: chunked", b"2\r\nhi\r\n0\r\n\r\n")):
            head = POST + framing + b"\r\nExpect: 100-continue\r\n\r\n"
            connection.sendall(head)
            assert connection.recv(65_536) == b"HTTP/1.1 100 Continue\r\n\r\n"
            connection.sendall(body)
            assert received_answer(connection).startswith(b"HTTP/1.1 200 ")
            connection.sendall(head + body)  # it did not wait
            assert received_answer(connection).startswith(b"HTTP/1.1 200 ")
        connection.sendall(POST + b"Content-Length: 99999999\r\nExpect: 100-continue\r\n\r\n")
        received = ended(connection)
        assert received.startswith(b"HTTP/1.1 ")
        assert b"100 Continue" not in received


def test_chunks_may_come_byte_by_byte(tmp_path: Path) -> None:
    sent = CHUNKED + b'5;name="a"\r\n0\r\n\r\n\r\n0A\r\n0123456789\r\n0\r\nX-Sum: 1\r\n\r\n'
    with live(tmp_path) as service, client(service) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(2):
            for byte in sent:
                connection.sendall(bytes([byte]))
            assert json.loads(answer(connection).read())["sha256"] == hashlib.sha256(b"0\r\n\r\n0123456789").hexdigest()


def test_a_request_whose_client_sends_no_more_is_answered(tmp_path: Path) -> None:
    with live(tmp_path) as service:
        for sent, status in ((GET, b"200"), (CHUNKED + b"5\r\nhe", b"400"), (LONG_BODY + b"a", b"400")):
            with client(service) as connection:
                connection.sendall(sent)
                connection.shutdown(socket.SHUT_WR)
                received = ended(connection)
                assert received.startswith(b"HTTP/1.1 " + status)
                assert (b"\r\nConnection: close\r\n" in received) == (status != b"200")


def test_who_still_sends_can_read_why_it_was_refused(one: LiveCollector) -> None:
    size = BufferingWorker.request_bytes_max + 30_000_000  # more than the kernel takes from it
    with client(one) as connection:
        connection.sendall(POST + b"Content-Length: %d\r\n\r\n" % size + b"a" * size)
        assert answer(connection).status == 413


def test_a_stop_answers_what_has_begun_to_arrive_and_waits_for_nobody_else(tmp_path: Path) -> None:
    with live(tmp_path) as service, clients(service, 3) as (idle, kept, begun):
        kept.sendall(GET)
        answer(kept, "GET").read()
        begun.sendall(LONG_BODY + b"a")
        assert service.alive()  # which came after them
        service.process.send_signal(signal.SIGTERM)
        assert ended(idle) == ended(kept) == b""  # now the worker has the signal, too
        begun.sendall(b"a" * 99_998)
        begun.sendall(b"a")
        response = answer(begun)
        assert json.loads(response.read())["bytes"] == 100_000
        assert response.headers["Connection"] == "close"
        assert service.process.wait(WAIT_S) == 0


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/1.1\n", 400),
        (b"\r\n\r\n", 400),
        (POST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (POST + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (POST + b"Transfer-Encoding: brainfold\r\n\r\n", 501),
        (POST + b"Expect: a miracle\r\n\r\n", 417),
        (b"GET /" + b"a" * 5000 + b" HTTP/1.1\r\n\r\n", 414),
        (b"GET /" + b"a" * 100_000, 414),
        (GET[:-2] + b"X: " + b"a" * 9000 + b"\r\n\r\n", 431),
        (GET[:-2] + b"X: a\r\n" * 51 + b"\r\n", 431),
        (GET[:-2] + b"X: " + b"a" * 70_000, 431),
    ],
)
def test_what_gunicorn_refuses_is_a_problem_too(one: LiveCollector, sent: bytes, status: int) -> None:
    with client(one) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(sent)
        response = answer(connection, "GET")
        problem = json.loads(response.read())
        assert response.headers["Content-Type"] == "application/problem+json"
        assert (response.status, problem["status"], problem["code"]) == (status, status, "bad_request")
        assert "aaaa" not in problem["detail"]
        assert ended(connection) == b""


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveCollector]:
    with live(tmp_path_factory.mktemp("one")) as service:
        yield service


def test_tls_is_refused_with_one_line_since_it_would_not_work(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    done = subprocess.run(
        [sys.executable, "-m", "collector", "--certfile", str(file), "--keyfile", str(file)],
        cwd=ROOT,
        env={"PATH": "", "COLLECTOR_PORT": str(free_port())},
        capture_output=True,
        text=True,
        check=False,
        timeout=BOOT_S,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "gunicorn's certfile, keyfile and proxy_protocol can't be used: plain HTTP/1"


def test_an_answer_that_breaks_off_ends_its_connection_and_nothing_else(tmp_path: Path) -> None:
    port, log_path = free_port(), tmp_path / "gunicorn.log"
    with gunicorn(log_path, "tests.live.slow_live_app:create()", port=port, WEB_CONCURRENCY="1") as process:
        service = LiveCollector(process, port, log_path)
        until(service.alive, BOOT_S)
        workers = service.workers()
        for _ in range(3):
            with client(service) as connection:
                connection.sendall(b"GET /breaks HTTP/1.1\r\nHost: x\r\n\r\n")
                assert not ended(connection).endswith(b"0\r\n\r\n")
            assert served(service)
        assert service.workers() == workers
        assert service.log().count("Error handling request") == 3
