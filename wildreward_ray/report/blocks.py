"""Pictures of counts: horizontal bars, the heat map of two readings of the same thing, and the funnel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from wildreward_ray.report.markup import Html, el, join
from wildreward_ray.report.svg import SERIES_COLORS, WIDTH, hint, label, legend, picture, shorten, text_width
from wildreward_ray.report.values import count

_LABELS = 160.0


def bars(
    description: str,
    groups: Sequence[tuple[str, Sequence[float | None]]],
    *,
    names: Sequence[str] = ("",),
    stacked: bool = False,
    write: Callable[[float], str] = count,
) -> Html | None:
    """Horizontal bars, several a group. None without groups.

    Args:
        description: what the picture shows, for screen readers.
        groups: (label, one value for every name); None draws no bar.
        names: what the values of a group are, for the legend.
        stacked: values stand one behind the other and their sum is written, else one below the other.
        write: a value as text.
    """
    if not groups:
        return None
    entries = [(name, SERIES_COLORS[i % len(SERIES_COLORS)]) for i, name in enumerate(names)] if len(names) > 1 else []
    key, top = legend(entries, 0)
    left = min(_LABELS, max(text_width(name) for name, _ in groups)) + 10
    shown = [
        [sum(v for v in values if v is not None)] if stacked else [v for v in values if v is not None]
        for _, values in groups
    ]
    largest = max((v for values in shown for v in values), default=0.0) or 1.0
    right = max((text_width(write(v)) for values in shown for v in values), default=0.0) + 10
    unit = max(WIDTH - left - right, 20.0) / largest
    thick = 20.0 if stacked or len(names) == 1 else 15.0
    parts: list[Html] = []
    y = top + 4
    for row, (name, values) in enumerate(groups):
        rows = 1 if stacked else len(values)
        parts.append(label(left - 8, y + thick * rows / 2 + 4.5, shorten(name, _LABELS), anchor="end"))
        x = left
        for i, value in enumerate(values):
            if value is None:
                continue
            color = SERIES_COLORS[i % len(SERIES_COLORS)]
            at = y if stacked else y + i * thick
            length = max(value, 0.0) * unit
            tip = hint(" ".join(part for part in (name, names[i], write(value)) if part))
            parts.append(el("rect", tip, x=x, y=at + 1, width=length, height=thick - 2, rx=1.5, style=f"fill:{color}"))
            if stacked:
                x += length
            else:
                parts.append(label(left + length + 5, at + thick / 2 + 4.5, write(value), class_="tick"))
        if stacked and shown[row]:
            parts.append(label(x + 5, y + thick / 2 + 4.5, write(shown[row][0]), class_="tick"))
        y += thick * rows + (9 if rows > 1 else 6)
    return picture(description, y, key, *parts)


def heat_map(
    description: str, cells: Sequence[Sequence[float]], names: Sequence[str], *, row_title: str, column_title: str
) -> Html | None:
    """A square table whose cells are the darker the larger their share of the row. None without counts."""
    size = len(names)
    if len(cells) != size or any(len(row) != size for row in cells) or not any(map(any, cells)):
        return None
    left, top = 162.0, 46.0
    side = (WIDTH - left - 4) / size
    high = 40.0
    parts = [
        label(left + side * size / 2, 14, column_title, anchor="middle", class_="unit"),
        label(2, 36, row_title, class_="unit"),
    ]
    for i, name in enumerate(names):
        parts.append(label(left - 8, top + high * (i + 0.5) + 4.5, f"{name} {i + 1}", anchor="end"))
        parts.append(label(left + side * (i + 0.5), 36, str(i + 1), anchor="middle"))
        whole = sum(cells[i])
        for j, n in enumerate(cells[i]):
            share = n / whole if whole > 0 else 0.0
            x, y = left + side * j, top + high * i
            tip = hint(f"expected {name}, judged {names[j]}: {n:g} ({share:.0%} of the row)")
            box = {"x": x + 1, "y": y + 1, "width": side - 2, "height": high - 2}
            parts.append(el("rect", tip, class_="diagonal" if i == j else "cell", rx=2, **box))
            parts.append(el("rect", tip, style=f"fill:var(--heat);fill-opacity:{0.75 * share:.3f}", rx=2, **box))
            parts.append(label(x + side / 2, y + high / 2 + 4.5, f"{n:g}", anchor="middle", class_="cell-text"))
    return picture(description, top + high * size + 4, *parts)


@dataclass(frozen=True)
class Stage:
    """A step of the funnel."""

    name: str
    unit: str
    rows_in: float
    rows_out: float


def funnel(description: str, stages: Sequence[Stage]) -> Html | None:
    """Every step as a trapezoid from what came in to what went on. None without steps.

    Widths compare within one unit only (a conversation has several interactions), so each unit begins a new funnel.
    """
    if not stages:
        return None
    left, right, high = 116.0, 66.0, 36.0
    middle, half = (left + WIDTH - right) / 2, (WIDTH - left - right) / 2
    parts: list[Html] = []
    y, unit = 0.0, ""
    for stage in stages:
        if stage.unit != unit:
            unit = stage.unit
            parts.append(label(middle, y + 15, unit, anchor="middle", class_="unit"))
            y += 22
        largest = max((s.rows_in for s in stages if s.unit == unit), default=0.0) or 1.0
        a = max(half * stage.rows_in / largest, 1.0)
        b = max(half * stage.rows_out / largest, 1.0)
        base = y + high - 3
        corners = [(middle - a, y), (middle + a, y), (middle + b, base), (middle - b, base)]
        tip = hint(f"{stage.name}: {stage.rows_in:,.0f} in, {stage.rows_out:,.0f} out")
        points = " ".join(f"{px:.1f},{py:.1f}" for px, py in corners)
        parts.append(el("polygon", tip, points=points, class_="stage"))
        parts.append(label(left - 10, y + 21, shorten(stage.name, left - 10), anchor="end"))
        parts.append(label(middle, y + 21, count(stage.rows_out), anchor="middle", class_="halo"))
        lost = stage.rows_in - stage.rows_out
        if lost:
            parts.append(label(WIDTH - right + 10, y + 21, f"{-lost:+,.0f}".replace("-", "−"), class_="tick"))
        y += high
    return picture(description, y + 2, join(*parts))
