"""What the collector is measured against, each served by gunicorn as the collector is; see bench/collector.py."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime

from flask import Flask, Response, request

from collector.app import create_app
from metering.aws import kinesis_client
from metering.events import decode_json, encode_json, parse_event, stream_form
from metering.ports import Held, NotHeld, OutgoingRecord
from metering.settings import Settings

PLACE = Held("shardId-000000000000", "49650000000000000000000000000000000000000000000000000000")


class MemorySink:
    """Holds everything at once, and nothing of it."""

    def put(self, records: Sequence[OutgoingRecord]) -> list[Held | NotHeld]:
        return [PLACE] * len(records)

    def check(self) -> None:
        pass


def constant() -> Flask:
    """The ceiling: a Flask route that reads the body and returns a constant."""
    app = Flask("constant", static_folder=None)

    @app.post("/v1/usage")
    def usage() -> Response:
        request.get_data(cache=False)
        return Response(b'{"status":"accepted","event_id":"req-8f2c"}\n', 202, content_type="application/json")

    return app


def in_memory() -> Flask:
    """The collector, with a stream that answers at once: all that is left is our own work."""
    return create_app(MemorySink(), Settings.from_environment(os.environ))


def one_put_each() -> Flask:
    """The old way: the event is checked and goes out in a PutRecord of its own, which the request waits for."""
    app = Flask("old", static_folder=None)
    settings = Settings.from_environment(os.environ)
    client = kinesis_client(settings)

    @app.post("/v1/usage")
    def usage() -> Response:
        event = parse_event(decode_json(request.get_data(cache=False)), now=datetime.now(UTC))
        client.put_record(
            StreamName=settings.stream, Data=encode_json(stream_form(event)), PartitionKey=event.tenant_id
        )
        return Response(b'{"status":"accepted","event_id":"req-8f2c"}\n', 202, content_type="application/json")

    return app
