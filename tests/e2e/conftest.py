"""The pipelines that the tests share, and the ends of their logs when one fails."""

from __future__ import annotations

from collections.abc import Generator, Iterator

import pytest

from tests.e2e.parts import Parts, emulators
from tests.e2e.processes import log_tails
from tests.e2e.stack import Stack
from tests.e2e.tables import Tables
from tests.e2e.truth import Truth

TIMEOUT_S = 900
"""A test has several waits, and the first one of a stack waits for it, too."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(__file__.rpartition("/")[0]):
            item.add_marker(pytest.mark.e2e)
            item.add_marker(pytest.mark.timeout(TIMEOUT_S))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(call: pytest.CallInfo[None]) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        report.sections.extend(log_tails(since_s=call.start))
    return report


@pytest.fixture(autouse=True)
def _aws_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process's own clients talk to the emulators only."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_DYNAMODB"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "local")


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """`metering up`, running; a test that stops it starts it again."""
    running = Stack(tmp_path_factory.mktemp("stack"))
    try:
        running.start()
        yield running
    finally:
        running.close()


@pytest.fixture(scope="session")
def truth() -> Truth:
    """Every event of a tenant `e2e-…` that any test has sent through `stack`."""
    return Truth()


@pytest.fixture
def tables(stack: Stack) -> Iterator[Tables]:
    """The tables and the stream of `stack`."""
    with stack.tables() as opened:
        yield opened


@pytest.fixture(scope="session")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parts]:
    """DynamoDB Local and kinesis-mock alone, with nothing in them: a test starts what it needs beside them."""
    folder = tmp_path_factory.mktemp("parts")
    with emulators(folder) as (kinesis_url, dynamodb_url):
        yield Parts(folder, kinesis_url, dynamodb_url)
