"""Log lines: JSON, one each, UTC with milliseconds, and nothing of a request's body from botocore."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from metering.logs import configure_logging

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level
    for name in ("botocore", "boto3", "urllib3"):
        logging.getLogger(name).setLevel(logging.NOTSET)


def test_a_line_is_one_json_object_with_its_fields(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("INFO")
    logging.getLogger("billing").info("Zähler %s", "テナント\nx", extra={"shard": "shardId-0"})
    (line,) = capsys.readouterr().err.splitlines()
    fields = json.loads(line)
    moment = datetime.strptime(fields.pop("timestamp"), "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=UTC)
    assert abs(datetime.now(UTC) - moment) < timedelta(seconds=10)
    assert fields == {"level": "INFO", "logger": "billing", "message": "Zähler テナント\nx", "shard": "shardId-0"}
    assert "テナント" in line


def test_milliseconds_have_three_digits(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("INFO")
    logging.getLogger().handle(logging.makeLogRecord({"msg": "x", "levelno": 20, "created": 0.007, "msecs": 7.0}))
    assert json.loads(capsys.readouterr().err)["timestamp"] == "1970-01-01T00:00:00.007Z"


def test_a_traceback_stays_in_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("INFO")
    try:
        raise RuntimeError("a bug")
    except RuntimeError:
        logging.getLogger("billing").exception("unexpected")
    (line,) = capsys.readouterr().err.splitlines()
    assert "RuntimeError: a bug" in json.loads(line)["exc_info"]


def test_configuring_twice_logs_once(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("INFO")
    configure_logging("INFO")
    logging.getLogger("billing").info("once")
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize(("level", "lines"), [("DEBUG", 2), ("INFO", 1), ("ERROR", 0)])
def test_the_level_holds_for_ours_and_libraries_stay_quiet(
    level: str, lines: int, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging(level)
    logging.getLogger("consumer").debug("debug")
    logging.getLogger("consumer").info("info")
    logging.getLogger("botocore.parsers").debug("a whole body")
    assert len(capsys.readouterr().err.splitlines()) == lines
