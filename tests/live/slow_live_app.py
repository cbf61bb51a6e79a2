"""The collector with paths that say what they got, and workers with less patience or room, for slow clients."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from flask import Flask, Response, request

from collector.app import create_app
from metering.gunicorn_worker import BufferingWorker
from metering.memory import MemoryStream
from metering.settings import Settings
from metering.web import ProblemError

BIG_BYTES = 32 * 1024 * 1024
"""More than the kernel keeps for a client that does not read."""


class HastyWorker(BufferingWorker):
    grace_s = 0.5
    bytes_per_s_min = 10_000_000


class BlindWorker(HastyWorker):
    look_interval_s = 1000.0


class NarrowWorker(HastyWorker):
    held_bytes_max = 1024 * 1024


class RoomlessWorker(BufferingWorker):
    spool_folder = "/nowhere"


def create() -> Flask:
    app = create_app(MemoryStream(), Settings.from_environment({}))

    @app.post("/echo")
    def echo() -> dict[str, object]:
        try:
            body = request.get_data()
        except OSError as error:  # gunicorn's, for a body that breaks off
            raise ProblemError(400, "bad_request", "it breaks off") from error
        return {"bytes": len(body), "sha256": hashlib.sha256(body).hexdigest()}

    @app.get("/big")
    def big() -> Response:
        return Response(b"x" * BIG_BYTES)

    @app.get("/breaks")
    def breaks() -> Response:
        return Response(_broken())

    return app


def _broken() -> Iterator[bytes]:
    yield b"x" * BIG_BYTES
    raise RuntimeError("in the middle of an answer")
