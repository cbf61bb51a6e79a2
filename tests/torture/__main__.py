"""`python -m tests.torture`: a long run, or its control; see docs/exactness.md. Ends with 1 on any difference."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from operations.local import ACCESS_KEY
from tests.e2e.parts import emulators
from tests.torture.run import torture

EVENTS_S = 70.0
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.torture")
    parser.add_argument("--duration-s", type=float, default=1800)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--events-s", type=float, default=EVENTS_S, help="events a second")
    parser.add_argument("--folder", type=Path, help="for data and logs, which are kept; a new one when not given")
    parser.add_argument("--control", action="store_true", help="no fence, no claims: must show a difference")
    asked = parser.parse_args()
    for number in ENDING:
        signal.signal(number, _end)
    # botocore, in this process too, wants some keys; the emulators take any.
    os.environ |= {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": ACCESS_KEY}
    folder = asked.folder or Path(tempfile.mkdtemp(prefix="torture-"))
    folder.mkdir(parents=True, exist_ok=True)
    say = _speaker()
    say(f"seed {asked.seed}, {asked.duration_s:.0f} s; logs in {folder}")
    with emulators(folder) as urls:
        report = torture(
            folder,
            urls,
            duration_s=asked.duration_s,
            seed=asked.seed,
            events_s=asked.events_s,
            control=asked.control,
            say=say,
        )
    _print("\n".join(report.lines()))
    if report.differences:
        _print(f"logs are kept in {folder}")
        return 1
    if asked.folder is None:
        shutil.rmtree(folder)
    return 0


def _end(number: int, _: object) -> NoReturn:
    """End through every `finally`, so that no process stays behind; once."""
    for each in ENDING:
        signal.signal(each, signal.SIG_IGN)
    sys.exit(128 + number)


def _speaker() -> Callable[[str], None]:
    begun_at = time.monotonic()
    return lambda line: _print(f"{time.monotonic() - begun_at:7.1f} s  {line}")


def _print(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
