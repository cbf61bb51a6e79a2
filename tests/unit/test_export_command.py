"""`metering export check`: the code says whether a file is whole, the line why it is not."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from operations.cli import metering
from tests.unit.test_billing_export import CSV, JANUARY, client_of, small


def run(file: str, stdin: bytes | None = None) -> Result:
    return CliRunner().invoke(metering, ["export", "check", file], input=stdin)


@pytest.mark.parametrize("asked", [CSV, JANUARY])
def test_a_whole_file_is_code_0_and_a_part_of_it_code_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    monkeypatch.chdir(tmp_path)
    whole = client_of(small()).get(asked).data
    Path("whole").write_bytes(whole)
    Path("part").write_bytes(whole[: whole.rindex(b"\n", 0, -1) + 1])
    Path("changed").write_bytes(whole.replace(b"api_calls", b"api_cells"))
    done = run("whole")
    assert (done.exit_code, done.output) == (0, "whole: whole, rows: 3\n")
    done = run("-", whole)
    assert (done.exit_code, done.output) == (0, "stdin: whole, rows: 3\n")
    done = run("part")
    assert (done.exit_code, done.output) == (1, "part: not whole: its last line is no checksum: it was broken off\n")
    done = run("changed")
    assert done.exit_code == 1
    assert done.output.startswith("changed: not whole: its checksum is another")
    done = run("-", b"")
    assert (done.exit_code, done.output) == (1, "stdin: not whole: it is empty\n")


def test_what_can_not_be_read_is_one_line(tmp_path: Path) -> None:
    for file, why in ((tmp_path / "none", "No such file or directory"), (tmp_path, "Is a directory")):
        done = run(str(file))
        assert (done.exit_code, done.output) == (1, f"metering: {file}: {why}\n")
