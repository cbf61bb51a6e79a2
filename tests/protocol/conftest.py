"""What the tests of the record processor share: twins of the tables and the stream, and retries that are soon over."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import stamina

from consumer import record_processor
from metering.memory import MemoryStream, MemoryTables
from tests.builders import CREATED_AT


@pytest.fixture
def tables() -> MemoryTables:
    return MemoryTables()


@pytest.fixture
def stream() -> MemoryStream:
    return MemoryStream(created_at=CREATED_AT)


@pytest.fixture(autouse=True)
def _quick_retries(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Retries as in production, but over within a second."""
    monkeypatch.setattr(record_processor, "RETRY_S", 1.0)
    yield
    stamina.set_testing(False)
