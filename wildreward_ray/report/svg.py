"""The parts all pictures share: a canvas, scales with round ticks, axes, legends and text that fits.

Pictures are drawn by hand as SVG: they follow the page into dark mode, stay sharp in print and weigh a few kilobytes.
Lengths are in units of the view box. `WIDTH` is about the width of a phone, so that text stays readable when a picture
is scaled to the column.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from wildreward_ray.report.markup import Html, el, join

WIDTH = 400.0
FONT = 13.0
SERIES_COLORS = tuple(f"var(--c{i})" for i in range(6))
_LEFT, _RIGHT = 54.0, 12.0


@dataclass(frozen=True)
class Scale:
    """Values `lo`..`hi` on pixels `start`..`end`, with round ticks."""

    lo: float
    hi: float
    start: float
    end: float
    ticks: tuple[float, ...]

    def __call__(self, value: float) -> float:
        """The pixel of a value."""
        return self.start + (value - self.lo) / (self.hi - self.lo) * (self.end - self.start)

    def label(self, tick: float) -> str:
        """A tick in as few digits as tell the ticks apart."""
        step = self.ticks[1] - self.ticks[0] if len(self.ticks) > 1 else abs(tick) or 1.0
        largest = max(abs(t) for t in self.ticks)
        if abs(tick) < step * 1e-6:
            return "0"
        if largest >= 1e7 or largest < 1e-3:
            return f"{tick:.2g}".replace("e-0", "e-").replace("e+0", "e")
        if largest >= 1e4:
            return f"{tick / 1000:g}k"
        # Steps are 1, 2, 2.5 or 5 times a power of ten; only 2.5 needs a digit more than its power says.
        digits = max(0, -math.floor(math.log10(step) + 1e-9))
        if abs(step * 10**digits - round(step * 10**digits)) > 1e-6:
            digits += 1
        return f"{tick:.{digits}f}"


def scale(
    values: Sequence[float], start: float, end: float, *, zero: bool = False, whole: bool = False, wanted: int = 5
) -> Scale:
    """A scale that holds all values and begins and ends on a tick.

    Args:
        values: at least one finite number.
        start, end: pixels of the lowest and the highest value.
        zero: let the scale hold 0.
        whole: ticks are whole numbers and the scale ends at the data, as for steps.
        wanted: about how many ticks.
    """
    lo, hi = min(values), max(values)
    if zero:
        lo, hi = min(lo, 0.0), max(hi, 0.0)
    if hi - lo <= 1e-9 * max(abs(lo), abs(hi)):
        # A constant gets room around it, or the scale would have no length.
        room = max(abs(lo) * 0.1, 0.5 if whole or lo == 0 else 0.0)
        lo, hi = lo - (0.0 if zero and lo == 0 else room), hi + room
    step = _round_step((hi - lo) / wanted)
    if whole:
        step = max(1.0, step if step != 2.5 else 5.0)
        ticks = [step * i for i in range(math.ceil(lo / step - 1e-9), math.floor(hi / step + 1e-9) + 1)]
        return Scale(lo, hi, start, end, tuple(ticks))
    first, last = math.floor(lo / step + 1e-6), math.ceil(hi / step - 1e-6)
    return Scale(first * step, last * step, start, end, tuple(step * i for i in range(first, last + 1)))


def _round_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return next((factor * power for factor in (1, 2, 2.5, 5) if rough <= factor * power * (1 + 1e-9)), 10 * power)


def text_width(value: str, size: float = FONT) -> float:
    """About how wide a text is drawn in a roomy font; wide scripts take a full em a character."""
    return size * sum(1.0 if unicodedata.east_asian_width(c) in "WF" else 0.7 if c.isupper() else 0.58 for c in value)


def shorten(value: str, width: float, size: float = FONT) -> str:
    """`value` cut to about `width`, with an ellipsis where it was cut. Line breaks become spaces."""
    flat = " ".join(value[:200].split())
    if text_width(flat, size) <= width and len(value) <= 200:
        return flat
    while flat and text_width(flat + "…", size) > width:
        flat = flat[:-1]
    return flat + "…"


def label(x: float, y: float, value: str, *, anchor: str = "start", class_: str | None = None) -> Html:
    """Text at a point; `anchor` is start, middle or end."""
    return el("text", value, x=x, y=y, text_anchor=anchor, class_=class_)


def hint(value: str) -> Html:
    """What a browser shows while the pointer rests on the mark around it."""
    return el("title", value)


def legend(entries: Sequence[tuple[str, str]], top: float) -> tuple[Html, float]:
    """(name, colour) entries in as many rows as they need, from `top` down.

    Returns:
        the markup, and the height it takes.
    """
    parts: list[Html] = []
    x, y = 2.0, top
    for name, color in entries:
        name = shorten(name, WIDTH - 40)
        needed = 18 + text_width(name) + 16
        if x > 2 and x + needed > WIDTH:
            x, y = 2.0, y + 20
        parts.append(el("rect", x=x, y=y + 3, width=12, height=12, rx=2, style=f"fill:{color}"))
        parts.append(label(x + 18, y + 13.5, name))
        x += needed
    return join(*parts), (y - top + 24 if entries else 0.0)


def axes(x: Scale, y: Scale, x_title: str, y_title: str) -> Html:
    """Grid lines, tick labels and titles. The y title stands above the axis, where it needs no turned text."""
    parts: list[Html] = []
    for tick in y.ticks:
        at = y(tick)
        parts.append(el("line", x1=x.start, x2=x.end, y1=at, y2=at, class_="grid"))
        parts.append(label(x.start - 7, at + 4.5, y.label(tick), anchor="end", class_="tick"))
    for tick in x.ticks:
        at = x(tick)
        parts.append(el("line", x1=at, x2=at, y1=y.start, y2=y.start + 4, class_="axis"))
        parts.append(label(at, y.start + 18, x.label(tick), anchor="middle", class_="tick"))
    parts.append(el("line", x1=x.start, x2=x.end, y1=y.start, y2=y.start, class_="axis"))
    parts.append(label(2, y.end - 12, y_title, class_="unit"))
    parts.append(label(x.end, y.start + 36, x_title, anchor="end", class_="unit"))
    return join(*parts)


def plot_span() -> tuple[float, float]:
    """Left and right edge of the area between the axes."""
    return _LEFT, WIDTH - _RIGHT


def picture(description: str, height: float, *parts: Html, width: float = WIDTH) -> Html:
    """The picture itself. `description` is what a screen reader says."""
    return el(
        "svg",
        hint(description),
        *parts,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {width:g} {math.ceil(height)}",
        role="img",
        class_="chart",
    )
