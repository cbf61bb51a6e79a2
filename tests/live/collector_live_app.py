"""The collector on an in-memory stream, for live tests under gunicorn; PUT_S is how long each put takes."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from flask import Flask

from collector.app import create_app
from collector.wsgi import end_this_worker
from metering.memory import MemoryStream
from metering.ports import Held, NotHeld, OutgoingRecord
from metering.settings import Settings


class SlowStream(MemoryStream):
    """Takes its time; a record that holds the word `crash` ends the committer's thread."""

    def put(self, records: Sequence[OutgoingRecord]) -> list[Held | NotHeld]:
        if any(b"crash" in record.data for record in records):
            raise SystemExit(1)
        time.sleep(float(os.environ.get("PUT_S", "0")))
        return super().put(records)


def create() -> Flask:
    return create_app(SlowStream(), Settings.from_environment(os.environ), on_crash=end_this_worker)
