"""The look of the pictures that are PNG files: a canvas, colours, titles, axes and legends.

Colours are those of Okabe and Ito, which colour-blind readers tell apart (https://jfly.uni-koeln.de/color/). Pictures are
1,500 pixels wide and their text stays readable at two thirds of that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI, _WIDTH = 150, 10.0
INK, SOFT, _GRID = "#1f2328", "#5b636d", "#e2dfd8"
BLUE, ORANGE, GREEN, SKY = "#0072b2", "#d55e00", "#009e73", "#56b4e9"


def new_figure(height: float) -> Figure:
    """A figure of `height` inches with a canvas of its own: pyplot and its settings, which belong to the whole process, are left alone."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=(_WIDTH, height), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12))
    FigureCanvasAgg(figure)
    return figure


def finish(axes: Axes, x_title: str, y_title: str) -> None:
    """Name the axes and draw them, ticks and grid in quiet colours."""
    axes.set_xlabel(x_title, fontsize=11, color=SOFT)
    axes.set_ylabel(y_title, fontsize=11, color=SOFT)
    axes.tick_params(colors=SOFT, labelsize=10)
    axes.grid(True, color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(SOFT)


def title(axes: Axes, text: str, pad: float = 10) -> None:
    """Say what is seen, `pad` points above the axes."""
    axes.set_title(text, loc="left", fontsize=12.5, color=INK, pad=pad)


def legend(axes: Axes) -> None:
    """Explain, in the upper right corner, what has a label."""
    if not axes.get_legend_handles_labels()[0]:
        return
    axes.legend(fontsize=10, frameon=True, framealpha=0.9, edgecolor="none", labelcolor=INK, loc="upper right")
