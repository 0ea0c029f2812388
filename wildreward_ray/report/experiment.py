"""The results of an experiment as a table and as a picture: every variant's metrics with their 95 % intervals."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from wildreward_ray.report.values import ABSENT, count

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_TITLES = {"mae": "MAE (levels)", "auc": "AUC", "spearman": "Spearman"}
# Dark enough on white, and apart for colour-blind readers.
_OWN, _BASELINE = "#0b5cad", "#777777"


def table(results: Mapping[str, Any]) -> str:
    """Markdown, with a table of metrics and one of differences for each group of held-out rows.

    Args:
        results: the content of `results.json`.
    """
    metrics, names, baseline = list(results["better"]), list(results["variants"]), results["baseline"]
    heads = [f"{_TITLES.get(m, m)}, {results['better'][m]} is better" for m in metrics]
    seeds = len(results["seeds"])
    blocks = [
        f"# Experiment: {results['kind']}",
        f"Means over {seeds} seed{'s' if seeds > 1 else ''}"
        + (", ± the standard deviation over seeds" if seeds > 1 else "")
        + f"; in brackets 95 % intervals over {results['resamples']:,} resamples of the held-out rows, which don't tell how "
        "results vary with the seed.",
    ]
    for group in results["groups"]:
        blocks.append(f"## Held-out rows of origin {group} ({count(results['held_out'][group])})")
        rows = [
            [name, _sizes(results, name, "rows"), _sizes(results, name, "users")]
            + [_cell(results["variants"][name][group][m]) for m in metrics]
            for name in names
        ]
        blocks.append(_markdown(["variant", "training rows", "users", *heads], rows))
        if results["differences"]:
            rows = [
                [name, *(_cell(of[group][m], signed=True) for m in metrics)]
                for name, of in results["differences"].items()
            ]
            blocks.append(f"Difference from {baseline}:")
            blocks.append(_markdown(["variant", *heads], rows))
    return "\n\n".join(blocks) + "\n"


def plot(results: Mapping[str, Any]) -> bytes:
    """A PNG: a row of panels for each group of held-out rows, a panel for each metric, a point and its interval for each variant.

    Args:
        results: the content of `results.json`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    metrics, names, groups = list(results["better"]), list(results["variants"]), results["groups"]
    height = (0.42 * len(names) + 1.15) * len(groups)
    figure = Figure(figsize=(3.2 * len(metrics) + 1.6, height), dpi=150, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    panels = figure.subplots(len(groups), len(metrics), squeeze=False, sharey=True)
    for line, group in zip(panels, groups, strict=True):
        for panel, metric in zip(line, metrics, strict=True):
            found = [results["variants"][name][group][metric] for name in names]
            _draw(panel, found)
            panel.set_xlabel(f"{_TITLES.get(metric, metric)}, {results['better'][metric]} is better", fontsize=9)
        line[0].set_yticks(range(len(names)), names, fontsize=9)
        line[0].set_title(
            f"held-out rows of origin {group}: {count(results['held_out'][group])}", loc="left", fontsize=9
        )
    panels[0][0].set_ylim(len(names) - 0.5, -0.5)
    picture = io.BytesIO()
    canvas.print_png(picture)
    return picture.getvalue()


def _draw(panel: Axes, found: Sequence[Mapping[str, Any] | None]) -> None:
    """Points with intervals, from top to bottom, and a line down from the first, which others are compared with."""
    panel.tick_params(axis="x", labelsize=8)
    panel.grid(axis="x", color="#e4e4e4", linewidth=0.8)
    panel.set_axisbelow(True)
    for side in ("top", "right", "left"):
        panel.spines[side].set_visible(False)
    panel.tick_params(axis="y", length=0)
    if found[0] is not None:
        panel.axvline(found[0]["mean"], color=_BASELINE, linewidth=1, linestyle=(0, (4, 3)))
    for i, estimate in enumerate(found):
        if estimate is None:
            continue
        if estimate["low"] is not None:
            panel.plot([estimate["low"], estimate["high"]], [i, i], color=_OWN, linewidth=2, solid_capstyle="butt")
        panel.plot([estimate["mean"]], [i], "o", color=_OWN, markersize=5)
    if all(estimate is None for estimate in found):
        panel.text(
            0.5, 0.5, "not defined on these rows", transform=panel.transAxes, ha="center", va="center", fontsize=8
        )
        panel.set_xticks([])


def _cell(estimate: Mapping[str, Any] | None, *, signed: bool = False) -> str:
    """`0.812 ± 0.004 [0.790, 0.833]`."""
    if estimate is None:
        return ABSENT
    form = "+.3f" if signed else ".3f"
    spread = "" if estimate["seed_sd"] is None else f" ± {estimate['seed_sd']:.3f}"
    interval = "" if estimate["low"] is None else f" [{estimate['low']:{form}}, {estimate['high']:{form}}]"
    return f"{estimate['mean']:{form}}{spread}{interval}"


def _sizes(results: Mapping[str, Any], name: str, what: str) -> str:
    """A count that may differ between seeds: `1,204`, or `1,180 to 1,204`."""
    values = sorted({one[what] for one in results["runs"] if one["variant"] == name})
    return count(values[0]) if len(values) == 1 else f"{count(values[0])} to {count(values[-1])}"


def _markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose columns line up in plain text, too."""
    widths = [max(len(line[i]) for line in [heads, *rows]) for i in range(len(heads))]
    lines = [heads, ["-" * width for width in widths], *rows]
    return "\n".join("| " + " | ".join(c.ljust(w) for c, w in zip(x, widths, strict=True)) + " |" for x in lines)
