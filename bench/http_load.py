"""A load of HTTP requests made beforehand, over connections that stay open; one thread, so that it costs little."""

from __future__ import annotations

import math
import selectors
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

_ANSWER_BYTES = 1 << 20


@dataclass
class LoadResult:
    """seconds: how long the load lasted; latencies_s: of each answer, from when its request was due."""

    seconds: float
    latencies_s: list[float] = field(default_factory=list)

    @property
    def requests_s(self) -> float:
        return len(self.latencies_s) / self.seconds

    def percentile_s(self, percent: float) -> float:
        ordered = sorted(self.latencies_s)
        return ordered[min(len(ordered) - 1, math.ceil(percent / 100 * len(ordered)) - 1)]


@dataclass
class _Connection:
    socket: socket.socket
    due_at: float = 0.0
    answer: bytes = b""
    needed: int = -1


def load(
    port: int,
    bodies: Sequence[bytes],
    *,
    duration_s: float,
    connections: int,
    requests_s: float | None = None,
    meanwhile: Callable[[], None] = lambda: None,
) -> LoadResult:
    """Post `bodies` in turn to /v1/usage and return what came of it; every answer must be 202.

    requests_s: how many are due each second, whether the service keeps up or not, and their latencies count from then;
    None: as many as the connections can. meanwhile: called about once a second.
    """
    requests = [_request(port, body) for body in bodies]
    sent = 0
    with ExitStack() as open_, selectors.DefaultSelector() as selector:
        idle: deque[_Connection] = deque()  # the one that waited longest goes first: none is idle until it is closed
        for _ in range(connections):
            one = open_.enter_context(socket.create_connection(("127.0.0.1", port)))
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            idle.append(_Connection(one))
            selector.register(one, selectors.EVENT_READ, idle[-1])
        began = now = time.perf_counter()
        tick_at = began + 1
        result = LoadResult(0.0)
        while now < began + duration_s or len(idle) < connections:
            while idle and now < began + duration_s:
                due_at = now if requests_s is None else began + sent / requests_s
                if due_at > now:
                    break
                connection = idle.popleft()
                connection.due_at = due_at
                connection.socket.sendall(requests[sent % len(requests)])
                sent += 1
            for key, _ in selector.select(0.001):
                if _answered(key.data):
                    result.latencies_s.append(time.perf_counter() - key.data.due_at)
                    idle.append(key.data)
            now = time.perf_counter()
            if now >= tick_at:
                tick_at += 1
                meanwhile()
        result.seconds = now - began
        return result


def _request(port: int, body: bytes) -> bytes:
    head = f"POST /v1/usage HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def _answered(connection: _Connection) -> bool:
    """Take what has come; return whether the answer is whole."""
    piece = connection.socket.recv(_ANSWER_BYTES)
    if not piece:
        raise ConnectionError("the service closed a connection")
    connection.answer += piece
    if connection.needed < 0:
        head, end, _ = connection.answer.partition(b"\r\n\r\n")
        if not end:
            return False
        if b" 202 " not in head[:16]:
            raise ConnectionError(f"not accepted: {connection.answer[:500]!r}")
        length = head.lower().split(b"content-length:", 1)[1].split(b"\r\n", 1)[0]
        connection.needed = len(head) + len(end) + int(length)
    if len(connection.answer) < connection.needed:
        return False
    connection.answer, connection.needed = b"", -1
    return True
