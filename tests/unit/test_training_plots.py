"""Pictures of a training run: which are drawn, from which numbers, and that the rest of the process isn't touched."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from wildreward_ray.report import held_out as pictures
from wildreward_ray.report.training import _curves, running_mean, write_plots


def curve(steps: int, epochs: int = 1) -> list[dict[str, Any]]:
    return [
        {
            "step": step,
            "epoch": (step - 1) * epochs // steps,
            "loss": 1 / step,
            "learning_rate": 1e-5 * step,
            "grad_norm": 1.5,
            "tokens": 900,
            "seconds": 0.5,
        }
        for step in range(1, steps + 1)
    ]


def measured() -> dict[str, Any]:
    """What is measured on 40 held-out rows of two levels."""
    return {
        "n": 40,
        "ece": 0.15,
        "calibration": {"ece": 0.05, "method": "platt"},
        "reliability": [
            {"predicted": 0.1, "observed": 0.2, "count": 20},
            {"predicted": 0.9, "observed": 0.7, "count": 20},
        ],
        "reliability_calibrated": [
            {"predicted": 0.2, "observed": 0.2, "count": 19},
            {"predicted": 0.8, "observed": 0.7, "count": 21},
        ],
        "confusion": [[16, 4], [6, 14]],
        "scores": {"edges": [1.0, 1.5, 2.0], "counts": [[15, 5], [2, 18]]},
    }


def metrics(**held_out: Any) -> dict[str, Any]:
    evals = [{"step": step, "mae": 0.8, "auc": None, "quadratic_kappa": 0.4, "ece": 0.1} for step in (10, 20)]
    return {"levels": 2, "evals": evals, "held_out": {**measured(), **held_out}}


def drawn(figure: Any) -> Any:
    """A figure that was drawn; untyped, as matplotlib's own types leave open what its getters give."""
    assert figure is not None
    return figure


def legend_texts(axes: Any) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_a_whole_run_gives_four_pictures_a_thousand_pixels_wide_or_more(tmp_path: Path) -> None:
    names = write_plots(metrics(), curve(30), tmp_path / "plots")
    assert names == ["curves.png", "reliability.png", "confusion.png", "scores.png"]
    for name in names:
        content = (tmp_path / "plots" / name).read_bytes()
        assert content.startswith(b"\x89PNG")
        # Bytes 16 to 20 of a PNG file are its width (https://www.w3.org/TR/png-3/#11IHDR).
        assert int.from_bytes(content[16:20], "big") >= 1000


@pytest.mark.parametrize("held_out", [None, {}, {"n": 0, "reliability": [], "confusion": [[0, 0], [0, 0]]}])
def test_a_run_without_held_out_rows_gives_its_curves_only(tmp_path: Path, held_out: Any) -> None:
    found = {"levels": 2, "evals": [], "held_out": held_out}
    assert write_plots(found, curve(3), tmp_path) == ["curves.png"]
    assert [file.name for file in tmp_path.iterdir()] == ["curves.png"]


def test_nothing_measured_gives_no_picture(tmp_path: Path) -> None:
    assert write_plots({"levels": 2}, [], tmp_path) == []


def test_curves_show_each_series_at_its_steps_and_leave_out_what_is_none() -> None:
    steps = curve(10, epochs=2)
    steps[4]["grad_norm"] = None
    figure = drawn(_curves(steps, metrics()["evals"]))
    by_title = {axes.get_title(loc="left"): axes for axes in figure.axes}
    assert list(by_title) == [
        "Training loss (mean over the rows of a step)",
        "Learning rate",
        "Gradient norm (before clipping)",
        "Held-out rows: higher is better",
        "Held-out rows: lower is better",
    ]
    lines = {name: axes.get_lines() for name, axes in by_title.items()}
    # The first line of each panel is where the second epoch begins.
    assert list(lines["Learning rate"][0].get_xdata()) == [5.5, 5.5]
    norms = lines["Gradient norm (before clipping)"][1]
    assert list(norms.get_xdata()) == [1, 2, 3, 4, 6, 7, 8, 9, 10]
    # AUC is None throughout, and nobody measured Spearman.
    higher = by_title["Held-out rows: higher is better"]
    assert legend_texts(higher) == ["quadratic kappa, last 0.400"]
    assert list(higher.get_lines()[1].get_xdata()) == [10, 20]
    assert higher.get_xlim() == by_title["Learning rate"].get_xlim()


def test_only_long_runs_are_smoothed() -> None:
    short, long = drawn(_curves(curve(19), [])), drawn(_curves(curve(200), []))
    assert len(short.axes[0].get_lines()) == 1
    assert legend_texts(long.axes[0]) == ["each step", "mean of 9 steps"]


def test_the_running_mean_takes_no_value_from_beyond_the_ends() -> None:
    assert running_mean([0.0, 3.0, 6.0, 0.0], 3) == [1.5, 3.0, 3.0, 3.0]
    assert running_mean([4.0], 25) == [4.0]


def test_the_reliability_legend_has_both_errors_and_the_size_of_bins() -> None:
    figure = drawn(pictures.reliability(measured()))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "as often as predicted",
        "before calibration: ECE 0.150, 2 bins of 20 rows",
        "after calibration (platt): ECE 0.050, 2 bins of 19 to 21 rows",
    ]
    _, before, after = figure.axes[0].get_lines()
    assert list(zip(before.get_xdata(), before.get_ydata(), strict=True)) == [(0.1, 0.2), (0.9, 0.7)]
    assert list(zip(after.get_xdata(), after.get_ydata(), strict=True)) == [(0.2, 0.2), (0.8, 0.7)]


def test_reliability_without_calibration_has_one_line_beside_the_diagonal() -> None:
    figure = drawn(pictures.reliability({**measured(), "calibration": None, "reliability_calibrated": None}))
    assert [line.get_label() for line in figure.axes[0].get_lines()] == [
        "as often as predicted",
        "not calibrated: ECE 0.150, 2 bins of 20 rows",
    ]


def test_the_confusion_has_labels_as_rows_and_colours_by_share_of_the_row() -> None:
    figure = drawn(pictures.confusion({"confusion": [[9, 1, 0], [0, 0, 0], [500, 1, 0]]}))
    axes = figure.axes[0]
    assert axes.get_images()[0].get_array()[0].tolist() == [0.9, 0.1, 0.0]
    written = {tuple(map(int, text.get_position())): text.get_text() for text in axes.texts}
    # Positions are (column, row).
    assert written[1, 0] == "1\n10%"
    assert written[0, 1] == "0"
    assert written[1, 2] == "1\n<1%"
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["1  (10 rows)", "2  (0 rows)", "3  (501 rows)"]


def test_every_level_has_a_row_of_scores_and_its_mean_even_if_another_has_none() -> None:
    counts = [[0, 0, 0, 0], [1, 1, 1, 1]]
    figure = drawn(pictures.scores({"scores": {"edges": [1.0, 1.25, 1.5, 1.75, 2.0], "counts": counts}}))
    empty, full = figure.axes
    assert empty.get_ylabel() == "label 1\n0 rows"
    assert len(empty.get_lines()) == 1
    label, mean = full.get_lines()
    assert label.get_xdata()[0] == 2
    assert mean.get_xdata()[0] == pytest.approx(1.5)
    assert full.patches[0].get_data().values.tolist() == [0.25] * 4
    assert legend_texts(empty) == ["the label", "mean (of bins)"]


@pytest.mark.parametrize(
    "held_out",
    [{"confusion": [[1, 2], [3]]}, {"scores": {"edges": [1.0, 2.0], "counts": [[1, 2], [3, 4]]}}],
    ids=["confusion", "scores"],
)
def test_shapes_that_do_not_fit_are_an_error_and_not_a_picture(tmp_path: Path, held_out: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"rows of|levels of"):
        write_plots(metrics(**held_out), curve(3), tmp_path)


@pytest.mark.parametrize(
    ("share", "n", "expected"), [(0.5, 10, (0.2366, 0.7634)), (0.0, 10, (0.0, 0.2775)), (1.0, 10, (0.7225, 1.0))]
)
def test_wilson_interval(share: float, n: int, expected: tuple[float, float]) -> None:
    """Expected values: `scipy.stats.binomtest(k, n).proportion_ci(method="wilson")`."""
    assert pictures.wilson_interval(share, n) == pytest.approx(expected, abs=1e-4)


def test_drawing_leaves_pyplot_and_the_settings_of_matplotlib_alone(tmp_path: Path) -> None:
    code = (
        "import sys, matplotlib\n"
        "from pathlib import Path\n"
        "from wildreward_ray.report.training import write_plots\n"
        "before = matplotlib.rcParams.copy()\n"
        f"write_plots({metrics()!r}, {curve(30)!r}, Path({str(tmp_path)!r}))\n"
        "assert matplotlib.rcParams.copy() == before\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
