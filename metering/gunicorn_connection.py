"""A client's connection for metering/gunicorn_worker.py: what has come of a request, what is left of an answer."""

from __future__ import annotations

import re
import socket
import time
from enum import IntEnum
from http import HTTPStatus
from typing import Any

from gunicorn.http import RequestParser
from gunicorn.http.body import ChunkedReader, LengthReader
from gunicorn.http.errors import InvalidHeader, LimitRequestHeaders, NoMoreData
from gunicorn.workers.gthread import TConn

from metering.web import problem

SMALL_BYTES = 64 * 1024
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_BARE_LF = re.compile(rb"(?<!\r)\n")
_HOST = re.compile(r"[A-Za-z0-9._~%!$&'()*+,;=:\[\]-]+")
_CHUNK_SIZE = re.compile(rb"([0-9a-fA-F]{1,15})[ \t]*[;\r]")


class State(IntEnum):
    """What the poller waits for; in the order in which connections go when there are too many."""

    CLOSING = 0
    READING = 1
    SENDING = 2


class ClientSocket(socket.socket):
    """Never blocks its writer: what the kernel does not take at once is kept in `unsent`, whole answers if need be.

    What is written is kept for the next `flush`, up to SMALL_BYTES: gunicorn writes head and body one by one.
    """

    unsent: bytearray

    def sendall(self, data: Any, _flags: int = 0, /) -> None:
        self.unsent += data
        if len(self.unsent) > SMALL_BYTES:
            self.flush()

    def flush(self) -> int:
        """Send what the kernel takes now and return how many bytes that was. Raises OSError when the client is gone."""
        sent = 0
        try:
            while self.unsent:
                taken = self.send(self.unsent, socket.MSG_DONTWAIT)
                del self.unsent[:taken]
                sent += taken
        except BlockingIOError:
            pass
        return sent


class _HeadParser(RequestParser):  # type: ignore[misc]  # gunicorn ships no types
    """gunicorn's parser, in two steps: it parses a head when that is all in, and hands the request out later."""

    _parsed: Any = None

    def parse_head(self) -> Any:
        self._parsed = super().__next__()
        return self._parsed

    def __next__(self) -> Any:
        request, self._parsed = self._parsed, None
        return super().__next__() if request is None else request


class Connection(TConn):  # type: ignore[misc]
    """A client. To the parser it is the socket, which holds what has arrived, and then the end: it never waits."""

    def __init__(
        self, cfg: Any, client: socket.socket, address: Any, server: Any, *, head_bytes_max: int, request_bytes_max: int
    ) -> None:
        own = ClientSocket(client.family, client.type, client.proto, fileno=client.detach())
        own.unsent = bytearray()
        super().__init__(cfg, own, address, server)
        # gunicorn's worker finds everything done that it would do in a thread.
        self.initialized = self.data_ready = True
        self.parser = _HeadParser(cfg, self, address)
        self.arrived = bytearray()
        self.held = 0  # bytes of the worker's held_bytes_max
        self._head_bytes_max = head_bytes_max
        self._request_bytes_max = request_bytes_max
        self.begin()

    def begin(self) -> None:
        """Expect a request. Bytes of it that came with the one before are here already."""
        self._take_back()
        self.keep = False  # after the answer
        self.ended = False  # the request is served as far as it is here, and the connection closes
        self._reader: Any = None  # of the body, once the head is parsed; `arrived` begins with the body then
        self._scanned = 0
        self.progress(State.READING)

    def progress(self, state: State) -> None:
        """Let the time that the client may take in `state` begin now."""
        self.state = state
        self.began_at = time.monotonic()
        self.moved = 0  # bytes since then

    def recv(self, size: int) -> bytes:
        """Return the next bytes that have arrived, `size` at most; for the parser.

        Raises NoMoreData for a body that breaks off: gunicorn would hand the app a part of it as if it were all.
        """
        if not self.arrived and self._reader is not None:
            raise NoMoreData
        piece = bytes(self.arrived[:size])
        del self.arrived[:size]
        return piece

    def _take_back(self) -> None:
        self.arrived[:0] = self.parser.unreader.take_buffered()

    def receive(self, size: int) -> None:
        """Take in what the kernel has. Raises BlockingIOError when that is nothing, OSError when the client is gone."""
        piece = self.sock.recv(size, socket.MSG_DONTWAIT)
        if self.idle:
            self.progress(State.READING)
        self.arrived += piece
        self.moved += len(piece)
        self.ended = not piece or len(self.arrived) > self._request_bytes_max

    @property
    def idle(self) -> bool:
        """Whether nothing of a request has come yet, and nothing of an answer is left."""
        return not (self.arrived or self.sock.unsent) and self._reader is None

    def whole(self) -> bool:
        """Return whether the request is all in. Raises the parser's error for a head that it refuses."""
        if self._reader is None and not self._parse_head():
            return False
        if isinstance(self._reader, ChunkedReader):
            return self._last_chunk()
        return bool(len(self.arrived) >= self._reader.length)

    def _parse_head(self) -> bool:
        if (
            self.arrived.find(b"\r\n\r\n", self._scanned) < 0
            and not _BARE_LF.search(self.arrived, self._scanned)  # it is refused
            and len(self.arrived) <= self._head_bytes_max
        ):
            self._scanned = max(0, len(self.arrived) - 3)
            return False
        try:
            request = self.parser.parse_head()
        except NoMoreData:
            raise LimitRequestHeaders(f"more than {self._head_bytes_max} bytes") from None
        hosts = [value for name, value in request.headers if name == "HOST"]
        if request.version >= (1, 1) and not (len(hosts) == 1 and _HOST.fullmatch(hosts[0])):
            raise InvalidHeader("Host")  # RFC 9112, section 3.2; gunicorn does not look
        self._take_back()
        self._reader, self._scanned = request.body.reader, 0
        if request._expected_100_continue:  # noqa: SLF001 - gunicorn would ask for the body in a thread
            request._expected_100_continue = False  # noqa: SLF001
            if isinstance(self._reader, LengthReader) and self._reader.length > self._request_bytes_max:
                self.ended = True  # refused without its body
            elif not self.whole():
                self.sock.sendall(_CONTINUE)
        return True

    def _last_chunk(self) -> bool:
        """Return whether all chunks are here, or what is none: the parser tells that to the app."""
        at = self._scanned
        while (line_end := self.arrived.find(b"\r\n", at)) >= 0:
            self._scanned = at
            size = _CHUNK_SIZE.match(self.arrived, at)
            if size is None:
                self.ended = True  # where the next request begins, nobody knows
                return True
            if int(size[1], 16) == 0:
                trailers_end = self.arrived.find(b"\r\n\r\n", line_end)
                return trailers_end >= 0 or len(self.arrived) - line_end > SMALL_BYTES
            at = line_end + 2 + int(size[1], 16) + 2
        if len(self.arrived) - at <= SMALL_BYTES:
            return False
        self.ended = True
        return True


class ProblemWriter:
    """Stands in for a client to whom gunicorn writes an HTML page, and answers with a problem of its status."""

    def __init__(self, client: socket.socket) -> None:
        self._client = client

    def gettimeout(self) -> float:
        """Say that sendall does not block: gunicorn need not see to it."""
        return 0.0

    def sendall(self, page: bytes) -> None:
        """Send a problem in place of `page`, a whole HTTP answer."""
        status = HTTPStatus(int(page.split(maxsplit=2)[1]))
        code = "internal_error" if status == HTTPStatus.INTERNAL_SERVER_ERROR else "bad_request"
        send_problem(self._client, status, code, status.description or status.phrase)


def send_problem(client: socket.socket, status: int, code: str, detail: str) -> None:
    """Send a problem as the last answer of a connection."""
    response = problem(status, code, detail)
    response.headers["Connection"] = "close"
    client.sendall(f"HTTP/1.1 {response.status}\r\n{response.headers}".encode("latin-1") + response.get_data())
