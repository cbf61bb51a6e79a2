"""Bar charts as SVG for the pages: drawn by pygal, then bare of whatever a page must not hold. Pure.

pygal writes a stylesheet, scripts and tooltips of its own. A page with a strict Content-Security-Policy takes no such
style, and the colours are for the page's stylesheet to say, light and dark. What is left are shapes, texts and classes.

A chart shows; it does not tell: its lengths go through floats. The exact figures stand in a table beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from xml.etree import ElementTree as ET

import pygal
from markupsafe import Markup
from pygal.style import Style

from metering.events import decimal_text

WIDTH, HEIGHT = 800, 320
LABEL_PX = 30
"""For what pygal keeps room; the stylesheet draws labels no larger."""

_UNITS = ("", "k", "M", "G", "T", "P", "E")
_DROPPED = frozenset({"defs", "desc", "script", "title"})
_OVERLAYS = frozenset({"titles", "plot overlay", "plot text-overlay", "plot tooltip-overlay"})
_STYLE = Style(label_font_size=LABEL_PX, major_label_font_size=LABEL_PX, no_data_font_size=LABEL_PX)


@dataclass(frozen=True, slots=True)
class Bar:
    """value: 0 or more. label: under the bar, where there is room. title: what the bar is, in words and exactly."""

    label: str
    title: str
    value: Decimal


def bar_chart(bars: Sequence[Bar], *, title_id: str, label_every: int) -> Markup:
    """Return an `<svg>` of `bars`, one image to a screen reader, which reads the element `title_id` of the page for it.

    label_every: every so manieth bar is labelled, from the first on. Text is escaped. Not for bars that are all 0.
    """
    chart = pygal.Bar(
        width=WIDTH,
        height=HEIGHT,
        explicit_size=False,
        js=[],
        style=_STYLE,
        show_legend=False,
        disable_xml_declaration=True,
        margin=4,
        spacing=8,
        max_scale=6,
        include_x_axis=True,
        x_labels_major_every=label_every,
        show_minor_x_labels=False,
        truncate_label=-1,
        value_formatter=axis_text,
    )
    chart.x_labels = [bar.label for bar in bars]
    chart.add(None, [float(bar.value) for bar in bars])
    svg = ET.fromstring(chart.render(is_unicode=True))  # noqa: S314 -- pygal has escaped all text in it
    _undress(svg)
    shapes = [each for each in svg.iter("g") if each.get("class") == "bar"]
    for shape, bar in zip(shapes, bars, strict=True):
        title = ET.Element("title")  # a browser shows it to who points there
        title.text = bar.title
        shape.insert(0, title)
    svg.attrib = {
        "class": "chart",
        "viewBox": svg.attrib["viewBox"],
        "role": "img",
        "aria-labelledby": title_id,
    }
    return Markup(ET.tostring(svg, encoding="unicode"))  # noqa: S704 -- ET escapes


def axis_text(value: float) -> str:
    """Return a number of the axis (0 or more), short: `1.5k` for 1500, `0.002`; numbers of the axis are round."""
    if value >= 1000 ** len(_UNITS):
        return f"{value:.3g}"
    power = 0
    while value >= 1000:
        value, power = value / 1000, power + 1
    return decimal_text(Decimal(f"{value:.3g}")) + _UNITS[power]


def _undress(element: ET.Element) -> None:
    """Take away styles, scripts, tooltips and namespaces: `<svg>` within HTML needs none (HTML standard, 4.8.16)."""
    element.tag = element.tag.rpartition("}")[2]
    element.attrib.pop("style", None)
    for child in list(element):
        if child.tag.rpartition("}")[2] in _DROPPED or child.get("class") in _OVERLAYS:
            element.remove(child)
        else:
            _undress(child)
