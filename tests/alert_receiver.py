"""A receiver of alerts over HTTP, which answers as a test tells it to and checks signatures by itself."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = bytes(range(100, 132))
SECRET = "whsec_" + base64.b64encode(KEY).decode()


@dataclass(frozen=True)
class Post:
    """A message as it came. signed: whether its signature is that of KEY."""

    message_id: str
    body: bytes
    signed: bool
    answered: int

    @property
    def content(self) -> Any:
        return json.loads(self.body)


@dataclass
class AlertReceiver:
    """statuses: of the next answers, in order, then 204; None: no answer until `release`."""

    url: str = ""
    statuses: list[int | None] = field(default_factory=list)
    posts: list[Post] = field(default_factory=list)
    release: threading.Event = field(default_factory=threading.Event)

    def ids(self) -> list[str]:
        return [post.message_id for post in self.posts]

    def taken(self) -> set[str]:
        """The ids of messages that were answered with a 2xx."""
        return {post.message_id for post in self.posts if 200 <= post.answered < 300}


@contextmanager
def receiving(port: int = 0) -> Iterator[AlertReceiver]:
    """Run a receiver until the end of the block, on a free port unless one is given."""
    receiver = AlertReceiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            status = receiver.statuses.pop(0) if receiver.statuses else 204
            named = {name: self.headers.get(f"webhook-{name}", "") for name in ("id", "timestamp", "signature")}
            signed = f"{named['id']}.{named['timestamp']}.".encode() + body
            digest = base64.b64encode(hmac.new(KEY, signed, hashlib.sha256).digest()).decode()
            is_signed = f"v1,{digest}" in named["signature"].split()
            receiver.posts.append(Post(named["id"], body, is_signed, status or 0))
            if status is None:
                receiver.release.wait()
                return
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its own name
            return

    with ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
        server.daemon_threads = True
        receiver.url = f"http://127.0.0.1:{server.server_address[1]}/hook"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield receiver
        finally:
            receiver.release.set()
            server.shutdown()
            thread.join()
