"""The browser of the live tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from playwright.sync_api import Browser

from tests.browser import NoChromiumError, Tab, chromium, opened


@pytest.fixture(scope="module")  # not session: see chromium() about asyncio.run, which other modules call
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with ExitStack() as stack:
        try:
            started = stack.enter_context(chromium(tmp_path_factory.mktemp("chromium")))
        except NoChromiumError as error:
            raise pytest.fail.Exception(str(error), pytrace=False) from None
        yield started


@pytest.fixture
def open_tab(browser: Browser) -> Iterator[Callable[..., Tab]]:
    """`tests.browser.opened` of this browser, for as long as the test runs."""
    with ExitStack() as stack:
        yield lambda **how: stack.enter_context(opened(browser, **how))
