"""What the adapters make of a service that fails: missing, refused or away, and nothing else is called away."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest
from botocore.exceptions import ClientError, ParamValidationError
from botocore.stub import Stubber
from moto import mock_aws
from moto.core import set_initial_no_auth_action_count

from metering.aws import dynamodb_client, kinesis_client
from metering.dynamodb import RAW_BYTES_MAX
from metering.errors import (
    AccessRefusedError,
    MissingResourceError,
    ServiceUnavailableError,
    StoreUnavailableError,
    StreamUnavailableError,
)
from metering.ports import OutgoingRecord
from tests.builders import NOW, STREAM, TTL_DAYS, outcome, rejected, shard, write
from tests.contract.conftest import DynamoTables, Stream, dynamo_of, stream_of
from tests.local_stack import free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from metering.settings import Settings

pytestmark = pytest.mark.contract

HOUR = timedelta(hours=1)
TABLE_CALLS: dict[str, Callable[[DynamoTables], object]] = {
    "apply": lambda tables: tables.store.apply(shard(), write(1), now=NOW),
    "register_tenant": lambda tables: tables.store.register_tenant("tenant-123", now=NOW),
    "open_shard": lambda tables: tables.store.open_shard(shard(), complete_until=None, now=NOW),
    "record_progress": lambda tables: tables.store.record_progress(shard(), [outcome(1)], complete_until=NOW, now=NOW),
    "close_shard": lambda tables: tables.store.close_shard(shard(), now=NOW),
    "tenants": lambda tables: tables.reader.tenants(limit=10, after=None),
    "totals": lambda tables: tables.reader.totals("tenant-123"),
    "total": lambda tables: tables.reader.total("tenant-123", "api_calls"),
    "progress": lambda tables: tables.reader.progress(STREAM),
    "check": lambda tables: tables.reader.check(),
    "windows": lambda tables: list(tables.reader.windows("tenant-123", "api_calls", start=NOW, end=NOW + HOUR)),
    "window_ends": lambda tables: tables.reader.window_ends("tenant-123", "api_calls"),
    "reject": lambda tables: tables.store.reject(shard(), rejected(1), now=NOW),
}
OPERATIONS = {
    **dict.fromkeys(("apply", "record_progress", "close_shard"), "update_item"),
    **dict.fromkeys(("register_tenant", "open_shard", "reject"), "put_item"),
    **dict.fromkeys(("tenants", "totals", "progress", "windows", "window_ends"), "query"),
    **dict.fromkeys(("total", "check"), "get_item"),
}
STREAM_CALLS: dict[str, Callable[[Stream], object]] = {
    "put": lambda stream: stream.sink.put([OutgoingRecord(0, b"{}")]),
    "sink.check": lambda stream: stream.sink.check(),
    "describe": lambda stream: stream.directory.describe(),
    "shards": lambda stream: stream.directory.shards(),
}


@contextlib.contextmanager
def tables_at(settings: Settings, endpoint: str | None) -> Iterator[DynamoTables]:
    names = replace(settings, dynamodb_endpoint=endpoint)
    with contextlib.closing(dynamodb_client(names)) as client:
        yield dynamo_of(client, names)


@contextlib.contextmanager
def stream_at(settings: Settings, endpoint: str | None) -> Iterator[Stream]:
    names = replace(settings, kinesis_endpoint=endpoint)
    with contextlib.closing(kinesis_client(names)) as client:
        yield stream_of(client, names)


class TestMissing:
    @pytest.mark.parametrize("call", TABLE_CALLS)
    def test_a_missing_table_is_named_with_what_makes_it(self, dynamo: DynamoTables, call: str) -> None:
        names = replace(dynamo.settings, table="no-such-table", rejected_table="no-such-table")
        with pytest.raises(MissingResourceError) as caught:
            TABLE_CALLS[call](dynamo_of(dynamo.client, names))
        assert str(caught.value) == "the table 'no-such-table' does not exist: `metering setup` makes it"

    @pytest.mark.parametrize("call", STREAM_CALLS)
    def test_a_missing_stream_is_named_with_what_makes_it(
        self, settings: Settings, kinesis_mock: str, call: str
    ) -> None:
        names = replace(settings, stream="no-such-stream")
        with stream_at(names, kinesis_mock) as stream, pytest.raises(MissingResourceError) as caught:
            STREAM_CALLS[call](stream)
        assert str(caught.value) == "the stream 'no-such-stream' does not exist: `metering setup` makes it"


class TestRefused:
    @pytest.mark.parametrize("call", TABLE_CALLS)
    def test_credentials_that_dynamodb_does_not_know_are_refused(
        self, settings: Settings, dynamodb_local: str, monkeypatch: pytest.MonkeyPatch, call: str
    ) -> None:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "not a key")
        with tables_at(settings, dynamodb_local) as tables, pytest.raises(AccessRefusedError):
            TABLE_CALLS[call](tables)

    def test_credentials_that_iam_does_not_know_are_refused_by_both_services(self, settings: Settings) -> None:
        @mock_aws
        @set_initial_no_auth_action_count(0)
        def refused() -> None:
            with tables_at(settings, None) as tables, pytest.raises(AccessRefusedError, match="table"):
                tables.reader.check()
            with stream_at(settings, None) as stream, pytest.raises(AccessRefusedError, match="stream"):
                stream.sink.put([OutgoingRecord(0, b"{}")])

        refused()

    def test_no_credentials_at_all_are_one_line(
        self, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
            monkeypatch.setenv(name, str(tmp_path / "none"))
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        with (
            tables_at(settings, "http://127.0.0.1:1") as tables,
            pytest.raises(AccessRefusedError, match="no AWS credentials"),
        ):
            tables.reader.check()


@pytest.fixture
def failing_server() -> Iterator[Callable[[int | None, bytes], str]]:
    """Return a function that starts a server which always gives this answer, None for hanging up, and gives its URL."""
    servers: list[ThreadingHTTPServer] = []

    def start(status: int | None, body: bytes) -> str:
        class Failing(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                if status is not None:
                    self.send_response(status)
                    self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)
                self.close_connection = True

            def log_message(self, *_: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Failing)
        servers.append(server)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


class TestAway:
    @pytest.mark.parametrize("call", ["apply", "total"])
    def test_a_table_that_nobody_serves_is_away(self, settings: Settings, call: str) -> None:
        with (
            tables_at(settings, f"http://127.0.0.1:{free_port()}") as tables,
            pytest.raises(StoreUnavailableError, match=r"usage-aggregator.*can't be reached"),
        ):
            TABLE_CALLS[call](tables)

    def test_a_stream_that_nobody_serves_is_away(self, settings: Settings) -> None:
        with (
            stream_at(settings, f"http://127.0.0.1:{free_port()}") as stream,
            pytest.raises(StreamUnavailableError, match=r"usage-events.*can't be reached"),
        ):
            stream.sink.put([OutgoingRecord(0, b"{}")])

    @pytest.mark.parametrize(
        ("status", "body"),
        [
            (500, json.dumps({"__type": "com.amazonaws.dynamodb.v20120810#InternalServerError"}).encode()),
            (400, json.dumps({"__type": "com.amazon.coral.availability#ThrottlingException"}).encode()),
            (502, b"<html>Bad gateway</html>"),
            (503, b""),
            (None, b""),
        ],
        ids=["500", "throttled", "a proxy's page", "empty 503", "hung up"],
    )
    def test_a_service_that_fails_is_away(
        self, settings: Settings, failing_server: Callable[[int | None, bytes], str], status: int | None, body: bytes
    ) -> None:
        endpoint = failing_server(status, body)
        with tables_at(settings, endpoint) as tables, pytest.raises(StoreUnavailableError):
            tables.store.apply(shard(), write(1), now=NOW)

    @pytest.mark.parametrize("call", TABLE_CALLS)
    def test_throttling_of_any_call_to_the_tables_is_away(self, settings: Settings, call: str) -> None:
        with tables_at(settings, None) as tables, Stubber(tables.client) as stubber:
            operation = OPERATIONS[call]
            stubber.add_client_error(operation, "ProvisionedThroughputExceededException", http_status_code=400)
            with pytest.raises(StoreUnavailableError):
                TABLE_CALLS[call](tables)


@pytest.mark.parametrize(
    ("code", "status", "error"),
    [
        ("ProvisionedThroughputExceededException", 400, ServiceUnavailableError),
        ("ThrottlingException", 400, ServiceUnavailableError),
        ("RequestLimitExceeded", 400, ServiceUnavailableError),
        ("LimitExceededException", 400, ServiceUnavailableError),
        ("TransactionConflictException", 400, ServiceUnavailableError),
        ("ReplicatedWriteConflictException", 400, ServiceUnavailableError),
        ("InternalServerError", 500, ServiceUnavailableError),
        ("SomethingNew", 500, ServiceUnavailableError),
        ("ResourceNotFoundException", 400, MissingResourceError),
        ("AccessDeniedException", 400, AccessRefusedError),
        ("UnrecognizedClientException", 400, AccessRefusedError),
        ("InvalidSignatureException", 400, AccessRefusedError),
        ("ExpiredTokenException", 400, AccessRefusedError),
        ("ValidationException", 400, ClientError),
        ("SomethingNew", 400, ClientError),
    ],
)
class TestCodes:
    """One table for both services; what is not understood is a bug and crashes."""

    def test_of_dynamodb(self, settings: Settings, code: str, status: int, error: type[Exception]) -> None:
        with tables_at(settings, None) as tables, Stubber(tables.client) as stubber:
            stubber.add_client_error("update_item", code, http_status_code=status)
            with pytest.raises(error) as caught:
                tables.store.apply(shard(), write(1), now=NOW)
            assert isinstance(caught.value, ClientError) or isinstance(caught.value.__cause__, ClientError)
            assert error is not ServiceUnavailableError or isinstance(caught.value, StoreUnavailableError)

    def test_of_kinesis(self, settings: Settings, code: str, status: int, error: type[Exception]) -> None:
        with contextlib.closing(kinesis_client(settings)) as client, Stubber(client) as stubber:
            stubber.add_client_error("put_records", code, http_status_code=status)
            with pytest.raises(error) as caught:
                stream_of(client, settings).sink.put([OutgoingRecord(0, b"{}")])
            assert isinstance(caught.value, ClientError) or isinstance(caught.value.__cause__, ClientError)
            assert error is not ServiceUnavailableError or isinstance(caught.value, StreamUnavailableError)


def test_a_request_that_botocore_refuses_is_a_bug_and_not_a_service_that_is_away(settings: Settings) -> None:
    with stream_at(settings, "http://127.0.0.1:1") as stream, pytest.raises(ParamValidationError):
        stream.sink.put([OutgoingRecord(0, 5)])  # type: ignore[arg-type]


def test_a_write_whose_answer_was_lost_is_sent_again_by_the_client_and_counted_once(dynamo: DynamoTables) -> None:
    lost = [1]

    def lose_the_first_answer(**_: Any) -> int | None:
        return lost.pop() * 0 if lost else None  # seconds until the next attempt; None: no other attempt

    events: Any = dynamo.client.meta.events  # its stubs know no handler that answers
    events.register_first("needs-retry.dynamodb.UpdateItem", lose_the_first_answer)
    try:
        dynamo.store.apply(shard(), write(1, 2), now=NOW)
    finally:
        events.unregister("needs-retry.dynamodb.UpdateItem", lose_the_first_answer)
    assert not lost
    found = dynamo.reader.total("tenant-123", "api_calls")
    assert found is not None
    assert (found.usage, found.events) == (Decimal(2), 2)


def test_a_record_larger_than_an_item_is_kept_in_part_with_its_size_and_hash(dynamo: DynamoTables) -> None:
    raw = bytes(range(256)) * 4096
    dynamo.store.reject(shard(), rejected(1, raw=raw), now=NOW)
    (item,) = dynamo.items(dynamo.settings.rejected_table)
    assert item["raw"]["B"] == raw[:RAW_BYTES_MAX]
    assert item["raw_bytes"] == {"N": str(1024 * 1024)}
    assert item["raw_sha256"] == {"S": hashlib.sha256(raw).hexdigest()}
    assert item["expires_at"] == {"N": str(int(NOW.timestamp()) + TTL_DAYS * 86_400)}
