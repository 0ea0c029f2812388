"""Pictures of a training run, as PNG files that lie beside its numbers: its curves here, its held-out rows in `held_out`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wildreward_ray.report import held_out
from wildreward_ray.report.figures import BLUE, DPI, GREEN, ORANGE, SKY, SOFT, finish, legend, new_figure, title
from wildreward_ray.report.values import decimal, mapping, number, rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_Points = list[tuple[float, float]]
# Held-out metrics by the end of their scale that is the good one: key, name, colour, mark.
_HIGHER = (
    ("auc", "AUC", BLUE, "o"),
    ("quadratic_kappa", "quadratic kappa", ORANGE, "s"),
    ("spearman", "Spearman", GREEN, "^"),
)
_LOWER = (("mae", "mean absolute error (levels)", BLUE, "o"), ("ece", "calibration error ECE (share)", ORANGE, "s"))
# A curve with fewer steps than this is read as it is; longer ones get a running mean over a share of them.
_SMOOTH_FROM, _SMOOTH_SHARE = 20, 25
# Gradient norms that differ by more than this factor are drawn on a logarithmic axis.
_LOG_FACTOR = 50.0


def write_plots(metrics: Mapping[str, Any], curve: Sequence[Mapping[str, Any]], folder: Path) -> list[str]:
    """Draw what a training run measured. What is absent or None is left out; a picture without content isn't written.

    Args:
        metrics: content of `metrics.json`. Read are `evals` (held-out metrics, each with its `step`) and `held_out`:
            `reliability` and `reliability_calibrated` (bins of `predicted`, `observed`, `count`), `ece`, `calibration`
            (`method`, `ece`), `confusion` ([k][k] rows by label and rounded score), `scores` (`edges` [B+1], `counts`
            [k][B] by label) and `n` (rows).
        curve: rows of `curve.jsonl`: `step`, `epoch`, `loss`, `learning_rate`, `grad_norm`.
        folder: directory that the files go to; it is made where it is missing.

    Returns:
        the names of the files written, of `curves.png`, `reliability.png`, `confusion.png`, `scores.png`.

    Raises:
        ValueError: the shapes of `confusion` or `scores` don't fit together.
    """
    found = mapping(metrics.get("held_out"))
    figures = {
        "curves.png": _curves(rows(curve), rows(metrics.get("evals"))),
        "reliability.png": held_out.reliability(found),
        "confusion.png": held_out.confusion(found),
        "scores.png": held_out.scores(found),
    }
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, figure in figures.items():
        if figure is not None:
            figure.savefig(folder / name, dpi=DPI, facecolor="white")
            written.append(name)
    return written


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """The mean of the `window` (odd) values around each; at the ends, of those that there are."""
    half = window // 2
    around = (values[max(0, i - half) : i + half + 1] for i in range(len(values)))
    return [math.fsum(part) / len(part) for part in around]


def _curves(curve: Sequence[Mapping[str, Any]], evals: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Loss above, learning rate and gradient norm in the middle, held-out metrics below."""
    panels: list[list[Callable[[Axes], None]]] = [
        [partial(draw, points=points) for draw, key in row if (points := _points(curve, key))]
        for row in ([(_draw_loss, "loss")], [(_draw_rate, "learning_rate"), (_draw_norm, "grad_norm")])
    ]
    measured = (("Held-out rows: higher is better", _HIGHER), ("Held-out rows: lower is better", _LOWER))
    panels.append(
        [
            partial(_draw_metrics, lines=lines, what=what)
            for what, names in measured
            if (lines := [(name, p, color, mark) for key, name, color, mark in names if (p := _points(evals, key))])
        ]
    )
    layout = [(row, height) for row, height in zip(panels, (3.4, 2.9, 2.9), strict=True) if row]
    if not layout:
        return None
    heights = [height for _, height in layout]
    figure = new_figure(0.4 + sum(heights))
    steps = [step for r in (*curve, *evals) if (step := number(r.get("step"))) is not None]
    room = max(0.5, 0.02 * (max(steps) - min(steps)))
    grid = figure.add_gridspec(len(layout), 1, height_ratios=heights)
    for at, (row, _) in enumerate(layout):
        cells = grid[at].subgridspec(1, len(row))
        for column, draw in enumerate(row):
            axes = figure.add_subplot(cells[column])
            for i, start in enumerate(_epoch_starts(curve)):
                name = "a new epoch begins" if i == at == column == 0 else None
                axes.axvline(start, color=SOFT, linewidth=1.2, linestyle=(0, (1, 2)), zorder=1, label=name)
            draw(axes)
            finish(axes, "optimizer step", "")
            axes.set_xlim(min(steps) - room, max(steps) + room)
            axes.xaxis.set_major_locator(_whole_steps())
    return figure


def _draw_loss(axes: Axes, points: _Points) -> None:
    steps, losses = _columns(points)
    if len(points) < _SMOOTH_FROM:
        axes.plot(steps, losses, color=BLUE, linewidth=1.8, marker="o", markersize=4)
    else:
        window = max(3, len(points) // _SMOOTH_SHARE) | 1
        axes.plot(steps, losses, color=SKY, linewidth=0.7, alpha=0.8, label="each step")
        axes.plot(steps, running_mean(losses, window), color=BLUE, linewidth=2.2, label=f"mean of {window} steps")
    legend(axes)
    title(axes, "Training loss (mean over the rows of a step)")


def _draw_rate(axes: Axes, points: _Points) -> None:
    axes.plot(*_columns(points), color=BLUE, linewidth=1.8, marker=_dot(points))
    axes.set_ylim(bottom=0)
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3), useMathText=True)
    title(axes, "Learning rate", pad=16)


def _draw_norm(axes: Axes, points: _Points) -> None:
    steps, norms = _columns(points)
    axes.plot(steps, norms, color=BLUE, linewidth=1.0, marker=_dot(points))
    if 0 < min(norms) * _LOG_FACTOR < max(norms):
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    title(axes, "Gradient norm (before clipping)", pad=16)


def _draw_metrics(axes: Axes, lines: list[tuple[str, _Points, str, str]], what: str) -> None:
    for name, points, color, mark in lines:
        label = f"{name}, last {decimal(points[-1][1])}"
        axes.plot(*_columns(points), color=color, linewidth=1.8, marker=mark, markersize=5, label=label)
    low, high = min(axes.get_ylim()[0], 0.0), axes.get_ylim()[1]
    axes.set_ylim(low, high)
    ticks = [tick for tick in axes.get_yticks() if low <= tick <= high]
    # Room for the legend above the lines, whatever they do; there are no ticks, as no value can lie there.
    axes.set_ylim(low, low + (high - low) / (0.92 - 0.11 * len(lines)))
    axes.set_yticks(ticks)
    legend(axes)
    title(axes, what)


def _whole_steps() -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(nbins=7, integer=True, min_n_ticks=1)


def _points(found: Sequence[Mapping[str, Any]], key: str) -> _Points:
    """(step, value) of the rows that have both."""
    pairs = ((number(row.get("step")), number(row.get(key))) for row in found)
    return [(step, value) for step, value in pairs if step is not None and value is not None]


def _columns(points: _Points) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _dot(points: _Points) -> str | None:
    """A mark where there are too few points to see a line."""
    return "o" if len(points) < _SMOOTH_FROM else None


def _epoch_starts(curve: Sequence[Mapping[str, Any]]) -> list[float]:
    """Where, between two steps, a new epoch begins."""
    known = [(step, row.get("epoch")) for row in curve if (step := number(row.get("step"))) is not None]
    return [step - 0.5 for (_, before), (step, epoch) in pairwise(known) if epoch != before]
