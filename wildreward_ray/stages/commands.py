"""What the commands and the job entrypoints call: run a stage and say in a few lines what it made."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from wildreward_ray.core.config.bench import BenchConfig
from wildreward_ray.core.config.demo import DemoConfig
from wildreward_ray.core.config.evaluate import EvaluateConfig
from wildreward_ray.core.config.experiment import ExperimentConfig
from wildreward_ray.core.config.extract import ExtractConfig
from wildreward_ray.core.config.inspect import InspectConfig
from wildreward_ray.core.config.online_dpo import OnlineDpoConfig
from wildreward_ray.core.config.run_all import RunAllConfig
from wildreward_ray.core.config.serve import ScoreConfig, ServeConfig, UpdateModelConfig
from wildreward_ray.core.config.submit import StatusConfig, SubmitConfig
from wildreward_ray.core.config.train import TrainConfig


def extract(config: ExtractConfig) -> None:
    """`wildreward extract`."""
    from wildreward_ray.stages.extract import run

    result = run(config)
    if not result.fresh:
        print(f"{result.output} was already made with these settings and from this input: nothing to do")
    for step in result.manifest["funnel"]:
        dropped = ", ".join(f"{reason} {n:,}" for reason, n in step["dropped"].items() if n)
        print(f"{step['name']:>15}  {step['rows_in']:>9,} -> {step['rows_out']:>9,} {step['unit']}  {dropped}")
    print(f"dataset: {result.output} (dataset/, feedback/, quarantine/, manifest.json, README.md)")


def train(config: TrainConfig) -> None:
    """`wildreward train`."""
    from wildreward_ray.stages.train import run

    result = run(config)
    if not result.fresh:
        print(f"{result.output} was already made with these settings and from this dataset: nothing to do")
    held_out = result.metrics["metrics"] or {}
    shown = ("mae", "quadratic_kappa", "spearman", "auc", "ece")
    numbers = ", ".join(f"{name} {held_out[name]:.3f}" for name in shown if held_out.get(name) is not None)
    print(f"held out ({held_out.get('n', 0)} rows): {numbers or 'no test rows'}")
    print(f"reward model: {result.output} (weights, reward_config.json, metrics.json, held_out.parquet, plots/)")


def score(config: ScoreConfig) -> None:
    """`wildreward score`."""
    from wildreward_ray.stages.score import run

    manifest = run(config)
    step = manifest["funnel"][0]
    print(f"scored {step['rows_out']:,} of {step['rows_in']:,} rows in {manifest['seconds']} s: {config.output}")


def serve(config: ServeConfig) -> None:
    """`wildreward serve`."""
    from wildreward_ray.stages.serve import run

    run(config)


def update_model(config: UpdateModelConfig) -> None:
    """`wildreward update-model`."""
    from wildreward_ray.stages.serve_update import run

    card = run(config)
    print(f"{card.source} (version {card.version}) serves from now on, as {card.id!r}")


def online_dpo(config: OnlineDpoConfig) -> None:
    """`wildreward online-dpo`."""
    from wildreward_ray.stages.online_dpo import run

    result = run(config)
    found = result.summary["eval"]
    if found is not None:
        print(
            f"held-out prompts: reward {found['reward_before']:.3f} -> {found['reward_after']:.3f}, "
            f"win rate {found['win_rate']:.2f} over {found['replies']} replies"
        )
    print(f"policy: {result.output}/policy (metrics.jsonl, samples.jsonl, summary.json beside it)")


def run_all(config: RunAllConfig) -> None:
    """`wildreward run-all`: a stage whose whole output was made with the same settings is not run again."""
    from wildreward_ray.cluster.artifact import is_done

    extract(config.extract)
    train(config.train)
    if not is_done(config.online_dpo.output, config.online_dpo.model_dump(mode="json")):
        online_dpo(config.online_dpo)


def demo(config: DemoConfig) -> None:
    """`wildreward demo`."""
    from wildreward_ray.stages.demo import run

    summary = run(config)
    print(f"the whole loop took {summary['seconds']['total']:.0f} s")
    print(f"report: {config.output}/report.html, numbers: {config.output}/summary.json")


def inspect(config: InspectConfig) -> None:
    """`wildreward inspect`."""
    from wildreward_ray.stages.inspect import run

    result = run(config)
    for check in result.warnings:
        print(f"warning: {check.name}: {check.measured}")
    print(f"{result.rows:,} interactions, warnings: {len(result.warnings)}")
    print(f"page: {result.output} ({result.shown:,} interactions to browse)")


def experiment(config: ExperimentConfig) -> None:
    """`wildreward experiment`."""
    from wildreward_ray.stages.experiment import run

    result = run(config)
    for name, reason in result.results["left_out"].items():
        print(f"left out: {name}: {reason}")
    print(result.table)
    print(f"results: {result.output} (results.json, table.md, plot.png, runs/)")


def evaluate(config: EvaluateConfig) -> None:
    """`wildreward evaluate`."""
    if config.compare is not None:
        from wildreward_ray.stages.evaluate_compare import run as run_comparison

        _print_differences(run_comparison(config))
        print(f"comparison: {config.output} (results.json, report.html, table.md, table.tex)")
        return
    from wildreward_ray.stages.evaluate import run

    result = run(config)
    found = result.results
    if not result.fresh:
        print(f"{result.output} was already measured with these settings: nothing to do")
    width = max(len(name) for name in found["metrics"])
    for name, metric in found["metrics"].items():
        print(f"{name:<{width}}  {_with_interval(metric)}")
    if found["missing"]:
        print(
            f"missing: {', '.join(found['missing'])}: accuracy is over what is there, and is not the published number"
        )
    if found["limit"] is not None:
        print(f"--limit {found['limit']}: a part of the benchmark, and not the published number")
    print(f"results: {result.output} (results.json, report.html, table.md, table.tex, scores.parquet, plots/)")


def _with_interval(metric: Mapping[str, float | None]) -> str:
    value, low, high = metric["value"], metric["low"], metric["high"]
    if value is None:
        return "not defined"
    return f"{value:.4f}" + ("" if low is None else f"  [{low:.4f}, {high:.4f}]")


def _print_differences(comparison: Mapping[str, Any]) -> None:
    base, *others = (results["name"] for results in comparison["results"])
    for other, differences in zip(others, comparison["differences"], strict=True):
        print(f"{other} against {base}")
        width = max(len(name) for name in differences)
        for name, found in differences.items():
            if found["difference"] is not None:
                ends = "" if found["low"] is None else f"  [{found['low']:+.4f}, {found['high']:+.4f}]"
                p = "" if found["p"] is None else f"  p {found['p']:.4f}"
                print(f"{name:<{width}}  {found['a']:.4f} -> {found['b']:.4f}  {found['difference']:+.4f}{ends}{p}")


def bench(config: BenchConfig) -> None:
    """`wildreward bench`."""
    from wildreward_ray.stages.bench import run

    found = run(config)
    if config.stage == "all":
        from wildreward_ray.stages.bench_all import check, table

        print(table(found))
        check(found)
    elif config.stage == "compare":
        from wildreward_ray.stages import bench_compare

        print(bench_compare.text(found))
        if config.strict:
            bench_compare.check(found)
    else:
        # The settings are in the file: they would bury the figures.
        rows = {name: value for name, value in found.items() if name != "config"}
        width = max(len(name) for name in rows)
        for name, value in rows.items():
            shown = f"{value:,.3f}" if isinstance(value, float) else value
            print(f"{name:<{width}}  {shown}")


def submit(config: SubmitConfig) -> None:
    """`wildreward submit`."""
    from wildreward_ray.stages.submit import run

    run(config)


def status(config: StatusConfig) -> None:
    """`wildreward status`."""
    from wildreward_ray.stages.status import run, text

    found = run(config)
    print(json.dumps(found, ensure_ascii=False, indent=2) if config.as_json else "\n\n".join(map(text, found)))
