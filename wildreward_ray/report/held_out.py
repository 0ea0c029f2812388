"""Pictures of a reward model on its held-out rows: reliability, confusion and scores."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from wildreward_ray.report.figures import BLUE, INK, ORANGE, SKY, SOFT, finish, new_figure, title
from wildreward_ray.report.values import decimal, items, mapping, number, rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_Z95 = 1.959964


def reliability(held_out: Mapping[str, Any]) -> Figure | None:
    """Observed over predicted share of positive labels, before and after calibration. None without bins.

    Args:
        held_out: with `reliability`, `ece`, `reliability_calibrated` and `calibration`, as `training.write_plots` has it.
    """
    calibration = mapping(held_out.get("calibration"))
    method = calibration.get("method")
    after = f"after calibration ({method})" if method else "after calibration"
    calibrated = rows(held_out.get("reliability_calibrated"))
    before = "before calibration" if calibrated else "not calibrated"
    series = [
        (before, rows(held_out.get("reliability")), held_out.get("ece"), BLUE, "o"),
        (after, calibrated, calibration.get("ece"), ORANGE, "s"),
    ]
    if not any(bins for _, bins, *_ in series):
        return None
    figure = new_figure(8.8)
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color=SOFT, linewidth=1.2, linestyle="--", label="as often as predicted")
    for name, bins, ece, color, mark in series:
        if not bins:
            continue
        predicted, observed, counts = ([float(b[key]) for b in bins] for key in ("predicted", "observed", "count"))
        ends = [wilson_interval(share, n) for share, n in zip(observed, counts, strict=True)]
        axes.vlines(predicted, [lo for lo, _ in ends], [hi for _, hi in ends], color=color, linewidth=1.2, alpha=0.55)
        label = f"{name}: {_ece(ece)}{len(bins)} bins of {_range(counts)} rows"
        axes.plot(predicted, observed, color=color, linewidth=1.8, marker=mark, markersize=7, label=label)
    axes.set_aspect("equal")
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    title(axes, f"Predicted chance and observed share of positive labels{_of(held_out)}")
    finish(axes, "predicted chance of a positive label", "observed share of positive labels (bars: 95 % interval)")
    figure.legend(loc="outside lower center", fontsize=10.5, frameon=False, labelcolor=INK)
    return figure


def confusion(held_out: Mapping[str, Any]) -> Figure | None:
    """Labels by rounded scores: counts in cells that are the darker the larger their share of the row. None without counts.

    Raises:
        ValueError: `held_out["confusion"]` isn't square.
    """
    cells = [[int(n) for n in items(row)] for row in items(held_out.get("confusion"))]
    if not any(map(any, cells)):
        return None
    k = len(cells)
    if any(len(row) != k for row in cells):
        raise ValueError(f"a confusion of {k} rows has rows of {sorted({len(row) for row in cells})} cells")
    shares = [[n / (sum(row) or 1) for n in row] for row in cells]
    figure = new_figure(max(5.0, 2.2 + 0.85 * k))
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0, aspect="auto")
    for i, row in enumerate(cells):
        for j, n in enumerate(row):
            color = "white" if shares[i][j] > 0.68 else INK
            written = f"{n:,}\n{_percent(shares[i][j])}" if n else "0"
            axes.text(j, i, written, ha="center", va="center", color=color, fontsize=11 if k <= 6 else 9)
    _name_cells(axes, [sum(row) for row in cells])
    title(axes, f"Label and rounded score{_of(held_out)}")
    bar = figure.colorbar(image, ax=axes, pad=0.02, format="{x:.0%}")
    bar.set_label("share of the rows of that label", color=SOFT, fontsize=11)
    bar.ax.tick_params(colors=SOFT, labelsize=10)
    bar.outline.set_visible(False)
    return figure


def _name_cells(axes: Axes, sizes: list[int]) -> None:
    """Levels along both axes, the rows of each label, and white gaps between the cells."""
    k = len(sizes)
    levels = range(1, k + 1)
    axes.set_xticks(range(k), [str(level) for level in levels])
    axes.set_yticks(range(k), [f"{level}  ({n:,} rows)" for level, n in zip(levels, sizes, strict=True)])
    axes.set_xticks([x + 0.5 for x in range(k - 1)], minor=True)
    axes.set_yticks([y + 0.5 for y in range(k - 1)], minor=True)
    finish(axes, "score, rounded to a level", "label (level)")
    axes.grid(False)
    axes.grid(True, which="minor", color="white", linewidth=2)
    axes.tick_params(which="both", length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def scores(held_out: Mapping[str, Any]) -> Figure | None:
    """One histogram of scores a level, one below the other on the same scale. None without counts.

    Raises:
        ValueError: in `held_out["scores"]` a level's `counts` aren't one fewer than the `edges`.
    """
    found = mapping(held_out.get("scores"))
    edges = [float(e) for e in items(found.get("edges"))]
    counts = [[float(n) for n in items(level)] for level in items(found.get("counts"))]
    if not any(map(any, counts)):
        return None
    if any(len(level) + 1 != len(edges) for level in counts):
        raise ValueError(f"scores with {len(edges)} edges have levels of {sorted({len(c) for c in counts})} counts")
    shares = [[n / (sum(level) or 1) for n in level] for level in counts]
    figure = new_figure(1.6 + 1.25 * len(counts))
    panels = figure.subplots(len(counts), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    centres = [(a + b) / 2 for a, b in pairwise(edges)]
    for i, (axes, level, share) in enumerate(zip(panels, counts, shares, strict=True)):
        axes.axvline(i + 1, color=ORANGE, linewidth=1.6, linestyle="--", label="the label", zorder=5)
        axes.stairs(share, edges, fill=True, color=SKY, zorder=2)
        axes.stairs(share, edges, color=BLUE, linewidth=1.2, zorder=3)
        if any(level):
            mean = sum(at * n for at, n in zip(centres, share, strict=True))
            axes.axvline(mean, color=INK, linewidth=1.6, label="mean (of bins)", zorder=4)
        finish(axes, "score" if i == len(counts) - 1 else "", "")
        axes.set_ylabel(
            f"label {i + 1}\n{sum(level):,.0f} rows", rotation=0, ha="right", va="center", fontsize=11, labelpad=14
        )
        axes.yaxis.set_major_formatter("{x:.0%}")
    room = 0.01 * (edges[-1] - edges[0])
    panels[0].set_xlim(edges[0] - room, edges[-1] + room)
    panels[0].set_xticks(range(1, len(counts) + 1))
    # A level without rows has no mean to explain.
    marks = max((axes.get_legend_handles_labels()[0] for axes in panels), key=len)
    panels[0].legend(handles=marks, fontsize=10, frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1.0, 1.0))
    title(panels[0], f"Scores by label, share of its rows{_of(held_out)}")
    return figure


def wilson_interval(share: float, n: float) -> tuple[float, float]:
    """95 % confidence interval of a share observed in `n` rows (Wilson 1927, doi:10.1080/01621459.1927.10502953)."""
    spread = _Z95**2 / n
    middle = (share + spread / 2) / (1 + spread)
    half = math.sqrt(spread * share * (1 - share) + spread**2 / 4) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)


def _ece(value: Any) -> str:
    return "" if number(value) is None else f"ECE {decimal(value)}, "


def _percent(share: float) -> str:
    return "<1%" if 0 < share < 0.005 else f"{share:.0%}"


def _range(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:,.0f}" if low == high else f"{low:,.0f} to {high:,.0f}"


def _of(held_out: Mapping[str, Any]) -> str:
    n = number(held_out.get("n"))
    return "" if n is None else f", {n:,.0f} held-out rows"
