"""The emulators that the tests here share; as end to end, their credentials, and the ends of logs when a test fails."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import _aws_credentials, pytest_runtest_makereport
from tests.e2e.parts import emulators

__all__ = ["_aws_credentials", "pytest_runtest_makereport"]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("torture")


@pytest.fixture(scope="session")
def urls(folder: Path) -> Iterator[tuple[str, str]]:
    """kinesis-mock and DynamoDB Local."""
    with emulators(folder) as both:
        yield both
