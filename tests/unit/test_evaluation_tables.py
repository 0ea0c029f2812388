"""Tables and PNGs of evaluations: numbers as they were measured, gaps said, names of strangers harmless."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest

from wildreward_ray.report.evaluation_plots import write_plots
from wildreward_ray.report.evaluation_tables import incomplete, latex_table, markdown_table, model_name, write_metric


def evaluation(name: str = "ours", shift: float = 0.0, **more: Any) -> dict[str, Any]:
    metrics = {
        key: {"value": value + shift, "low": value + shift - 0.02, "high": value + shift + 0.03}
        for key, value in {"accuracy": 0.7631, "easy": 0.8214, "chat/easy": 0.9, "spearman": 0.4126}.items()
    }
    whole: dict[str, Any] = {"title": "RM-Bench", "name": name, "complete": True, "missing": [], "limit": None}
    return {**whole, "items": 798, "metrics": metrics, **more}


def cells(markdown: str) -> list[list[str]]:
    """The rows of a Markdown table, the heading first."""
    lines = [line for line in markdown.splitlines() if line.startswith("|") and not line.startswith("| --")]
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines]


def test_one_evaluation_is_a_row_a_metric() -> None:
    assert cells(markdown_table([evaluation()])) == [
        ["metric", "ours"],
        ["accuracy, %", "76.3 [74.3, 79.3]"],
        ["easy, %", "82.1 [80.1, 85.1]"],
        ["chat: easy, %", "90.0 [88.0, 93.0]"],
        ["spearman", "0.413 [0.393, 0.443]"],
    ]


def test_several_evaluations_are_a_row_a_model_without_the_metrics_of_parts() -> None:
    other = evaluation("theirs", 0.01)
    del other["metrics"]["easy"]
    other["metrics"]["accuracy"].update(low=None)
    other["metrics"]["spearman"].update(value=None)
    assert cells(markdown_table([evaluation(), other])) == [
        ["model", "accuracy, %", "easy, %", "spearman"],
        ["ours", "76.3 [74.3, 79.3]", "82.1 [80.1, 85.1]", "0.413 [0.393, 0.443]"],
        ["theirs", "77.3", "not measured", "not defined"],
    ]


def test_each_benchmark_has_a_table_of_its_own() -> None:
    both = [evaluation(), evaluation(title="JudgeBench")]
    written = markdown_table(both)
    assert written.index("**RM-Bench**") < written.index("**JudgeBench**")
    assert [row[0] for row in cells(written)].count("metric") == 2
    assert latex_table(both).count(r"\begin{tabular}") == 2


@pytest.mark.parametrize(
    ("gap", "reason"),
    [
        ({"missing": ["math"], "complete": False}, "missing: math"),
        ({"limit": 100, "items": 100, "complete": False}, "--limit 100: 100 prompts were measured"),
        ({"complete": False}, "it is marked as incomplete, and why is not recorded"),
        ({"complete": None}, "it is not recorded whether the whole benchmark was measured"),
    ],
)
def test_an_incomplete_run_has_a_dagger_and_a_note_that_says_why(gap: dict[str, Any], reason: str) -> None:
    found = evaluation(**gap)
    assert incomplete(found) == [reason]
    written = markdown_table([evaluation("whole"), found])
    assert [row[0] for row in cells(written)] == ["model", "whole", "ours†"]
    assert f"† ours is incomplete, so its numbers are not the benchmark's own: {reason}." in written
    assert r"ours$^{\dagger}$ &" in latex_table([found, evaluation()])


def test_a_whole_run_has_no_dagger() -> None:
    assert incomplete(evaluation()) == []
    assert "†" not in markdown_table([evaluation()])
    assert "dagger" not in latex_table([evaluation()])


def test_latex_specials_in_names_are_escaped() -> None:
    written = latex_table([evaluation("a_b & 50% #1 $x$ {y} ~z^2 \\input{/etc}\n\nnext"), evaluation()])
    name = r"a\_b \& 50\% \#1 \$x\$ \{y\} \textasciitilde{}z\textasciicircum{}2 \textbackslash{}input\{/etc\} next"
    assert f"    {name} & 76.3 [74.3, 79.3] & 82.1" in written
    assert r"\input" not in written


def test_a_name_after_a_line_break_is_not_taken_for_its_argument() -> None:
    assert "    {}[2] & 76.3" in latex_table([evaluation("[2]"), evaluation()])


def test_every_row_of_a_latex_table_has_as_many_cells_as_its_columns() -> None:
    written = latex_table([evaluation("a & b"), evaluation(missing=["math"])])
    columns = re.search(r"begin\{tabular\}\{(l?r+)\}", written)
    assert columns is not None
    body = [line for line in written.splitlines() if line.endswith(r" \\")]
    assert len(body) == 3
    assert {len(re.findall(r"(?<!\\)&", line)) + 1 for line in body} == {len(columns[1])}
    assert [f"\\{rule}rule" in written for rule in ("top", "mid", "bottom")] == [True] * 3


def test_markdown_of_names_is_escaped() -> None:
    written = markdown_table([evaluation("a|b\n| c | <img src=x> _d_ [e](f)"), evaluation()])
    assert r"| a\|b \| c \| &lt;img src=x&gt; \_d\_ \[e\](f) |" in written


def test_a_password_in_the_name_of_a_service_is_not_written() -> None:
    found = evaluation("http://ada:secret@host:8000/x")
    assert model_name(found) == "http://…@host:8000/x"
    assert "secret" not in markdown_table([found]) + latex_table([found])


def test_what_is_not_finite_is_not_defined() -> None:
    found = evaluation(metrics={"accuracy": {"value": math.nan, "low": 0.1, "high": 0.2}})
    assert cells(markdown_table([found]))[1] == ["accuracy, %", "not defined"]
    assert write_metric("chat/spearman", -0.25) == "-0.250"


# PNGs


def test_only_pictures_with_data_are_written(tmp_path: Path) -> None:
    assert write_plots({}, tmp_path / "none") == []
    assert list((tmp_path / "none").iterdir()) == []
    found = evaluation(
        name="$\\frac{",
        metrics={"_a$b$": {"value": 0.5, "low": None, "high": None}, "spearman": {"value": 0.1}},
        styles={"all": [[0.5, 0.4, 0.3]] * 3, "odd": [[0.5]]},
        bias={"observed": [{"name": "x_$_$", "effect": 0.2, "low": 0.1, "high": 0.3, "unit": "SD"}, {"effect": None}]},
    )
    written = ["metrics.png", "styles.png", "bias.png"]
    assert write_plots(found, tmp_path) == written
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in written)
    assert not (tmp_path / "margins.png").exists()
