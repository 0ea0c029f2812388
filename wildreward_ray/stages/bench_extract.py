"""`wildreward bench extract`: the judge's throughput inside the pipeline over that of the bare engine, in one run.

The ceiling is one `LLM.generate` call over the very prompts that the pipeline sends, already tokenised, with a warm engine
of the same settings in a process of its own. The pipeline is measured from the end of its first chunk to the end of its
last one: both leave out loading and warming up, and the pipeline's time includes reading, tokenising, moving and writing.
"""

from __future__ import annotations

import tempfile
import time
from typing import Any

import ray

from wildreward_ray.cluster.session import check_resources, ray_errors, start_ray
from wildreward_ray.cluster.storage import locate
from wildreward_ray.cluster.vllm_engine import PrefixCacheCount, start_llm, verdict_logprobs
from wildreward_ray.core.config.bench import BenchConfig
from wildreward_ray.core.config.extract import RefusalSection
from wildreward_ray.core.config.judge import JudgeSection
from wildreward_ray.core.errors import UserError
from wildreward_ray.feedback.judge import SPECS, JudgePrompt
from wildreward_ray.stages import extract, ingest, judged, label

_WARM_UP = 32


def measure(config: BenchConfig, inputs: tuple[str, ...]) -> dict[str, Any]:
    """Measure both.

    Raises:
        UserError: all interactions fit in one chunk, or the judge isn't a vLLM engine in likelihood mode.
    """
    section = config.judge
    if section.backend != "vllm" or section.mode != "likelihood":
        raise UserError("only a vLLM judge in likelihood mode has a ceiling to compare with", flag="--judge.backend")
    plan = ingest.plan(inputs, config.format, strict=True)
    start_ray()
    check_resources([label.resources(section)])
    # No second verdicts: the ceiling has the feedback prompts only.
    alone = RefusalSection(enabled=False)
    with tempfile.TemporaryDirectory() as folder, ray_errors(folder):
        work = locate(folder)
        stamps = Stamps.remote()  # type: ignore[attr-defined]
        extract.judge_parts(
            plan.shards,
            work.child("judged"),
            lambda chunks: label.judge(chunks, section, refusal=alone, counter=stamps),
            size=section.batch_size,
            judges=section.replicas[1],
            limit=config.limit,
        )
        pipeline = ray.get(stamps.rate.remote())
        counts = judged.survey(work.child("judged"), section, work.child("quarantine.parquet"), []).judge
        fields = [
            f
            for _, table in ingest.read_chunks(plan.shards, size=section.batch_size, limit=config.limit, done={})
            for row in table.to_pylist()
            for f in label.turn_fields(row)
        ]
        engine = _Ceiling.options(num_cpus=section.num_cpus, num_gpus=label.gpus_of(section)).remote(section)  # type: ignore[attr-defined]
        ceiling = ray.get(engine.rate.remote(fields))
    return {
        "judge": section.model,
        "interactions": len(fields),
        "ceiling_per_s": round(ceiling["per_s"], 2),
        "pipeline_per_s": round(pipeline, 2),
        "ratio": round(pipeline / ceiling["per_s"], 3),
        "prompt_tokens_mean": round(ceiling["prompt_tokens"] / len(fields), 1),
        "static_prefix_tokens": ceiling["static"],
        "prefix_cache_hit_share": round(counts["cached_tokens"] / counts["prompt_tokens"], 3),
        "prefix_cache_hit_share_ceiling": round(ceiling["cached"], 3),
        "static_share_of_prompt": round(ceiling["static"] * len(fields) / ceiling["prompt_tokens"], 3),
    }


@ray.remote(num_cpus=0)
class Stamps:
    """Notes when each piece of work was done; takes the place of a progress counter."""

    def __init__(self) -> None:
        self._stamps: list[tuple[float, int]] = []

    def add(self, amount: int) -> None:
        if amount:
            self._stamps.append((time.monotonic(), amount))

    def rate(self) -> float:
        """Interactions a second after the first piece."""
        if len(self._stamps) < 2:
            raise UserError("all interactions fit in one chunk", flag="--limit", hint="raise it")
        first, last = self._stamps[0][0], self._stamps[-1][0]
        return sum(amount for _, amount in self._stamps[1:]) / (last - first)


@ray.remote
class _Ceiling:
    """The bare engine."""

    def __init__(self, section: JudgeSection) -> None:
        self._llm = start_llm(section.model, section.engine, flag="--judge.model")
        style = section.prompt_style
        self._prompt = JudgePrompt(SPECS["feedback", style], style, self._llm.get_tokenizer())

    def rate(self, fields: list[dict[str, str]]) -> dict[str, float]:
        """Prompts a second over all prompts, after a warm-up on some of them."""
        prompts = [self._prompt.token_ids(f) for f in fields]
        verdict_logprobs(self._llm, prompts[:_WARM_UP], self._prompt.verdict_ids)
        cache = PrefixCacheCount()
        begin = time.monotonic()
        verdict_logprobs(self._llm, prompts, self._prompt.verdict_ids, cache)
        seconds = time.monotonic() - begin
        return {
            "per_s": len(prompts) / seconds,
            "prompt_tokens": cache.prompt_tokens,
            "cached": cache.cached_tokens / cache.prompt_tokens,
            "static": len(self._prompt.prefix_ids),
        }
