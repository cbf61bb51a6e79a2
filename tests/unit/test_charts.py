"""Charts: what a page may not hold is gone from them, and no bar is lost."""

from __future__ import annotations

import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lxml import etree

from billing.charts import HEIGHT, WIDTH, Bar, axis_text, bar_chart

ROOT = Path(__file__).parents[2]
TAGS = {"svg", "g", "path", "rect", "text", "title"}
ATTRIBUTES = {"class", "viewBox", "role", "aria-labelledby", "d", "x", "y", "rx", "ry", "width", "height", "transform"}
values = st.decimals(0, Decimal("9" * 30), places=12).filter(lambda value: value < 10**30)
texts = st.text(st.characters(categories=["L", "N", "P", "S", "Z"]))


@given(
    st.lists(st.builds(Bar, texts, texts, values), min_size=1, max_size=31).filter(
        lambda bars: any(bar.value for bar in bars)
    )
)
def test_it_holds_shapes_and_texts_alone_a_titled_bar_for_each(bars: list[Bar]) -> None:
    svg = etree.fromstring(str(bar_chart(bars, title_id="it", label_every=5)))
    assert {each.tag for each in svg.iter()} <= TAGS
    assert {name for each in svg.iter() for name in each.attrib} <= ATTRIBUTES
    drawn = svg.findall(".//g[@class='bar']")
    assert [each.findtext("title") or "" for each in drawn] == [bar.title for bar in bars]
    heights = [float(each.find("rect").get("height")) for each in drawn]
    highest = max(bar.value for bar in bars)
    for bar, height in zip(bars, heights, strict=True):
        share = float(bar.value / highest)
        assert height == pytest.approx(share * max(heights), abs=0.01)
    assert max(heights) > HEIGHT / 2


def test_every_so_manieth_bar_has_a_label() -> None:
    bars = [Bar(f"day {n}", "", Decimal(n)) for n in range(1, 32)]
    svg = etree.fromstring(str(bar_chart(bars, title_id="it", label_every=5)))
    assert [each.text for each in svg.findall(".//g[@class='axis x']//text")] == [f"day {n}" for n in range(1, 32, 5)]


def test_it_is_one_image_that_the_page_names() -> None:
    svg = etree.fromstring(str(bar_chart([Bar("a", "b", Decimal(1))], title_id="it", label_every=1)))
    assert dict(svg.attrib) == {
        "class": "chart",
        "viewBox": f"0 0 {WIDTH} {HEIGHT}",
        "role": "img",
        "aria-labelledby": "it",
    }


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.002, "0.002"), (999, "999"), (1500, "1.5k"), (2.5e9, "2.5G"), (9.99e20, "999E"), (1e21, "1e+21")],
)
def test_numbers_of_the_axis_are_short(value: float, text: str) -> None:
    assert axis_text(value) == text


def test_it_is_the_same_without_lxml() -> None:
    """pygal draws with lxml where there is one, as among the tests' packages, and a service has none."""
    program = (
        "from decimal import Decimal; from pygal.etree import etree; from billing.charts import *; etree.to_etree();"
        "print(bar_chart([Bar('a<', 'b&', Decimal(1)), Bar('c', 'd', Decimal(2))], title_id='it', label_every=1))"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    bars = [Bar("a<", "b&", Decimal(1)), Bar("c", "d", Decimal(2))]
    assert run.stdout.strip() == str(bar_chart(bars, title_id="it", label_every=1))
