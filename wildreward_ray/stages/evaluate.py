"""`wildreward evaluate`: a reward model, a reward service or somebody's scores, measured on a benchmark.

Scores are computed once: they stand in parts below the unfinished output, and a killed run goes on with those that are missing.
Nothing is measured before every response has its score.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from wildreward_ray.cluster.artifact import Artifact, is_done, open_artifact, read_manifest, without
from wildreward_ray.cluster.session import ray_errors
from wildreward_ray.cluster.storage import first_line, locate
from wildreward_ray.core.config.evaluate import EvaluateConfig
from wildreward_ray.core.errors import StorageError
from wildreward_ray.core.manifest import FunnelStep, Manifest
from wildreward_ray.feedback.refusal import is_refusal
from wildreward_ray.reward.benchmarks.items import Floats, Item
from wildreward_ray.reward.benchmarks.probes import PROBES, vary
from wildreward_ray.reward.benchmarks.registry import BENCHMARKS
from wildreward_ray.reward.benchmarks.scores_file import match_scores
from wildreward_ray.stages.evaluate_data import read_benchmark, scores_lines, spread
from wildreward_ray.stages.evaluate_files import (
    KIND,
    OUTCOMES,
    PAGE,
    PLOTS,
    RESULTS,
    SCORES,
    TABLES,
    read_evaluation,
    write_json,
    write_outcomes,
    write_plots,
    write_scores_file,
)
from wildreward_ray.stages.evaluate_jobs import Chunk, Job, Parts, cut, digest
from wildreward_ray.stages.evaluate_results import Scored, measured

# Settings that change neither scores nor metrics.
OPERATIONAL = frozenset(
    {
        "overwrite",
        "replicas",
        "num_cpus",
        "num_gpus",
        "cpu_threads",
        "reward.retries",
        "reward.timeout_s",
        "reward.concurrency",
        "reward.token_env",
    }
)
_PARTS = "parts"
_PIECE_BYTES = 1 << 20


@dataclass(frozen=True)
class EvaluateResult:
    """A whole evaluation.

    Attributes:
        output: where it stands.
        results: content of results.json.
        fresh: whether this call made it, or an earlier one with the same settings.
    """

    output: str
    results: dict[str, Any]
    fresh: bool = True


def run(config: EvaluateConfig) -> EvaluateResult:
    """Measure.

    Raises:
        UserError: a model, service, file or benchmark that can't be used; names the value, the rule and the flag.
        WildRewardError: a response has no score. What was scored before is kept, and the same command goes on.
    """
    started = time.monotonic()
    benchmark = BENCHMARKS[str(config.benchmark)]
    whole = read_benchmark(benchmark, config.data)
    reading = replace(whole, items=spread(whole.items, config.limit))
    source = _source(config)
    jobs, probed = _jobs(config, reading.items)
    settings = config.model_dump(mode="json")
    state = {"config": without(settings, OPERATIONAL), "jobs": digest(jobs), "version": str(source.get("version"))}
    if is_done(config.output, settings, OPERATIONAL) and not config.overwrite:
        return _made_before(config, state)
    with open_artifact(config.output, overwrite=config.overwrite, state=state) as artifact, ray_errors(config.output):
        if config.scores is not None:
            # A file of scores is held against the whole benchmark, also where only a part of it is measured.
            given = match_scores(whole.items, scores_lines(locate(config.scores, flag="--scores")))
            scores, varied, speed = list(spread(given, config.limit)), None, None
        else:
            by_job, speed = _score(config, jobs, artifact)
            scores = [by_job[job.id] for job in jobs[: len(reading.items)]]
            varied = {
                probe: {item: by_job[job] for item, job in of_item.items()} for probe, of_item in probed.items()
            } or None
        found = Scored(benchmark, reading, scores, varied)
        results, outcomes = measured(config, found, source=source, speed=speed)
        _write(artifact, results)
        write_scores_file(artifact.work, benchmark, reading.items, scores)
        write_outcomes(artifact.work, outcomes)
        manifest = Manifest.model_validate(
            {
                "kind": KIND,
                "inputs": list(config.data or benchmark.hub),
                "config": settings,
                "funnel": [_funnel(len(reading.items), reading.excluded)],
                "seconds": round(time.monotonic() - started, 1),
                "state": state,
            }
        )
        artifact.commit(manifest, [RESULTS, PAGE, SCORES, OUTCOMES, PLOTS, *TABLES])
    return EvaluateResult(config.output, results)


def _source(config: EvaluateConfig) -> dict[str, Any]:
    """Where the scores come from, asked or read before anything is loaded."""
    if config.scores is not None:
        return {"kind": "scores", "given": config.scores, "version": _version_of(config.scores)}
    if config.model:
        from wildreward_ray.stages.evaluate_models import check_model

        checked = check_model(config)
        return {"kind": "model", "given": config.model, "model_kind": checked.pop("kind"), **checked}
    from wildreward_ray.stages.evaluate_service import check_service

    health = check_service(config)
    told = {} if health is None else {"served": health.model, "version": health.version}
    return {"kind": "service", "given": str(config.reward_url), "protocol": config.reward.protocol, **told}


def _version_of(scores: str) -> str:
    """12 hex digits over a file of scores."""
    digest = hashlib.blake2b(digest_size=6)
    try:
        with locate(scores, flag="--scores").open_input() as stream:
            while piece := stream.read(_PIECE_BYTES):
                digest.update(piece)
    except OSError as e:
        raise StorageError(f"can't read {scores!r}: {first_line(e)}", flag="--scores") from e
    return digest.hexdigest()


def _jobs(config: EvaluateConfig, items: Sequence[Item]) -> tuple[list[Job], dict[str, dict[str, str]]]:
    """What is to be scored: first the items in order, then what the probes make of some of them.

    Returns:
        the jobs, and their ids by probe and item.
    """
    jobs = [Job(item.id, item.history, item.prompt, item.responses) for item in items]
    probed: dict[str, dict[str, str]] = {}
    if config.scores is not None:
        return jobs, probed
    for probe in PROBES:
        for item in spread(items, config.probes.items) if config.probes.items else ():
            case = vary(probe, item, config.seed, is_refusal)
            if case is not None:
                history, prompt, responses = case
                job = Job(f"probe {probe.name}: {item.id}", tuple(history), prompt, responses)
                probed.setdefault(probe.name, {})[item.id] = job.id
                jobs.append(job)
    return jobs, probed


def _score(config: EvaluateConfig, jobs: Sequence[Job], artifact: Artifact) -> tuple[dict[str, Floats], dict[str, Any]]:
    """The scores of all jobs by their ids, and how fast they came. Those of an earlier, killed run are not computed again."""
    folder = artifact.work.child(_PARTS)
    folder.fs.create_dir(folder.path, recursive=True)
    parts = Parts(folder)
    done = parts.done()
    chunks = list(cut(jobs, config.batch_size))
    todo = [chunk for chunk in chunks if chunk.name not in done]
    seconds = _score_chunks(config, todo, parts) if todo else 0.0
    fresh = sum(chunk.responses for chunk in todo)
    reused = sum(chunk.responses for chunk in chunks) - fresh
    rate = round(fresh / seconds, 2) if seconds else None
    return parts.read(jobs), {"seconds": round(seconds, 1), "responses_per_s": rate, "reused": reused}


def _score_chunks(config: EvaluateConfig, chunks: Sequence[Chunk], parts: Parts) -> float:
    if config.model:
        from wildreward_ray.stages.evaluate_scoring import score_with_model

        return score_with_model(config, chunks, parts)
    from wildreward_ray.stages.evaluate_service import score_by_service

    return score_by_service(config, chunks, parts)


def _write(artifact: Artifact, results: Mapping[str, Any]) -> None:
    """What people read and programs parse."""
    from wildreward_ray.report.evaluation_page import evaluation_page
    from wildreward_ray.report.evaluation_tables import latex_table, markdown_table

    work = artifact.work
    write_json(work.child(RESULTS), results)
    work.child(PAGE).write_bytes(evaluation_page(results).encode())
    for name, table in zip(TABLES, (markdown_table([results]), latex_table([results])), strict=True):
        work.child(name).write_bytes(table.encode())
    write_plots(results, work.child(PLOTS))


def _funnel(items: int, excluded: Mapping[str, int]) -> FunnelStep:
    # Some of what a benchmark excludes from its accuracy still counts for other metrics of it.
    return FunnelStep(name="read", unit="prompts", rows_in=items, rows_out=items, notes=dict(excluded))


def _made_before(config: EvaluateConfig, state: Mapping[str, Any]) -> EvaluateResult:
    """The evaluation that stands at the output already.

    Raises:
        StorageError: its prompts or its model were others than those that the same settings name now.
    """
    before = read_manifest(config.output, kind=KIND, flag="--output").get("state", {})
    changed = [name for name in ("jobs", "version") if before.get(name) != state[name]]
    if changed:
        what = " and ".join({"jobs": "prompts", "version": "model or scores"}[name] for name in changed)
        raise StorageError(
            f"{locate(config.output).uri!r} was measured with the same settings, but other {what} stand there now",
            flag="--overwrite",
            hint="give another --output, or replace it with",
        )
    return EvaluateResult(config.output, read_evaluation(config.output).results, fresh=False)
