"""The fault proxy: stands before DynamoDB and Kinesis and does what a network and a busy service do.

    collector, children, KCL ──HTTP/1.1──► dynamodb port ─┐
    collector, children      ──HTTP/1.1──► kinesis port  ─┼─► the emulators
    KCL                      ──HTTP/2────► kcl port      ─┘   (bytes only: resets)

It runs as a process of its own, `python -m tests.torture.proxy`, and is told by POST /fault on its control port which
fault to play, for how long and how often: {"service": "dynamodb", "kind": "reset", "rate": 0.5, "seconds": 2}.

    throttled    the service's own answer to too many requests; of a call with many parts, often only for some
    500          an internal error, before anything was done
    reset        the connection is reset before anything was done
    answer_lost  the request is done, its answer read in full, and the connection reset instead of it: writes only
    late         the client has waited in vain and gone on when the request is done at last: writes only
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import socket
import struct
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import aiohttp
from aiohttp import web

LATE_S = 6.0
"""Longer than the 5 s for which our clients wait for an answer (metering/aws.py)."""
BODY_BYTES_MAX = 32 * 1024 * 1024
WRITES = frozenset(
    {
        *("PutItem", "UpdateItem", "DeleteItem", "BatchWriteItem", "TransactWriteItems"),
        *("ExecuteStatement", "BatchExecuteStatement", "ExecuteTransaction", "PutRecord", "PutRecords"),
    }
)
THROTTLED = {
    "dynamodb": "com.amazonaws.dynamodb.v20120810#ProvisionedThroughputExceededException",
    "kinesis": "ProvisionedThroughputExceededException",
}
INTERNAL = {"dynamodb": "com.amazonaws.dynamodb.v20120810#InternalServerError", "kinesis": "InternalFailure"}
PARTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "PutRecords": (
        *("Records", "Records"),
        {"ErrorCode": THROTTLED["kinesis"], "ErrorMessage": "Rate exceeded for shard"},
    ),
    "BatchExecuteStatement": (
        *("Statements", "Responses"),
        {"Error": {"Code": "ProvisionedThroughputExceeded", "Message": "from the fault proxy"}},
    ),
}
"""Calls that may be done in part: what they ask for, what they answer, and how one part is refused."""
HOP_HEADERS = frozenset({"connection", "keep-alive", "transfer-encoding", "content-length", "content-encoding"})


@dataclass(frozen=True)
class Fault:
    """What a service's requests meet until `until` (monotonic). rate: the share of them, 0 to 1."""

    kind: str
    rate: float
    until: float


class HttpProxy:
    """Passes the requests of one service on, except those that a fault hits."""

    def __init__(self, service: str, upstream: str, choose: random.Random, hits: Counter[str]) -> None:
        self.fault: Fault | None = None
        self.under_way = 0
        self._service = service
        self._upstream = upstream
        self._choose = choose
        self._hits = hits
        self._content_type = f"application/x-amz-json-{'1.0' if service == 'dynamodb' else '1.1'}"
        self._session: aiohttp.ClientSession | None = None

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request."""
        self.under_way += 1
        try:
            return await self._handle(request)
        finally:
            self.under_way -= 1

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        body = await request.read()
        operation = request.headers.get("X-Amz-Target", "").rpartition(".")[2]
        kind = self._hit(operation)
        match kind:
            case "reset":
                return _reset(request)
            case "500":
                return self._error(500, INTERNAL[self._service])
            case "throttled" if operation in PARTS and self._choose.random() < 0.7:
                return await self._partly(request, body, operation)
            case "throttled":
                return self._error(400, THROTTLED[self._service])
            case "late":
                await asyncio.sleep(LATE_S)
        with suppress(aiohttp.ClientError):  # the emulator is gone: so is the answer
            status, headers, answer = await self._forward(request, body)
            if kind not in {"answer_lost", "late"}:
                return web.Response(status=status, headers=headers, body=answer)
        return _reset(request)

    def _hit(self, operation: str) -> str | None:
        fault = self.fault
        if fault is None or time.monotonic() > fault.until or self._choose.random() >= fault.rate:
            return None
        if fault.kind in {"answer_lost", "late"} and operation not in WRITES:
            return None
        self._hits[f"{self._service}_{fault.kind}"] += 1
        return fault.kind

    async def _forward(self, request: web.BaseRequest, body: bytes) -> tuple[int, dict[str, str], bytes]:
        if self._session is None:
            # 0: as many connections as there are clients; the answer's bytes are passed on as they are.
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0), auto_decompress=False, skip_auto_headers=("User-Agent",)
            )
        headers = {k: v for k, v in request.headers.items() if k.lower() not in HOP_HEADERS - {"content-encoding"}}
        async with self._session.request(
            request.method, self._upstream + request.raw_path, headers=headers, data=body
        ) as answer:
            kept = {k: v for k, v in answer.headers.items() if k.lower() not in HOP_HEADERS - {"content-encoding"}}
            return answer.status, kept, await answer.read()

    async def _partly(self, request: web.BaseRequest, body: bytes, operation: str) -> web.StreamResponse:
        """Do half of what one call asks for and refuse the rest, inside an answer that is a success as a whole."""
        wishes, results, refusal = PARTS[operation]
        asked = json.loads(body)
        taken = [self._choose.random() < 0.5 for _ in asked[wishes]]
        kept = [wish for wish, takes in zip(asked[wishes], taken, strict=True) if takes]
        done: list[Any] = []
        if kept:
            status, _, answer = await self._forward(request, json.dumps(asked | {wishes: kept}).encode())
            if status != 200:
                return self._error(500, INTERNAL[self._service])
            done = json.loads(answer)[results]
        answers = [done.pop(0) if takes else refusal for takes in taken]
        whole: dict[str, Any] = {results: answers}
        if operation == "PutRecords":
            whole["FailedRecordCount"] = sum(answer.get("ErrorCode") is not None for answer in answers)
        return web.json_response(whole, content_type=self._content_type)

    def _error(self, status: int, code: str) -> web.StreamResponse:
        body = {"__type": code, "message": "from the fault proxy"}
        return web.json_response(body, status=status, content_type=self._content_type)


class ByteProxy:
    """Passes bytes on; a fault resets every connection, and each new one until it is over."""

    def __init__(self, host: str, port: int, hits: Counter[str]) -> None:
        self._upstream = (host, port)
        self._hits = hits
        self._writers: set[asyncio.StreamWriter] = set()
        self._until = 0.0

    def reset(self, seconds: float) -> None:
        """Reset all connections now, and new ones for `seconds`."""
        self._until = time.monotonic() + seconds
        self._hits["kcl_reset"] += len(self._writers)
        for writer in self._writers:
            _abort(writer.transport)

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection until either side ends it."""
        if time.monotonic() < self._until:
            _abort(writer.transport)
            return
        self._writers.add(writer)
        try:
            with suppress(OSError):
                there_reader, there_writer = await asyncio.open_connection(*self._upstream)
                await asyncio.gather(_pump(reader, there_writer), _pump(there_reader, writer))
        finally:
            self._writers.discard(writer)
            writer.close()


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while piece := await source.read(65_536):
            sink.write(piece)
            await sink.drain()
    sink.close()


def _reset(request: web.BaseRequest) -> web.StreamResponse:
    if request.transport is not None:
        _abort(request.transport)
    return web.Response(status=500)  # nobody gets it


def _abort(transport: asyncio.BaseTransport) -> None:
    # Without lingering, the peer gets a reset instead of an orderly end.
    connection = transport.get_extra_info("socket")
    if connection is not None:
        with suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    if isinstance(transport, asyncio.WriteTransport):
        transport.abort()


async def serve(arguments: argparse.Namespace) -> None:
    """Serve all ports until the process is told to end."""
    hits: Counter[str] = Counter()
    choose = random.Random(arguments.seed)  # noqa: S311 - a seeded run, not a secret
    proxies = {
        "dynamodb": HttpProxy("dynamodb", arguments.dynamodb, choose, hits),
        "kinesis": HttpProxy("kinesis", arguments.kinesis, choose, hits),
    }
    for name, port in (("dynamodb", arguments.dynamodb_port), ("kinesis", arguments.kinesis_port)):
        await _listen(proxies[name].handle, port)
    host, _, kinesis_port = arguments.kinesis.rpartition("//")[2].rpartition(":")
    kcl = ByteProxy(host, int(kinesis_port), hits)
    await asyncio.start_server(kcl.handle, "127.0.0.1", arguments.kcl_port)

    async def control(request: web.BaseRequest) -> web.StreamResponse:
        if request.method == "POST":
            asked = await request.json()
            if asked["service"] == "kcl":
                kcl.reset(asked["seconds"])
            else:
                until = time.monotonic() + asked["seconds"]
                proxies[asked["service"]].fault = Fault(asked["kind"], asked["rate"], until)
        return web.json_response({"hits": hits, "under_way": sum(proxy.under_way for proxy in proxies.values())})

    await _listen(control, arguments.control_port)
    await asyncio.Event().wait()


async def _listen(handler: Any, port: int) -> None:
    loop = asyncio.get_running_loop()

    def request(message: Any, payload: Any, protocol: Any, writer: Any, task: Any) -> web.BaseRequest:
        return web.BaseRequest(message, payload, protocol, writer, task, loop, client_max_size=BODY_BYTES_MAX)

    runner = web.ServerRunner(web.Server(handler, request_factory=request, access_log=None))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, required=True)
    for name in ("dynamodb", "kinesis"):
        parser.add_argument(f"--{name}", required=True, help="URL of the emulator")
    for name in ("dynamodb", "kinesis", "kcl", "control"):
        parser.add_argument(f"--{name}-port", type=int, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    asyncio.run(serve(_arguments()))
