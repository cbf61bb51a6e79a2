"""The pages in Chromium: with data, with none and with the tables away; light, dark, on a phone, by keyboard."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser import Tab, axe
from tests.live.pages_live_app import HOSTILE, LONG
from tests.live.test_collector_live import BOOT_S, LiveCollector, free_port, gunicorn, until

OpenTab = Callable[..., Tab]
PHONE_PX = 360
PAGES = {
    "home": "/",
    "tenant": "/tenants/acme",
    "level": "/tenants/acme?metric=seats",
    "long names": f"/tenants/{LONG}",
    "no events": "/tenants/quiet",
    "invoice": "/v1/tenants/acme/invoice?period=2024-01&format=html",
}
LOOKS: dict[str, dict[str, Any]] = {
    "light": {},
    "dark": {"color_scheme": "dark"},
    "phone": {"width_px": PHONE_PX},
    "dark phone": {"width_px": PHONE_PX, "color_scheme": "dark"},
}


@pytest.fixture(scope="module", params=["full"])
def pages(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Billing of the world that `request.param` names; its address."""
    port, folder = free_port(), tmp_path_factory.mktemp("pages")
    with gunicorn(folder / "log", "tests.live.pages_live_app:create()", port=port, WORLD=str(request.param)) as process:
        until(LiveCollector(process, port, folder / "log").alive, BOOT_S)
        yield f"http://127.0.0.1:{port}"


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("name", PAGES)
def test_a_page_fits_is_for_everyone_and_asks_no_other_host(
    pages: str, open_tab: OpenTab, name: str, look: str
) -> None:
    tab = open_tab(**LOOKS[look])
    tab.page.goto(pages + PAGES[name])
    assert tab.hosts == {"127.0.0.1"}
    assert {Path(address).suffix for address in tab.requested[1:]} <= {".css", ".svg"}
    assert tab.complaints == []
    assert axe(tab) == []
    assert tab.page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page is wider than the window"
    for details in tab.page.locator("details").all():
        details.locator("summary").click()
    assert axe(tab) == []


@pytest.mark.parametrize("pages", ["empty", "away"], indirect=True)
@pytest.mark.parametrize("path", ["/", "/tenants/acme"])
def test_without_data_or_without_tables_a_page_says_what_is_missing(pages: str, open_tab: OpenTab, path: str) -> None:
    for look in LOOKS.values():
        tab = open_tab(**look)
        answer = tab.page.goto(pages + path)
        assert answer is not None
        assert tab.hosts == {"127.0.0.1"}
        assert axe(tab) == []
        text = tab.page.locator("main").inner_text()
        said = {200: "No event of any tenant has been counted yet.", 404: "no event of tenant acme has been counted"}
        assert said.get(answer.status, "a service that this one needs is not available") in text


def test_nothing_that_a_producer_writes_runs_or_is_drawn_as_markup(pages: str, open_tab: OpenTab) -> None:
    tab = open_tab()
    dialogs: list[str] = []
    tab.page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    tab.page.goto(f"{pages}/tenants/acme")
    assert HOSTILE in tab.page.locator("#rejected ~ div").inner_text()
    assert "<b>calls</b>" in tab.page.locator("#month-chart").inner_text()
    assert tab.page.locator("main b, main img, main script").count() == 0
    assert dialogs == []
    assert tab.complaints == []


def test_bars_are_drawn_as_long_as_what_they_show(pages: str, open_tab: OpenTab) -> None:
    tab = open_tab()
    tab.page.goto(f"{pages}/tenants/acme")
    boxes = [bar.bounding_box() for bar in tab.page.locator(".chart .bar rect").all()]
    heights = [box["height"] for box in boxes if box]
    assert len(heights) == 31
    assert heights[15:] == [0] * 16
    assert heights[14] > 200
    assert heights[6] == pytest.approx(heights[14] * (7 * 417.25 - 0.25 * 6) / (15 * 417.25 - 0.25 * 14), rel=0.01)


def test_the_colours_of_light_and_dark_differ(pages: str, open_tab: OpenTab) -> None:
    colours = set()
    for look in ("light", "dark"):
        tab = open_tab(**LOOKS[look])
        tab.page.goto(f"{pages}/tenants/acme")
        colours.add(tab.page.evaluate("getComputedStyle(document.body).backgroundColor"))
        colours.add(tab.page.evaluate("getComputedStyle(document.querySelector('.bar rect')).fill"))
    assert len(colours) == 4


def test_everything_can_be_done_by_keyboard_without_javascript(pages: str, open_tab: OpenTab) -> None:
    tab = open_tab(javascript=False)
    tab.page.goto(pages)
    tab.page.keyboard.press("Tab")
    assert tab.page.locator(":focus").inner_text() == "Skip to the content"
    assert tab.page.locator(":focus").bounding_box()["x"] >= 0  # type: ignore[index]
    tab.page.keyboard.press("Enter")
    tab.page.keyboard.press("Tab")
    tab.page.keyboard.type("acme")
    tab.page.keyboard.press("Enter")
    tab.page.wait_for_url("**/tenants/acme")
    tab.page.get_by_role("combobox", name="Metric").focus()
    tab.page.keyboard.type("sto")
    tab.page.keyboard.press("Tab")
    tab.page.keyboard.press("Control+A")
    tab.page.keyboard.type("UTC")
    tab.page.keyboard.press("Enter")
    tab.page.wait_for_url("**metric=storage**")
    assert "180,000,000,000 GB from 15 events, by day in UTC" in tab.page.locator("#month-chart").inner_text()
    tab.page.locator("summary").focus()
    tab.page.keyboard.press("Enter")
    assert "2024-01-15" in tab.page.locator("details table").inner_text()


def test_a_screen_reader_is_told_the_same(pages: str, open_tab: OpenTab) -> None:
    tab = open_tab()
    tab.page.goto(f"{pages}/tenants/acme")
    chart = tab.page.get_by_role("img", name="50,043.75 <b>calls</b> from 15 events, by day in Europe/Berlin.")
    assert chart.count() == 1
    assert tab.page.get_by_role("rowheader", name="Total").count() == 1
    for name in ("api_calls in 2024-01", "Preview of the invoice 2024-01", "Last rejected events"):
        assert tab.page.get_by_role("region", name=name).count() == 1
