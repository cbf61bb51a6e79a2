"""The process that the daemon starts: its files, its signals, and its end when the daemon is gone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from metering.processes import wait_until

CHILD = [str(Path(sys.executable).parent / "metering-record-processor")]
END_S = 30.0


@pytest.fixture
def environment() -> dict[str, str]:
    return {**os.environ, "AWS_ACCESS_KEY_ID": "local", "AWS_SECRET_ACCESS_KEY": "local", "AWS_REGION": "us-east-1"}


def test_the_end_of_stdin_ends_the_child(environment: dict[str, str]) -> None:
    done = subprocess.run(
        CHILD, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=END_S, check=False
    )
    assert (done.returncode, done.stdout) == (0, b"")


def test_a_line_that_is_not_the_protocols_ends_the_child_and_is_logged_as_json(environment: dict[str, str]) -> None:
    done = subprocess.run(CHILD, env=environment, input=b"{]\n", capture_output=True, timeout=END_S, check=False)
    assert (done.returncode, done.stdout) == (1, b"")
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert [line["level"] for line in lines] == ["CRITICAL"]


def test_an_unusable_setting_ends_the_child_with_its_one_line(environment: dict[str, str]) -> None:
    done = subprocess.run(
        CHILD,
        env={**environment, "USAGE_WINDOW_MINUTES": "7"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=END_S,
        check=False,
    )
    assert done.returncode == 1
    assert b"USAGE_WINDOW_MINUTES='7' can't be used: allowed: 60, 30, 15" in done.stderr


def test_whatever_writes_to_stdout_cannot_tear_the_protocol() -> None:
    script = (
        "import os, sys; from consumer.child import claim_protocol_files\n"
        "source, sink = claim_protocol_files()\n"
        "print('printed'); os.write(1, b'written\\n'); os.system('echo from a program')\n"
        "sink.write('protocol'); sink.flush()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=END_S, check=True)
    assert done.stdout == b"protocol"
    assert sorted(done.stderr.split(b"\n")) == [b"", b"from a program", b"printed", b"written"]


def test_the_child_ignores_the_signals_that_are_the_daemons_affair(environment: dict[str, str]) -> None:
    with subprocess.Popen(CHILD, env=environment, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) as child:
        try:
            process = psutil.Process(child.pid)
            assert wait_until(lambda: process.num_threads() > 1, timeout_s=END_S), "its watch is set last"
            child.send_signal(signal.SIGTERM)
            child.send_signal(signal.SIGINT)
            child.communicate(timeout=END_S)  # closes stdin
            assert child.returncode == 0
        finally:
            child.kill()


def test_the_child_ends_when_its_daemon_is_killed_though_stdin_stays_open(environment: dict[str, str]) -> None:
    read_end, write_end = os.pipe()  # this test holds stdin open
    daemon = subprocess.Popen(
        [sys.executable, "-c", f"import subprocess; subprocess.run({CHILD!r}, stdin={read_end})"],
        env=environment,
        pass_fds=[read_end],
        stderr=subprocess.DEVNULL,
    )
    children: list[psutil.Process] = []
    try:
        parent = psutil.Process(daemon.pid)
        assert wait_until(lambda: any(c.num_threads() > 1 for c in parent.children()), timeout_s=END_S)
        children = parent.children()
        daemon.kill()
        daemon.wait()
        gone, alive = psutil.wait_procs(children, timeout=END_S)
        assert not alive, "the child outlived its daemon"
        assert len(gone) == 1
    finally:
        daemon.kill()
        daemon.wait()
        for child in children:
            if child.is_running():
                child.kill()
        os.close(read_end)
        os.close(write_end)
