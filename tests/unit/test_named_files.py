"""FILE of commands where there is no standard input to read."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("command", "code"),
    [("plans check -", 1), ("meters check -", 1), ("alerts check -", 1), ("export check -", 1), ("send -", 2)],
)
def test_a_closed_standard_input_is_one_line(command: str, code: int) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "operations.cli", *command.split()],
        preexec_fn=lambda: os.close(0),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith("metering: ")
    assert done.stderr.endswith("standard input is closed\n")
    assert done.stderr.count("\n") == 1
