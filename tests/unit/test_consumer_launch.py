"""What the daemon is started with: its properties, its class path, its Java."""

from __future__ import annotations

import re
import zipfile
from importlib.resources import files
from pathlib import Path

import javaproperties
import pytest

from consumer import launch
from consumer.kcl_properties import KNOWN
from consumer.launch import PROPERTIES_FOLDER, class_path, daemon_environment, java_command, render_properties
from metering.errors import SetupError
from metering.settings import Settings

TEMPLATE = (PROPERTIES_FOLDER / "consumer.properties").read_text(encoding="utf-8")


def rendered(**environment: str) -> dict[str, str]:
    return javaproperties.loads(render_properties(TEMPLATE, Settings.from_environment(environment)))


def test_the_environment_takes_the_place_of_the_files_names() -> None:
    properties = rendered(
        KINESIS_STREAM="a-stream",
        KCL_APPLICATION="an-application",
        AWS_REGION="eu-central-1",
        WORKER_ID="worker-7",
        AWS_ENDPOINT_URL_KINESIS="http://127.0.0.1:4567",
        AWS_ENDPOINT="http://127.0.0.1:8000",
    )
    assert properties["streamName"] == "a-stream"
    assert properties["applicationName"] == "an-application"
    assert properties["regionName"] == "eu-central-1"
    assert properties["workerId"] == "worker-7"
    assert properties["kinesisEndpoint"] == "http://127.0.0.1:4567"
    assert properties["dynamoDBEndpoint"] == "http://127.0.0.1:8000"


def test_without_endpoints_aws_is_meant() -> None:
    assert not {"kinesisEndpoint", "dynamoDBEndpoint"} & rendered().keys()


def test_the_file_as_it_stands_is_what_an_empty_environment_gives() -> None:
    as_it_stands = javaproperties.loads(TEMPLATE)
    assert rendered(WORKER_ID="worker-1") == as_it_stands


def test_the_file_reads_from_the_oldest_record_and_gives_a_stop_its_time() -> None:
    properties = javaproperties.loads(TEMPLATE)
    assert properties["initialPositionInStream"] == "TRIM_HORIZON"
    assert int(properties["shutdownGraceMillis"]) >= 10_000
    assert int(properties["timeoutInSeconds"]) > 60


def test_every_setting_of_the_file_has_its_reason_above_it() -> None:
    lines = TEMPLATE.splitlines()
    for number, line in enumerate(lines):
        if "=" in line and not line.startswith("#"):
            above = lines[number - 1]
            assert above.startswith("#") or "=" in above, line


def test_kcl_properties_override_the_file() -> None:
    assert rendered(KCL_PROPERTIES="maxRecords=5 metricsLevel=NONE")["maxRecords"] == "5"


@pytest.mark.parametrize(
    ("template", "environment", "message"),
    [
        ("idleTimeBetweenReadInMillis = 5", {}, "did you mean 'idleTimeBetweenReadsInMillis'?"),
        ("", {"KCL_PROPERTIES": "nonsense=1"}, "KCL_PROPERTIES: the KCL knows no property 'nonsense'"),
        ("initialPositionInStream = LATEST", {}, "must be TRIM_HORIZON"),
        ("initialPositionInStream = TRIM_HORIZON\nx = \\u12", {}, "can't be read"),
        ("", {"KCL_PROPERTIES": "initialPositionInStream=LATEST"}, "must be TRIM_HORIZON"),
        (
            "initialPositionInStream = TRIM_HORIZON",
            {"KCL_PROPERTIES": "skipShardSyncAtWorkerInitializationIfLeasesExist=false"},
            "must be true",
        ),
        (TEMPLATE, {"KCL_PROPERTIES": "retrievalMode=FANOUT"}, "retrievalMode must be POLLING; else nobody knows"),
        (TEMPLATE.replace("retrievalMode", "#"), {}, "retrievalMode must be POLLING"),
    ],
)
def test_properties_that_cannot_be_meant_are_refused(template: str, environment: dict[str, str], message: str) -> None:
    with pytest.raises(SetupError, match=re.escape(message)):
        render_properties(template, Settings.from_environment(environment))


def test_the_known_names_are_those_of_the_jar() -> None:
    jar = next(Path(str(files("amazon_kclpy"))).joinpath("jars").glob("amazon-kinesis-client-multilang-*.jar"))
    setters: set[str] = set()
    with zipfile.ZipFile(jar) as classes:
        for name in classes.namelist():
            bean = re.search(r"multilang/config/(MultiLangDaemonConfiguration|\w+ConfigBean)\.class$", name)
            if bean and "Fanout" not in name:  # a property of its own, with names of its own
                found = re.findall(rb"\x01\x00.set([A-Z]\w+)", classes.read(name))
                setters |= {setter.decode()[0].lower() + setter.decode()[1:] for setter in found}
    # Private methods and calls of libraries, and a setter that takes an object which no text converts to.
    inner = {"regionForClient", "endpointForClient", "delimiter", "property", "shardPrioritization"}
    aliases = {name[0].lower() + name[1:] for name in KNOWN}
    assert setters, "the jar's classes could not be read"
    daemon_own = {"executableName", "processingLanguage", "maxActiveThreads"}
    assert aliases - daemon_own <= setters | {name.lower() for name in setters}
    assert setters - inner - aliases == set()


def test_the_class_path_holds_every_jar_of_amazon_kclpy() -> None:
    assert "amazon-kinesis-client-multilang-3.1.3.jar" in class_path()
    assert class_path().count(".jar") == 79


def test_the_daemon_finds_its_children_beside_this_python() -> None:
    path = daemon_environment({"PATH": "/usr/bin"})["PATH"].split(":")
    assert (Path(path[0]) / "metering-record-processor").is_file()
    assert path[-1] == "/usr/bin"


def test_a_java_home_that_is_too_old_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for version, taken in (("17.0.1", True), ("11.0.2", False), ("1.8.0_292", False)):
        java = tmp_path / version / "bin" / "java"
        java.parent.mkdir(parents=True)
        java.write_text(f"#!/bin/sh\necho 'openjdk version \"{version}\"' >&2\n")
        java.chmod(0o755)
        monkeypatch.setenv("JAVA_HOME", str(tmp_path / version))
        assert (java_command() == str(java)) is taken
    assert launch._java_version(str(tmp_path / "none")) == 0
