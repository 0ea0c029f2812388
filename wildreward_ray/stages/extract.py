"""`wildreward extract`: chat logs in, labelled dataset out.

Passes over the work directory, each of which skips what an earlier, killed run finished: judged parts, the second judge's
parts, refined parts. The last two steps, deciding over the whole corpus and writing the final files, are cheap and done again.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wildreward_ray.cluster.artifact import Artifact, is_done, open_artifact, read_manifest, without
from wildreward_ray.cluster.progress import Progress
from wildreward_ray.cluster.readers import Shard
from wildreward_ray.cluster.run_log import say
from wildreward_ray.cluster.session import check_resources, ray_errors, start_ray
from wildreward_ray.cluster.storage import Location
from wildreward_ray.cluster.telemetry import telemetry_of
from wildreward_ray.core.config.extract import OPERATIONAL, ExtractConfig
from wildreward_ray.core.errors import StorageError
from wildreward_ray.core.manifest import Manifest
from wildreward_ray.feedback.judge import PROMPT_VERSION, describe
from wildreward_ray.feedback.prior import Prior
from wildreward_ray.stages import cascade, dataset, decide, funnel, ingest, judged, label, refine
from wildreward_ray.stages.chunks import done_parts, list_parts, write_parts

if TYPE_CHECKING:
    import ray.data

# One chunk a block: what a dying actor or node takes with it is then one chunk of work. Small blocks also keep the judge fed
# from the first seconds.
_BLOCK_BYTES = 1
# Reading runs ahead by so much for every node or judge; more would only fill memory.
_AHEAD_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True)
class ExtractResult:
    """Where the dataset stands and what its manifest says; `fresh` is false where it stood there before."""

    output: str
    manifest: dict[str, Any]
    fresh: bool = True


def run(config: ExtractConfig) -> ExtractResult:
    """Read, judge, refine, decide, split and write; or go on with what a killed run left.

    Raises:
        UserError: see `ingest.plan`, `check_resources`, `open_artifact`, `start_judge`.
    """
    started = time.monotonic()
    plan = ingest.plan(config.input, config.format, strict=config.strict)
    settings = config.model_dump(mode="json")
    if is_done(config.output, settings, OPERATIONAL):
        whole = read_manifest(config.output, kind="feedback", flag="--output")
        differing = [name for name, same in _unchanged(whole, plan).items() if not same]
        if not differing:
            return ExtractResult(config.output, whole, fresh=False)
        if not config.overwrite:
            raise StorageError(
                f"{config.output!r} was made with other {' and '.join(differing)}",
                flag="--overwrite",
                hint="give another --output, or replace it with",
            )
    state = {"config": without(settings, OPERATIONAL), "input": plan.state(), "prompt_version": PROMPT_VERSION}
    with (
        open_artifact(config.output, overwrite=config.overwrite, state=state) as artifact,
        ray_errors(config.output),
    ):
        start_ray()
        _check(config)
        _judge(config, artifact, plan)
        corpus, second = _survey(config, artifact, plan)
        with Progress("refine", "interactions") as progress:
            prior = second.prior if second is not None else None
            refine.refine(config, corpus.priors, prior, artifact.work, progress.counter)
        drops = artifact.work.child("drops.parquet")
        decide.decide(artifact.work.child("refined"), drops, config.quality)
        dataset.write_final(artifact.work, drops, config.levels)
        manifest = _manifest(config, artifact, plan, corpus, second, seconds=time.monotonic() - started)
        artifact.commit(manifest, ["feedback", "dataset", "quarantine", "README.md"])
        telemetry_of("extract").funnel(manifest.funnel)
    return ExtractResult(config.output, manifest.model_dump())


def _unchanged(whole: dict[str, Any], plan: ingest.Plan) -> dict[str, bool]:
    """What a manifest was made from besides settings, and whether it is the same today."""
    return {
        "input files or sizes": whole.get("input_digest") == plan.digest(),
        "prompts of the judge": whole.get("judge", {}).get("prompt_version") == PROMPT_VERSION,
    }


def _check(config: ExtractConfig) -> None:
    """Raise before any engine starts where the cluster can't hold one of the passes."""
    check_resources([label.resources(config.judge)])
    if config.cascade.enabled:
        check_resources([label.resources(config.cascade.judge, "--cascade.judge")])
    check_resources([refine.resources(config.hindsight)])


def _judge(config: ExtractConfig, artifact: Artifact, plan: ingest.Plan) -> None:
    """The expensive pass: raw verdicts of every turn, to `judged/`."""
    target, finished = artifact.work.child("judged"), artifact.work.child("judged.done")
    if finished.info().is_file:
        return  # and no engine is started to find that out
    names = list_parts(target)
    if names:
        text = f"going on with an unfinished run: {len(names)} chunks are judged"
        say("judge", text, event="resumed", prefix="", chunks=len(names))
    with Progress("judge", "interactions", config.limit) as progress:

        def judge(chunks: ray.data.Dataset) -> ray.data.Dataset:
            return label.judge(chunks, config.judge, refusal=config.refusal, counter=progress.counter)

        most = config.judge.replicas[1]
        judge_parts(plan.shards, target, judge, size=config.judge.batch_size, judges=most, limit=config.limit)
    finished.write_bytes(b"")


def judge_parts(
    shards: Sequence[Shard],
    target: Location,
    judge: Callable[[ray.data.Dataset], ray.data.Dataset],
    *,
    size: int,
    judges: int,
    limit: int | None,
) -> None:
    """Read shards, judge their chunks and write those that aren't in `target` yet.

    Args:
        judge: makes `CHUNKS` of `JUDGED` rows of `CHUNKS` of `CONVERSATIONS` rows.
        size: conversations a chunk.
        judges: how many actors `judge` may grow to.
    """
    import ray.data

    target.fs.create_dir(target.path, recursive=True)
    context = ray.data.DataContext.get_current()
    options = context.execution_options
    before = context.target_max_block_size, options.resource_limits
    context.target_max_block_size = _BLOCK_BYTES
    # The limit stays while the cluster grows: of nodes that come later, each has a judge at least.
    places = max(len(ray.nodes()), judges)
    options.resource_limits = ray.data.ExecutionResources.for_limits(object_store_memory=places * _AHEAD_BYTES)
    try:
        chunks = ingest.read(shards, size=size, limit=limit, done=done_parts(list_parts(target)))
        written = judge(chunks).map_batches(
            write_parts, fn_kwargs={"folder": target}, batch_size=1, batch_format="pyarrow", num_cpus=0.25
        )
        for _ in written.iter_batches(batch_size=None):
            pass
    finally:
        context.target_max_block_size, options.resource_limits = before


def _survey(
    config: ExtractConfig, artifact: Artifact, plan: ingest.Plan
) -> tuple[judged.JudgedCorpus, cascade.SecondCorpus | None]:
    """What the corpus of verdicts says, after the second judge was asked where there is one."""
    work = artifact.work
    quarantine = work.child("quarantine")
    quarantine.fs.create_dir(quarantine.path, recursive=True)
    corpus = judged.survey(work.child("judged"), config.judge, quarantine.child("quarantine.parquet"), plan.unreadable)
    if not config.cascade.enabled:
        return corpus, None
    target = work.child("second")
    target.fs.create_dir(target.path, recursive=True)
    with Progress("cascade", "interactions") as progress:
        cascade.second_pass(config, corpus.priors.feedback, work.child("judged"), target, progress.counter)
    return corpus, cascade.survey_second(config, corpus.priors, work.child("judged"), target)


def _manifest(
    config: ExtractConfig,
    artifact: Artifact,
    plan: ingest.Plan,
    corpus: judged.JudgedCorpus,
    second: cascade.SecondCorpus | None,
    *,
    seconds: float,
) -> Manifest:
    files = Counter({"read": len(plan.files)})
    files.update(row["reason"].removeprefix("file:") for row in plan.unreadable)
    found = funnel.feedback_counts(artifact.work.child("feedback"))
    drops = funnel.drop_counts(artifact.work.child("drops.parquet"))
    steps = funnel.funnel(files, corpus.summary, corpus.judge, drops, found)
    labels = funnel.label_table(found)
    text = funnel.card(steps, labels, list(config.input), config.levels, config.judge.model)
    artifact.work.child("README.md").write_bytes(text.encode())
    return Manifest.model_validate(
        {
            "kind": "feedback",
            "inputs": list(config.input),
            "config": config.model_dump(mode="json"),
            "funnel": steps,
            "seconds": round(seconds, 1),
            "input_digest": plan.digest(),
            "resumed": artifact.resumed,
            "labels": labels,
            "levels": config.levels,
            "judge": _judge_facts(config, corpus),
            **({"cascade": _cascade_facts(second)} if second is not None else {}),
        }
    )


def _judge_facts(config: ExtractConfig, corpus: judged.JudgedCorpus) -> dict[str, Any]:
    counts = corpus.judge
    prompt_tokens = counts["prompt_tokens"]
    hits = round(counts["cached_tokens"] / prompt_tokens, 4) if prompt_tokens else None
    return {
        "model": config.judge.model,
        "prompt_version": PROMPT_VERSION,
        "prompts": describe(config.judge),
        "prior_logprobs": _prior_facts(corpus.priors.feedback),
        "refusal_prior_logprobs": _prior_facts(corpus.priors.refusal),
        "judged": counts["judged"],
        "refusals_judged": counts["refusals_judged"],
        "refusals_without_verdict": counts["refusals_without_verdict"],
        "requests": counts["requests"],
        "retried": counts["retried"],
        "asked_again": counts["reasked"],
        "unparseable_votes": counts["unparseable"],
        "prompt_tokens": prompt_tokens,
        "output_tokens": counts["output_tokens"],
        "prefix_cache_hit_share": hits,
        "engine_seconds": counts["milliseconds"] / 1000,
    }


def _cascade_facts(second: cascade.SecondCorpus) -> dict[str, Any]:
    return {**dict(sorted(second.counts.items())), "prior_logprobs": _prior_facts(second.prior)}


def _prior_facts(prior: Prior) -> dict[str, Any]:
    return {**prior.groups, "overall": prior.overall}
