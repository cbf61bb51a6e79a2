"""The gunicorn worker of both services: no thread waits for a slow client, but in an answer made as it leaves.

gunicorn's own threaded worker lends a thread to a connection while its request arrives and its answer leaves, without
a deadline: as many clients that send a byte a second as there are threads, and nobody else is served. Its main loop
waits too, up to 2 s for each client that does not close. Here a thread is lent once all of a request is in:

    accept ──► READING ──readable──► a thread takes in what has come, at once
               ▲  ▲  └────not all yet────┤
               │  │                      └─all in─► parses, asks the app, sends what the kernel takes at once
               │  └─first byte─ idle ◄─┐                                  │
               └──more is here already─┴──keep-alive──◄── all out ◄───────┤
                                          or close ──► CLOSING            └─not all─► SENDING ──► all out

    too slow   READING: 408, then CLOSING.  SENDING: cut off.  idle: gunicorn's `keepalive`
    CLOSING    what still comes is dropped, until the client closes, for close_s at most: it can read its answer first

In every state the poller waits, in one thread for all. What clients may use, each a class attribute:

    time       grace_s + bytes that came / bytes_per_s_min for a request; the same for an answer that leaves
    room       head_bytes_max, request_bytes_max; what exceeds 64 KiB of each, held_bytes_max in all: then 503. What
               is known to be body goes to a file in spool_folder when 256 KiB of a request have come
    slots      near worker_connections who has been CLOSING, else READING, else idle, for longest goes; room_after_s

It leans on the inside of gunicorn 27.0 (tests/live/test_gunicorn_worker.py): look at both before another version.
"""

from __future__ import annotations

import errno
import selectors
import socket
import sys
import threading
import time
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import Any

from gunicorn.workers.gthread import STOP_KEEPALIVE_LINGER, ThreadWorker

from metering.gunicorn_client import SMALL_BYTES
from metering.gunicorn_connection import Connection, ProblemWriter, State, send_problem

_RECEIVED_BYTES_MAX = 256 * 1024
_INCOMPLETE = object()
_KEEP: Future[bool] = Future()
_KEEP.set_result(True)


class _NoRoomError(Exception):
    """The requests that arrive or are served have taken held_bytes_max, or the disk is full."""


class BufferingWorker(ThreadWorker):  # type: ignore[misc]  # gunicorn ships no types
    """See the top. Plain HTTP/1 alone: TLS, HTTP/2 and the PROXY protocol are for what stands before it."""

    grace_s = 10.0
    bytes_per_s_min = 50_000
    close_s = 2.0
    look_interval_s = 0.25
    room_after_s = 1.0
    head_bytes_max = SMALL_BYTES
    request_bytes_max = 10 * 1024 * 1024 + SMALL_BYTES  # as much as the collector reads of a body that it refuses
    held_bytes_max = 128 * 1024 * 1024
    spool_folder = "/var/tmp"  # noqa: S108 - for large files, /tmp may be memory (hier(7)); they have no names

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.cfg.set("sendfile", False)  # it would go past ClientSocket
        self._watched: set[Connection] = set()
        self._looks_at = 0.0
        self._stops_idle_at = 0.0
        self._held = 0
        self._holding = threading.Lock()

    @classmethod
    def check_config(cls, cfg: Any, log: Any) -> None:
        """Exit with one line when gunicorn is asked for what does not work here."""
        if cfg.is_ssl or cfg.proxy_protocol != "off":
            sys.exit("gunicorn's certfile, keyfile and proxy_protocol can't be used: plain HTTP/1")
        super().check_config(cfg, log)

    def accept(self, listener: socket.socket) -> None:
        """Take in a new client. In the main loop."""
        try:
            client, address = listener.accept()
        except OSError as error:
            if error.errno in {errno.EAGAIN, errno.ECONNABORTED}:
                return
            raise
        self.nr_conns += 1
        conn = Connection(
            self.cfg,
            client,
            address,
            listener.getsockname(),
            head_bytes_max=self.head_bytes_max,
            request_bytes_max=self.request_bytes_max,
            spool_folder=self.spool_folder,
            grace_s=self.grace_s,
            bytes_per_s_min=self.bytes_per_s_min,
        )
        self.enqueue_req(conn)

    def handle(self, conn: Connection) -> object:
        """Serve a request that is all in; return _INCOMPLETE when it is not, else whether to keep the connection.

        In a thread of the pool, like the next five.
        """
        try:
            outcome = self._serve(conn)
            if outcome is not _INCOMPLETE:
                self._hold(conn, 0)
            conn.sock.flush()
        except OSError as error:
            self.log.debug("Closing connection. %s", error)
            conn.keep = outcome = False
        return outcome

    def _serve(self, conn: Connection) -> object:
        try:
            if not self._fill(conn):
                return _INCOMPLETE
            conn.keep = bool(super().handle(conn)) and not conn.ended
        except _NoRoomError:
            send_problem(conn.sock, 503, "unavailable", "too many large requests are under way; send it again later")
        except OSError:
            raise
        except Exception as error:  # noqa: BLE001 - gunicorn knows which of them are the client's
            self.handle_error(None, conn.sock, conn.client, error)
        return conn.keep

    def _fill(self, conn: Connection) -> bool:
        """Take in what has come, and return whether it is to be served: all of it, or what will never be more."""
        while not conn.whole() and not conn.ended:
            try:
                conn.receive(_RECEIVED_BYTES_MAX)
            except BlockingIOError:
                return False
            if conn.size > SMALL_BYTES:
                self._hold(conn, conn.size - SMALL_BYTES)
            self._spool(conn)
        return True

    def _spool(self, conn: Connection) -> None:
        try:
            conn.spool()
        except OSError as error:
            self.log.error(  # noqa: TRY400 - one line tells it all
                "No room for a request in %s: %s", self.spool_folder, error
            )
            raise _NoRoomError from error

    def _hold(self, conn: Connection, size: int) -> None:
        with self._holding:
            held = self._held + size - conn.held
            if size and held > self.held_bytes_max:
                raise _NoRoomError
            self._held, conn.held = held, size

    def handle_request(self, req: Any, conn: Connection) -> Any:
        """Call the app."""
        if conn.ended:
            req.force_close()
        return super().handle_request(req, conn)

    def handle_error(self, req: Any, client: Any, addr: Any, exc: BaseException) -> None:
        """Answer what gunicorn refuses, in our form."""
        super().handle_error(req, ProblemWriter(client), addr, exc)

    def finish_request(self, conn: Connection, fs: Future[Any]) -> None:
        """Go on with a connection that a thread gives back. In the main loop, like all that follows."""
        try:
            incomplete = fs.result() is _INCOMPLETE
        except BaseException:  # noqa: BLE001 - whatever it was, the connection is all that it costs
            self._close(conn)
            return
        if incomplete and time.monotonic() >= self._ends_at(conn):
            # Here too: a client that sends just before each look of murder_pending is never there when it looks.
            self._cut_off(conn)
        elif incomplete:
            self._watch(conn, selectors.EVENT_READ, self._readable)
        elif conn.sock.unsent:
            conn.progress(State.SENDING)
            self._watch(conn, selectors.EVENT_WRITE, self._writable)
        else:
            self._answered(conn)

    def _answered(self, conn: Connection) -> None:
        if not conn.keep:
            self._linger(conn)
            return
        conn.begin()
        if conn.arrived:
            self.enqueue_req(conn)  # pipelined
        else:
            super().finish_request(conn, _KEEP)

    def _readable(self, conn: Connection, _socket: object) -> None:
        self._unwatch(conn)
        self.enqueue_req(conn)

    def _writable(self, conn: Connection, _socket: object) -> None:
        try:
            conn.moved += conn.sock.flush()
        except OSError:
            self._close(conn)
            return
        if not conn.sock.unsent:
            self._unwatch(conn)
            self._answered(conn)

    def _linger(self, conn: Connection) -> None:
        conn.arrived.clear()
        conn.drop_spool()
        self._hold(conn, 0)
        conn.progress(State.CLOSING)
        try:
            conn.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self._close(conn)
            return
        self._watch(conn, selectors.EVENT_READ, self._drop)
        self._drop(conn, None)

    def _drop(self, conn: Connection, _socket: object) -> None:
        try:
            gone = not conn.sock.recv(_RECEIVED_BYTES_MAX, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            gone = True
        if gone:
            self._close(conn)

    def _watch(self, conn: Connection, events: int, ready: Any) -> None:
        self._watched.add(conn)
        self.poller.register(conn.sock, events, partial(ready, conn))

    def _unwatch(self, conn: Connection) -> None:
        if conn in self._watched:
            self._watched.remove(conn)
            self.poller.unregister(conn.sock)

    def _close(self, conn: Connection) -> None:
        self._unwatch(conn)
        self._hold(conn, 0)
        self.nr_conns -= 1
        conn.close()

    def murder_pending(self) -> None:
        """End what is too slow, or too much. gunicorn calls this in each turn of its loop, once a second at least."""
        now = time.monotonic()
        while self.nr_conns > self.worker_connections * 9 // 10 and self._make_room(now):
            pass
        if now < self._looks_at:
            return
        self._looks_at = now + self.look_interval_s
        if not self.alive and not self._stops_idle_at:
            self._stops_idle_at = now + STOP_KEEPALIVE_LINGER
        slow = [conn for conn in self._watched if now >= self._ends_at(conn)]
        cut_off = sum(
            conn.state is not State.CLOSING and not (conn.state is State.READING and conn.idle) for conn in slow
        )
        if cut_off:
            self.log.info("Closing %d connection(s) that were too slow", cut_off)
        for conn in slow:
            self._cut_off(conn)

    def _cut_off(self, conn: Connection) -> None:
        if conn.idle or conn.state is not State.READING:
            self._close(conn)
            return
        self._unwatch(conn)
        with suppress(OSError):
            send_problem(conn.sock, 408, "request_timeout", "the request did not arrive in time")
            conn.sock.flush()
        self._linger(conn)

    def _ends_at(self, conn: Connection) -> float:
        if conn.state is State.CLOSING:
            return conn.began_at + self.close_s
        ends_at = conn.began_at + self.grace_s + conn.moved / self.bytes_per_s_min
        if not self.alive and conn.idle:
            return min(ends_at, self._stops_idle_at or ends_at)
        return ends_at

    def _make_room(self, now: float) -> bool:
        """Close one connection, so that a new one need not wait for the deadlines of those that are here."""
        conn = min(self._watched, key=lambda conn: (conn.state, conn.began_at), default=None)
        if conn is not None and conn.state is not State.SENDING and now - conn.began_at >= self.room_after_s:
            self._close(conn)
            return True
        if self.keepalived_conns and now - self.keepalived_conns[0].began_at >= self.room_after_s:
            idle = self.keepalived_conns.popleft()
            self.poller.unregister(idle.sock)
            self._close(idle)
            return True
        return False
