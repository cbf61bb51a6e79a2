"""The folder in which gunicorn's workers keep their metrics, so that any one of them answers /metrics for all.

prometheus_client's multiprocess mode: each process writes its values to files that it maps into memory, and whoever is
asked adds up the files. PROMETHEUS_MULTIPROC_DIR names the folder, and is looked at when prometheus_client is imported.
So the order is this, and nothing that the master loads may import prometheus_client at its top:

    master  reads gunicorn_conf ─► open(): folder, variable ─► forks ─► worker  builds app, imports prometheus_client

    counter_<pid>.db, histogram_<pid>.db    kept when their worker ends, or sums would go back
    gauge_livesum_<pid>.db                  removed when their worker ends: nothing waits in it any more

What is kept is little: for each worker that ever ended under one master 36 KiB of memory and 0.3 ms of each scrape
(measured with the collector's series). Workers end when they crash and on a reload; the 64 MB of /dev/shm in a Docker
container hold 1,700 of them. A restart of the service begins anew.
"""

from __future__ import annotations

import atexit
import fcntl
import os
import shutil
import tempfile
from collections.abc import MutableMapping
from contextlib import suppress
from pathlib import Path

from metering.errors import InvalidSettingError, SetupError

VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
PREFIX = "metering-metrics-"
MEMORY_FOLDER = Path("/dev/shm")  # noqa: S108 - the container's root file system is read-only; mkdtemp makes it private


class MetricsFolder:
    """One master's folder: made by `open`, removed when the process that opened it exits.

    A folder that PROMETHEUS_MULTIPROC_DIR names already is used as it is and never removed.
    """

    def __init__(self, environment: MutableMapping[str, str], parent: Path | None = None) -> None:
        """Look at `environment`, make nothing. parent: where folders are made; None: in memory, where there is such.

        Raises InvalidSettingError when the variable names no folder that can be written.
        """
        self._environment = environment
        self._parent = parent
        given = environment.get(VARIABLE, "")
        # A master that gunicorn starts for an upgrade (USR2) may inherit the variable of the old one, which removes its
        # folder when it goes.
        self._given = bool(given) and not Path(given).name.startswith(PREFIX)
        if self._given and not (Path(given).is_dir() and os.access(given, os.W_OK)):
            raise InvalidSettingError(VARIABLE, given, "allowed: empty, or a folder that exists and can be written")

    def open(self) -> None:
        """Make the folder and name it in the environment; remove what masters that were killed have left behind.

        Call it in the master, before it forks. Raises SetupError when there is no place for a folder.
        """
        if self._given:
            return
        parent = self._parent or (
            MEMORY_FOLDER if os.access(MEMORY_FOLDER, os.W_OK | os.X_OK) else Path(tempfile.gettempdir())
        )
        _sweep(parent)
        try:
            folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
            while _locked(folder) is None:  # another master's sweep came between the two lines
                folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        except OSError as error:
            raise SetupError(f"there is no place for metrics: {error}") from error
        # The lock is never closed: workers inherit it, and the kernel frees it with the last process of this master.
        self._environment[VARIABLE] = str(folder)
        atexit.register(_remove, folder, os.getpid())

    def worker_ended(self, pid: int) -> None:
        """Take what a worker that has ended counted as pending out of the sums."""
        from prometheus_client.multiprocess import mark_process_dead  # noqa: PLC0415 - see the top

        mark_process_dead(pid, self._environment[VARIABLE])  # type: ignore[no-untyped-call]  # it lacks types


def _sweep(parent: Path) -> None:
    """Remove the folders below `parent` that no living process holds."""
    for left in parent.glob(f"{PREFIX}*"):
        with suppress(OSError):  # another sweep was faster, or it is someone else's
            lock = _locked(left) if left.lstat().st_uid == os.getuid() else None
            if lock is not None:
                shutil.rmtree(left)
                os.close(lock)


def _locked(folder: Path) -> int | None:
    """Lock `folder` and return the lock's descriptor, or None when another process holds it or has removed it."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    with suppress(BlockingIOError, FileNotFoundError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(descriptor), folder.lstat()):
            return descriptor
    os.close(descriptor)
    return None


def _remove(folder: Path, owner: int) -> None:
    if os.getpid() == owner:  # workers run what the master registered, too
        shutil.rmtree(folder, ignore_errors=True)
