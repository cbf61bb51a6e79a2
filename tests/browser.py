"""A headless Chromium that opens pages as a reader's browser does, and axe-core that tells what keeps some readers out.

    with chromium(tmp_path) as browser, opened(browser, javascript=False) as tab:
        tab.page.goto(address)
        assert tab.hosts == {"127.0.0.1"}
        assert tab.complaints == []

It reaches this machine alone, whatever a page asks for. The fetched one reads nothing of the person's who runs the
tests, neither settings nor fonts, so that a page looks the same everywhere. Driver and browser end with the block, and
when the tests' process is killed: each ends when the pipe from the one that started it is closed.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit
from xml.sax.saxutils import escape

from playwright.sync_api import Browser, Page, ViewportSize, WebError, sync_playwright

from devstack import npm

NAMES = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = ("--disable-gpu", "--no-proxy-server", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1")
FONTS_CONF = (
    '<?xml version="1.0"?><!DOCTYPE fontconfig SYSTEM "fonts.dtd">'
    "<fontconfig><dir>{fonts}</dir><cachedir>{cache}</cachedir></fontconfig>"
)
RUN_AXE = """axe.run(document, {resultTypes: ["violations"]}).then(({violations}) => violations.flatMap(
    ({id, impact, help, nodes}) => nodes.map(({target}) => `${id} (${impact}): ${help}: ${target.join(" ")}`)))"""


class NoChromiumError(Exception):
    """There is no Chromium to be started; the text is one line that says what to do."""


@dataclass
class Tab:
    """An open page and what it did since: the addresses it asked for, in that order, and errors as Chromium words them.

    Errors are what the console shows as such (the page's policy was broken, a file did not load), and scripts' own.
    """

    page: Page
    javascript: bool
    requested: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    @property
    def hosts(self) -> set[str]:
        """Names of the hosts that the page asked for anything, also in vain; `data:` has none."""
        return {name for address in self.requested if (name := urlsplit(address).hostname)}


def program(environment: Mapping[str, str], fetched: Path | None) -> Path:
    """Return the Chromium to start: CHROMIUM's, else the fetched one, else the first of NAMES on PATH.

    Raises NoChromiumError when there is none, or CHROMIUM names none.
    """
    path = environment.get("PATH", os.defpath)
    if named := environment.get("CHROMIUM"):
        if found := shutil.which(named, path=path):
            return Path(found)
        raise NoChromiumError(f"CHROMIUM={named!r} can't be used: it is no program")
    if fetched and fetched.is_file():
        return fetched
    if found := next(filter(None, (shutil.which(name, path=path) for name in NAMES)), None):
        return Path(found)
    raise NoChromiumError("no Chromium: make setup-dev brings one on Linux x86_64; elsewhere set CHROMIUM=/path/to/one")


@contextmanager
def chromium(home: Path) -> Iterator[Browser]:
    """Start Chromium, in about a second; what it keeps for itself goes to `home`, a folder that is there and empty.

    Raises NoChromiumError when there is none. While it runs, playwright's event loop runs in this thread, and
    asyncio.run would refuse to start another.
    """
    fetched = npm.chromium_folder() / "chromium" if npm.has_chromium() else None
    path = program(os.environ, fetched)
    with sync_playwright() as playwright:
        variables = _surroundings(path.parent, home) if path == fetched else dict[str, str | float | bool](os.environ)
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS, env=variables)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def opened(
    browser: Browser,
    *,
    color_scheme: Literal["light", "dark"] = "light",
    width_px: int = 1280,
    height_px: int = 800,
    javascript: bool = True,
) -> Iterator[Tab]:
    """Open an empty page that shares nothing with others, neither cookies nor cache."""
    context = browser.new_context(
        color_scheme=color_scheme,
        viewport=ViewportSize(width=width_px, height=height_px),
        java_script_enabled=javascript,
        locale="en-GB",
        timezone_id="UTC",
    )
    try:
        tab = Tab(context.new_page(), javascript)
        context.on("request", lambda request: tab.requested.append(request.url))
        context.on("console", lambda said: said.type == "error" and tab.complaints.append(said.text))
        context.on("weberror", lambda thrown: tab.complaints.append(_text(thrown)))
        tab.page.on("websocket", lambda socket: tab.requested.append(socket.url))
        yield tab
    finally:
        context.close()


def axe(tab: Tab) -> list[str]:
    """Return what axe-core finds wrong with the page as it stands, by all of its rules, a line for each place.

    It comes through the debugger: a policy that allows no script does not keep it out. JavaScript must be on.
    """
    assert tab.javascript, "axe-core waits for ever in a page without JavaScript"
    tab.page.evaluate(f"{npm.axe_script().read_text(encoding='utf-8')}; null")
    found: list[str] = tab.page.evaluate(RUN_AXE)
    return found


def _surroundings(folder: Path, home: Path) -> dict[str, str | float | bool]:
    """The whole environment of the fetched Chromium: its own libraries and fonts, and a home of its own."""
    fonts_conf = home / "fonts.conf"
    fonts_conf.write_text(FONTS_CONF.format(fonts=escape(str(folder / "fonts")), cache=escape(str(home / "fonts"))))
    return {
        "HOME": str(home),
        "LANG": "C.UTF-8",
        "LD_LIBRARY_PATH": str(folder / "lib"),
        "FONTCONFIG_FILE": str(fonts_conf),
    }


def _text(thrown: WebError) -> str:
    return str(thrown.error)
