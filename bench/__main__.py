"""Run the benchmarks named on the command line, or all, and print their figures."""

from __future__ import annotations

import os
import platform
import sys

from bench.billing import billing
from bench.claims import burst, claims, units
from bench.collector import collector, steady
from bench.pipeline import latency, readiness, recovery
from bench.takeover import takeover
from operations.local import ACCESS_KEY

BENCHMARKS = {
    "readiness": readiness,
    "recovery": recovery,
    "latency": latency,
    "claims": claims,
    "units": units,
    "burst": burst,
    "takeover": takeover,
    "collector": collector,
    "steady": steady,
    "billing": billing,
}


def main(names: list[str]) -> None:
    """Print the machine, then each figure as soon as it is there."""
    unknown = set(names) - BENCHMARKS.keys()
    if unknown:
        sys.exit(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(BENCHMARKS)}")
    # The emulators take any; botocore, in this process too, wants some.
    os.environ |= {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": ACCESS_KEY}
    load = os.getloadavg()[0]
    print(f"machine: {os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, load {load:.1f}")
    for name in names or BENCHMARKS:
        for figure in BENCHMARKS[name]():
            print(figure.line(), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
