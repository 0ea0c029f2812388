"""Two files of figures: what fell and by how much, what differs about the runs, and files that can't be compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from wildreward_ray import cli
from wildreward_ray.core.config.bench import BenchConfig
from wildreward_ray.core.errors import UserError, WildRewardError
from wildreward_ray.stages import bench, bench_extract
from wildreward_ray.stages.bench_compare import check, compare, fell, text

MACHINE = {"cpu": "Some CPU", "cpus": 2, "memory_gib": 23.5, "gpus": []}
FIGURES = {"interactions": 40, "pipeline_per_s": 27.0, "ceiling_per_s": 30.0, "ratio": 0.9}


def one(stage: str = "extract", **more: Any) -> dict[str, Any]:
    """An output of a bench of one stage."""
    return {"stage": stage, **FIGURES, **MACHINE, "commit": "abc", "version_ray": "2.60", **more}


def several(benches: dict[str, Any], **more: Any) -> dict[str, Any]:
    """An output of `bench all`."""
    stages = {stage: {"seconds": 1.0, **bench} for stage, bench in benches.items()}
    return {"stage": "all", "benches": stages, **MACHINE, "commit": "abc", "versions": {"ray": "2.60"}, **more}


def write(folder: Path, **trees: Any) -> tuple[str, ...]:
    """Files of these names, with their trees."""
    paths = []
    for name, tree in trees.items():
        file = folder / f"{name}.json"
        file.write_text(tree if isinstance(tree, str) else json.dumps(tree), encoding="utf-8")
        paths.append(str(file))
    return tuple(paths)


def compared(folder: Path, old: Any, new: Any, **settings: Any) -> dict[str, Any]:
    files = write(folder, old=old, new=new)
    return compare(BenchConfig(stage="compare", files=files, **settings))


def rows_of(found: dict[str, Any]) -> dict[str, tuple[Any, ...]]:
    return {
        row["name"]: (row["kind"], row["old"], row["new"], row["new_over_old"], row["fell"]) for row in found["rows"]
    }


def test_every_ratio_and_rate_is_compared_and_nothing_else(tmp_path: Path) -> None:
    found = compared(tmp_path, one(), one(pipeline_per_s=18.0, ratio=0.6, interactions=80))
    assert rows_of(found) == {
        "ratio": ("ratio", 0.9, 0.6, pytest.approx(2 / 3), True),
        "pipeline_per_s": ("rate", 27.0, 18.0, pytest.approx(2 / 3), True),
        "ceiling_per_s": ("rate", 30.0, 30.0, 1.0, False),
    }
    assert found["fell"] == ["extract ratio", "extract pipeline_per_s"]
    cells = [line.split() for line in text(found).splitlines()]
    assert ["extract", "ratio", "ratio", "0.900", "0.600", "0.667", "fell"] in cells
    assert ["extract", "rate", "ceiling_per_s", "30.000", "30.000", "1.000"] in cells


@pytest.mark.parametrize("old", [0.3, 0.7, 1.0, 7.0, 31.1, 899.0])
def test_what_falls_by_the_tolerance_has_not_fallen_and_by_more_has(old: float) -> None:
    assert not fell(old, old * 0.9, 0.1, less_is_better=False)
    assert fell(old, old * 0.8999, 0.1, less_is_better=False)
    assert not fell(old, old * 2, 0.1, less_is_better=False)
    assert not fell(old, old * 1.1, 0.1, less_is_better=True)
    assert fell(old, old * 1.1001, 0.1, less_is_better=True)
    assert not fell(old, old / 2, 0.1, less_is_better=True)
    assert not fell(old, old, 0.0, less_is_better=False)


def test_an_overlap_gets_worse_where_its_ratio_rises(tmp_path: Path) -> None:
    figures = {"slowest_part": "learn", "learn_alone_s": 4.0, "step_s_staleness_1": 5.0, "overlap_ratio": 1.25}
    worse = {**figures, "step_s_staleness_1": 6.0, "overlap_ratio": 1.5}
    old, new = ({"stage": "online-dpo", **MACHINE, **tree} for tree in (figures, worse))
    found = compared(tmp_path, old, new)
    assert found["fell"] == ["online-dpo overlap_ratio"]
    assert "rose, less is better" in text(found)
    assert compared(tmp_path, new, old)["fell"] == []


def test_on_another_machine_ratios_fall_and_rates_do_not(tmp_path: Path) -> None:
    new = one(cpu="Other CPU", pipeline_per_s=9.0, ceiling_per_s=15.0, ratio=0.6, version_ray="2.61", version_vllm="1")
    found = compared(tmp_path, one(), new)
    assert found["differ"]["machine"] == {"cpu": ["Some CPU", "Other CPU"]}
    assert found["differ"]["versions"] == {"ray": ["2.60", "2.61"], "vllm": [None, "1"]}
    assert found["fell"] == ["extract ratio"]
    lines = text(found).splitlines()
    assert lines[2] == "different machine: cpu: Some CPU -> Other CPU"
    assert lines[3:5] == ["different versions: ray: 2.60 -> 2.61", "different versions: vllm: not given -> 1"]
    assert "rates of different machines don't compare" in lines[5]
    assert lines[6].startswith("bench")


def test_another_version_on_the_same_machine_can_make_rates_fall(tmp_path: Path) -> None:
    found = compared(tmp_path, one(), one(version_ray="2.61", ceiling_per_s=15.0))
    assert found["fell"] == ["extract ceiling_per_s"]


def test_a_machine_that_is_not_told_is_not_taken_for_the_same(tmp_path: Path) -> None:
    untold = {name: value for name, value in one(ceiling_per_s=1.0).items() if name != "cpu"}
    assert compared(tmp_path, one(), untold)["fell"] == []


def test_settings_that_differ_are_named_but_for_those_that_change_nothing_measured(tmp_path: Path) -> None:
    old = {"limit": 500, "output": "a", "strict": True, "train": {"base": "x", "gone": 1}}
    new = {"limit": 160, "output": "b", "strict": False, "train": {"base": "y", "added": 2}}
    found = compared(tmp_path, one(config=old), one(config=new))
    assert found["differ"]["settings"] == {"limit": [500, 160], "train.base": ["x", "y"]}
    assert "neither rates nor ratios compare" in text(found)


def test_a_part_that_only_one_measured_has_fallen_nowhere(tmp_path: Path) -> None:
    old = {"stage": "serve", **MACHINE, "service_per_s": 9.0, "plain_per_s": 3.0, "service_over_plain": 3.0}
    new = {"stage": "serve", **MACHINE, "service_per_s": 9.0, "http_per_s": 0.0}
    found = compared(tmp_path, old, new)
    assert rows_of(found)["service_over_plain"] == ("ratio", 3.0, None, None, False)
    assert rows_of(found)["http_per_s"] == ("rate", None, 0.0, None, False)
    assert compared(tmp_path, new, {**new, "http_per_s": 5.0})["fell"] == []


def test_all_benches_of_two_files_are_compared_by_stage(tmp_path: Path) -> None:
    slow = {**FIGURES, "ratio": 0.7}
    old = several({"extract": {"figures": FIGURES}, "train": {"figures": FIGURES}, "serve": {"error": "no engine"}})
    new = several({"train": {"figures": slow}, "extract": {"error": "no judge"}, "serve": {"figures": FIGURES}})
    found = compared(tmp_path, old, new)
    assert {row["bench"] for row in found["rows"]} == {"train"}
    assert found["fell"] == ["train ratio", "extract (it failed)"]
    assert "failed in old: serve: no engine" in text(found)
    assert "failed in new: extract: no judge" in text(found)
    with pytest.raises(WildRewardError, match=r"by more than 0\.1 of it: train ratio, extract \(it failed\)"):
        check(found)


def test_the_command_fails_only_where_it_is_strict_and_something_fell(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files, output = write(tmp_path, old=one(), new=one(ratio=0.6)), tmp_path / "compared.json"
    asked = ["compare", "--files", *files]
    assert cli.run_stage("bench", [*asked, "--output", str(output)]) == 0
    assert json.loads(output.read_text())["fell"] == ["extract ratio"]
    assert cli.run_stage("bench", [*asked, "--strict", "true"]) == 1
    assert "extract ratio" in capsys.readouterr().err
    assert cli.run_stage("bench", [*asked, "--strict", "--tolerance", "0.5"]) == 0


def test_what_a_bench_of_one_stage_writes_can_be_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_extract, "measure", lambda *_: dict(FIGURES))
    files = (str(tmp_path / "old.json"), str(tmp_path / "new.json"))
    for file, limit in zip(files, (64, 128), strict=True):
        bench.run(BenchConfig(input=("logs",), output=file, limit=limit))
    found = compare(BenchConfig(stage="compare", files=files))
    assert found["differ"] == {"machine": {}, "versions": {}, "settings": {"limit": [64, 128]}}
    assert [row["new_over_old"] for row in found["rows"]] == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("tree", "problem"),
    [
        ("{", "not JSON"),
        ("[1]", "no output of a bench: its stage is None"),
        ({"stage": "extra"}, "its stage is 'extra'"),
        ({"stage": "compare", "rows": []}, "its stage is 'compare'"),
        ({"stage": "all"}, "its stage is 'all'"),
        (several({"extract": {}}), "extract has neither figures nor error"),
        (several({"extract": {"figures": [1]}}), "extract has neither figures nor error"),
        (one("train"), "of the same stages compare"),
        (several({"extract": {"figures": FIGURES}, "train": {"figures": FIGURES}}), "of extract, train"),
        (one(ratio=float("nan")), "ratio of extract is nan"),
        (one(pipeline_per_s="fast"), "pipeline_per_s of extract is 'fast'"),
    ],
)
def test_a_file_that_can_not_be_compared_is_named_with_the_reason(tmp_path: Path, tree: Any, problem: str) -> None:
    good, bad = write(tmp_path, good=one(), bad=tree)
    for files in ((good, bad), (bad, good)):
        with pytest.raises(UserError) as caught:
            compare(BenchConfig(stage="compare", files=files))
        assert problem in str(caught.value)
        assert repr(bad) in str(caught.value)
        assert caught.value.flag == "--files"


def test_two_files_with_figures_are_needed(tmp_path: Path) -> None:
    (file,) = write(tmp_path, only=one())
    for files in (None, (file,), (file,) * 3):
        with pytest.raises(UserError, match=r"two outputs .* are compared, OLD and NEW"):
            compare(BenchConfig(stage="compare", files=files))
    with pytest.raises(UserError, match=r"can't read .*missing"):
        compare(BenchConfig(stage="compare", files=(file, str(tmp_path / "missing.json"))))
    with pytest.raises(UserError, match="neither a ratio nor a rate"):
        compared(tmp_path, {"stage": "judge", "flips": 0.1}, {"stage": "judge", "flips": 0.2})
