"""Pictures of an evaluation as PNG files that lie beside its results."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wildreward_ray.report.dpo_outcome import signed
from wildreward_ray.report.evaluation_blocks import RM_BENCH
from wildreward_ray.report.evaluation_figures import (
    PAPER_MARGINS,
    PAPER_NAME,
    STYLES,
    bins_of,
    counted,
    margin_points,
    square,
)
from wildreward_ray.report.evaluation_tables import (
    Measured,
    incomplete,
    is_correlation,
    measured,
    metric_name,
    metrics_of,
    model_name,
)
from wildreward_ray.report.figures import BLUE, DPI, INK, ORANGE, SOFT, finish, new_figure, title
from wildreward_ray.report.svg import shorten
from wildreward_ray.report.values import count, mapping, number, percent, rows, string, words

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_NAME, _LABEL = 420.0, 230.0
# Behind numbers that stand on a line.
_BARE = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}


def write_plots(results: Mapping[str, Any], folder: Path) -> list[str]:
    """Draw what an evaluation measured. What is absent or None is left out; a picture without content isn't written.

    Args:
        results: content of results.json; read are `metrics`, `margins`, `calibration`, `styles`, `distributions` and `bias`.
        folder: directory that the files go to; it is made where it is missing.

    Returns:
        the names of the files written, of `metrics.png`, `margins.png`, `calibration.png`, `styles.png`, `scores.png`,
        `bias.png`.
    """
    draw = {
        "metrics.png": _metrics,
        "margins.png": _margins,
        "calibration.png": _calibration,
        "styles.png": _styles,
        "scores.png": _scores,
        "bias.png": _bias,
    }
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, of in draw.items():
        figure = of(results)
        if figure is not None:
            figure.savefig(folder / name, dpi=DPI, facecolor="white")
            written.append(name)
    return written


def _metrics(results: Mapping[str, Any]) -> Figure | None:
    """A bar and its interval for every metric that is a share."""
    found = [
        (metric_name(key), m, m.value)
        for key, m in metrics_of(results).items()
        if m.value is not None and not is_correlation(key)
    ]
    if not found:
        return None
    figure = new_figure(1.6 + 0.32 * len(found))
    axes = figure.add_subplot()
    places = range(len(found))
    axes.barh(places, [100 * value for *_, value in found], color=BLUE, alpha=0.8, height=0.66)
    for i, (_, m, value) in enumerate(found):
        low, high = m.ends or (value, value)
        axes.plot([100 * low, 100 * high], [i, i], color=INK, linewidth=1.6, solid_capstyle="butt")
        axes.text(100 * max(high, value) + 0.8, i, f"{100 * value:.1f}", va="center", fontsize=9.5, color=INK)
    _names(axes, [name for name, *_ in found])
    finish(axes, "percent (lines: 95 % interval)", "")
    axes.grid(False, axis="y")
    axes.set_xlim(min(0.0, *(100 * value for *_, value in found)), 106)
    title(axes, _titled("Metrics", results))
    return figure


def _margins(results: Mapping[str, Any]) -> Figure | None:
    points = margin_points(mapping(results.get("margins")).get("curve"))
    if not points:
        return None
    figure = new_figure(5.6)
    axes = figure.add_subplot()
    if results.get("benchmark") == RM_BENCH:
        x, y = _percents(PAPER_MARGINS)
        axes.plot(x, y, color=SOFT, linewidth=1.4, linestyle="--", marker="o", markersize=4, label=PAPER_NAME)
    axes.plot(*_percents(points), color=BLUE, linewidth=2.2, label="measured here")
    axes.legend(fontsize=10, frameon=False, labelcolor=INK, loc="best")
    finish(axes, "share of pairs kept, those with the widest score gaps first (%)", "accuracy (%)")
    axes.set_xlim(0, 101)
    title(axes, _titled("Accuracy of the clearest pairs", results))
    return figure


def _calibration(results: Mapping[str, Any]) -> Figure | None:
    found = mapping(results.get("calibration"))
    bins = bins_of(found.get("bins"))
    if not bins:
        return None
    figure = new_figure(7.0)
    axes = figure.add_subplot()
    start = 50 if min(p for p, _, _ in bins) >= 0.5 else 0
    axes.plot([start, 100], [start, 100], color=SOFT, linewidth=1.2, linestyle="--")
    predicted, observed = _percents([(p, o) for p, o, _ in bins])
    axes.plot(predicted, observed, color=BLUE, linewidth=1.8)
    largest = max(n for *_, n in bins)
    axes.scatter(predicted, observed, s=[20 + 130 * n / largest for *_, n in bins], color=BLUE, zorder=3)
    for x, y, (*_, n) in zip(predicted, observed, bins, strict=True):
        axes.annotate(count(n), (x, y), (8, -13), textcoords="offset points", color=SOFT, fontsize=9)
    finish(axes, "predicted chance that the preferred reply is right (%)", "share that was right (%), with pairs a bin")
    ece = number(found.get("ece"))
    title(axes, _titled("Reliability" + ("" if ece is None else f", ECE {percent(ece)}"), results))
    return figure


def _styles(results: Mapping[str, Any]) -> Figure | None:
    """A map of win rates a group, three beside one another."""
    found = {str(name): square(cells) for name, cells in mapping(results.get("styles")).items()}
    maps = [(name, cells) for name, cells in found.items() if cells is not None]
    if not maps:
        return None
    wide = min(3, len(maps))
    high = math.ceil(len(maps) / wide)
    figure = new_figure(0.7 + 3.4 * high)
    panels = figure.subplots(high, wide, squeeze=False)
    for axes, (name, cells) in zip(panels.flat, maps, strict=False):
        image = axes.imshow(cells, cmap="PuOr", vmin=0.0, vmax=1.0)
        for i, row in enumerate(cells):
            for j, rate in enumerate(row):
                # Relative luminance of the cell (ITU-R BT.709, without its gamma).
                red, green, blue, _ = image.to_rgba([rate])[0]
                color = "white" if 0.2126 * red + 0.7152 * green + 0.0722 * blue < 0.5 else INK
                axes.text(j, i, f"{100 * rate:.1f}", ha="center", va="center", color=color, fontsize=11)
        axes.set_xticks(range(len(STYLES)), STYLES)
        axes.set_yticks(range(len(STYLES)), STYLES)
        finish(axes, "style of the wrong response", "style of the right one")
        axes.grid(False)
        axes.tick_params(length=0)
        title(axes, _plain(words(name), _LABEL))
    for axes in panels.flat[len(maps) :]:
        axes.set_visible(False)
    figure.suptitle(_titled("How often the right response wins (%)", results), fontsize=12.5, color=INK)
    return figure


def _scores(results: Mapping[str, Any]) -> Figure | None:
    found = mapping(results.get("distributions"))
    shape = counted(found.get("edges"), found.get("right"), found.get("wrong"))
    if shape is None:
        return None
    edges, sides = shape
    figure = new_figure(4.8)
    axes = figure.add_subplot()
    for name, values, color in zip(("right", "wrong"), sides, (BLUE, ORANGE), strict=True):
        shares = [100 * n / (sum(values) or 1.0) for n in values]
        axes.stairs(shares, edges, fill=True, color=color, alpha=0.25)
        axes.stairs(shares, edges, color=color, linewidth=1.8, label=f"{name} ({count(sum(values))})")
    finish(axes, "score", "share of its responses (%)")
    axes.legend(fontsize=10, frameon=False, labelcolor=INK, ncols=2, loc="lower right", bbox_to_anchor=(1.0, 1.0))
    title(axes, _titled("Scores", results))
    return figure


def _bias(results: Mapping[str, Any]) -> Figure | None:
    """Effects around 0, a panel for every unit, since effects of different units can't share an axis."""
    bias = mapping(results.get("bias"))
    panels: dict[str, list[tuple[str, Measured, float]]] = {}
    for row, unit in [
        *((row, string(row.get("unit"))) for row in rows(bias.get("observed"))),
        *((row, "probes, standard deviations of the scores") for row in rows(bias.get("probes"))),
    ]:
        m = measured(row, "effect")
        if m.value is not None:
            panels.setdefault(unit, []).append((words(row.get("name")), m, m.value))
    if not panels:
        return None
    heights = [0.9 + 0.34 * len(effects) for effects in panels.values()]
    figure = new_figure(0.5 + sum(heights))
    drawn = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (unit, effects) in zip(drawn, panels.items(), strict=True):
        axes.axvline(0.0, color=SOFT, linewidth=1.2, linestyle="--")
        for i, (_, m, value) in enumerate(effects):
            sure = m.ends is not None and not m.ends[0] <= 0 <= m.ends[1]
            color = BLUE if sure else SOFT
            if m.ends:
                axes.plot(m.ends, [i, i], color=color, linewidth=2)
            axes.plot([value], [i], "o", color=color, markersize=6)
            axes.annotate(
                signed(value), (value, i), (0, 6), textcoords="offset points", ha="center", fontsize=8.5, bbox=_BARE
            )
        _names(axes, [name for name, *_ in effects])
        finish(axes, _plain(unit, _NAME), "")
        axes.grid(False, axis="y")
    title(drawn[0], _titled("Bias: effects and 95 % intervals", results))
    return figure


def _names(axes: Axes, names: Sequence[str]) -> None:
    """Names from the top down, one a line."""
    axes.set_yticks(range(len(names)), [_plain(name, _LABEL) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.8)


def _percents(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [100 * x for x, _ in points], [100 * y for _, y in points]


def _titled(what: str, results: Mapping[str, Any]) -> str:
    of = f"{model_name(results)} on {string(results.get('title') or results.get('benchmark'))}"
    return f"{what}: {_plain(of, _NAME)}" + (" (incomplete)" if incomplete(results) else "")


def _plain(text: str, width: float) -> str:
    """A text of strangers, cut, in which nothing is taken for a formula and every character can be drawn."""
    cut = shorten("".join(c if c.isprintable() else " " for c in text[:300]), width)
    return cut.replace("$", r"\$")
