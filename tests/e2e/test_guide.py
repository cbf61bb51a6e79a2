"""Each command that a page shows for the local stack works on it, in the page's order."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

import pytest

from tests.e2e.processes import PATH, REPOSITORY, ran, until
from tests.e2e.stack import Stack

PAGES = [REPOSITORY / name for name in ("docs/troubleshooting.md", "docs/billing.md", "docs/export.md", "README.md")]
MARKED = re.compile(r"^<!-- run: local -->\n+```bash\n(.*?)^```", re.MULTILINE | re.DOTALL)
DEFAULT_PORTS = {"8080": "COLLECTOR_PORT", "8081": "BILLING_PORT", "4567": "KINESIS_PORT", "8000": "DYNAMODB_PORT"}
COMES_S = 30.0
SHELL = ["bash", "-euo", "pipefail"] if shutil.which("bash") else ["sh", "-eu"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_for_the_local_stack_work(stack: Stack, page: Path, tmp_path: Path) -> None:
    text = page.read_text(encoding="utf-8")
    blocks = MARKED.findall(text)
    assert len(blocks) == text.count("<!-- run: local -->") > 0
    environment = stack.environment | {"PATH": path_with_stand_ins(tmp_path), "CURL_HOME": str(tmp_path)}
    (tmp_path / ".curlrc").write_text("fail-with-body\n", encoding="ascii")  # an answer of 400 or more fails the block
    exports = ""  # "once in each local shell"
    for block in blocks:
        assert_runs(exports + on_ports_of(stack, block), environment, wants_row="get-item" in block)
        exports += "".join(line for line in block.splitlines(keepends=True) if line.startswith("export "))


def assert_runs(script: str, environment: dict[str, str], *, wants_row: bool) -> None:
    """Run a block; one that only looks is run again until it shows what the page says comes within a second or two.

    So is a void, which may be asked for any number of times, until the event is counted.
    """
    last = (0, "", "")

    def done() -> bool:
        nonlocal last
        last = ran([*SHELL, "-c", script], environment)
        return last[0] == 0 and (not wants_row or '"usage"' in last[1])

    may_repeat = "/void" in script or ("POST" not in script and "update-item" not in script)
    until(lambda: done() or not may_repeat, lambda: f"{script}\n{last}", timeout_s=COMES_S)
    assert last[0] == 0, f"{script}\n{last}"


def on_ports_of(stack: Stack, block: str) -> str:
    """The block with the ports and the METERING_HOME of `stack` in place of the default ones."""
    for port, variable in DEFAULT_PORTS.items():
        block = re.sub(rf"(?<=:){port}\b", f"{variable}@", block)
    for variable in DEFAULT_PORTS.values():
        block = block.replace(f"{variable}@", stack.environment[variable])
    return re.sub(r"(?<![\w.])\.metering(?=/)", str(stack.home), block)


def path_with_stand_ins(folder: Path) -> str:
    """PATH, and behind the machine's own commands what stands in for those that it may not have.

    The environment's come last: it has an `aws` of its own, which bash can't run from a folder with a space.
    """
    for name in ("aws", "curl", "grep"):
        command = folder / name
        command.write_text(
            f'#!/bin/sh\nexec "{sys.executable}" "{Path(__file__).with_name("stand_ins.py")}" {name} "$@"\n'
        )
        command.chmod(0o755)
    own, *machine = PATH.split(os.pathsep)
    return os.pathsep.join([*machine, str(folder), own])
