"""Pictures of shares: level mixes of many groups, a histogram from counts, and one level against another."""

from __future__ import annotations

from collections.abc import Sequence

from wildreward_ray.core.scale import JUDGE_LEVELS, LEVEL_NAMES
from wildreward_ray.report.markup import Html, el, join
from wildreward_ray.report.page import table
from wildreward_ray.report.svg import (
    WIDTH,
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
from wildreward_ray.report.values import count, decimal, percent

LEVEL_COLORS = tuple(f"var(--l{level})" for level in JUDGE_LEVELS)
_LABELS, _THICK, _GAP = 130.0, 18.0, 6.0
_ABOVE, _PLOT_HEIGHT, _BELOW = 26.0, 150.0, 44.0

Group = tuple[str, Sequence[int]]


def level_mix(description: str, groups: Sequence[Group]) -> Html | None:
    """Shares of the five levels in every group as one full bar each, with the number of rows. None without groups.

    Args:
        description: what the picture shows, for screen readers.
        groups: (name, rows of levels 1..5).
    """
    shown = [(name, values) for name, values in groups if sum(values) > 0]
    if not shown:
        return None
    key, top = legend([(str(level), LEVEL_COLORS[level - 1]) for level in JUDGE_LEVELS], 0)
    left = min(_LABELS, max(text_width(name) for name, _ in shown)) + 10
    width = WIDTH - left - max(text_width(count(sum(values))) for _, values in shown) - 10
    parts: list[Html] = []
    y = top + 4
    for name, values in shown:
        n, x = sum(values), left
        parts.append(label(left - 8, y + _THICK / 2 + 4.5, shorten(name, _LABELS), anchor="end"))
        for level, value in zip(JUDGE_LEVELS, values, strict=True):
            if value:
                tip = hint(f"{name}, {level} {LEVEL_NAMES[level]}: {count(value)} ({percent(value / n)})")
                color = f"fill:{LEVEL_COLORS[level - 1]}"
                parts.append(el("rect", tip, x=x, y=y, width=width * value / n, height=_THICK, style=color))
            x += width * value / n
        parts.append(label(WIDTH, y + _THICK / 2 + 4.5, count(n), anchor="end", class_="tick"))
        y += _THICK + _GAP
    return picture(description, y, key, *parts)


def level_numbers(first: str, groups: Sequence[Group]) -> Html | None:
    """What `level_mix` draws as a folded table. None without groups."""
    shown = [(name, values, sum(values)) for name, values in groups if sum(values) > 0]
    if not shown:
        return None
    cells = [[name, count(n), *(percent(value / n) for value in values)] for name, values, n in shown]
    found = table([first, "Rows", *map(str, JUDGE_LEVELS)], cells, numeric=range(1, 7))
    return el("details", el("summary", el("span", "as numbers", class_="more flush")), found)


def columns(description: str, heights: Sequence[int], high: float, *, x_title: str, y_title: str) -> Html | None:
    """A histogram whose bars, of equal width over 0..high, are already counted. None without counts."""
    if not any(heights):
        return None
    left, right = plot_span()
    x = scale([0.0, high], left, right, zero=True)
    bottom = _ABOVE + _PLOT_HEIGHT
    y = scale([float(max(heights))], bottom, _ABOVE, zero=True, wanted=4)
    bars = []
    for i, n in enumerate(heights):
        if not n:
            continue
        start, end = (high * j / len(heights) for j in (i, i + 1))
        tip = hint(f"{decimal(start)} to {decimal(end)}: {count(n)}")
        box = {"x": x(start) + 0.5, "y": y(n), "width": x(end) - x(start) - 1, "height": bottom - y(n)}
        bars.append(el("rect", tip, style="fill:var(--c0)", **box))
    return picture(description, bottom + _BELOW, axes(x, y, x_title, y_title), *bars)


def level_matrix(cells: Sequence[Sequence[int]]) -> Html | None:
    """Rows of the judge's level by the final level, as a table whose cells are the darker the larger their share of the row.

    Args:
        cells: `[5][5]`, judge level first. None without counts.
    """
    if not any(map(any, cells)):
        return None
    head = [el("th", "judge ↓ final →"), *(el("th", str(level), class_="number") for level in JUDGE_LEVELS)]
    body = []
    for level, row in zip(JUDGE_LEVELS, cells, strict=True):
        n = sum(row) or 1
        written = [
            el(
                "td",
                count(value),
                class_="number cell diagonal" if column == level else "number cell",
                style=f"--share:{75 * value / n:.1f}%",
                title=f"judge {LEVEL_NAMES[level]}, final {LEVEL_NAMES[column]}: {percent(value / n)} of the row",
            )
            for column, value in zip(JUDGE_LEVELS, row, strict=True)
        ]
        body.append(el("tr", el("th", f"{level} {LEVEL_NAMES[level]}"), *written))
    whole = el("table", el("thead", el("tr", *head)), el("tbody", *body), class_="matrix")
    return join(el("div", whole, class_="scroll"))
