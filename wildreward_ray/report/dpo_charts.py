"""Pictures over the steps of a run: lines with bands of their own above and below, limits to compare with, and stacked counts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

from wildreward_ray.report.curves import averaged
from wildreward_ray.report.markup import Html, el, join
from wildreward_ray.report.svg import (
    SERIES_COLORS,
    WIDTH,
    Scale,
    axes,
    hint,
    label,
    legend,
    picture,
    plot_span,
    scale,
    text_width,
)
from wildreward_ray.report.values import decimal, number

_PLOT_HEIGHT = 170.0
_ABOVE, _BELOW = 26.0, 44.0
_MAX_DOTS = 40
# Narrower columns than a plot of this many can't be told apart.
_MAX_COLUMNS = 60
# Lines differ by more than their colour, for readers who can't tell colours apart.
_DASHES = ("none", "7 4", "2 3", "10 3 2 3", "5 2")


class Point(NamedTuple):
    """A measured value at a step, and the band around it where there is one."""

    x: float
    y: float
    low: float | None
    high: float | None


class Line(NamedTuple):
    """A named line; `points` are in order of x."""

    name: str
    points: Sequence[Point]


class Mark(NamedTuple):
    """A value that the lines are compared with, drawn as a dashed line across."""

    name: str
    value: float


def line(
    name: str,
    entries: Sequence[Mapping[str, Any]],
    key: str,
    *,
    band: tuple[str, str] | None = None,
    spread: str | None = None,
) -> Line:
    """`key` over `step` of every entry that has a number there; an entry without a step stands at its position.

    Args:
        name: for the legend and for screen readers.
        entries: rows of a log.
        key: what is drawn; `a.b` is `b` in the mapping `a`.
        band: keys of the lower and the upper edge of the band.
        spread: or the key of how far the band reaches to both sides.
    """
    points: list[Point] = []
    for i, entry in enumerate(entries):
        y = number(_at(entry, key))
        if y is None:
            continue
        step = number(entry.get("step"))
        low, high = (number(_at(entry, edge)) for edge in band) if band else (None, None)
        around = number(_at(entry, spread)) if spread else None
        if around is not None:
            low, high = y - abs(around), y + abs(around)
        whole = low is not None and high is not None and low <= y <= high
        points.append(Point(float(i) if step is None else step, y, low if whole else None, high if whole else None))
    return Line(name, sorted(points, key=lambda p: p.x))


def line_chart(
    title: str, lines: Sequence[Line], *, y_title: str, zero: bool = False, mark: Mark | None = None
) -> Html | None:
    """Lines over steps. None where there isn't a single point.

    Args:
        title: what the picture shows; screen readers hear it with the ends and the extremes of every line.
        lines: those without points are left out, but keep their colour and their dashes.
        y_title: what the y axis measures, with its unit.
        zero: let the y axis hold 0.
        mark: a value to compare with, which the y axis then holds.
    """
    styles = [(SERIES_COLORS[i % len(SERIES_COLORS)], _DASHES[i % len(_DASHES)]) for i in range(len(lines))]
    drawn = [(_thinned(one), *style) for one, style in zip(lines, styles, strict=True) if one.points]
    if not drawn:
        return None
    # A single line of several that could be there must still be named.
    key, key_height = _key([(one.name, color, dash) for one, color, dash in drawn]) if len(lines) > 1 else (join(), 0.0)
    top = key_height + _ABOVE
    left, right = plot_span()
    points = [p for one, *_ in drawn for p in one.points]
    reach = [v for p in points for v in (p.y, p.low, p.high) if v is not None] + ([mark.value] if mark else [])
    x = scale([p.x for p in points], left, right, whole=True, wanted=6)
    y = scale(reach, top + _PLOT_HEIGHT, top, zero=zero)
    parts = [_band(one.points, x, y, color) for one, color, _ in drawn]
    if mark:
        at = y(mark.value)
        parts.append(el("line", x1=left, x2=right, y1=at, y2=at, class_="marker"))
    parts += [_path(one, x, y, color, dash) for one, color, dash in drawn]
    if mark:
        # Over the lines, which often end where the name stands.
        parts.append(label(right - 2, y(mark.value) - 5, mark.name, anchor="end", class_="mark-name"))
    told = [_told(one) for one in lines if one.points] + ([f"Dashed line: {mark.name}"] if mark else [])
    description = f"{title} by step, {y_title}. {'. '.join(told)}."
    return picture(description, top + _PLOT_HEIGHT + _BELOW, key, axes(x, y, "step", y_title), *parts)


def stacked_columns(
    title: str,
    entries: Sequence[tuple[float, Mapping[str, float]]],
    kinds: Sequence[tuple[str, str, str]],
    *,
    y_title: str,
) -> Html | None:
    """Counts of several kinds a step, one above the other. None where all are 0.

    Args:
        title: what the picture shows; screen readers hear it with the total of every kind.
        entries: (step, count of every kind), in order of steps; neighbours share a column where there are too many.
        kinds: (key in the counts, name, colour), from the bottom up.
        y_title: what a step's column adds up to.
    """
    totals = {key: math.fsum(max(counts.get(key, 0.0), 0.0) for _, counts in entries) for key, _, _ in kinds}
    if not any(totals.values()):
        return None
    shown = [kind for kind in kinds if totals[kind[0]]]
    run = max(1, math.ceil(len(entries) / _MAX_COLUMNS))
    chunks = [entries[i : i + run] for i in range(0, len(entries), run)]
    means = [
        [math.fsum(max(counts.get(key, 0.0), 0.0) for _, counts in chunk) / len(chunk) for key, _, _ in shown]
        for chunk in chunks
    ]
    key, key_height = legend([(name, color) for _, name, color in shown], 0)
    top = key_height + _ABOVE
    left, right = plot_span()
    x = scale([entries[0][0] - 0.5, entries[-1][0] + 0.5], left, right, whole=True, wanted=6)
    y = scale([math.fsum(column) for column in means], top + _PLOT_HEIGHT, top, zero=True)
    parts: list[Html] = []
    for chunk, column in zip(chunks, means, strict=True):
        start, end = x(chunk[0][0] - 0.5), x(chunk[-1][0] + 0.5)
        steps = f"step {chunk[0][0]:g}" if len(chunk) == 1 else f"steps {chunk[0][0]:g} to {chunk[-1][0]:g}, a step"
        below = 0.0
        for (_, name, color), n in zip(shown, column, strict=True):
            if n:
                # A hair of space between columns; none where it would be most of a column.
                width = max(end - start - (1.0 if end - start > 4 else 0.0), 0.5)
                box = {"x": start, "y": y(below + n), "width": width, "height": max(y(below) - y(below + n), 0.0)}
                parts.append(el("rect", hint(f"{steps}: {name} {decimal(n)}"), style=f"fill:{color}", **box))
            below += n
    told = ", ".join(f"{name} {totals[key]:,.0f}" for key, name, _ in shown)
    description = f"{title} by step. In all: {told}."
    return picture(description, top + _PLOT_HEIGHT + _BELOW, key, axes(x, y, "step", y_title), *parts)


def _at(entry: Mapping[str, Any], key: str) -> Any:
    value: Any = entry
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _told(one: Line) -> str:
    """A line in words."""
    first, last = one.points[0], one.points[-1]
    if len(one.points) == 1:
        return f"{one.name}: {decimal(first.y)} at step {first.x:g}"
    low, high = min(p.y for p in one.points), max(p.y for p in one.points)
    return (
        f"{one.name}: {decimal(first.y)} at step {first.x:g}, {decimal(last.y)} at step {last.x:g}, "
        f"between {decimal(low)} and {decimal(high)}"
    )


def _thinned(one: Line) -> Line:
    run = averaged(len(one.points))
    if run == 1:
        return one
    chunks = [one.points[i : i + run] for i in range(0, len(one.points), run)]
    return Line(one.name, [_mean(chunk) for chunk in chunks])


def _mean(chunk: Sequence[Point]) -> Point:
    def mean(values: Sequence[float | None]) -> float | None:
        known = [v for v in values if v is not None]
        return math.fsum(known) / len(known) if len(known) == len(values) else None

    x, y = (math.fsum(values) / len(chunk) for values in ([p.x for p in chunk], [p.y for p in chunk]))
    return Point(x, y, mean([p.low for p in chunk]), mean([p.high for p in chunk]))


def _band(points: Sequence[Point], x: Scale, y: Scale, color: str) -> Html:
    """The bands of neighbouring points that have one, each in one piece; a lone point gets an upright line."""
    parts: list[Html] = []
    for known, run in groupby(points, key=lambda p: p.low is not None):
        edges = [(x(p.x), y(p.low), y(p.high)) for p in run if p.low is not None and p.high is not None]
        if known and len(edges) == 1:
            at, low, high = edges[0]
            parts.append(el("line", x1=at, x2=at, y1=low, y2=high, class_="line", style=f"stroke:{color}"))
        elif known:
            around = [(at, high) for at, _, high in edges] + [(at, low) for at, low, _ in reversed(edges)]
            parts.append(el("polygon", points=_written(around), class_="band", style=f"fill:{color}"))
    return join(*parts)


def _path(one: Line, x: Scale, y: Scale, color: str, dash: str) -> Html:
    style = f"stroke:{color};stroke-dasharray:{dash}"
    drawn = el("polyline", points=_written([(x(p.x), y(p.y)) for p in one.points]), class_="line", style=style)
    if len(one.points) > _MAX_DOTS:
        return drawn
    dots = [el("circle", hint(_tip(one.name, p)), cx=x(p.x), cy=y(p.y), r=3, style=f"fill:{color}") for p in one.points]
    return join(drawn, *dots)


def _tip(name: str, p: Point) -> str:
    band = "" if p.low is None else f" ({decimal(p.low)} to {decimal(p.high)})"
    return f"{name}, step {p.x:g}: {decimal(p.y)}{band}"


def _key(entries: Sequence[tuple[str, str, str]]) -> tuple[Html, float]:
    """(name, colour, dashes) as pieces of line with their names, and the height they take."""
    parts: list[Html] = []
    x, y = 2.0, 0.0
    for name, color, dash in entries:
        needed = 30 + text_width(name) + 14
        if x > 2 and x + needed > WIDTH:
            x, y = 2.0, y + 20
        style = f"stroke:{color};stroke-dasharray:{dash}"
        parts.append(el("line", x1=x, x2=x + 24, y1=y + 9, y2=y + 9, class_="line", style=style))
        parts.append(label(x + 30, y + 13.5, name))
        x += needed
    return join(*parts), y + 24


def _written(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{px:.1f},{py:.1f}" for px, py in points)
