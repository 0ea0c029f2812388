"""What the commands and the job entrypoints call: run a stage and say in a few lines what it made."""

from __future__ import annotations

from wildreward_ray.core.config.bench import BenchConfig
from wildreward_ray.core.config.demo import DemoConfig
from wildreward_ray.core.config.experiment import ExperimentConfig
from wildreward_ray.core.config.extract import ExtractConfig
from wildreward_ray.core.config.inspect import InspectConfig
from wildreward_ray.core.config.online_dpo import OnlineDpoConfig
from wildreward_ray.core.config.run_all import RunAllConfig
from wildreward_ray.core.config.serve import ScoreConfig, ServeConfig, UpdateModelConfig
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


def bench(config: BenchConfig) -> None:
    """`wildreward bench`."""
    from wildreward_ray.stages.bench import run

    rows = run(config)
    width = max(len(name) for name in rows)
    for name, value in rows.items():
        shown = f"{value:,.3f}" if isinstance(value, float) else value
        print(f"{name:<{width}}  {shown}")
