"""A client's connection for metering/gunicorn_worker.py: what has come of a request, what is left of an answer."""

from __future__ import annotations

import io
import re
import socket
import tempfile
import time
from enum import IntEnum
from http import HTTPStatus
from typing import Any

from gunicorn.http import RequestParser
from gunicorn.http.body import ChunkedReader, LengthReader
from gunicorn.http.errors import InvalidHeader, LimitRequestHeaders, NoMoreData
from gunicorn.workers.gthread import TConn

from metering.gunicorn_client import SMALL_BYTES, ClientSocket
from metering.web import problem

SPOOLED_FROM_BYTES = 256 * 1024
"""What has arrived beyond it goes to a file: a batch of a thousand events stays in memory, a long body does not."""
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_BARE_LF = re.compile(rb"(?<!\r)\n")
_HOST = re.compile(r"[A-Za-z0-9._~%!$&'()*+,;=:\[\]-]+")
_CHUNK_SIZE = re.compile(rb"([0-9a-fA-F]{1,15})[ \t]*[;\r]")


class State(IntEnum):
    """What the poller waits for; in the order in which connections go when there are too many."""

    CLOSING = 0
    READING = 1
    SENDING = 2


class _HeadParser(RequestParser):  # type: ignore[misc]  # gunicorn ships no types
    """gunicorn's parser, in two steps: it parses a head when that is all in, and hands the request out later."""

    _parsed: Any = None

    def parse_head(self) -> Any:
        self._parsed = super().__next__()
        return self._parsed

    def __next__(self) -> Any:
        request, self._parsed = self._parsed, None
        return super().__next__() if request is None else request


class Spool:
    """The first bytes of a long body, in a file without a name: written to its end, then read once from its begin.

    Its methods raise OSError, as when the disk is full.
    """

    def __init__(self, directory: str | None) -> None:
        self._file = tempfile.TemporaryFile(dir=directory, buffering=0)  # noqa: SIM115 - the connection closes it
        self._at = 0
        self.size = 0

    def write(self, piece: bytes) -> None:
        """Append `piece`."""
        self._file.seek(0, io.SEEK_END)
        while piece:
            written = self._file.write(piece)
            self.size += written
            piece = piece[written:]

    def read(self, size: int) -> bytes:
        """Return the next bytes, `size` at most; none at the end."""
        self._file.seek(self._at)
        piece = self._file.read(size)
        self._at += len(piece)
        return piece

    def close(self) -> None:
        """Give its place on the disk back."""
        self._file.close()


class Connection(TConn):  # type: ignore[misc]
    """A client. To the parser it is the socket, which holds what has arrived, and then the end: it never waits.

    bytes as they come    head │ body ........................ │ the next request, pipelined
    where they are             │ spool (a file) │        arrived
    """

    def __init__(
        self,
        cfg: Any,
        client: socket.socket,
        address: Any,
        server: Any,
        *,
        head_bytes_max: int,
        request_bytes_max: int,
        spool_folder: str | None = None,
        grace_s: float = ClientSocket.grace_s,
        bytes_per_s_min: float = ClientSocket.bytes_per_s_min,
    ) -> None:
        own = ClientSocket(client.family, client.type, client.proto, fileno=client.detach())
        own.unsent = bytearray()
        own.grace_s, own.bytes_per_s_min = grace_s, bytes_per_s_min
        super().__init__(cfg, own, address, server)
        # gunicorn's worker finds everything done that it would do in a thread.
        self.initialized = self.data_ready = True
        self.parser = _HeadParser(cfg, self, address)
        self.arrived = bytearray()
        self.held = 0  # bytes of the worker's held_bytes_max
        self._head_bytes_max = head_bytes_max
        self._request_bytes_max = request_bytes_max
        self._spool_folder = spool_folder
        self._spool: Spool | None = None
        self.begin()

    def begin(self) -> None:
        """Expect a request. Bytes of it that came with the one before are here already."""
        self._take_back()
        self.drop_spool()
        self.keep = False  # after the answer
        self.ended = False  # the request is served as far as it is here, and the connection closes
        self._reader: Any = None  # of the body, once the head is parsed; `arrived` begins with the body then
        self._known = 0  # bytes of `arrived` need no second look: no head ends in them, or they are all of the body
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
        if self._spool is not None and (piece := self._spool.read(size)):
            return piece
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
        self.ended = not piece or self.size > self._request_bytes_max

    @property
    def size(self) -> int:
        """How many bytes are here, in memory and in the spool."""
        return len(self.arrived) + (self._spool.size if self._spool else 0)

    def spool(self) -> None:
        """Move what is known to be of the body to a file, once much has arrived. Raises OSError: the disk is full."""
        known = min(self._known, len(self.arrived))
        if self._reader is None or len(self.arrived) <= SPOOLED_FROM_BYTES or not known:
            return
        self._spool = self._spool or Spool(self._spool_folder)
        self._spool.write(bytes(self.arrived[:known]))
        del self.arrived[:known]
        self._known -= known

    def drop_spool(self) -> None:
        """Give the room on the disk back."""
        if self._spool is not None:
            self._spool.close()
            self._spool = None

    def close(self) -> None:
        """End it, whatever is left."""
        self.drop_spool()
        super().close()

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
        return len(self.arrived) >= self._known

    def _parse_head(self) -> bool:
        if (
            self.arrived.find(b"\r\n\r\n", self._known) < 0
            and not _BARE_LF.search(self.arrived, self._known)  # it is refused
            and len(self.arrived) <= self._head_bytes_max
        ):
            self._known = max(0, len(self.arrived) - 3)
            return False
        try:
            request = self.parser.parse_head()
        except NoMoreData:
            raise LimitRequestHeaders(f"more than {self._head_bytes_max} bytes") from None
        hosts = [value for name, value in request.headers if name == "HOST"]
        if request.version >= (1, 1) and not (len(hosts) == 1 and _HOST.fullmatch(hosts[0])):
            raise InvalidHeader("Host")  # RFC 9112, section 3.2; gunicorn does not look
        self._take_back()
        self._reader = request.body.reader
        self._known = self._reader.length if isinstance(self._reader, LengthReader) else 0
        if request._expected_100_continue:  # noqa: SLF001 - gunicorn would ask for the body in a thread
            request._expected_100_continue = False  # noqa: SLF001
            if isinstance(self._reader, LengthReader) and self._reader.length > self._request_bytes_max:
                self.ended = True  # refused without its body
            elif not self.whole():
                self.sock.sendall(_CONTINUE)
        return True

    def _last_chunk(self) -> bool:
        """Return whether all chunks are here, or what is none: the parser tells that to the app."""
        at = self._known
        while (line_end := self.arrived.find(b"\r\n", at)) >= 0:
            size = _CHUNK_SIZE.match(self.arrived, at)
            if size is None:
                self.ended = True  # where the next request begins, nobody knows
                return True
            if int(size[1], 16) == 0:
                trailers_end = self.arrived.find(b"\r\n\r\n", line_end)
                return trailers_end >= 0 or len(self.arrived) - line_end > SMALL_BYTES
            self._known = at = line_end + 2 + int(size[1], 16) + 2
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
