"""`wildreward train`: labelled dataset in, ordinal reward model out, by Ray Train."""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import pyarrow.dataset as pads

from wildreward_ray.cluster.artifact import Artifact, is_done, open_artifact, read_manifest, without
from wildreward_ray.cluster.models import resolve_model
from wildreward_ray.cluster.progress import Progress
from wildreward_ray.cluster.session import check_resources, ray_errors, start_ray
from wildreward_ray.cluster.storage import Location, locate, move, remove
from wildreward_ray.core.config.train import OPERATIONAL, TrainConfig
from wildreward_ray.core.errors import StorageError, UserError
from wildreward_ray.core.manifest import FunnelStep, Manifest
from wildreward_ray.core.template import DEFAULT_TEMPLATE
from wildreward_ray.reward.config import RewardConfig
from wildreward_ray.reward.model import read_template
from wildreward_ray.reward.pretrained import (
    check_classifier,
    check_max_length,
    load_config,
    load_tokenizer,
    max_positions,
    set_padding,
)
from wildreward_ray.stages import requests
from wildreward_ray.stages.dataset import SPLITS
from wildreward_ray.stages.tokens import TOKENS, split_folder, write_tokens
from wildreward_ray.stages.train_data import identity, open_source, quarantine
from wildreward_ray.stages.train_export import CURVE, METRICS
from wildreward_ray.stages.train_fit import CHECKPOINTS, TOKEN_ROWS, TRACKING, fit

__all__ = ["CURVE", "METRICS", "TrainResult", "run"]

_DEFAULT_LENGTH = 4096


@dataclass(frozen=True)
class TrainResult:
    """Where the reward model stands, `metrics.json`, its manifest, and whether this call made it."""

    output: str
    metrics: dict[str, Any]
    manifest: dict[str, Any]
    fresh: bool = True


def run(config: TrainConfig) -> TrainResult:
    """Tokenise, train, evaluate and write a reward model.

    An earlier run of the same settings that was cut off is gone on with; after one that came to its end nothing is done.

    Raises:
        UserError: an unusable dataset, base, template or label; settings that differ from those of the run to go on with;
            a loss that isn't finite; or a cluster too small.
        RunStoppedError: SIGTERM or SIGINT; the run's state is saved.
        WildRewardError: training failed on a worker.
    """
    started = time.monotonic()
    reward = _prepare(config)
    settings = config.model_dump(mode="json")
    dataset = identity(config)
    if is_done(config.output, settings, OPERATIONAL) and not config.overwrite:
        return _made_before(config, dataset)
    state = {
        "config": without(settings, OPERATIONAL),
        "reward": reward.model_dump(mode="json"),
        "files_of_dataset": dataset,
    }
    with (
        open_artifact(config.output, overwrite=config.overwrite, state=state) as artifact,
        ray_errors(config.output),
    ):
        start_ray()
        check_resources(requests.train(config), task_cpus=0.0)
        data = _tokens(config, reward, artifact.work)
        k = int(data["levels"])
        reward = reward.model_copy(update={"levels": k, "score_range": (1.0, float(k))})
        found = fit(config, reward, artifact.work, data)
        manifest = Manifest.model_validate(
            {
                "kind": "reward_model",
                "inputs": [config.dataset],
                "config": settings,
                "funnel": _funnel(found, data),
                "seconds": round(time.monotonic() - started, 1),
                "metrics": found["metrics"],
                "worker_starts": found["worker_starts"],
                "files_of_dataset": dataset,
            }
        )
        artifact.commit(manifest, _parts(config, artifact))
    return TrainResult(config.output, found, manifest.model_dump())


def _made_before(config: TrainConfig, dataset: str) -> TrainResult:
    """The reward model that stands at the output already.

    Raises:
        StorageError: it was made from a dataset of other files.
    """
    manifest = read_manifest(config.output, kind="reward_model", flag="--output")
    if manifest.get("files_of_dataset") != dataset:
        raise StorageError(
            f"{config.output!r} was made when {config.dataset!r} had other files",
            flag="--overwrite",
            hint="give another --output, or replace it with",
        )
    metrics = json.loads(locate(config.output).child(METRICS).read_bytes())
    return TrainResult(config.output, metrics, manifest, fresh=False)


def _prepare(config: TrainConfig) -> RewardConfig:
    """The reward configuration, after everything that can be refused before Ray starts has been looked at."""
    base = resolve_model(config.base, flag="--base")
    template = read_template(config.template) if config.template else DEFAULT_TEMPLATE
    hf_config = load_config(base, "--base", config.trust_remote_code)
    check_classifier(hf_config, config.base, "--base")
    set_padding(hf_config, load_tokenizer(base, "--base", config.trust_remote_code), "--base")
    longest = max_positions(hf_config)
    length = config.max_length or min(_DEFAULT_LENGTH, longest or _DEFAULT_LENGTH)
    check_max_length(hf_config, length)
    levels = config.levels or 4
    return RewardConfig(
        levels=levels,
        decoder=config.objective.loss,
        template=template,
        max_length=length,
        lineage={"base": config.base, "dataset": config.dataset, "resume_from": config.resume_from},
    )


def _tokens(config: TrainConfig, reward: RewardConfig, work: Location) -> dict[str, Any]:
    """Token rows of both splits below `tokens/`, unless they stand there: the number of levels, and rows by what became of them."""
    done = work.child("tokens.json")
    if "tokens.json" in work.names():
        kept: dict[str, Any] = json.loads(done.read_bytes())
        return kept
    source = open_source(config)
    target = work.child(TOKEN_ROWS)
    remove(target)  # of a run that was killed here
    with Progress("tokenise", "rows") as progress:
        write_tokens(
            source.splits,
            target,
            config,
            template=reward.template,
            max_length=reward.max_length,
            k=source.k,
            counter=progress.counter,
        )
    bad = {
        split: quarantine(split_folder(target, split), work.child("quarantine").child(f"{split}.parquet"))
        for split in SPLITS
    }
    _check_usable(config, split_folder(target, "train"), bad["train"])
    found = {"levels": source.k, "quarantined": bad}
    done.write_bytes(json.dumps(found).encode())
    return found


def _check_usable(config: TrainConfig, train: Location, bad: dict[str, int]) -> None:
    """Raise `UserError` where no training row is left, saying what became of them, or where all have one level."""
    rows = pads.dataset(train.path, filesystem=train.fs, schema=TOKENS)
    levels: Counter[int] = Counter()
    for batch in rows.to_batches(columns=["label"], filter=pads.field("reason").is_null()):
        levels.update(batch.column("label").to_pylist())
    if not levels:
        why = ", ".join(f"{reason} {n:,}" for reason, n in bad.items()) or "it is empty"
        raise UserError(f"{config.dataset!r} has no training row that can be used: {why}", flag="--dataset")
    if len(levels) == 1:
        raise UserError(
            f"all {levels.total():,} training rows have label {next(iter(levels))}: at least two levels are needed",
            flag="--dataset",
        )


def _funnel(found: dict[str, Any], data: dict[str, Any]) -> list[FunnelStep]:
    """Rows of each split that were used; the others are dropped by name."""
    steps = []
    for name, n in found["rows"].items():
        dropped = dict(data["quarantined"][name])
        if name == "train" and found["over_limit"]:
            dropped["over_limit"] = found["over_limit"]
        steps.append(FunnelStep(name=name, unit="rows", rows_in=n + sum(dropped.values()), rows_out=n, dropped=dropped))
    return steps


def _parts(config: TrainConfig, artifact: Artifact) -> list[str]:
    """Bring the model's files up to the work directory, so that they become the artefact's own, and name all its parts."""
    from pyarrow.fs import FileSelector

    work_place, model = artifact.work, artifact.work.child("model")
    names = []
    for item in model.fs.get_file_info(FileSelector(model.path)):
        target = work_place.child(item.base_name)
        remove(target)
        move(model.child(item.base_name), target)
        names.append(item.base_name)
    if not names:
        raise UserError(f"no model files in {model.uri!r}")
    others = ["quarantine", TRACKING, *([CHECKPOINTS] if config.checkpoint.keep_at_end else [])]
    present = set(work_place.names())
    return names + [name for name in others if name in present and work_place.child(name).names()]
