"""The process that the MultiLangDaemon starts for each shard: `metering-record-processor`.

stdout is the protocol, so file descriptor 1 is moved away first: nothing else that writes to stdout can tear a line.
Signals are the daemon's affair (it asks through shutdown_requested), so SIGTERM and SIGINT are ignored. A child that
loses its daemon ends: at the end of stdin, at the next write to it, and in the middle of a batch within a second.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from typing import TextIO

from amazon_kclpy.kcl import KCLProcess

from consumer.record_processor import EXIT_FAILED, UsageRecordProcessor
from metering.aws import dynamodb_client, kinesis_client
from metering.dynamodb import DynamoCounterStore
from metering.dynamodb_ledger import DynamoLedger
from metering.errors import SetupError
from metering.kinesis import KinesisStreamDirectory
from metering.logs import configure_logging
from metering.meters_file import meters_of
from metering.settings import Settings

WATCH_INTERVAL_S = 0.5
WRITER_CONNECTIONS = 16

_log = logging.getLogger(__name__)


def main() -> None:
    """Serve the daemon on stdin and stdout until it closes stdin."""
    daemon_pid = os.getppid()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    protocol_input, protocol_output = claim_protocol_files()
    try:
        settings = Settings.from_environment(os.environ)
        configure_logging(settings.log_level)
        processor = record_processor(settings)
        threading.Thread(target=_end_with_daemon, args=(daemon_pid,), daemon=True).start()
        KCLProcess(processor, protocol_input, protocol_output, sys.stderr).run()
    except SetupError as error:
        _log.critical("%s", error)
        os._exit(EXIT_FAILED)
    except BaseException:  # noqa: BLE001 - every escape ends the process
        # A line that is not the protocol's, or a daemon that is gone: nothing was checkpointed that was not applied.
        _log.critical("the record processor ends", exc_info=True)
        os._exit(EXIT_FAILED)


def claim_protocol_files() -> tuple[TextIO, TextIO]:
    """Return stdin and stdout for the protocol alone, and let file descriptor 1 mean stderr from here on."""
    protocol_output = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return os.fdopen(os.dup(0), encoding="utf-8"), protocol_output


def record_processor(settings: Settings) -> UsageRecordProcessor:
    """Return the record processor on the real services that `settings` name. Raises InvalidSettingError."""
    meters = meters_of(settings)
    client = dynamodb_client(settings, connections_max=WRITER_CONNECTIONS)
    store = DynamoCounterStore(
        client,
        table=settings.table,
        rejected_table=settings.rejected_table,
        rejected_ttl_days=settings.ledger_ttl_days,
    )
    directory = KinesisStreamDirectory(kinesis_client(settings), settings.stream)
    ledger = DynamoLedger(client, table=settings.ledger_table, ttl_days=settings.ledger_ttl_days)
    return UsageRecordProcessor(store, ledger, directory, settings, meters=meters)


def _end_with_daemon(daemon_pid: int) -> None:
    # A batch that is being written may take as long as its retries; the daemon's successor is reading it already.
    while os.getppid() == daemon_pid:
        time.sleep(WATCH_INTERVAL_S)
    _log.warning("the daemon is gone; the process ends")
    os._exit(EXIT_FAILED)


if __name__ == "__main__":
    main()
