"""`wildreward train`: labelled dataset in, ordinal reward model out, by Ray Train."""

from __future__ import annotations

import json
import os
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wildreward_ray.cluster.artifact import Artifact, open_artifact
from wildreward_ray.cluster.models import resolve_model
from wildreward_ray.cluster.progress import Progress
from wildreward_ray.cluster.session import ActorRequest, check_resources, ray_errors, start_ray
from wildreward_ray.cluster.storage import Location, upload
from wildreward_ray.core.config.train import TrainConfig
from wildreward_ray.core.errors import UserError, WildRewardError
from wildreward_ray.core.manifest import FunnelStep, Manifest
from wildreward_ray.core.template import DEFAULT_TEMPLATE
from wildreward_ray.reward.batching import padding_waste
from wildreward_ray.reward.config import RewardConfig
from wildreward_ray.reward.loop import StepRecord, Trainer, World, predict
from wildreward_ray.reward.metrics import ordinal_metrics, reliability_bins
from wildreward_ray.reward.model import load_base, read_template, save_checkpoint
from wildreward_ray.reward.pretrained import check_classifier, check_max_length, load_config, max_positions
from wildreward_ray.stages.dataset import write_parquet
from wildreward_ray.stages.tokens import TOKENS, TokenRows, tokenise
from wildreward_ray.stages.train_data import open_source

_DEFAULT_LENGTH = 4096
METRICS, CURVE = "metrics.json", "curve.jsonl"


@dataclass(frozen=True)
class TrainResult:
    """Where the reward model stands, its held-out metrics, and its manifest."""

    output: str
    metrics: dict[str, Any]
    manifest: dict[str, Any]


@dataclass(frozen=True)
class _Job:
    """What every worker needs to know."""

    config: TrainConfig
    reward: RewardConfig
    train: Location
    test: Location
    counter: Any


def run(config: TrainConfig) -> TrainResult:
    """Tokenise, train, evaluate and write a reward model.

    Raises:
        UserError: an unusable dataset, base, template or label; or a cluster too small.
        WildRewardError: training failed on a worker.
    """
    started = time.monotonic()
    reward = _prepare(config)
    with open_artifact(config.output, overwrite=config.overwrite) as artifact, ray_errors(config.output):
        start_ray()
        check_resources(
            [ActorRequest("training", config.workers, config.num_cpus, config.num_gpus, "--workers")], task_cpus=0.0
        )
        source = open_source(config)
        reward = reward.model_copy(update={"levels": source.k, "score_range": (1.0, float(source.k))})
        for split, rows in source.splits.items():
            tokens = tokenise(rows, config, template=reward.template, max_length=reward.max_length, k=source.k)
            write_parquet(tokens, artifact.work.child("tokens").child(split), TOKENS)
        found = _fit(config, reward, artifact)
        manifest = Manifest.model_validate(
            {
                "kind": "reward_model",
                "inputs": [config.dataset],
                "config": config.model_dump(mode="json"),
                "funnel": _funnel(found),
                "seconds": round(time.monotonic() - started, 1),
                "metrics": found["metrics"],
            }
        )
        artifact.commit(manifest, _file_names(artifact.work.child("model"), artifact.work))
    return TrainResult(config.output, found, manifest.model_dump())


def _funnel(found: dict[str, Any]) -> list[FunnelStep]:
    """Rows of each split that were used; those beyond `--limit` are dropped by name."""
    over = {"train": found["over_limit"], "test": 0}
    return [
        FunnelStep(
            name=name,
            unit="rows",
            rows_in=n + over[name],
            rows_out=n,
            dropped={"over_limit": over[name]} if over[name] else {},
        )
        for name, n in found["rows"].items()
    ]


def _prepare(config: TrainConfig) -> RewardConfig:
    """The reward configuration, after everything that can be refused before Ray starts has been looked at."""
    base = resolve_model(config.base, flag="--base")
    template = read_template(config.template) if config.template else DEFAULT_TEMPLATE
    hf_config = load_config(base, "--base", config.trust_remote_code)
    check_classifier(hf_config, config.base, "--base")
    longest = max_positions(hf_config)
    length = config.max_length or min(_DEFAULT_LENGTH, longest or _DEFAULT_LENGTH)
    check_max_length(hf_config, length)
    levels = config.levels or 4
    return RewardConfig(
        levels=levels,
        template=template,
        max_length=length,
        score_range=(1.0, float(levels)),
        lineage={"base": config.base, "dataset": config.dataset},
    )


def _fit(config: TrainConfig, reward: RewardConfig, artifact: Artifact) -> dict[str, Any]:
    """Run Ray Train and copy the final checkpoint to `model/` of the work directory. Returns `metrics.json`."""
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    work = artifact.work
    total = None
    with Progress("train", "rows", total) as progress:
        job = _Job(config, reward, work.child("tokens/train"), work.child("tokens/test"), progress.counter)
        resources = {"CPU": config.num_cpus, **({"GPU": config.num_gpus} if config.num_gpus else {})}
        trainer = TorchTrainer(
            _worker,
            train_loop_config={"job": job},
            scaling_config=ScalingConfig(
                num_workers=config.workers, use_gpu=config.num_gpus > 0, resources_per_worker=resources
            ),
            run_config=RunConfig(name="run", storage_path=work.child("ray_train").path, storage_filesystem=work.fs),
        )
        checkpoint = trainer.fit().checkpoint
    if checkpoint is None:
        raise WildRewardError("training ended without a checkpoint")
    model = work.child("model")
    with checkpoint.as_directory() as directory:
        upload(Path(directory), model)
    found: dict[str, Any] = json.loads(model.child(METRICS).read_bytes())
    return found


def _worker(loop_config: dict[str, Any]) -> None:
    """One Ray Train worker."""
    import ray.train
    import torch

    job: _Job = loop_config["job"]
    config = job.config
    context = ray.train.get_context()
    world = World(context.get_world_rank(), context.get_world_size())
    torch.set_num_threads(config.cpu_threads or max(1, len(os.sched_getaffinity(0)) // context.get_local_world_size()))
    k = job.reward.levels
    model, tokenizer = load_base(
        resolve_model(config.base, flag="--base"), k, seed=config.seed, trust_remote_code=config.trust_remote_code
    )
    model.to("cuda" if config.num_gpus else "cpu")
    with tempfile.TemporaryDirectory() as scratch:
        train, test = _rows(job.train, scratch, "train", config.limit), _rows(job.test, scratch, "test", None)
        trainer = Trainer(
            model,
            train,
            k=k,
            pad_token_id=tokenizer.pad_token_id,
            epochs=config.epochs,
            optim=config.optim,
            seed=config.seed,
            soft=config.soft_targets,
            balanced=config.class_weights == "balanced",
            bf16=config.precision == "bfloat16",
            world=world,
        )
        log = _Log(job, trainer, test, k, tokenizer.pad_token_id)
        trainer.run(log.step)
        metrics = log.finish(train)
        with tempfile.TemporaryDirectory() as directory:
            checkpoint = None
            if world.rank == 0:
                save_checkpoint(model, tokenizer, job.reward, directory)
                log.write(Path(directory), metrics)
                checkpoint = ray.train.Checkpoint.from_directory(directory)
            ray.train.report({"step": trainer.total_steps}, checkpoint=checkpoint)


class _Log:
    """Collects the curve, evaluates when it is time, and writes both."""

    def __init__(self, job: _Job, trainer: Trainer, test: TokenRows, k: int, pad_token_id: int) -> None:
        self._job, self._trainer, self._test, self._k, self._pad = job, trainer, test, k, pad_token_id
        self._every = job.config.eval_every or trainer.steps_per_epoch
        self._curve: list[StepRecord] = []
        self._evals: list[dict[str, Any]] = []
        self._p_gt = np.zeros((0, k - 1))

    def step(self, record: StepRecord) -> None:
        """Called on every worker after every step; evaluation is a collective, so all workers do it."""
        self._curve.append(record)
        if self._trainer.world.rank == 0:
            batch = self._job.config.optim.global_batch
            self._job.counter.add.remote(min(batch, len(self._trainer.rows.labels)))
        if record.step % self._every == 0 or record.step == self._trainer.total_steps:
            self._evaluate(record.step)

    def finish(self, train: TokenRows) -> dict[str, Any]:
        """The content of `metrics.json`."""
        plan = self._trainer.plan(0)
        seconds = sum(r.seconds for r in self._curve)
        parameters = sum(p.numel() for p in self._trainer.model.parameters())
        last = {name: value for name, value in self._evals[-1].items() if name != "step"} if self._evals else None
        bins = reliability_bins(self._p_gt, self._test.labels, self._k) if len(self._test.labels) else []
        return {
            "base": self._job.config.base,
            "levels": self._k,
            "parameters": parameters,
            "rows": {"train": len(train.labels), "test": len(self._test.labels)},
            "over_limit": train.over_limit,
            "epochs": self._job.config.epochs,
            "steps": self._trainer.total_steps,
            "tokens_per_s": round(sum(r.tokens for r in self._curve) / seconds, 1),
            "padding_waste": round(padding_waste(plan, train.lengths), 4),
            "metrics": last,
            "evals": self._evals,
            "reliability": bins,
        }

    def write(self, directory: Path, metrics: dict[str, Any]) -> None:
        """Put `metrics.json` and `curve.jsonl` beside the weights."""
        (directory / METRICS).write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
        lines = "".join(json.dumps(asdict(r)) + "\n" for r in self._curve)
        (directory / CURVE).write_text(lines, encoding="utf-8")

    def _evaluate(self, step: int) -> None:
        if not len(self._test.labels):
            return
        self._p_gt = predict(
            self._trainer.model,
            self._test,
            k=self._k,
            pad_token_id=self._pad,
            token_budget=self._job.config.optim.token_budget,
            world=self._trainer.world,
        )
        self._evals.append({"step": step, **ordinal_metrics(self._p_gt, self._test.labels, self._k)})


def _rows(place: Location, scratch: str, split: str, limit: int | None) -> TokenRows:
    folder = Path(scratch) / split
    folder.mkdir()
    return TokenRows(place, folder, limit)


def _file_names(folder: Location, work: Location) -> list[str]:
    """Bring the files of `folder` up to `work`, so that they become the artefact's own, and name them."""
    from pyarrow.fs import FileSelector

    names = []
    for item in folder.fs.get_file_info(FileSelector(folder.path)):
        folder.fs.move(item.path, work.child(item.base_name).path)
        names.append(item.base_name)
    if not names:
        raise UserError(f"no model files in {folder.uri!r}")
    return names
