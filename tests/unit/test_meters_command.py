"""`metering meters check`, and docs/meters.md, whose file is read and whose output is shown as it is."""

from __future__ import annotations

import re
from pathlib import Path

from click.testing import CliRunner, Result

from metering.meters_file import METERS_FILE
from operations.cli import metering

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "meters.md").read_text(encoding="utf-8")
(FILE,) = re.findall(r"^```yaml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def check(content: str) -> Result:
    return CliRunner().invoke(metering, ["meters", "check", "-"], input=content)


def test_the_page_shows_what_a_check_prints() -> None:
    done = check(FILE)
    assert done.exit_code == 0
    shown = "".join(f"    {line}\n" for line in done.output.splitlines())
    assert shown.replace("stdin:", "meters.yaml:") in PAGE


def test_what_is_wrong_is_printed_with_its_place() -> None:
    done = check(FILE.replace("max", "maximum").replace("count", "counted"))
    assert done.exit_code == 1
    assert done.output == (
        "stdin:4:41: 'maximum' stands here; allowed: sum, count, max, latest\n"
        "stdin:5:29: 'counted' stands here; allowed: sum, count, max, latest\n"
    )
    assert "meters.yaml:4:41: 'maximum' stands here; allowed: sum, count, max, latest\n" in PAGE


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    done = CliRunner().invoke(metering, ["meters", "check", str(tmp_path)])
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr == f"metering: {tmp_path}: it is not a regular file\n"


def test_the_schema_that_the_page_names_is_there() -> None:
    (path,) = re.findall(r"\$schema=(\S+)", PAGE)
    assert (ROOT / "docs" / path).resolve() == METERS_FILE.schema_file
