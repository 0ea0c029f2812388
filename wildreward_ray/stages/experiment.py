"""`wildreward experiment`: train on variants of one dataset with several seeds, and compare them on the same held-out rows.

Variants are made, and models trained, below the experiment's work directory; what an earlier, killed run finished there is
passed over. The comparison rests on held-out rows of origin `explicit`, whose labels neither refinement made; rows of the
other origins are reported apart.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from wildreward_ray.cluster.artifact import UNFINISHED, has_manifest, open_artifact, without
from wildreward_ray.cluster.run_log import say
from wildreward_ray.cluster.storage import Location, locate, remove
from wildreward_ray.core.config.experiment import ExperimentConfig
from wildreward_ray.core.config.train import OPERATIONAL, TrainConfig
from wildreward_ray.core.errors import UserError
from wildreward_ray.core.manifest import MANIFEST, Manifest
from wildreward_ray.report import experiment as report
from wildreward_ray.stages import ablation, diversity, train
from wildreward_ray.stages.held_out import Predictions, read_predictions, same_rows
from wildreward_ray.stages.paired_bootstrap import COMPARED, Estimate, estimates
from wildreward_ray.stages.train_export import CURVE, HELD_OUT, METRICS, PLOTS
from wildreward_ray.stages.variants import Extraction, count_origins, open_extraction

# The group of held-out rows that decides comes first.
ORIGINS = ("explicit", "refusal", "hindsight")
RESULTS, TABLE, PLOT = "results.json", "table.md", "plot.png"
# What stays of a run whose weights aren't kept.
_KEPT = {MANIFEST, METRICS, CURVE, HELD_OUT, PLOTS}
# Settings that don't change what a single run learns: they may differ when an experiment goes on.
_FREE = {"output", "overwrite", "seeds", "bootstrap", "keep_models", *(f"train.{name}" for name in OPERATIONAL)}


@dataclass(frozen=True)
class ExperimentResult:
    """Where the results stand, what `results.json` holds, and the table as text."""

    output: str
    results: dict[str, Any]
    table: str


@dataclass(frozen=True)
class Run:
    """One training: a variant with a seed.

    Attributes:
        dataset: where the variant's dataset is, or is to be.
        output: where the reward model is, or is to be.
    """

    variant: str
    seed: int
    dataset: str
    output: str


def run(config: ExperimentConfig) -> ExperimentResult:
    """Make the variants, train, compare and write; or go on with what a killed run left.

    Raises:
        UserError: a dataset without held-out rows, or from which the variants can't be made; see also `train.run`.
        StorageError: see `open_artifact` and `variants.scan`.
    """
    started = time.monotonic()
    extraction = open_extraction(config.dataset)
    _check_held_out(extraction)
    names, left_out, rows = _variants(config, extraction)
    with open_artifact(config.output, overwrite=config.overwrite, state=state_of(config, extraction)) as artifact:
        runs = plan(config, names)
        _write_variants(extraction, runs, config.users, rows)
        for i, one in enumerate(runs):
            text = f"run {i + 1} of {len(runs)}: {one.variant}, seed {one.seed}"
            say("experiment", text, prefix="", done=i, total=len(runs), variant=one.variant, seed=one.seed)
            _train(config, one)
        results = compare(config, extraction.levels, runs) | {"left_out": left_out}
        table = report.table(results)
        artifact.work.child(RESULTS).write_bytes((json.dumps(results, indent=2) + "\n").encode())
        artifact.work.child(TABLE).write_bytes(table.encode())
        artifact.work.child(PLOT).write_bytes(report.plot(results))
        manifest = Manifest.model_validate(
            {
                "kind": "experiment",
                "inputs": [config.dataset],
                "config": config.model_dump(mode="json"),
                "funnel": [step for item in results["runs"] for step in item["funnel"]],
                "seconds": round(time.monotonic() - started, 1),
                "resumed": artifact.resumed,
            }
        )
        artifact.commit(manifest, [RESULTS, TABLE, PLOT, "runs"])
    return ExperimentResult(config.output, results, table)


def plan(config: ExperimentConfig, names: list[str]) -> list[Run]:
    """All runs below the work directory, seed by seed, so that the first ones already compare every variant.

    A variant of an ablation is one dataset for all seeds; in the diversity experiment every seed draws its own.
    """
    root, mark, options = config.output.partition("?")  # an S3 store may be named behind the path
    work, end = f"{root.rstrip('/')}/{UNFINISHED}", mark + options
    return [
        Run(
            name,
            seed,
            f"{work}/variants/{name}{f'-seed-{seed}' if config.kind == 'diversity' else ''}{end}",
            f"{work}/runs/{name}-seed-{seed}{end}",
        )
        for seed in _seeds(config)
        for name in names
    ]


def compare(config: ExperimentConfig, levels: int, runs: list[Run]) -> dict[str, Any]:
    """The content of `results.json`: every run's rows and metrics, every variant's means and intervals, and the differences.

    Args:
        levels: number of training labels K.
        runs: all done, seed by seed, the variant that others are compared with first.

    Raises:
        WildRewardError: two runs were evaluated on different rows.
    """
    found = [read_predictions(locate(one.output).child(HELD_OUT), levels) for one in runs]
    same_rows(found)
    counts = Counter(found[0].origins.tolist())
    fewest = config.train.eval.min_group
    groups = [o for o in ORIGINS if counts[o] and (o == ORIGINS[0] or counts[o] >= fewest)]
    names = list(dict.fromkeys(one.variant for one in runs))
    own: dict[str, Any] = {name: {} for name in names}
    differences: dict[str, Any] = {name: {} for name in names[1:]}
    for origin in groups:
        predictions = {
            name: [p.of(origin) for one, p in zip(runs, found, strict=True) if one.variant == name] for name in names
        }
        labels = found[0].labels[found[0].origins == origin]
        absolute, relative = estimates(predictions, labels, levels, resamples=config.bootstrap, seed=config.train.seed)
        for name in names:
            own[name][origin] = _json(absolute[name])
        for name in names[1:]:
            differences[name][origin] = _json(relative[name])
    return {
        "kind": config.kind,
        "levels": levels,
        "seeds": _seeds(config),
        "resamples": config.bootstrap,
        "held_out": {o: counts[o] for o in ORIGINS},
        "groups": groups,
        "better": {metric: "higher" if more else "lower" for metric, more in COMPARED.items()},
        "baseline": names[0],
        "variants": own,
        "differences": differences,
        "runs": [_run_facts(one, p, groups) for one, p in zip(runs, found, strict=True)],
    }


def _json(by_metric: dict[str, Estimate | None]) -> dict[str, Any]:
    return {metric: None if found is None else asdict(found) for metric, found in by_metric.items()}


def _run_facts(one: Run, predictions: Predictions, groups: list[str]) -> dict[str, Any]:
    """What `results.json` tells of a run. `rows` were trained on, which a limit may make fewer than the variant has."""
    variant, model = (json.loads(locate(uri).child(MANIFEST).read_bytes()) for uri in (one.dataset, one.output))
    prefix = f"{one.variant}, seed {one.seed}"
    return {
        "variant": one.variant,
        "seed": one.seed,
        "rows": next(step["rows_out"] for step in model["funnel"] if step["name"] == "train"),
        "users": variant["variant"]["users"],
        "seconds": model["seconds"],
        "metrics": {origin: predictions.metrics(origin) for origin in groups},
        "funnel": [{**step, "name": f"{prefix}: {step['name']}"} for step in variant["funnel"]],
    }


def _seeds(config: ExperimentConfig) -> list[int]:
    return [config.train.seed + i for i in range(config.seeds)]


def state_of(config: ExperimentConfig, extraction: Extraction) -> dict[str, Any]:
    """What work of an earlier run must have been asked to do, for this one to go on with it."""
    settings = without(config.model_dump(mode="json"), _FREE)
    return {"config": settings, "dataset_created": extraction.manifest["created"]}


def _check_held_out(extraction: Extraction) -> None:
    """Refuse before anything is trained what can't be compared in the end."""
    counts = count_origins(extraction, "test")
    if not counts[ORIGINS[0]]:
        raise UserError(
            f"{extraction.uri!r} has {counts.total()} held-out rows, none of origin {ORIGINS[0]!r}: "
            "variants are compared on those",
            flag="--dataset",
            hint="extract it with a larger --split.test-share",
        )


def _variants(
    config: ExperimentConfig, extraction: Extraction
) -> tuple[list[str], dict[str, str], diversity.Survey | None]:
    """Names of the variants, the one that others are compared with first; why some are left out; and who wrote which rows.

    Whatever can't be made is refused here, before there is any work that other settings could not go on with.
    """
    if config.kind == "ablation":
        names, left_out = ablation.choose(count_origins(extraction, "train"))
        return list(names), left_out, None
    rows = diversity.survey(extraction, _seeds(config))
    diversity.draw(rows, config.users, config.train.seed)
    return [diversity.set_name(m) for m in config.users], {}, rows


def _write_variants(
    extraction: Extraction, runs: list[Run], multiples: Sequence[int], rows: diversity.Survey | None
) -> None:
    """Write the datasets that aren't there yet, those of one pass over the extraction together."""
    missing = {one.dataset: one for one in runs if not has_manifest(locate(one.dataset))}
    if rows is None:
        if missing:
            ablation.write_ablations(extraction, {one.variant: uri for uri, one in missing.items()})
        return
    for seed in sorted({one.seed for one in missing.values()}):
        of_seed = {one.variant: uri for uri, one in missing.items() if one.seed == seed}
        uris = {m: of_seed[diversity.set_name(m)] for m in multiples if diversity.set_name(m) in of_seed}
        diversity.write_sets(extraction, rows, multiples, seed, uris)


def _train(config: ExperimentConfig, one: Run) -> None:
    """Train a run that isn't done yet, and leave of it what is to be kept."""
    place = locate(one.output)
    if not has_manifest(place):
        settings = config.train.model_dump(mode="json")
        train.run(
            TrainConfig.model_validate({**settings, "dataset": one.dataset, "output": one.output, "seed": one.seed})
        )
    if not config.keep_models:
        for item in _dropped(place):
            remove(item)


def _dropped(place: Location) -> Iterator[Location]:
    return (place.child(name) for name in place.names() if name not in _KEPT)
