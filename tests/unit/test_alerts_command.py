"""`metering alerts check`, and docs/alerts.md, whose file is read and whose output is shown as it is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from billing.alerts_file import ALERTS_FILE
from operations.cli import metering

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "alerts.md").read_text(encoding="utf-8")
(FILE,) = re.findall(r"^```yaml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
INDENTED = re.findall(r"(?:^ {4}.*\n)+", PAGE, re.MULTILINE)


def shown(first_words: str) -> str:
    """The output that the page shows, by what it begins with."""
    (block,) = (block for block in INDENTED if block.lstrip().startswith(first_words))
    return re.sub(r"^ {4}", "", block, flags=re.MULTILINE)


def check(content: str | bytes, **environment: str) -> Result:
    return CliRunner(env={"USAGE_WINDOW_MINUTES": None, **environment}).invoke(
        metering, ["alerts", "check", "-"], input=content
    )


def test_the_page_shows_what_a_check_prints() -> None:
    done = check(FILE)
    assert (done.exit_code, done.output) == (0, shown("alerts.yaml: alerts").replace("alerts.yaml:", "stdin:"))
    done = check(FILE.replace("month", "week", 1))
    assert (done.exit_code, done.output) == (1, shown("alerts.yaml:6").replace("alerts.yaml:", "stdin:"))


def test_the_schema_that_the_page_names_is_there() -> None:
    (path,) = re.findall(r"\$schema=(\S+)", PAGE)
    assert (ROOT / "docs" / path).resolve() == ALERTS_FILE.schema_file


def test_a_zone_that_needs_smaller_rows_is_one_line() -> None:
    kolkata = FILE.replace("Europe/Berlin", "Asia/Kolkata")
    done = check(kolkata)
    assert (done.exit_code, done.output.count("\n")) == (1, 1)
    assert done.output.startswith(
        "stdin: usage is kept in windows of 60 minutes from the full hour in UTC, and one of "
    )
    assert check(kolkata, USAGE_WINDOW_MINUTES="30").exit_code == 0


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    done = CliRunner().invoke(metering, ["alerts", "check", str(tmp_path / "nowhere")])
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr == f"metering: {tmp_path}/nowhere: No such file or directory\n"


@pytest.mark.parametrize("name", ["crossed", "resolved"])
def test_the_page_names_the_types_of_messages(name: str) -> None:
    assert f"`usage.alert.{name}`" in PAGE
