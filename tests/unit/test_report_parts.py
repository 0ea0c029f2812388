"""The parts pages are made of: scales, charts, escaping and the writing of numbers."""

from __future__ import annotations

import math
from typing import Any
from xml.etree import ElementTree

import pytest

from wildreward_ray.report import curves, svg, values
from wildreward_ray.report.markup import el, text


@pytest.mark.parametrize(
    ("data", "ticks"),
    [
        ([0.0, 1.0], ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        ([0.0, 1.2], ["0.00", "0.25", "0.50", "0.75", "1.00", "1.25"]),
        ([3.0, 3.0], ["2.6", "2.8", "3.0", "3.2", "3.4"]),
        ([0.0, 30_000.0], ["0", "10k", "20k", "30k"]),
        ([0.0, 5e-5], ["0", "1e-5", "2e-5", "3e-5", "4e-5", "5e-5"]),
    ],
)
def test_ticks_are_round_and_hold_the_data(data: list[float], ticks: list[str]) -> None:
    scale = svg.scale(data, 0, 100)
    assert scale.lo <= min(data) <= max(data) <= scale.hi
    assert [scale.label(t) for t in scale.ticks] == [t if float(t.rstrip("k")) else "0" for t in ticks]


def test_step_axis_has_whole_ticks() -> None:
    assert svg.scale([1, 4], 0, 100, whole=True).ticks == (1, 2, 3, 4)
    assert all(t == round(t) for t in svg.scale([0, 12], 0, 100, whole=True).ticks)


def test_line_chart_draws_the_points_where_the_axes_say() -> None:
    drawn = curves.line_chart("d", [curves.Series("s", [(0, 0.0), (10, 1.0)])], x_title="step", y_title="y")
    assert drawn is not None
    root = ElementTree.fromstring(drawn)
    left, right = svg.plot_span()
    dots = [(float(c.attrib["cx"]), float(c.attrib["cy"])) for c in root.iter() if c.tag.endswith("circle")]
    assert [x for x, _ in dots] == [left, right]
    assert dots[0][1] > dots[1][1]
    assert curves.line_chart("d", [curves.Series("s", [])], x_title="", y_title="") is None


def test_markup_escapes_all_but_its_own() -> None:
    assert el("p", "<b>", el("i", "&"), None, 3, class_='"x"') == '<p class="&quot;x&quot;">&lt;b&gt;<i>&amp;</i>3</p>'
    assert text("a\x00b\ud800c\ufffe") == "a\ufffdb\ufffdc\ufffd"


@pytest.mark.parametrize(
    ("number", "written"),
    [(None, "n/a"), (math.nan, "n/a"), (True, "n/a"), (0, "0"), (0.74321, "0.743"), (84.6, "84.60"),
     (12345.6, "12,346"), (3.1e-7, "3.1e-07"), (-0.5, "-0.500"), ("7", "n/a")],
)  # fmt: skip
def test_decimal(number: Any, written: str) -> None:
    assert values.decimal(number) == written


@pytest.mark.parametrize(
    ("spent", "written"),
    [(0.4, "0.40 s"), (41.23, "41.2 s"), (99.97, "100.0 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")],
)
def test_seconds(spent: float, written: str) -> None:
    assert values.seconds(spent) == written
