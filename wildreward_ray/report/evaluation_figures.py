"""Pictures of an evaluation: curves over shares, reliability, effects around zero, win rates by style, two distributions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

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
    shorten,
    text_width,
)
from wildreward_ray.report.values import count, decimal, items, number, numbers, percent, rows

STYLES = ("concise", "detailed", "marked up")
# Paper, section on margin filtering (arXiv 2602.08829): (coverage, accuracy) of 3,981 pairs, widest margin first.
PAPER_MARGINS = ((0.05, 0.971), (0.11, 0.964), (0.25, 0.944), (0.41, 0.921), (0.51, 0.883), (0.66, 0.847), (1.0, 0.765))
PAPER_NAME = "WildReward, authors' figure"
_QUIET = "var(--soft)"
_PLOT_HEIGHT = 190.0
_ABOVE, _BELOW = 26.0, 44.0
_FOREST_LABELS = 150.0
_MAX_DOTS = 40


class Curve(NamedTuple):
    """A named line of (x, y) points in order of x; a quiet one is only there to compare with."""

    name: str
    points: Sequence[tuple[float, float]]
    quiet: bool = False


class Bins(NamedTuple):
    """A model's (predicted, observed, count) of every bin."""

    name: str
    bins: Sequence[tuple[float, float, float]]


class Effect(NamedTuple):
    """A value that is compared with 0, and its interval where there is one."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None


def margin_points(curve: Any) -> list[tuple[float, float]]:
    """(coverage, accuracy) of a margin curve's entries that have both, in order of coverage."""
    found = ((number(row.get("coverage")), number(row.get("accuracy"))) for row in rows(curve))
    return sorted((x, y) for x, y in found if x is not None and y is not None)


def bins_of(bins: Any) -> list[tuple[float, float, float]]:
    """(predicted, observed, count) of the bins that have all three and aren't empty, in order."""
    found = [tuple(number(row.get(key)) for key in ("predicted", "observed", "count")) for row in rows(bins)]
    return sorted((p, o, n) for p, o, n in found if p is not None and o is not None and n is not None and n > 0)


def square(cells: Any, size: int = len(STYLES)) -> list[list[float]] | None:
    """A matrix of `size` rows and columns whose cells are all numbers, else None."""
    read = [numbers(row) for row in items(cells)]
    return read if len(read) == size and all(len(row) == size for row in read) else None


def counted(edges: Any, *sides: Any) -> tuple[list[float], list[list[float]]] | None:
    """Edges in rising order and the counts between them; None where they don't fit together or nothing was counted."""
    at, found = numbers(edges), [[max(n, 0.0) for n in numbers(side)] for side in sides]
    rising = len(at) >= 2 and all(a < b for a, b in pairwise(at))
    fit = rising and all(len(side) == len(at) - 1 for side in found)
    return (at, found) if fit and any(map(any, found)) else None


def margin_curves(description: str, curves: Sequence[Curve]) -> Html | None:
    """Accuracy over coverage, both in percent. None without a point."""
    drawn = [(c, _color(i, c.quiet)) for i, c in enumerate(curves) if c.points]
    if not drawn:
        return None
    key, key_height = legend([(c.name, color) for c, color in drawn], 0)
    top = key_height + _ABOVE
    left, right = plot_span()
    x = scale([0.0, 100.0], left, right)
    y = scale([100 * value for c, _ in drawn for _, value in c.points], top + _PLOT_HEIGHT, top)
    parts: list[Html] = []
    # What is only compared with lies below what was measured.
    for c, color in sorted(drawn, key=lambda entry: not entry[0].quiet):
        at = [(x(100 * px), y(100 * py)) for px, py in c.points]
        style = f"stroke:{color}" + (";stroke-dasharray:5 4" if c.quiet else "")
        parts.append(el("polyline", points=_path(at), class_="line", style=style))
        if len(at) <= _MAX_DOTS:
            parts += [
                el(
                    "circle",
                    hint(f"{c.name}: {percent(py)} of {percent(px)}"),
                    cx=cx,
                    cy=cy,
                    r=3,
                    style=f"fill:{color}",
                )
                for (cx, cy), (px, py) in zip(at, c.points, strict=True)
            ]
    told = "; ".join(
        f"{c.name} {percent(c.points[-1][1])} of all {percent(c.points[-1][0])}, "
        f"{percent(c.points[0][1])} of {percent(c.points[0][0])}"
        for c, _ in drawn
    )
    frame = axes(x, y, "share of pairs kept, %", "accuracy, %")
    return picture(f"{description}: {told}.", top + _PLOT_HEIGHT + _BELOW, key, frame, *parts)


def reliability(description: str, models: Sequence[Bins]) -> Html | None:
    """Observed share over predicted chance of the preferred reply being right, against the diagonal. None without bins."""
    drawn = [(m, _color(i)) for i, m in enumerate(models) if m.bins]
    if not drawn:
        return None
    key, key_height = legend([(m.name, color) for m, color in drawn], 0) if len(models) > 1 else (join(), 0.0)
    top, side = key_height + _ABOVE, 220.0
    left, right = plot_span()
    # The preferred reply of two has a chance of a half or more; other bins are drawn on the whole scale.
    lowest = min(p for m, _ in drawn for p, _, _ in m.bins)
    x = scale([50.0 if lowest >= 0.5 else 0.0, 100.0], left, right)
    y = scale([x.lo, 100.0, *(100 * _share(o) for m, _ in drawn for _, o, _ in m.bins)], top + side, top)
    parts = [el("line", x1=x(x.lo), y1=y(x.lo), x2=x(100.0), y2=y(100.0), class_="marker")]
    for m, color in drawn:
        largest = max(n for _, _, n in m.bins)
        at = [(x(100 * _share(p)), y(100 * _share(o))) for p, o, _ in m.bins]
        parts.append(el("polyline", points=_path(at), class_="line", style=f"stroke:{color}"))
        parts += [
            el(
                "circle",
                hint(f"{m.name}: predicted {percent(p)}, observed {percent(o)}, {count(n)} pairs"),
                cx=cx,
                cy=cy,
                r=2.5 + 4 * math.sqrt(n / largest),
                style=f"fill:{color}",
            )
            for (cx, cy), (p, o, n) in zip(at, m.bins, strict=True)
        ]
    told = "; ".join(
        f"{m.name}: " + ", ".join(f"{percent(o)} where {percent(p)} were predicted" for p, o, _ in m.bins)
        for m, _ in drawn
    )
    frame = axes(x, y, "predicted chance, %", "share that was right, %")
    return picture(f"{description}. {told}.", top + side + _BELOW, key, frame, *parts)


def forest(description: str, effects: Sequence[Effect], *, unit: str, write: Callable[[float], str]) -> Html | None:
    """A dot and its interval a line, around an upright line at 0. None without effects.

    Args:
        description: what the picture shows, for screen readers.
        effects: from the top down.
        unit: what the axis measures.
        write: a value as text, for pointers and screen readers.
    """
    if not effects:
        return None
    names = [shorten(e.name, _FOREST_LABELS) for e in effects]
    left = max(map(text_width, names)) + 14
    high, top = 24.0, 8.0
    bottom = top + high * len(effects) + 4
    ends = [v for e in effects for v in (e.value, e.low, e.high) if v is not None]
    # Fewer ticks than usual: names take up to half of the width.
    x = scale(ends, left, WIDTH - 14, zero=True, wanted=4)
    parts: list[Html] = [_ground(x, bottom, top)]
    for i, (e, name) in enumerate(zip(effects, names, strict=True)):
        y = top + high * (i + 0.5)
        apart = e.low is not None and e.high is not None and not e.low <= 0 <= e.high
        color = SERIES_COLORS[0] if apart else SERIES_COLORS[5]
        parts.append(label(left - 8, y + 4.5, name, anchor="end"))
        tip = hint(f"{e.name}: {_told(e, write)}")
        if e.low is not None and e.high is not None:
            parts.append(el("line", x1=x(e.low), x2=x(e.high), y1=y, y2=y, class_="line", style=f"stroke:{color}"))
        parts.append(el("circle", tip, cx=x(e.value), cy=y, r=4.5, style=f"fill:{color}"))
    parts.append(label(WIDTH - 14, bottom + 36, shorten(unit, WIDTH - 30), anchor="end", class_="unit"))
    told = "; ".join(f"{e.name} {_told(e, write)}" for e in effects)
    return picture(f"{description}: {told}.", bottom + _BELOW, *parts)


def win_rates(description: str, cells: Sequence[Sequence[float]]) -> Html:
    """How often a right response of one style beats a wrong one of another: blue above a half, orange below it."""
    left, top, high = 86.0, 46.0, 38.0
    wide = (WIDTH - left - 4) / len(cells)
    parts = [
        label(left + wide * len(cells) / 2, 14, "style of the wrong response", anchor="middle", class_="unit"),
        label(2, 36, "right", class_="unit"),
    ]
    for i, row in enumerate(cells):
        parts.append(label(left - 8, top + high * (i + 0.5) + 4.5, STYLES[i], anchor="end"))
        parts.append(label(left + wide * (i + 0.5), 36, STYLES[i], anchor="middle"))
        for j, rate in enumerate(row):
            x, y = left + wide * j, top + high * i
            kind = "easy" if i > j else "normal" if i == j else "hard"
            tip = hint(f"right {STYLES[i]}, wrong {STYLES[j]}: the right one wins {percent(rate)} ({kind})")
            fill = SERIES_COLORS[0] if rate >= 0.5 else SERIES_COLORS[1]
            box = {"x": x + 1, "y": y + 1, "width": wide - 2, "height": high - 2}
            shade = min(0.55, 1.1 * abs(_share(rate) - 0.5))
            parts.append(el("rect", tip, class_="diagonal" if i == j else "cell", rx=2, **box))
            parts.append(el("rect", tip, style=f"fill:{fill};fill-opacity:{shade:.3f}", rx=2, **box))
            parts.append(label(x + wide / 2, y + high / 2 + 4.5, percent(rate), anchor="middle", class_="cell-text"))
    told = "; ".join(
        f"{STYLES[i]} against {STYLES[j]} {percent(rate)}" for i, row in enumerate(cells) for j, rate in enumerate(row)
    )
    return picture(f"{description}: {told}.", top + high * len(cells) + 4, *parts)


def two_distributions(description: str, edges: Sequence[float], sides: Mapping[str, Sequence[float]]) -> Html:
    """Histograms one over the other, each as shares of its own responses, whose numbers may differ.

    Args:
        description: what the picture shows, for screen readers.
        edges: [B + 1] rising scores.
        sides: name -> [B] counts.
    """
    shares = {name: [n / (math.fsum(values) or 1.0) for n in values] for name, values in sides.items()}
    key, key_height = legend([(f"{n} ({count(math.fsum(sides[n]))})", _color(i)) for i, n in enumerate(sides)], 0)
    top = key_height + _ABOVE
    bottom = top + _PLOT_HEIGHT - 40
    left, right = plot_span()
    ticks = scale([edges[0], edges[-1]], left, right).ticks
    x = Scale(edges[0], edges[-1], left, right, tuple(t for t in ticks if edges[0] <= t <= edges[-1]) or (edges[0],))
    y = scale([100 * s for values in shares.values() for s in values], bottom, top, zero=True, wanted=4)
    parts: list[Html] = []
    for i, (name, values) in enumerate(shares.items()):
        steps = [(x(edge), y(100 * s)) for j, s in enumerate(values) for edge in (edges[j], edges[j + 1])]
        outline = _path([(left, bottom), *steps, (right, bottom)])
        style = f"fill:{_color(i)};fill-opacity:.22;stroke:{_color(i)}"
        parts.append(el("polygon", hint(name), points=outline, class_="step", style=style))
    told = "; ".join(f"{name} mostly around {decimal(_mode(edges, values))}" for name, values in sides.items())
    return picture(
        f"{description}: {told}.", bottom + _BELOW, key, axes(x, y, "score", "share of its responses, %"), *parts
    )


def _mode(edges: Sequence[float], values: Sequence[float]) -> float:
    """The middle of the fullest bin."""
    i = max(range(len(values)), key=lambda j: values[j])
    return (edges[i] + edges[i + 1]) / 2


def _ground(x: Scale, bottom: float, top: float) -> Html:
    """The axis below, its ticks, and the line at 0 through all rows."""
    parts: list[Html] = []
    for tick in x.ticks:
        at = x(tick)
        kind = "marker" if abs(tick) < 1e-12 else "grid"
        parts.append(el("line", x1=at, x2=at, y1=top, y2=bottom, class_=kind))
        parts.append(label(at, bottom + 18, x.label(tick), anchor="middle", class_="tick"))
    parts.append(el("line", x1=x.start, x2=x.end, y1=bottom, y2=bottom, class_="axis"))
    return join(*parts)


def _told(e: Effect, write: Callable[[float], str]) -> str:
    if e.low is None or e.high is None:
        return write(e.value)
    return f"{write(e.value)} [{write(e.low)}, {write(e.high)}]"


def _color(i: int, quiet: bool = False) -> str:
    return _QUIET if quiet else SERIES_COLORS[i % len(SERIES_COLORS)]


def _share(value: float) -> float:
    return min(1.0, max(0.0, value))


def _path(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{px:.1f},{py:.1f}" for px, py in points)
