"""The jars, which pip does not bring: DynamoDB Local's and the KCL's.

Each is pinned in a list beside this module, arrives as `*.part`, is checked against its pin and only
then takes its name: a file under its own name is whole. `devstack.bootstrap` runs this with .venv's Python as
`python -m devstack.artifacts maven|kclpy`; third-party modules are imported where they are
used, since bootstrap reads the lists before anything is installed. npm's packages: `devstack.npm`.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import sysconfig
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

LISTS = Path(__file__).parent
PARTS = LISTS.parent / ".devstack"
MAVEN = PARTS / "maven"
DYNAMODB_LOCAL_LIST = LISTS / "dynamodb-local-jars.txt"
KCL_LIST = LISTS / "kcl-jars.txt"

ALOUD = "note: "  # set-up repeats such lines to the person; the others stand in its log
DOWNLOADS_AT_ONCE = 8
ATTEMPTS_MAX = 3
TIMEOUT_S = (10, 60)  # to connect; between two pieces of an answer


class ArtifactError(Exception):
    """A file could not be had, or is not what its pin says. The text says which, from where, and why."""


@dataclass(frozen=True)
class MavenPin:
    """One jar of Maven Central: where it belongs in a repository's layout and what it must hold."""

    sha256: str
    group: str
    artifact: str
    version: str

    @property
    def coordinate(self) -> str:
        return f"{self.group}:{self.artifact}:{self.version}"

    @property
    def file_name(self) -> str:
        return f"{self.artifact}-{self.version}.jar"

    @property
    def path(self) -> Path:
        return MAVEN.joinpath(*self.group.split("."), self.artifact, self.version, self.file_name)


def lines(file: Path) -> list[str]:
    """Return the lines of a list of pins, without its comments."""
    return [line for line in file.read_text().splitlines() if line and not line.startswith("#")]


def maven_pins(file: Path) -> list[MavenPin]:
    """Read the pins of `file` in its order. A line is `sha256 group:artifact:version`."""
    pins = []
    for line in lines(file):
        sha256, coordinate = line.split()
        pins.append(MavenPin(sha256, *coordinate.split(":")))
    return pins


def maven_files() -> list[Path]:
    """Every file that `fetch_maven` leaves."""
    return [pin.path for pin in maven_pins(DYNAMODB_LOCAL_LIST) + maven_pins(KCL_LIST)]


def kclpy_files(site_packages: Path) -> list[Path]:
    """Every jar of an installed amazon_kclpy."""
    return [site_packages / "amazon_kclpy" / "jars" / pin.file_name for pin in maven_pins(KCL_LIST)]


def fetch_maven() -> None:
    """Bring every pinned file below .devstack/maven, eight at a time; those that are there and whole stay.

    Raises ArtifactError naming the first file that failed; what has arrived by then stays and is not
    fetched again.
    """
    wanted = {pin.path: pin for pin in maven_pins(DYNAMODB_LOCAL_LIST) + maven_pins(KCL_LIST)}
    with ThreadPoolExecutor(DOWNLOADS_AT_ONCE) as pool:
        work = [pool.submit(_fetch_one, pin) for pin in wanted.values()]
        try:
            for done in as_completed(work):
                done.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def repair_kclpy(site_packages: Path) -> list[str]:
    """Check the installed amazon_kclpy's jars against their pins; replace each that is missing or damaged.

    amazon_kclpy's own build looks at names only. Returns the names of the jars replaced. Needs what
    `fetch_maven` leaves.
    """
    replaced = []
    for pin, jar in zip(maven_pins(KCL_LIST), kclpy_files(site_packages), strict=True):
        if _sha256(jar) != pin.sha256:
            jar.parent.mkdir(parents=True, exist_ok=True)
            part = jar.with_name(f"{jar.name}.part")
            shutil.copyfile(pin.path, part)
            part.replace(jar)
            replaced.append(jar.name)
    return replaced


def _sha256(file: Path) -> str | None:
    try:
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except FileNotFoundError:
        return None


def _fetch_one(pin: MavenPin) -> None:
    if _sha256(pin.path) == pin.sha256:
        return
    for attempt in range(1, ATTEMPTS_MAX + 1):
        try:
            _download(pin)
        except OSError as error:  # requests' errors are OSErrors
            if attempt == ATTEMPTS_MAX:
                raise ArtifactError(f"{pin.coordinate} (Maven Central) did not arrive: {error}") from error
            time.sleep(attempt)
        else:
            return


def _download(pin: MavenPin) -> None:
    import requests  # noqa: PLC0415 - installed by the time this is called
    from maven_artifact.artifact import Artifact  # noqa: PLC0415
    from maven_artifact.requestor import Requestor  # noqa: PLC0415
    from maven_artifact.resolver import Resolver  # noqa: PLC0415

    # amazon_kclpy's own variable for a mirror of Maven Central serves all jars.
    mirror = os.environ.get("KCL_MVN_REPO_SEARCH_URL")
    resolver = Resolver(mirror, Requestor()) if mirror else Resolver.default()
    address = resolver.uri_for_artifact(Artifact.parse(pin.coordinate))
    pin.path.parent.mkdir(parents=True, exist_ok=True)
    part = pin.path.with_name(f"{pin.file_name}.part")
    digest = hashlib.sha256()
    with requests.get(address, stream=True, timeout=TIMEOUT_S) as answer, part.open("wb") as file:
        answer.raise_for_status()
        for piece in answer.iter_content(1 << 16):
            digest.update(piece)
            file.write(piece)
    if digest.hexdigest() != pin.sha256:
        found = digest.hexdigest()
        raise ArtifactError(f"{pin.coordinate} (Maven Central) is sha256 {found}, not {pin.sha256}")
    part.replace(pin.path)


def main(what: str) -> None:
    """Do one step of set-up; an ArtifactError becomes one line on stderr and status 1."""
    try:
        if what == "maven":
            fetch_maven()
        elif what == "kclpy":
            for name in repair_kclpy(Path(sysconfig.get_path("purelib"))):
                print(f"{ALOUD}amazon_kclpy's {name} was missing or damaged: replaced")
        else:
            sys.exit(f"unknown step {what!r}")
    except ArtifactError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main(sys.argv[1])
