"""`python -m tests.fuzz --bodies 1000000 --seed 1`: any bytes against the parsers. Ends with 1 when a law breaks.

A body that did is named by its number: `--first NUMBER --bodies 1` with the same seed makes it again.
"""

from __future__ import annotations

import argparse
import sys

from tests.fuzz.run import run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--bodies", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="number of the first body")
    parser.add_argument("--processes", type=int, default=1)
    asked = parser.parse_args()
    report = run(asked.seed, asked.bodies, first=asked.first, processes=asked.processes)
    sys.stdout.write("\n".join(report.lines()) + "\n")
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())
