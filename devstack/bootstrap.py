"""Set-up from nothing: `python3 -m devstack.bootstrap run|dev`, in the clone's folder.

Runs on any Python from 3.11 on with the standard library alone, and makes all the rest:

    .venv ─► build ─► local ─► maven ─► kinesis-local ─► run ─► project ─► kclpy [─► dev ─► browser]
    (venv)   (pip     (pip)    (jars)   (npm)            (pip)  (pip -e)   (jars     (pip)  (npm)
             itself)                                                       checked)

Each step (devstack/steps.py) leaves a stamp: the hash of what went in (its lock, its list) and of the size and time
of what came out. A step whose stamp does not match is done again; a step that was stopped half-way has no stamp.
.venv as a whole is thrown away when it was made for another Python or another place (scripts hold their path), and
when pip was stopped half-way in it: pip takes a package for installed as soon as its metadata is there. Nothing is
downloaded twice for that: pip has its cache.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType, MappingProxyType

from devstack import artifacts
from devstack.steps import PARTS, PYTHON, ROOT, VENV, Step, steps

LOG = PARTS / "setup.log"
MADE_FOR = VENV / "made-for"
UNFINISHED = VENV / "unfinished"

CA_BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Arch, Alpine
    "/etc/pki/tls/certs/ca-bundle.crt",  # Fedora, Red Hat
    "/etc/ssl/ca-bundle.pem",  # SUSE
    "/etc/ssl/cert.pem",  # macOS, Alpine
)


class SetupError(Exception):
    """Set-up can't go on; the text says why and what to do."""


def _base() -> tuple[str, ...]:
    """What all of .venv depends on: the Python, the machine, and the clone's place (scripts hold its path)."""
    return (sys.implementation.cache_tag or "", platform.system(), platform.machine(), str(ROOT))


def prepare_venv() -> None:
    """Leave a .venv of this Python in which no pip was stopped half-way; a good one stays as it is."""
    if _is_whole():
        return
    for module in ("venv", "ensurepip"):
        try:
            __import__(module)
        except ImportError:
            raise SetupError(
                f"{sys.executable} has no module {module}: install it (on Debian: apt install python3-venv), "
                "or name another Python: make PYTHON=... setup"
            ) from None
    print("set-up: .venv", flush=True)
    shutil.rmtree(VENV, ignore_errors=True)
    # Inside an activated .venv, python3 is the very link that is to be made anew.
    _run((getattr(sys, "_base_executable", sys.executable), "-I", "-m", "venv", VENV))
    MADE_FOR.write_text(repr(_base()))


def _is_whole() -> bool:
    with contextlib.suppress(FileNotFoundError):
        made = MADE_FOR.read_text() == repr(_base()) and not UNFINISHED.exists()
        return made and _venv_python() == sys.implementation.cache_tag
    return False


def _venv_python() -> str | None:
    """Cache tag of .venv's Python; None when it does not start (never made, or its Python was removed)."""
    try:
        probe = subprocess.run(
            [PYTHON, "-I", "-S", "-c", "import sys; print(sys.implementation.cache_tag)"],
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:
        return None
    return probe.stdout.strip()


def perform(step: Step) -> None:
    """Do one step and stamp it. Raises SetupError; the stamp is then missing."""
    print(f"set-up: {step.title}", flush=True)
    step.stamp.unlink(missing_ok=True)
    step.stamp.parent.mkdir(parents=True, exist_ok=True)
    if "pip" in step.command:
        UNFINISHED.touch()
        # amazon_kclpy's build fetches its jars from here, one by one and unchecked: hand it those that were checked.
        _run(step.command, {"KCL_MVN_REPO_SEARCH_URL": f"{artifacts.MAVEN.as_uri()}/"})
        UNFINISHED.unlink()
    else:
        _run(step.command)
    part = step.stamp.with_name(f"{step.name}.part")
    part.write_text(step.fingerprint())
    part.replace(step.stamp)


def _run(command: tuple[str | Path, ...], variables: Mapping[str, str] = MappingProxyType({})) -> None:
    """Run a command with its output in the log. Raises SetupError with what the log says of the reason."""
    with LOG.open("a+") as log:
        log.write(f"\n$ {' '.join(map(str, command))}\n")
        log.flush()
        start = log.tell()
        # Children keep the lock (an inherited descriptor holds it): should this process be killed, the next
        # set-up waits for the pip that it left behind.
        status = subprocess.run(
            command,
            cwd=ROOT,
            env={**_environment(), **variables},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            close_fds=False,
            check=False,
        ).returncode
        log.seek(start)
        said = [line.strip() for line in log.read().splitlines() if line.strip()]
    if status == 0:
        for line in said:
            if line.startswith(artifacts.ALOUD):
                print(f"set-up: {line.removeprefix(artifacts.ALOUD)}")
        return
    # pip says first why it could not connect (each retry anew), then what it did not get.
    connection = [line for line in said if line.startswith("WARNING: Retrying")]
    reasons = [line for line in said if line.startswith(("ERROR", "error:"))] or said
    raise SetupError("\n".join(connection[-1:] + reasons[-3:]) or f"status {status}")


def _environment() -> dict[str, str]:
    environment = dict(os.environ)
    # A private authority is in the system's bundle; pip, requests and Node bring bundles of their own.
    bundle = next((file for file in CA_BUNDLES if Path(file).is_file()), None)
    if bundle:
        for name in ("PIP_CERT", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS"):
            environment.setdefault(name, bundle)
    # These would send packages elsewhere than into .venv.
    for name in ("PIP_USER", "PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PYTHONHOME", "PYTHONPATH"):
        environment.pop(name, None)
    return environment


def main(level: str) -> None:
    if sys.version_info < (3, 11):  # noqa: UP036 - whoever runs this may have an older one
        found = ".".join(map(str, sys.version_info[:3]))
        sys.exit(f"Python 3.11 or later is needed, {sys.executable} is {found}: make PYTHON=python3.12 ...")
    signal.signal(signal.SIGTERM, _on_sigterm)
    began = time.monotonic()
    PARTS.mkdir(exist_ok=True)
    with (PARTS / "lock").open("w") as lock:
        _wait_for(lock.fileno())
        title = ".venv"
        try:
            prepare_venv()
            for step in steps(level):
                title = step.title
                if not step.is_done():  # asked in turn: a step may undo what a later one has stamped
                    perform(step)
        except SetupError as error:
            sys.exit(
                f"set-up failed at {title}:\n{error}\n"
                "If it is the network: check it and the proxy, then run the same command again; it goes on "
                f"from here. All that was said: {LOG.relative_to(ROOT)}"
            )
        except KeyboardInterrupt:
            sys.exit("set-up interrupted; the same command goes on from here")
    if (took_s := time.monotonic() - began) > 1:
        print(f"set-up: done in {took_s:.0f} s", flush=True)


def _wait_for(lock: int) -> None:
    os.set_inheritable(lock, True)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("set-up: another one is at work on this clone; waiting for it", flush=True)
        fcntl.flock(lock, fcntl.LOCK_EX)


def _on_sigterm(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main(sys.argv[1])
