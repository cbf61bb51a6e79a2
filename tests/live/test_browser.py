"""What the tests of the pages rest on: the browser draws text, sees what a page asks for, and ends with its test."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest
from playwright.sync_api import Error

from metering.processes import wait_until
from tests.browser import NoChromiumError, Tab, axe, program

ROOT = Path(__file__).parents[2]
STYLE = """
body { margin: 0; background: #fff; color: #111 }
@media (prefers-color-scheme: dark) { body { background: #111; color: #fff } }
"""
POLICY = "default-src 'none'; style-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'"
WORDS = '<p><span id="words">Usage of March</span></p>'
CHART = (
    '<svg role="img" aria-label="Usage by day" width="200" height="100">'
    '<rect width="50" height="50" fill="#06c"/><text id="label" x="5" y="90">31 days</text></svg>'
)
IMAGE = '<img id="image" src="/style.css">'  # no image, and no text in its place
ELSEWHERE = '<img src="http://elsewhere.example/pixel.png" alt="counted">'
SCRIPT = "<script>document.title = 'changed'</script>"
OpenTab = Callable[..., Tab]

# Starts a browser, says so, and then fails or waits to be killed.
STARTS_ONE = """
import pathlib, sys, time
from tests.browser import chromium, opened
with chromium(pathlib.Path(sys.argv[1])) as browser, opened(browser) as tab:
    tab.page.goto("data:text/html,here")
    print("open", flush=True)
    if sys.stdin.readline() == "fail\\n":
        raise AssertionError
    time.sleep(60)
"""


class Pages(BaseHTTPRequestHandler):
    """Answers every path with the page whose body stands in `bodies` under it, by a policy that allows no script."""

    bodies: dict[str, str]

    def do_GET(self) -> None:
        css = self.path == "/style.css"
        text = STYLE if css else self.page()
        self.send_response(200)
        self.send_header("Content-Type", "text/css" if css else "text/html; charset=utf-8")
        self.send_header("Content-Security-Policy", POLICY)
        self.end_headers()
        self.wfile.write(text.encode())

    def page(self) -> str:
        return (
            '<!doctype html><html lang="en"><head><title>Usage</title>'
            '<link rel="stylesheet" href="/style.css"></head>'
            f"<body><main><h1>Usage</h1>{self.bodies[self.path]}</main></body></html>"
        )

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - the base class's name
        pass


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    bodies = {
        "/good": WORDS + CHART,
        "/wordless": CHART,
        "/chartless": WORDS,
        "/image": WORDS + IMAGE,
        "/elsewhere": WORDS + ELSEWHERE,
        "/script": WORDS + SCRIPT,
    }
    with ThreadingHTTPServer(("127.0.0.1", 0), type("Site", (Pages,), {"bodies": bodies})) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def show(address: str, open_tab: OpenTab) -> OpenTab:
    def show(path: str, **how: object) -> Tab:
        tab = open_tab(**how)
        tab.page.goto(address + path)
        return tab

    return show


@pytest.mark.parametrize("javascript", [True, False])
def test_words_and_charts_are_drawn(show: OpenTab, *, javascript: bool) -> None:
    tab = show("/good", javascript=javascript)
    for place in ("#words", "#label"):
        box = tab.page.locator(place).bounding_box()
        assert box
        assert box["width"] > 20
    good = tab.page.screenshot()
    assert good == show("/good").page.screenshot()
    words = tab.page.locator("#words").screenshot()
    tab.page.locator("#words").evaluate("words => { words.style.color = 'transparent' }")
    assert words != tab.page.locator("#words").screenshot()
    assert good != show("/wordless").page.screenshot()
    assert good != show("/chartless").page.screenshot()


def test_the_page_has_the_colours_and_the_width_that_were_asked_for(show: OpenTab) -> None:
    light, dark = show("/good"), show("/good", color_scheme="dark", width_px=390)
    colours = [tab.page.evaluate("getComputedStyle(document.body).backgroundColor") for tab in (light, dark)]
    assert colours == ["rgb(255, 255, 255)", "rgb(17, 17, 17)"]
    assert [tab.page.evaluate("innerWidth") for tab in (light, dark)] == [1280, 390]


def test_a_good_page_asks_for_its_own_files_alone_and_gets_no_complaint(show: OpenTab, address: str) -> None:
    tab = show("/good")
    assert axe(tab) == []
    assert tab.requested == [f"{address}/good", f"{address}/style.css"]
    assert tab.hosts == {"127.0.0.1"}
    assert tab.complaints == []


def test_axe_names_an_image_without_a_text(show: OpenTab) -> None:
    assert axe(show("/image")) == ["image-alt (critical): Images must have alternative text: #image"]


@pytest.mark.parametrize("javascript", [True, False])
def test_what_a_page_asks_of_another_host_is_recorded_and_complained_about(show: OpenTab, *, javascript: bool) -> None:
    tab = show("/elsewhere", javascript=javascript)
    assert tab.hosts == {"127.0.0.1", "elsewhere.example"}
    assert ["elsewhere.example" in complaint for complaint in tab.complaints] == [True]


def test_no_other_host_is_ever_reached(open_tab: OpenTab, address: str) -> None:
    with pytest.raises(Error, match="ERR_NAME_NOT_RESOLVED"):
        open_tab().page.goto(address.replace("127.0.0.1", "localhost"))  # where the same server would answer


def test_a_script_that_the_policy_forbids_is_complained_about(show: OpenTab) -> None:
    tab = show("/script")
    assert tab.page.title() == "Usage"
    assert ["script" in complaint for complaint in tab.complaints] == [True]


@pytest.mark.parametrize("how", ["fail", "kill"])
def test_no_process_outlives_the_test_that_started_it(how: str, tmp_path: Path) -> None:
    with subprocess.Popen(
        (sys.executable, "-c", STARTS_ONE, tmp_path),
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as test:
        assert test.stdout
        assert test.stdout.readline() == "open\n"
        started = psutil.Process(test.pid).children(recursive=True)
        assert len([process for process in started if "chrom" in process.name()]) > 1
        assert any(map(is_alive, started))
        if how == "kill":
            test.send_signal(signal.SIGKILL)
        else:
            test.communicate("fail\n", timeout=30)
    assert wait_until(lambda: not any(map(is_alive, started)), timeout_s=10), [*filter(is_alive, started)]


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE  # ended, and nobody has asked for its exit code
    except psutil.NoSuchProcess:
        return False


def test_the_named_chromium_comes_before_the_fetched_one_and_that_before_the_systems(tmp_path: Path) -> None:
    for name in ("named", "fetched", "google-chrome"):
        (tmp_path / name).touch(mode=0o755)
    named, fetched, system = (tmp_path / name for name in ("named", "fetched", "google-chrome"))
    path = {"PATH": str(tmp_path)}
    assert program(path | {"CHROMIUM": str(named)}, fetched) == named
    assert program(path, fetched) == fetched
    assert program(path, None) == system
    assert program(path, tmp_path / "not fetched") == system


@pytest.mark.parametrize(
    ("named", "line"), [("/none", "^CHROMIUM='/none' can't be used"), ("", "^no Chromium: .*make")]
)
def test_no_chromium_is_one_line_that_says_what_to_do(tmp_path: Path, named: str, line: str) -> None:
    with pytest.raises(NoChromiumError, match=line) as raised:
        program({"PATH": str(tmp_path), "CHROMIUM": named}, None)
    assert "\n" not in str(raised.value)
