"""Several benches in one run: the ratios that the table shows are those of the benches, and one that fails costs no other."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.bench_measurers import gives_extract, gives_train, is_broken, is_killed, is_refused
from wildreward_ray import cli
from wildreward_ray.core.config.bench import BenchConfig
from wildreward_ray.core.errors import UserError, WildRewardError
from wildreward_ray.stages import (
    bench,
    bench_all,
    bench_extract,
    bench_online_dpo_figures,
    bench_serve,
    bench_train,
    extract,
    ingest,
    judged,
    label,
)
from wildreward_ray.stages.bench_all import check, measure_all, ratio_rows, table
from wildreward_ray.stages.bench_machine import checkout, commit_text, cpu_model, gpus, machine, text_of
from wildreward_ray.stages.bench_online_dpo_trl import TrlResult
from wildreward_ray.stages.bench_ratios import RATIOS, Ratio, aligned


def here(function: Callable[..., dict[str, Any]], *arguments: object) -> dict[str, Any]:
    return function(*arguments)


def config_of(**settings: Any) -> BenchConfig:
    return BenchConfig.load(None, {"stage": "all", **settings})


def lines_of(text: str) -> Iterator[list[str]]:
    """Cells of every line, as two blanks and more part them."""
    for line in text.splitlines():
        yield [cell.strip() for cell in line.split("  ") if cell.strip()]


def test_each_bench_runs_in_another_process_and_what_fails_takes_no_other_along(
    capfd: pytest.CaptureFixture[str],
) -> None:
    measurers = {"extract": gives_extract, "serve": is_killed, "online-dpo": is_broken, "train": gives_train}
    found = measure_all(config_of(), ("logs",), measurers)
    benches = found["benches"]
    assert list(benches) == list(measurers)
    assert benches["extract"]["figures"]["asked"] == ["extract", "logs"]
    assert benches["train"]["figures"]["asked"] == ["train", "logs"]
    assert len({os.getpid(), *(benches[s]["figures"]["process"] for s in ("extract", "train"))}) == 3
    assert "ended without a word" in benches["serve"]["error"]
    assert benches["online-dpo"]["error"] == "Unsendable: first second line"
    assert found["failed"] == ["serve", "online-dpo"]
    assert "Traceback" in capfd.readouterr().err
    with pytest.raises(WildRewardError, match="2 of 4 benches failed: serve, online-dpo"):
        check(found)


def test_the_table_has_every_ratio_with_both_of_its_figures() -> None:
    measurers = {"train": gives_train, "extract": gives_extract, "serve": is_refused, "online-dpo": lambda *_: {}}
    found = measure_all(config_of(), (), measurers, separately=here)
    head, *lines = lines_of(table(found))
    assert head == ["bench", "what is compared", "measured", "against", "ratio", "aim", "seconds"]
    assert lines[0] == [
        "train",
        "training in the pipeline over a bare loop, tokens/s",
        *("800.000", "1,000.000", "0.800", ">= 0.9", "0"),
    ]
    assert [line[1:] for line in lines[1:3]] == [["1,000.000", "500.000", "2.000"], ["600.000", "800.000", "0.750"]]
    assert lines[3][2:] == ["27.000", "30.000", "0.900", ">= 0.9", "0"]
    assert lines[4] == ["serve", "failed", "0"]
    assert lines[5] == ["online-dpo", "no ratio: the parts that were asked for give none", "0"]
    assert lines[6] == ["serve: too few texts; raise it (--limit)"]
    assert [line[0].split(":")[0] for line in lines[7:]] == ["machine", "versions", "commit"]


def test_an_aim_is_shown_with_its_direction(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("ratio", "pipeline_per_s", "ceiling_per_s", "what")
    monkeypatch.setitem(RATIOS, "extract", (Ratio(*names, aim=0.85),))
    monkeypatch.setitem(RATIOS, "serve", (Ratio(*names, aim=1.2, less_is_better=True),))
    monkeypatch.setitem(RATIOS, "train", (Ratio(*names),))
    found = measure_all(config_of(), (), dict.fromkeys(("extract", "serve", "train"), gives_extract), separately=here)
    head, *lines = lines_of(table(found))
    assert head[5] == "aim"
    assert [line[5:] for line in lines[:3]] == [[">= 0.85", "0"], ["<= 1.2", "0"], ["0"]]


def test_the_command_writes_everything_prints_the_table_and_fails_with_a_bench(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure(config: BenchConfig, inputs: tuple[str, ...]) -> dict[str, Any]:
        return (is_refused if config.stage == "serve" else gives_extract)(config, inputs)

    monkeypatch.setattr(bench, "_measure", measure)
    monkeypatch.setattr(bench_all.measure_all, "__kwdefaults__", {"separately": here})
    output = tmp_path / "all.json"
    common = ["all", "--input", "logs.jsonl", "--output", str(output), "--limit", "64", "--stages"]
    assert cli.run_stage("bench", [*common, "extract,serve"]) == 1
    shown = capsys.readouterr()
    assert "judge in the pipeline" in shown.out
    assert "1 of 2 benches failed: serve" in shown.err
    found = json.loads(output.read_text())
    assert (found["stage"], found["failed"], found["config"]["limit"]) == ("all", ["serve"], 64)
    assert found["benches"]["extract"]["figures"]["asked"] == ["extract", "logs.jsonl"]
    assert found["ratios"][0]["ratio"] == 0.9
    assert {"cpu", "cpus", "memory_gib", "gpus", "commit", "dirty", "versions", "created"} <= found.keys()
    assert cli.run_stage("bench", [*common, "extract"]) == 0


def test_an_output_without_a_directory_is_refused_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "_measure", lambda *_: pytest.fail("it was measured"))
    with pytest.raises(UserError, match=r"no directory .*/missing'.*--output"):
        bench.run(config_of(output=str(tmp_path / "missing" / "all.json")))


def test_stages_without_a_ratio_can_not_be_asked_for() -> None:
    assert config_of(stages="train,serve").stages == ("train", "serve")
    with pytest.raises(UserError, match="ingest"):
        config_of(stages=["ingest"])


def hold(stage: str, figures: dict[str, Any], expected: dict[str, tuple[float, float, float]]) -> None:
    """Check the rows of a bench's own figures: (measured, against, ratio), and that the bench gave the quotient of the two."""
    rows = {row["name"]: (row["measured"], row["against"], row["ratio"]) for row in ratio_rows(stage, figures)}
    assert rows == expected
    assert list(rows) == [ratio.name for ratio in RATIOS[stage]]
    for above, below, ratio in rows.values():
        assert ratio == pytest.approx(above / below, abs=0.005)


def test_ratios_of_extract_are_those_of_its_bench(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = SimpleNamespace()
    engine = SimpleNamespace(
        rate=SimpleNamespace(remote=lambda _: {"per_s": 40.0, "prompt_tokens": 100, "cached": 0.5, "static": 8})
    )
    stamps = SimpleNamespace(rate=SimpleNamespace(remote=lambda: 30.0))
    options = SimpleNamespace(remote=lambda _: engine)
    turn = SimpleNamespace(to_pylist=lambda: [{}])
    counts = SimpleNamespace(judge={"cached_tokens": 1, "prompt_tokens": 2})
    monkeypatch.setattr(bench_extract, "start_ray", lambda: None)
    monkeypatch.setattr(bench_extract, "check_resources", lambda _: None)
    monkeypatch.setattr(bench_extract, "ray_errors", nullcontext)
    monkeypatch.setattr(bench_extract, "ray", SimpleNamespace(get=lambda found: found))
    monkeypatch.setattr(bench_extract, "Stamps", SimpleNamespace(remote=lambda: stamps))
    monkeypatch.setattr(bench_extract, "_Ceiling", SimpleNamespace(options=lambda **_: options))
    monkeypatch.setattr(ingest, "plan", lambda *_, **__: SimpleNamespace(shards=nothing))
    monkeypatch.setattr(ingest, "read_chunks", lambda *_, **__: [(0, turn)])
    monkeypatch.setattr(extract, "judge_parts", lambda *_, **__: None)
    monkeypatch.setattr(judged, "survey", lambda *_: counts)
    monkeypatch.setattr(label, "resources", lambda _: None)
    monkeypatch.setattr(label, "gpus_of", lambda _: 0.0)
    monkeypatch.setattr(label, "turn_fields", lambda _: [{}])
    found = bench_extract.measure(BenchConfig(), ("logs",))
    hold("extract", found, {"ratio": (30.0, 40.0, 0.75)})


def test_ratios_of_train_are_those_of_its_bench(monkeypatch: pytest.MonkeyPatch) -> None:
    def train(*_: Any, workers: int) -> dict[str, Any]:
        rates = {1: 800.0, 2: 600.0}
        metrics = {"rows": {"train": 9}, "parameters": 1, "padding_waste": 0.1, "checkpoint_stall_s": [0.1]}
        return {**metrics, "tokens_per_s": rates[workers]}

    bare = {"tokens_per_s": 1000.0, "padded_tokens_per_s": 400.0, "mean_tokens": 3.0}
    monkeypatch.setattr(bench_train, "start_ray", lambda: None)
    monkeypatch.setattr(bench_train, "_write_rows", lambda *_: Path())
    monkeypatch.setattr(bench_train, "_train", train)
    monkeypatch.setattr(bench_train, "_bare", lambda *_: bare)
    expected = {
        "ratio": (800.0, 1000.0, 0.8),
        "gain_over_padding_to_maximum": (1000.0, 400.0, 2.5),
        "two_workers_over_one": (600.0, 800.0, 0.75),
    }
    hold("train", bench_train.measure(BenchConfig(stage="train"), ("logs",)), expected)


def test_ratios_of_serve_are_those_of_its_bench() -> None:
    rates = {
        "service_per_s": 90.0,
        "offline_per_s": 100.0,
        "plain_per_s": 45.0,
        "http_per_s": 200.0,
        "http_plain_per_s": 800.0,
        "routing_prefix_per_s": 60.0,
        "routing_balanced_per_s": 50.0,
    }
    expected = {
        "service_over_offline": (90.0, 100.0, 0.9),
        "service_over_plain": (90.0, 45.0, 2.0),
        "http_over_plain": (200.0, 800.0, 0.25),
        "routing_prefix_over_balanced": (60.0, 50.0, 1.2),
    }
    hold("serve", rates | bench_serve.ratios(rates, {}), expected)
    part = {"http_per_s": 200.0, "http_plain_per_s": 800.0}
    assert [row["name"] for row in ratio_rows("serve", part | bench_serve.ratios(part, {}))] == ["http_over_plain"]


def steps(**seconds: float) -> list[dict[str, Any]]:
    one = {
        "staleness": 1,
        "pairs": 7,
        "rollout_tokens_per_s": 90.0,
        "seconds": {"rollout": 4.0, "score": 0.5, "learn": 3.0, "sync": 0.25, "step": 8.0, **seconds},
        "idle": dict.fromkeys(("rollout", "reward", "learner"), 0.5),
    }
    return [{"step": number, **one} for number in range(4)]


@pytest.mark.parametrize(("slow", "seconds"), [("rollout", 4.0), ("learn", 5.0)])
def test_ratios_of_online_dpo_are_those_of_its_bench(slow: str, seconds: float) -> None:
    figures = bench_online_dpo_figures
    raw = [figures.Sampled(100, 1.0)] * 4
    found = {
        **figures.overlap(steps(**{slow: seconds}), steps(step=6.0)),
        **figures.generation(steps(), raw, raw),
        **figures.throughput({"in_turn": steps(step=2.0)}, 8),
        **figures.trl_figures(TrlResult("1.0", [8.0] * 4), 8),
    }
    expected = {
        "overlap_ratio": (6.0, seconds, 6.0 / seconds),
        "generation_ratio": (90.0, 100.0, 0.9),
        "prompts_over_trl": (4.0, 1.0, 4.0),
    }
    hold("online-dpo", found | figures.ratios(found), expected)


def test_the_machine_is_told_on_one_line(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nmodel name\t: Some CPU @ 2 GHz \nprocessor\t: 1\nmodel name\t: Other\n")
    assert cpu_model(cpuinfo) == "Some CPU @ 2 GHz"
    cpuinfo.write_text("processor\t: 0\nBogoMIPS\t: 50\n")
    assert cpu_model(cpuinfo) == cpu_model(tmp_path / "missing") != ""
    facts = machine()
    assert facts["cpus"] == os.cpu_count()
    assert facts["memory_gib"] > 0
    shown = {"cpu": "C", "cpus": 4, "memory_gib": 23.5, "gpus": []}
    assert text_of(shown) == "C, 4 CPUs, 23.5 GiB, no GPU"
    assert text_of({**shown, "gpus": ["A", "B"], "memory_gib": None}) == "C, 4 CPUs, memory unknown, A, B"


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("echo 'H100, 81559 MiB'; echo 'H100, 81559 MiB'", ["H100, 81559 MiB"] * 2),
        ("echo 'no driver' >&2; exit 9", ["nvidia-smi failed: no driver"]),
    ],
)
def test_gpus_are_those_of_nvidia_smi_and_its_failure_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, expected: list[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpus() == []
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    assert gpus() == expected


def test_a_checkout_has_a_commit_and_is_dirty_once_a_file_that_git_knows_changed(tmp_path: Path) -> None:
    assert checkout(str(tmp_path)) == {"commit": None, "dirty": None}
    assert commit_text({"commit": None, "dirty": None}) == "none: not a git checkout"
    own = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e@example.org"]
    (tmp_path / "known").write_text("1")
    for command in (["init", "-q"], ["add", "known"], ["commit", "-q", "-m", "first"]):
        subprocess.run([*own, *command], check=True)
    (tmp_path / "output.json").write_text("{}")
    found = checkout(str(tmp_path))
    assert len(found["commit"]) == 40
    assert found["dirty"] is False
    (tmp_path / "known").write_text("2")
    assert checkout(str(tmp_path)) == {"commit": found["commit"], "dirty": True}
    assert commit_text(checkout(str(tmp_path))).endswith(", with uncommitted changes")


def test_columns_are_aligned_and_numbers_end_together() -> None:
    rows = [["a", "n", "b"], ["long", "1,000", ""], ["x", "2", "y"]]
    assert aligned(rows, numbers=frozenset({1})).splitlines() == ["a         n  b", "long  1,000", "x         2  y"]
