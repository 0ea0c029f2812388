"""Pictures with two number axes: lines over steps, a histogram, and the reliability diagram."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from wildreward_ray.report.markup import Html, el, join
from wildreward_ray.report.svg import SERIES_COLORS, WIDTH, axes, hint, label, legend, picture, plot_span, scale
from wildreward_ray.report.values import decimal

_PLOT_HEIGHT = 170.0
_ABOVE, _BELOW = 26.0, 44.0
# More points than this are neither seen nor cheap: neighbours are averaged.
_MAX_POINTS = 400
_MAX_DOTS = 40


@dataclass(frozen=True)
class Series:
    """A line.

    Attributes:
        name: for the legend.
        points: (x, y) in order of x.
        spread: how far a band reaches above and below each point; empty for none.
    """

    name: str
    points: Sequence[tuple[float, float]]
    spread: Sequence[float] = field(default=())


def line_chart(
    description: str, series: Sequence[Series], *, x_title: str, y_title: str, zero: bool = False
) -> Html | None:
    """Lines over a whole-numbered x. None where there isn't a single point.

    Args:
        description: what the picture shows, for screen readers.
        series: lines; those without points are left out.
        x_title, y_title: names of the axes, with unit.
        zero: let the y axis hold 0.
    """
    colored = [(_thinned(s), SERIES_COLORS[i % len(SERIES_COLORS)]) for i, s in enumerate(series) if s.points]
    if not colored:
        return None
    key, key_height = legend([(s.name, c) for s, c in colored], 0) if len(colored) > 1 else (join(), 0.0)
    top = key_height + _ABOVE
    left, right = plot_span()
    x = scale([px for s, _ in colored for px, _ in s.points], left, right, whole=True, wanted=6)
    spreads = [s.spread or [0.0] * len(s.points) for s, _ in colored]
    reach = [
        edge
        for (s, _), spread in zip(colored, spreads, strict=True)
        for (_, py), d in zip(s.points, spread, strict=True)
        for edge in (py - d, py + d)
    ]
    y = scale(reach, top + _PLOT_HEIGHT, top, zero=zero)
    marks: list[Html] = []
    for s, color in colored:
        if s.spread:
            upper = [(x(px), y(py + d)) for (px, py), d in zip(s.points, s.spread, strict=True)]
            lower = [(x(px), y(py - d)) for (px, py), d in zip(s.points, s.spread, strict=True)]
            marks.append(el("polygon", points=_path(upper + lower[::-1]), class_="band", style=f"fill:{color}"))
    for s, color in colored:
        at = [(x(px), y(py)) for px, py in s.points]
        marks.append(el("polyline", points=_path(at), class_="line", style=f"stroke:{color}"))
        if len(at) <= _MAX_DOTS:
            marks += [
                el("circle", hint(f"{s.name} {px:g}: {decimal(py)}"), cx=cx, cy=cy, r=3, style=f"fill:{color}")
                for (cx, cy), (px, py) in zip(at, s.points, strict=True)
            ]
    return picture(description, top + _PLOT_HEIGHT + _BELOW, key, axes(x, y, x_title, y_title), *marks)


def histogram(
    description: str, values: Sequence[float], *, x_title: str, markers: Mapping[str, float], bins: int = 24
) -> Html | None:
    """How often which value occurs, with named vertical lines. None without values.

    A few stragglers would press everything else against the axis, so the last bar holds all that lies beyond
    twice the 95th percentile.
    """
    if not values:
        return None
    ordered = sorted(values)
    limit = 2 * ordered[min(len(ordered) - 1, math.floor(0.95 * len(ordered)))]
    high = min(ordered[-1], limit) if limit > 0 else ordered[-1]
    left, right = plot_span()
    x = scale([0.0, ordered[0], high], left, right, zero=True)
    width = (x.hi - x.lo) / bins
    heights = [0] * bins
    for value in ordered:
        heights[min(bins - 1, max(0, math.floor((value - x.lo) / width)))] += 1
    shown = {name: at for name, at in markers.items() if x.lo <= at <= x.hi}
    top = _ABOVE + 18.0 * len(shown)
    bottom = top + _PLOT_HEIGHT
    y = scale([float(max(heights))], bottom, top, zero=True, wanted=4)
    marks: list[Html] = []
    for i, n in enumerate(heights):
        if n:
            tip = f"{decimal(x.lo + i * width)} to {decimal(x.lo + (i + 1) * width)}: {n}"
            span = x(width) - x(0.0)
            marks.append(
                el(
                    "rect",
                    hint(tip),
                    x=left + i * span + 0.5,
                    y=y(float(n)),
                    width=max(span - 1, 0.5),
                    height=bottom - y(float(n)),
                    style="fill:var(--c0)",
                )
            )
    for i, (name, at) in enumerate(shown.items()):
        # Each name has a line of its own above the plot: percentiles often lie closer together than their names.
        text_y = _ABOVE + 18.0 * i
        # Names stand on the side of their line where there is room.
        near_end = x(at) > WIDTH - 130
        marks.append(el("line", x1=x(at), x2=x(at), y1=text_y - 10, y2=bottom, class_="marker"))
        marks.append(label(x(at) + (-5 if near_end else 5), text_y, name, anchor="end" if near_end else "start"))
    return picture(
        description, bottom + _BELOW, axes(x, y, x_title, ""), label(2, 13, "requests", class_="unit"), *marks
    )


def reliability(description: str, bins: Sequence[tuple[float, float, float]]) -> Html | None:
    """(predicted, observed, count) of every bin against the diagonal of a perfectly honest model. None without bins."""
    if not bins:
        return None
    left, right = plot_span()
    top, side = _ABOVE, 250.0
    x = scale([0.0, 1.0], left, right)
    y = scale([0.0, 1.0], top + side, top)
    largest = max(n for _, _, n in bins) or 1.0
    at = [(x(_share(p)), y(_share(o))) for p, o, _ in bins]
    dots = [
        el(
            "circle",
            hint(f"predicted {decimal(p)}, observed {decimal(o)}, {n:g} rows"),
            cx=cx,
            cy=cy,
            r=3 + 4 * math.sqrt(max(n, 0.0) / largest),
            style="fill:var(--c0)",
        )
        for (cx, cy), (p, o, n) in zip(at, bins, strict=True)
    ]
    return picture(
        description,
        top + side + _BELOW,
        axes(x, y, "predicted chance of a positive label", "share that was positive"),
        el("line", x1=x(0), y1=y(0), x2=x(1), y2=y(1), class_="marker"),
        el("polyline", points=_path(at), class_="line", style="stroke:var(--c0)"),
        *dots,
    )


def averaged(points: int) -> int:
    """How many neighbouring points a line chart draws as one."""
    return max(1, math.ceil(points / _MAX_POINTS))


def _thinned(series: Series) -> Series:
    run = averaged(len(series.points))
    if run == 1:
        return series
    cuts = range(0, len(series.points), run)
    chunks = [series.points[i : i + run] for i in cuts]
    means = [(_mean([x for x, _ in chunk]), _mean([y for _, y in chunk])) for chunk in chunks]
    return Series(series.name, means, [_mean(series.spread[i : i + run]) for i in cuts] if series.spread else ())


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _share(value: float) -> float:
    return min(1.0, max(0.0, value))


def _path(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
