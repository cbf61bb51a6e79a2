"""A client's socket for metering/gunicorn_worker.py: what is sent waits here, and not in the thread that sends it."""

from __future__ import annotations

import errno
import select
import socket
import time
from typing import Any

SMALL_BYTES = 64 * 1024
UNSENT_BYTES_MAX = 256 * 1024
"""Of an answer that comes in pieces, before the next one."""
PIECES_MAX = 2
"""Writes that go out together: gunicorn writes head and body one by one."""


class ClientSocket(socket.socket):
    """What the kernel does not take at once is kept in `unsent`, a whole answer if need be: its writer never waits.

    What is written is kept for the next `flush`, below SMALL_BYTES and PIECES_MAX. An answer that is made while it
    leaves comes in more pieces. Its writer waits when UNSENT_BYTES_MAX are here, or a client that reads slower than it
    is made would have all of it in memory; see `await_client`.
    """

    unsent: bytearray
    pieces = 0
    grace_s = 10.0
    bytes_per_s_min: float = 50_000

    def sendall(self, data: Any, _flags: int = 0, /) -> None:
        if len(self.unsent) > UNSENT_BYTES_MAX:
            self.await_client()
        self.unsent += data
        self.pieces += 1
        if len(self.unsent) > SMALL_BYTES or self.pieces == PIECES_MAX:
            self.flush()

    def await_client(self) -> None:
        """Wait until half of UNSENT_BYTES_MAX is left. Raises OSError when the client is gone, or takes too little.

        It has grace_s + bytes taken / bytes_per_s_min for that.
        """
        began_at, taken = time.monotonic(), 0
        poller = select.poll()
        poller.register(self, select.POLLOUT)
        while len(self.unsent) > UNSENT_BYTES_MAX // 2:
            left_s = began_at + self.grace_s + taken / self.bytes_per_s_min - time.monotonic()
            if left_s <= 0 or not poller.poll(left_s * 1000):
                # As if it had gone: gunicorn takes that for nothing out of the common.
                raise ConnectionResetError(errno.ECONNRESET, "the client takes too little")
            taken += self.flush()

    def flush(self) -> int:
        """Send what the kernel takes now and return how many bytes that was. Raises OSError when the client is gone."""
        self.pieces = sent = 0
        if self.fileno() < 0:  # gunicorn closes it when an answer breaks off, and a closed socket can't be waited for
            self.unsent.clear()
        try:
            while self.unsent:
                taken = self.send(self.unsent, socket.MSG_DONTWAIT)
                del self.unsent[:taken]
                sent += taken
        except BlockingIOError:
            pass
        return sent
