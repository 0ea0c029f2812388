"""The picture of what `scripts.elastic` has measured: an extraction and a training run while their clusters grow and shrink."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from wildreward_ray.report.figures import BLUE, GREEN, INK, ORANGE, SKY, SOFT, finish, new_figure, title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_HEIGHTS = (2.3, 1.7, 2.0, 2.4, 1.6)
# Labels of what was done stand beside their lines, on the side away from the next line.
_LEFT = frozenset({"notice", "end of the command"})


def write_plot(result: Mapping[str, Any], file: Path) -> None:
    """Draw what was measured, as an SVG file that is the same for the same numbers.

    Args:
        result: what `scripts.elastic` writes.
    """
    figure = draw(result["extract"], result["train"])
    with _same_ids():
        figure.savefig(file, format="svg", facecolor="white", metadata={"Date": None})


def draw(extract: Mapping[str, Any], train: Mapping[str, Any]) -> Figure:
    """Two panels of the extraction and three of training, each group over the seconds since its command was given.

    Args:
        extract: `cluster`, `judged`, `ended_s`, see `elastic_extract.measure`.
        train: `starts`, `events`, `checkpoints`, `steps`, `loss`, see `elastic_train.measure`.
    """
    figure = new_figure(sum(_HEIGHTS) + 1.2)
    grid = figure.add_gridspec(len(_HEIGHTS), 1, height_ratios=_HEIGHTS)
    panels = [figure.add_subplot(grid[row]) for row in range(len(_HEIGHTS))]
    until = max(extract["cluster"][-1][0], extract["ended_s"])
    _nodes(panels[0], extract, until)
    _judged(panels[1], extract)
    end = max(at for at, *_ in [*train["events"], *train["checkpoints"], *train["steps"]])
    _workers(panels[2], train, end)
    _steps(panels[3], train)
    _loss(panels[4], train)
    for axes in panels[:2]:
        _mark(axes, [(extract["ended_s"], "end of the command")], text=axes is panels[0])
        axes.set_xlim(0, until * 1.02)
    for axes in panels[2:]:
        _mark(axes, [event for event in train["events"] if event[1] != "end"], text=axes is panels[2])
        axes.set_xlim(0, end * 1.02)
    return figure


def _nodes(axes: Axes, extract: Mapping[str, Any], until: float) -> None:
    rows = [*extract["cluster"], [until, *extract["cluster"][-1][1:]]]
    seconds = [row[0] for row in rows]
    axes.step(seconds, [row[1] for row in rows], where="post", color=BLUE, linewidth=2.2, label="worker nodes")
    axes.step(
        seconds,
        [row[2] for row in rows],
        where="post",
        color=ORANGE,
        linewidth=2.2,
        linestyle=(0, (4, 2)),
        label="judges at work",
    )
    finish(axes, "", "count")
    _whole(axes, max(max(row[1:3]) for row in rows), above=1.0)
    _legend(axes)
    title(axes, "Extraction: nodes and judges, and interactions judged", pad=22)


def _judged(axes: Axes, extract: Mapping[str, Any]) -> None:
    axes.plot(*_columns([(extract["judged"][0][0], 0), *extract["judged"]]), color=GREEN, linewidth=2.2)
    finish(axes, "seconds since the command was given", "interactions")
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter("{x:,.0f}")


def _workers(axes: Axes, train: Mapping[str, Any], end: float) -> None:
    starts = [(at, workers) for at, workers, _ in train["starts"]]
    rows = [(0.0, 0), *starts, (end, starts[-1][1])]
    axes.step(*_columns(rows), where="post", color=BLUE, linewidth=2.2)
    finish(axes, "", "workers")
    _whole(axes, max(workers for _, workers in starts))
    title(axes, "Training: workers, steps and loss", pad=22)


def _steps(axes: Axes, train: Mapping[str, Any]) -> None:
    axes.plot(*_columns(train["steps"]), color=GREEN, linewidth=2.2, label="steps done")
    marks = [(at, step) for at, step, _ in train["checkpoints"]]
    axes.plot(*_columns(marks), color=INK, linestyle="none", marker="o", markersize=4, label="checkpoint whole")
    finish(axes, "", "optimizer step")
    axes.set_ylim(bottom=0)
    _legend(axes)


def _loss(axes: Axes, train: Mapping[str, Any]) -> None:
    """The mean loss of the steps of a second: the command hears of them once in a second."""
    losses = dict(train["loss"])
    heard: dict[float, list[float]] = {}
    for at, step in train["steps"]:
        heard.setdefault(round(at), []).append(losses[step])
    points = [(at, fmean(values)) for at, values in heard.items()]
    axes.plot(*_columns(points), color=SKY, linewidth=1.4)
    finish(axes, "seconds since the command was given", "loss (nats)")


def _mark(axes: Axes, events: Sequence[Sequence[Any]], *, text: bool) -> None:
    """Vertical lines where something was done, named above the axes if `text`."""
    for at, what in events:
        axes.axvline(at, color=SOFT, linewidth=1.2, linestyle=(0, (1, 2)), zorder=1)
        if text:
            side = "right" if what in _LEFT else "left"
            place = axes.get_xaxis_transform()
            axes.text(at, 1.03, what, transform=place, ha=side, va="bottom", fontsize=10, color=SOFT)


def _whole(axes: Axes, most: int, above: float = 0.3) -> None:
    """Ticks at whole numbers from 0, with room for lines at the ends, and for a legend above them."""
    axes.set_ylim(-0.15, most + above)
    axes.set_yticks(range(most + 1))


def _legend(axes: Axes) -> None:
    axes.legend(ncols=2, fontsize=10, frameon=True, framealpha=0.9, edgecolor="none", labelcolor=INK, loc="upper left")


def _columns(points: Sequence[Sequence[float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


@contextmanager
def _same_ids() -> Iterator[None]:
    """Without this an SVG's ids are drawn at random."""
    from matplotlib import rc_context

    with rc_context({"svg.hashsalt": "elastic"}):
        yield
