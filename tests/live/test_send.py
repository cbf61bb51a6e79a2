"""`metering send`: run again after whatever interruption, each line of a file is held once, by its id.

Over 300 lines, since all of it plays against the same collectors that fail in the same ways.
"""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import stamina
from click.testing import CliRunner, Result

from operations.cli import metering
from operations.local import LocalStack
from operations.send_progress import SUFFIX
from tests.unit.collector_support import until
from tests.unit.collector_twin import WAIT_S, CollectorTwin, collector_twin

ROOT = Path(__file__).resolve().parents[2]
EVENT = {"tenant_id": "tenant-123", "metric": "api_calls", "value": 10, "timestamp": "2024-01-15T10:00:00Z"}


@pytest.fixture
def twin() -> Iterator[CollectorTwin]:
    with collector_twin() as running:
        yield running


def line(**fields: Any) -> str:
    event = {name: value for name, value in {**EVENT, **fields}.items() if value is not None}
    return json.dumps(event) + "\n"


def lines(count: int) -> str:
    """So many different events without ids."""
    return "".join(line(value=number) for number in range(count))


def file_of(folder: Path, text: str, name: str = "usage.ndjson") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def send(twin: CollectorTwin, *arguments: object, stdin: bytes | None = None, attempts: int = 50) -> Result:
    runner = CliRunner(env={"METERING_API_KEY": None, "COLLECTOR_PORT": None})
    with stamina.set_testing(True, attempts=attempts):
        return runner.invoke(metering, ["send", "--url", twin.url, *map(str, arguments)], input=stdin)


def values(twin: CollectorTwin) -> list[int]:
    """The value that is held under each id, after a look that it is only one."""
    for event_id in twin.held:
        assert len(twin.contents(event_id)) == 1
    return sorted(int(forms[0]["value"]) for forms in twin.held.values())


# ── What is sent ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_all_lines_are_held_and_the_summary_is_one_line(twin: CollectorTwin, tmp_path: Path) -> None:
    sent = send(twin, file_of(tmp_path, lines(1201)))
    assert (sent.exit_code, sent.stdout, sent.stderr) == (0, "accepted 1201, duplicate-safe 0, rejected 0\n", "")
    assert values(twin) == list(range(1201))
    assert [len(post.events) for post in twin.posts] == [500, 500, 201]


def test_rejected_lines_are_named_and_cost_no_other(twin: CollectorTwin, tmp_path: Path) -> None:
    text = line() + "no json\n\n" + line(value=-1) + line(timestmap="x") + line(event_id="mine")
    sent = send(twin, file_of(tmp_path, text))
    assert sent.exit_code == 1
    assert sent.stdout.splitlines() == [
        "line 2: malformed_json: this is not JSON: Expecting value (column 1)",
        "line 4: negative_value: value must not be negative",
        "line 5: unknown_field: there is no field 'timestmap' in an event",
        "accepted 2, duplicate-safe 0, rejected 3",
    ]
    assert "mine" in twin.held


def test_numbers_arrive_as_they_were_written(twin: CollectorTwin, tmp_path: Path) -> None:
    path = file_of(tmp_path, '{"tenant_id":"a","metric":"m","value":123456789012345.123456789}\n')
    assert send(twin, path).exit_code == 0
    ((form,),) = twin.held.values()
    assert form["value"] == "123456789012345.123456789"


def test_csv_is_sent(twin: CollectorTwin, tmp_path: Path) -> None:
    path = file_of(tmp_path, "\ufefftenant_id,metric,value,event_id\na,m,0.1,\na,m,0.1,mine\n,m,1,\na,m\n", "u.csv")
    sent = send(twin, path)
    assert (sent.exit_code, sent.stdout.splitlines()[-1]) == (1, "accepted 2, duplicate-safe 0, rejected 2")
    assert [text.split(":")[:2] for text in sent.stdout.splitlines()[:-1]] == [
        ["line 4", " invalid_tenant_id"],
        ["line 5", " malformed_csv"],
    ]
    assert {form["value"] for forms in twin.held.values() for form in forms} == {"0.1"}


def test_what_a_line_holds_can_do_nothing_to_the_terminal(twin: CollectorTwin, tmp_path: Path) -> None:
    sent = send(twin, file_of(tmp_path, line(**{"\x1b[2J": 1})))
    assert "\x1b" not in sent.stdout
    assert "unknown_field" in sent.stdout


def test_batches_have_the_size_that_was_asked_for(twin: CollectorTwin, tmp_path: Path) -> None:
    assert send(twin, file_of(tmp_path, lines(7)), "--batch-events", 3).exit_code == 0
    assert [len(post.events) for post in twin.posts] == [3, 3, 1]


# ── Ids ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_same_line_twice_is_two_events(twin: CollectorTwin, tmp_path: Path) -> None:
    assert send(twin, file_of(tmp_path, line() * 3)).exit_code == 0
    assert len(twin.held) == 3


def test_two_files_with_the_same_lines_are_different_events(twin: CollectorTwin, tmp_path: Path) -> None:
    for name in ("a.ndjson", "b.ndjson"):
        assert send(twin, file_of(tmp_path, line(), name)).exit_code == 0
    assert len(twin.held) == 2


def test_ids_do_not_depend_on_the_progress_file(twin: CollectorTwin, tmp_path: Path) -> None:
    path = file_of(tmp_path, lines(5))
    for _ in range(2):
        assert send(twin, path).exit_code == 0
        (tmp_path / (path.name + SUFFIX)).unlink()
    assert [len(forms) for forms in twin.held.values()] == [2] * 5


def test_ids_are_the_same_by_whatever_way_the_file_is_named(
    twin: CollectorTwin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = file_of(tmp_path, lines(5))
    link = tmp_path / "today.ndjson"
    link.symlink_to(path)
    monkeypatch.chdir(tmp_path)
    for name in (path, path.name, link):
        assert send(twin, name).exit_code == 0
    assert len(twin.held) == 5


def test_file_that_has_grown_keeps_the_ids_of_its_earlier_lines(twin: CollectorTwin, tmp_path: Path) -> None:
    path = file_of(tmp_path, lines(5).removesuffix("\n"))
    assert send(twin, path).exit_code == 0
    path.write_text(lines(9), encoding="utf-8")
    grown = send(twin, path)
    assert (grown.exit_code, grown.stderr) == (0, "")
    # The last line had no end: it could have been half of one, so it went again.
    assert grown.stdout == "accepted 9 (4 in an earlier run), duplicate-safe 0, rejected 0\n"
    assert values(twin) == list(range(9))


def test_source_stands_in_for_the_path(twin: CollectorTwin, tmp_path: Path) -> None:
    for name in ("a.ndjson", "b.ndjson"):
        assert send(twin, file_of(tmp_path, lines(5), name), "--source", "nightly").exit_code == 0
    assert len(twin.held) == 5


def test_stdin_is_sent_under_the_name_that_is_given(twin: CollectorTwin) -> None:
    for _ in range(2):
        sent = send(twin, "-", "--source", "nightly", stdin=lines(5).encode())
        assert (sent.exit_code, sent.stdout) == (0, "accepted 5, duplicate-safe 0, rejected 0\n")
    assert [len(forms) for forms in twin.held.values()] == [2] * 5


def test_stdin_without_a_name_takes_only_events_with_ids(twin: CollectorTwin) -> None:
    assert send(twin, "-", stdin=line(event_id="mine").encode()).exit_code == 0
    refused = send(twin, "-", "--batch-events", 1, stdin=(line(event_id="mine-2") + line()).encode())
    assert refused.exit_code == 2
    assert "line 2 has no event_id" in refused.stderr
    assert refused.stdout == "accepted 1, duplicate-safe 0, rejected 0\n"
    assert set(twin.held) == {"mine", "mine-2"}


def test_csv_comes_from_stdin_too(twin: CollectorTwin) -> None:
    sent = send(twin, "-", "--format", "csv", "--source", "s", stdin=b"tenant_id,metric,value\na,m,1\n")
    assert sent.exit_code == 0
    assert len(twin.held) == 1


def test_named_pipe_is_like_stdin(twin: CollectorTwin, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with subprocess.Popen(["sh", "-c", f"cat > {pipe}"], stdin=subprocess.PIPE) as writer:
        assert writer.stdin is not None
        writer.stdin.write(lines(5).encode())
        writer.stdin.close()
        assert send(twin, pipe, "--source", "s").exit_code == 0
    assert len(twin.held) == 5
    assert not (tmp_path / ("pipe" + SUFFIX)).exists()


# ── Run again ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_collector_that_stays_away_ends_with_code_3_and_a_second_run_goes_on(
    twin: CollectorTwin, tmp_path: Path
) -> None:
    path = file_of(tmp_path, lines(10))
    twin.script = [None, None, *["503"] * 5]
    first = send(twin, path, "--batch-events", 3, attempts=5)
    assert first.exit_code == 3
    assert "not sent, from line 7 on" in first.stderr
    assert first.stdout == "accepted 6, duplicate-safe 0, rejected 0\n"
    second = send(twin, path, "--batch-events", 3)
    assert (second.exit_code, second.stdout) == (0, "accepted 10 (6 in an earlier run), duplicate-safe 0, rejected 0\n")
    assert [len(forms) for forms in twin.held.values()] == [1] * 10


def test_lost_answers_are_made_up_for_and_counted_as_duplicate_safe(twin: CollectorTwin, tmp_path: Path) -> None:
    twin.script = ["lost", "half", "some"]
    sent = send(twin, file_of(tmp_path, lines(8)))
    assert (sent.exit_code, sent.stdout) == (0, "accepted 8, duplicate-safe 8, rejected 0\n")
    assert values(twin) == list(range(8))


def test_rejected_lines_are_tried_again_and_named_again(twin: CollectorTwin, tmp_path: Path) -> None:
    path = file_of(tmp_path, line(value=0) + line(value=-1) + line(value=2))
    for earlier in ("", " (2 in an earlier run)"):
        sent = send(twin, path)
        assert sent.exit_code == 1
        assert sent.stdout.splitlines() == [
            "line 2: negative_value: value must not be negative",
            f"accepted 2{earlier}, duplicate-safe 0, rejected 1",
        ]
    assert [len(post.events) for post in twin.posts] == [3, 1]


def test_rejected_line_that_was_mended_in_place_is_all_that_is_sent(twin: CollectorTwin, tmp_path: Path) -> None:
    path = file_of(tmp_path, line(value=0) + line(value=-1) + line(value=2))
    send(twin, path)
    file_of(tmp_path, line(value=0) + line(value=1) + line(value=2))
    mended = send(twin, path)
    assert (mended.exit_code, mended.stderr) == (0, "")
    assert mended.stdout == "accepted 3 (2 in an earlier run), duplicate-safe 0, rejected 0\n"
    assert values(twin) == [0, 1, 2]
    assert [len(post.events) for post in twin.posts] == [3, 1]


def test_progress_of_a_file_that_was_changed_is_ignored_with_a_warning(twin: CollectorTwin, tmp_path: Path) -> None:
    path = file_of(tmp_path, lines(3))
    send(twin, path)
    file_of(tmp_path, line(value=100) + line(value=1) + line(value=2))
    changed = send(twin, path)
    assert changed.exit_code == 0
    assert "is ignored: what was accepted of the first 3 lines" in changed.stderr
    assert changed.stdout == "accepted 3, duplicate-safe 0, rejected 0\n"
    assert values(twin) == [0, 1, 2, 100]


def test_progress_of_another_delivery_is_ignored_with_a_warning(twin: CollectorTwin, tmp_path: Path) -> None:
    path = file_of(tmp_path, lines(3))
    send(twin, path)
    with collector_twin() as other:
        elsewhere = send(other, path)
        assert "is ignored: it is of" in elsewhere.stderr
        assert len(other.held) == 3
    renamed = send(twin, path, "--source", "another")
    assert "is ignored: it is of" in renamed.stderr
    assert len(twin.held) == 6


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b'{"lines": 1}', b"[]", b"[" * 100_000])
def test_progress_that_can_not_be_read_is_ignored_with_a_warning(
    twin: CollectorTwin, tmp_path: Path, content: bytes
) -> None:
    path = file_of(tmp_path, lines(3))
    (tmp_path / (path.name + SUFFIX)).write_bytes(content)
    sent = send(twin, path)
    assert sent.exit_code == 0
    assert "is ignored" in sent.stderr
    assert len(twin.held) == 3


def test_progress_that_can_not_be_kept_is_a_warning(twin: CollectorTwin, tmp_path: Path) -> None:
    path = file_of(tmp_path, lines(3))
    (tmp_path / (path.name + SUFFIX + ".part")).mkdir()
    sent = send(twin, path, "--batch-events", 1)
    assert sent.exit_code == 0
    assert sent.stderr.count("is kept no longer") == 1
    assert len(twin.held) == 3


def test_progress_with_too_many_gaps_grows_no_further(
    twin: CollectorTwin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("operations.send.REJECTED_RANGES_MAX", 2)
    path = file_of(tmp_path, "".join(line(value=number if number % 2 else -number - 1) for number in range(10)))
    first = send(twin, path, "--batch-events", 2)
    assert (first.exit_code, first.stderr.count("too many rejected lines")) == (1, 1)
    second = send(twin, path, "--batch-events", 2)
    assert second.stdout.splitlines()[-1] == "accepted 5 (2 in an earlier run), duplicate-safe 0, rejected 5"
    assert values(twin) == [1, 3, 5, 7, 9]


def start(twin: CollectorTwin, path: Path, **options: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "operations.cli", "send", "--url", twin.url, "--batch-events", "10", str(path)],
        cwd=ROOT,
        env={name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ},
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
    )


@pytest.mark.parametrize("posts", [1, 4, 9])
def test_killed_in_the_middle_and_run_again_every_line_is_held_once(
    twin: CollectorTwin, tmp_path: Path, posts: int
) -> None:
    path = file_of(tmp_path, "".join(line(value=number) for number in range(95)))
    twin.script = [None] * (posts - 1) + ["hang"]
    with start(twin, path) as process:
        until(lambda: len(twin.posts) == posts and len(twin.held) == posts * 10, WAIT_S)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    second = send(twin, path, "--batch-events", 10)
    assert second.exit_code == 0
    assert values(twin) == list(range(95))
    assert second.stdout.splitlines()[-1].startswith("accepted 95")
    # Only the batch that had no answer went again.
    assert sorted(len(forms) for forms in twin.held.values()) == [1] * 85 + [2] * 10
    assert len(twin.posts) == 11


def test_ctrl_c_leaves_a_true_note_and_says_how_to_go_on(twin: CollectorTwin, tmp_path: Path) -> None:
    path = file_of(tmp_path, lines(95))
    twin.script = [None, None, "hang"]
    with start(twin, path) as process:
        until(lambda: len(twin.posts) == 3, WAIT_S)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=WAIT_S)
    assert (process.returncode, out) == (130, b"accepted 20, duplicate-safe 0, rejected 0\n")
    assert err == b"metering: interrupted; run it again to go on\n"
    assert send(twin, path).stdout == "accepted 95 (20 in an earlier run), duplicate-safe 0, rejected 0\n"
    assert values(twin) == list(range(95))


def test_terminal_shows_a_bar_and_why_it_takes_long(twin: CollectorTwin, tmp_path: Path) -> None:
    twin.script = [None, "429"]
    screen, terminal = pty.openpty()
    with start(twin, file_of(tmp_path, lines(30)), stderr=terminal) as process:
        out, _ = process.communicate(timeout=WAIT_S)
        os.close(terminal)
    shown = b""
    try:
        while piece := os.read(screen, 65_536):
            shown += piece
    except OSError:  # Linux says so at the end of a terminal
        os.close(screen)
    assert (process.returncode, out) == (0, b"accepted 30, duplicate-safe 10, rejected 0\n")
    assert b"100%" in shown
    assert b"429 told_to: as the test wants it; trying again" in shown


# ── What can't be used ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("missing.ndjson", None, "can't be read: No such file"),
        ("usage.txt", "", "--format"),
        ("u.csv", "tenant_id,metric,valeu\n", "no column 'valeu'"),
    ],
)
def test_file_that_can_not_be_used_ends_with_code_2(
    twin: CollectorTwin, tmp_path: Path, name: str, content: str | None, words: str
) -> None:
    if content is not None:
        file_of(tmp_path, content, name)
    sent = send(twin, tmp_path / name)
    assert (sent.exit_code, sent.stdout) == (2, "")
    assert words in sent.stderr
    assert twin.posts == []


def test_empty_file_is_sent_at_once(twin: CollectorTwin, tmp_path: Path) -> None:
    sent = send(twin, file_of(tmp_path, ""))
    assert (sent.exit_code, sent.stdout) == (0, "accepted 0, duplicate-safe 0, rejected 0\n")


def test_key_comes_from_the_environment_alone(twin: CollectorTwin, tmp_path: Path) -> None:
    path = file_of(tmp_path, line())
    runner = CliRunner()
    for number, (environment, options) in enumerate(
        [({"METERING_API_KEY": "k1"}, []), ({"METERING_API_KEY": "k1", "MINE": "k2"}, ["--api-key-env", "MINE"])]
    ):
        arguments = ["send", "--url", twin.url, "--source", str(number), *options, str(path)]
        assert runner.invoke(metering, arguments, env=environment).exit_code == 0
    assert [post.headers["Authorization"] for post in twin.posts] == ["Bearer k1", "Bearer k2"]
    refused = runner.invoke(metering, ["send", "--url", twin.url, "--api-key-env", "MINE", str(path)])
    assert refused.exit_code == 2
    assert "MINE: this variable is not set" in refused.stderr


def test_wrong_key_is_said_at_once_with_code_3(twin: CollectorTwin, tmp_path: Path) -> None:
    twin.script = ["401"]
    sent = send(twin, file_of(tmp_path, lines(3)))
    assert sent.exit_code == 3
    assert "answers 401" in sent.stderr
    assert len(twin.posts) == 1


def test_collector_is_the_local_one_unless_another_is_named(twin: CollectorTwin, tmp_path: Path) -> None:
    path = file_of(tmp_path, line())
    runner = CliRunner()
    port = twin.url.rpartition(":")[2]
    assert runner.invoke(metering, ["send", str(path)], env={"COLLECTOR_PORT": port}).exit_code == 0
    LocalStack(1, "", "", twin.url, "").write(tmp_path)
    sent = runner.invoke(metering, ["send", "--local", str(path)], env={"METERING_HOME": str(tmp_path)})
    assert (sent.exit_code, sent.stdout) == (0, "accepted 1 (1 in an earlier run), duplicate-safe 0, rejected 0\n")
    both = runner.invoke(metering, ["send", "--local", "--url", twin.url, str(path)])
    assert both.exit_code == 2
