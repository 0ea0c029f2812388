"""`wildreward extract`: chat logs in, labelled dataset out."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import Any

from wildreward_ray.cluster.progress import Progress
from wildreward_ray.cluster.schema import FEEDBACK, JUDGED
from wildreward_ray.cluster.session import check_resources, ray_errors, start_ray
from wildreward_ray.cluster.storage import Artifact, open_artifact
from wildreward_ray.core.config.extract import ExtractConfig
from wildreward_ray.core.manifest import Manifest
from wildreward_ray.feedback.judge import PROMPT_VERSION
from wildreward_ray.stages import dataset, ingest, label, refine

logger = logging.getLogger(__name__)

# Small blocks keep the judge fed from the first seconds and make a lost block cheap to redo.
BLOCK_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True)
class ExtractResult:
    """Where the dataset stands and what its manifest says."""

    output: str
    manifest: dict[str, Any]


def run(config: ExtractConfig) -> ExtractResult:
    """Read, judge, refine, split and write.

    Raises:
        UserError: see `ingest.plan`, `check_resources`, `open_artifact`, `start_llm`.
    """
    started = time.monotonic()
    shards = ingest.plan(config.input, config.format)
    with open_artifact(config.output, overwrite=config.overwrite) as artifact, ray_errors(config.output):
        start_ray()
        check_resources([label.resources(config.judge)])
        if config.hindsight.enabled:
            check_resources([refine.resources(config.hindsight)])
        import ray.data

        ray.data.DataContext.get_current().target_max_block_size = BLOCK_BYTES
        _judge(config, artifact, shards)
        judged = artifact.work.child("judged")
        priors = label.corpus_priors(judged, config.judge)
        feedback = artifact.work.child("feedback")
        rows = ray.data.read_parquet(judged.path, filesystem=judged.fs)
        with Progress("refine", "interactions") as progress:
            dataset.write_parquet(refine.refine(rows, config, priors, progress.counter), feedback, FEEDBACK)
        dataset.write_splits(feedback, artifact.work, config.levels)
        dataset.write_quarantine(judged, artifact.work.child("quarantine"))
        manifest = _manifest(config, artifact, priors=priors, seconds=time.monotonic() - started)
        artifact.commit(manifest, ["feedback", "dataset", "quarantine", "README.md"])
    return ExtractResult(config.output, manifest.model_dump())


def _judge(config: ExtractConfig, artifact: Artifact, shards: list[Any]) -> None:
    """The expensive pass: raw verdicts of every turn, to `judged/`."""
    with Progress("judge", "interactions", config.limit) as progress:
        conversations = ingest.read(shards, config.limit)
        judged = label.judge(conversations, config.judge, refusal=config.refusal, counter=progress.counter)
        dataset.write_parquet(judged, artifact.work.child("judged"), JUDGED)


def _manifest(config: ExtractConfig, artifact: Artifact, *, priors: label.Priors, seconds: float) -> Manifest:
    judged, feedback = artifact.work.child("judged"), artifact.work.child("feedback")
    judge = dataset.counts(judged, "judge")
    found = dataset.feedback_counts(feedback)
    steps = dataset.funnel(dataset.counts(judged, "summary"), judge, found)
    labels = dataset.label_table(found)
    text = dataset.card(steps, labels, list(config.input), config.levels, config.judge.model)
    artifact.work.child("README.md").write_bytes(text.encode())
    prompt_tokens = judge["prompt_tokens"]
    return Manifest.model_validate(
        {
            "kind": "feedback",
            "inputs": list(config.input),
            "config": config.model_dump(mode="json"),
            "funnel": steps,
            "seconds": round(seconds, 1),
            "labels": labels,
            "levels": config.levels,
            "judge": {
                "model": config.judge.model,
                "prompt_version": PROMPT_VERSION,
                "prompts": label.prompt_texts(config.judge),
                "prior_logprobs": {**priors.feedback.groups, "overall": priors.feedback.overall},
                "refusal_prior_logprobs": {**priors.refusal.groups, "overall": priors.refusal.overall},
                "judged": judge["judged"],
                "refusals_judged": judge["refusals_judged"],
                "prompt_tokens": prompt_tokens,
                "prefix_cache_hit_share": round(judge["cached_tokens"] / prompt_tokens, 4) if prompt_tokens else None,
                "engine_seconds": judge["milliseconds"] / 1000,
            },
        }
    )
