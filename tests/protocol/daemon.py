"""The MultiLangDaemon's side of the protocol, played by a test: one message out, whatever comes back in.

The processor under test is the real one, in the real KCLProcess, on real pipes; only the daemon is a test's.
"""

from __future__ import annotations

import base64
import io
import json
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import Any, Self

from amazon_kclpy.kcl import KCLProcess

from consumer.record_processor import UsageRecordProcessor
from metering.memory import MemoryLedger
from metering.ports import CounterStore, Ledger, StreamDirectory
from metering.settings import Settings
from tests.builders import NOW

SHARD_ID = "shardId-000000000000"
ANSWER_S = 20.0


@dataclass(frozen=True)
class Sent:
    """A record of a delivery."""

    number: int
    data: bytes
    arrived_at: datetime = NOW

    @property
    def sequence_number(self) -> str:
        return str(95 + self.number)  # as tests.builders.at: string order alone would be wrong

    def message(self) -> dict[str, Any]:
        return {
            "action": "record",
            "data": base64.b64encode(self.data).decode(),
            "partitionKey": "partition-0001",
            "approximateArrivalTimestamp": int(self.arrived_at.timestamp() * 1000),
            "sequenceNumber": self.sequence_number,
            "subSequenceNumber": 0,
        }


def event_record(number: int, **fields: Any) -> Sent:
    """Return a record that holds one bare event."""
    event = {"tenant_id": "tenant-123", "metric": "api_calls", "value": "10", "timestamp": "2024-01-15T10:00:00Z"}
    return Sent(number, json.dumps({**event, **fields}).encode())


class Daemon:
    """Runs a record processor in a KCLProcess on a thread and speaks to it. Use as a context."""

    def __init__(
        self,
        store: CounterStore,
        directory: StreamDirectory,
        settings: Settings,
        ledger: Ledger | None = None,
        **wiring: Any,
    ) -> None:
        child_input, to_child = os.pipe()
        from_child, child_output = os.pipe()
        self._to_child = os.fdopen(to_child, "w", encoding="utf-8")
        self._from_child = os.fdopen(from_child, encoding="utf-8")
        self._child_files = (
            os.fdopen(child_input, encoding="utf-8"),
            os.fdopen(child_output, "w", encoding="utf-8"),
        )
        self.errors = io.StringIO()
        self.exit_code: int | None = None
        self.escaped: BaseException | None = None
        self.processor = UsageRecordProcessor(
            store, ledger or MemoryLedger(), directory, settings, exit_process=_leave, **wiring
        )
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.hang_up()
        self._thread.join(ANSWER_S)
        self._from_child.close()
        self._child_files[0].close()
        assert not self._thread.is_alive(), "the child did not end with its daemon"
        assert self.errors.getvalue() == "", "an exception reached amazon_kclpy"

    def initialize(self) -> None:
        """Begin the shard and expect the child to say so."""
        self.send(action="initialize", shardId=SHARD_ID, sequenceNumber="TRIM_HORIZON", subSequenceNumber=0)
        self.expect_status("initialize")

    def deliver(self, *records: Sent, checkpoint_errors: Sequence[str | None] = (None,), behind_ms: int = 0) -> None:
        """Deliver a batch, answer its checkpoints with `checkpoint_errors` in order, and expect it to be done."""
        self.send_records(*records, behind_ms=behind_ms)
        if records:
            for error in checkpoint_errors:
                self.expect_checkpoint(error)
        self.expect_status("processRecords")

    def send_records(self, *records: Sent, behind_ms: int = 0) -> None:
        self.send(
            action="processRecords", records=[record.message() for record in records], millisBehindLatest=behind_ms
        )

    def expect_checkpoint(self, error: str | None = None) -> None:
        """Expect the child to ask for a checkpoint at the end of the delivery, and answer with `error`."""
        message = self.receive()
        assert message == {"action": "checkpoint", "sequenceNumber": None, "subSequenceNumber": None}
        self.send(action="checkpoint", sequenceNumber=None, subSequenceNumber=None, error=error)

    def expect_status(self, action: str) -> None:
        assert self.receive() == {"action": "status", "responseFor": action}

    def expect_end(self) -> int | None:
        """Expect the child to end without another word, and return its exit code."""
        assert self.receive() is None
        self._thread.join(ANSWER_S)
        return self.exit_code

    def send(self, **message: Any) -> None:
        self._to_child.write(json.dumps(message) + "\n")
        self._to_child.flush()

    def receive(self) -> dict[str, Any] | None:
        """Return the child's next message, or None when it has ended."""
        while line := self._from_child.readline():
            if line.strip():
                message: dict[str, Any] = json.loads(line)
                return message
        return None

    def hang_up(self) -> None:
        """Be gone, as after kill -9: the child's stdin ends."""
        if not self._to_child.closed:
            self._to_child.close()

    def _run(self) -> None:
        try:
            KCLProcess(self.processor, *self._child_files, error_file=self.errors).run()
            self.exit_code = 0
        except SystemExit as exit_:
            self.exit_code = exit_.code if isinstance(exit_.code, int) else 1
        except BaseException as error:  # noqa: BLE001 - what escapes is what the tests ask about
            self.escaped = error
        finally:
            self._child_files[1].close()


def _leave(code: int) -> None:
    raise SystemExit(code)
