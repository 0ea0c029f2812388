"""`wildreward bench evaluate`: scoring a benchmark in the pipeline over the bare engine, in one run.

Jobs are real prompts with several real replies each, as benchmarks have them. The ceiling is the bare engine over the very token ids
that the pipeline's tasks make, all at once, in a process of its own, before and after, since a shared machine drifts. The pipeline is
measured from the end of its first chunk to the end of its last one: both leave out loading and warming up, and the pipeline's time
includes encoding, moving and writing.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from wildreward_ray.core.config.bench import BenchConfig
from wildreward_ray.core.config.evaluate import EvaluateConfig
from wildreward_ray.core.config.judge import EngineSection
from wildreward_ray.core.config.serve import ScorerSection
from wildreward_ray.core.errors import UserError, WildRewardError
from wildreward_ray.stages import ingest
from wildreward_ray.stages.bench_serve import bare_engine
from wildreward_ray.stages.bench_serve_load import apart
from wildreward_ray.stages.bench_serve_texts import Texts, make_model, read_texts
from wildreward_ray.stages.evaluate_jobs import Chunk, Job, Parts, cut

# Two engines may add up in another order.
_TOLERANCE = 1e-2


def measure(config: BenchConfig, inputs: tuple[str, ...]) -> dict[str, Any]:
    """Measure both; the model and the texts are those of `--serve`.

    Raises:
        UserError: too few texts, or all of them in one chunk.
        WildRewardError: both don't give the same scores.
    """
    from wildreward_ray.stages.scoring import load_encoder

    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        model = config.serve.model or f"{folder}/model"
        if config.serve.model is None:
            make_model(model, config.serve)
        plan = ingest.plan(inputs, config.format, strict=False)
        texts = read_texts(plan, load_encoder(ScorerSection(model=model))[0], config.serve, config.limit)
        settings = _settings(config, model, folder)
        chunks = list(cut(jobs_of(texts, config.serve.group_size), settings.batch_size))
        if len(chunks) < 2:
            raise UserError(
                f"all {len(texts.items)} responses fit in one chunk of {settings.batch_size}",
                flag="--limit",
                hint="raise it",
            )
        before, expected = apart(bare_engine, settings, texts.warm_up_inputs, texts.inputs)
        pipeline, scores = apart(_pipeline, settings, chunks, f"{folder}/parts")
        after, _ = apart(bare_engine, settings, texts.warm_up_inputs, texts.inputs)
    difference = float(np.abs(np.array(scores) - np.array(expected)).max())
    if difference > _TOLERANCE:
        raise WildRewardError(f"pipeline and bare engine differ by {difference} in a score of the same token ids")
    n = len(texts.inputs)
    ceiling = 2 * n / (before + after)
    return {
        "model": config.serve.model or "SmolLM2-135M with a random head",
        "responses": n,
        "responses_per_prompt": config.serve.group_size,
        "prompt_tokens_mean": round(texts.context_tokens, 1),
        "reply_tokens_mean": round(texts.reply_tokens, 1),
        "pipeline_per_s": round(pipeline, 2),
        "bare_before_per_s": round(n / before, 2),
        "bare_after_per_s": round(n / after, 2),
        "bare_per_s": round(ceiling, 2),
        "ratio": round(pipeline / ceiling, 3),
        "score_difference_max": difference,
    }


def jobs_of(texts: Texts, size: int) -> list[Job]:
    """The items as jobs of `size` responses to one prompt."""
    found = []
    for start in range(0, len(texts.items), size):
        group = texts.items[start : start + size]
        replies = tuple(str(item["response"]) for item in group)
        found.append(Job(str(start), tuple(group[0]["history"]), str(group[0]["prompt"]), replies))
    return found


def _settings(config: BenchConfig, model: str, folder: str) -> EvaluateConfig:
    section = config.serve
    return EvaluateConfig(
        model=model,
        benchmark="pairs",
        output=f"{folder}/unused",
        engine=section.engine,
        cpu_threads=section.cpu_threads,
        vllm=EngineSection(cpu_kv_cache_gib=section.kv_cache_gib, cpu_threads=section.cpu_threads),
    )


def _pipeline(settings: EvaluateConfig, chunks: Sequence[Chunk], folder: str) -> tuple[float, list[float]]:
    """Responses a second after the first chunk, and all scores in order. Call it in a process of its own, which starts Ray."""
    import ray

    from wildreward_ray.cluster.session import start_ray
    from wildreward_ray.cluster.storage import locate
    from wildreward_ray.stages.bench_extract import Stamps
    from wildreward_ray.stages.evaluate_scoring import score_chunks

    Path(folder).mkdir()
    parts = Parts(locate(folder))
    start_ray()
    try:
        stamps = Stamps.remote()  # type: ignore[attr-defined]
        score_chunks(settings, chunks, parts, stamps)
        rate = float(ray.get(stamps.rate.remote()))
    finally:
        ray.shutdown()
    jobs = [job for chunk in chunks for job in chunk.jobs]
    scores = parts.read(jobs)
    return rate, [float(score) for job in jobs for score in scores[job.id]]
