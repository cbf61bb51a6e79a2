"""The webhook: one signed POST for each message, by the Standard Webhooks specification (standardwebhooks.com, 1.0.0).

    webhook-id           the message's id: the same whenever it is posted again, so that the receiver can tell
    webhook-timestamp    of this attempt, seconds since the epoch
    webhook-signature    v1,base64(HMAC-SHA256(key, "id.timestamp.body"))

A 2xx is the one answer that is good. 410 asks not to be posted to, and a redirect is not followed: who is posted to is
said by whoever runs this. Whatever a receiver does, or does not, an attempt ends: after POST_S the connection is closed
under it. (Looking up the name is the resolver's time, and each of its addresses may take CONNECT_S.)
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.client
import logging
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from datetime import datetime
from enum import Enum
from typing import Protocol
from urllib.parse import urlsplit

from metering.alerts import Message

CONNECT_S = 5.0
POST_S = 10.0
"""From the connection to the end of the answer."""
ATTEMPT_S = CONNECT_S + POST_S + 5.0
"""Longer than an attempt takes, the resolver's time apart: until then nobody else may make another."""
BODY_BYTES_MAX = 16 * 1024
"""Of an answer, which nobody looks at: read so that the receiver need not see its connection break."""

_log = logging.getLogger(__name__)


class Outcome(Enum):
    """What an attempt came to."""

    POSTED = "posted"
    FAILED = "failed"
    GONE = "gone"  # 410: never again


class Poster(Protocol):
    """Where messages are posted."""

    def post(self, message: Message, *, now: datetime) -> Outcome:
        """Post a message once, and return what came of it; it does not raise for what the receiver does."""


class Webhook:
    """Poster to one URL. url: http or https; key: what signs, 24 to 64 bytes."""

    def __init__(self, url: str, key: bytes) -> None:
        parts = urlsplit(url)
        self._host = parts.hostname or ""
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._port = parts.port or (80 if self._tls is None else 443)
        self._path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._key = key

    def post(self, message: Message, *, now: datetime) -> Outcome:
        try:
            status = self._status(message, now)
        except (OSError, http.client.HTTPException, UnicodeError) as error:  # the last: of a host that is no name
            # Never the path: it may hold what only the receiver should know.
            _log.warning("Alert %s was not posted to %s: %r", message.message_id, self._host, error)
            return Outcome.FAILED
        if 200 <= status < 300:
            return Outcome.POSTED
        _log.warning("Alert %s was not posted: %s answered %d", message.message_id, self._host, status)
        return Outcome.GONE if status == http.client.GONE else Outcome.FAILED

    def _status(self, message: Message, now: datetime) -> int:
        seconds = int(now.timestamp())
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "usage-metering",
            "webhook-id": message.message_id,
            "webhook-timestamp": str(seconds),
            "webhook-signature": signature(self._key, message.message_id, seconds, message.body),
        }
        with self._connected() as connection:
            connection.request("POST", self._path, body=message.body, headers=headers)
            answer = connection.getresponse()
            with suppress(OSError, http.client.HTTPException):  # the status has been said
                answer.read(BODY_BYTES_MAX)
            return answer.status

    @contextmanager
    def _connected(self) -> Iterator[http.client.HTTPConnection]:
        """Give a connection that is shut down after POST_S: timeouts of a socket are those of each single wait."""
        with closing(socket.create_connection((self._host, self._port), timeout=CONNECT_S)) as plain:
            plain.settimeout(POST_S)
            with closing(plain.dup()) as same:
                end = threading.Timer(POST_S, _shut_down, [same])
                end.daemon = True
                end.start()
                connection = http.client.HTTPConnection(self._host, self._port)
                if self._tls is not None:
                    connection.default_port = http.client.HTTPS_PORT  # so that Host does not name it
                try:
                    connection.sock = plain
                    if self._tls is not None:
                        connection.sock = self._tls.wrap_socket(plain, server_hostname=self._host)
                    yield connection
                finally:
                    end.cancel()
                    connection.close()


def signature(key: bytes, message_id: str, seconds: int, body: bytes) -> str:
    """Return the webhook-signature of a message that is sent `seconds` after the epoch."""
    signed = f"{message_id}.{seconds}.".encode() + body
    return "v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()


def _shut_down(connection: socket.socket) -> None:
    with suppress(OSError):  # it has ended just now
        connection.shutdown(socket.SHUT_RDWR)
