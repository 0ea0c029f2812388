"""`wildreward bench extract`: the judge's throughput inside the pipeline over that of the bare engine, in one run.

The ceiling is one `LLM.generate` call over the very prompts that the pipeline sends, already tokenised, with a warm engine
of the same settings in a process of its own. The pipeline is measured from the end of its first batch to the end of its
last one: both leave out loading and warming up, and the pipeline's time includes reading, tokenising, moving and writing.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from importlib import resources
from pathlib import Path
from typing import Any

import ray

from wildreward_ray.cluster.schema import JUDGED
from wildreward_ray.cluster.session import check_resources, ray_errors, start_ray
from wildreward_ray.cluster.storage import locate
from wildreward_ray.cluster.vllm_engine import PrefixCacheCount, start_llm, verdict_logprobs
from wildreward_ray.core.config.bench import BenchConfig
from wildreward_ray.core.config.extract import JudgeSection, RefusalSection
from wildreward_ray.core.errors import UserError
from wildreward_ray.core.manifest import versions
from wildreward_ray.feedback.judge import SPECS, JudgePrompt
from wildreward_ray.stages import dataset, extract, ingest, label

_WARM_UP = 32


def run(config: BenchConfig) -> dict[str, Any]:
    """Measure both. Returns the figures, which are also written to `config.output` where it is given.

    Raises:
        UserError: the input gives too few interactions to measure.
    """
    if config.stage != "extract":
        raise UserError(f"{config.stage!r} can't be measured", flag="stage")
    if config.input is not None:
        return _bench_extract(config, config.input)
    with resources.as_file(resources.files("wildreward_ray") / "sample") as sample:
        return _bench_extract(config, (str(sample / "conversations.parquet"),))


def _bench_extract(config: BenchConfig, inputs: tuple[str, ...]) -> dict[str, Any]:
    shards = ingest.plan(inputs, config.format)
    start_ray()
    check_resources([label.resources(config.judge)])
    ray.data.DataContext.get_current().target_max_block_size = extract.BLOCK_BYTES
    with tempfile.TemporaryDirectory() as folder, ray_errors(folder):
        judged = locate(folder).child("judged")
        stamps = _Stamps.remote()  # type: ignore[attr-defined]
        conversations = ingest.read(shards, config.limit)
        # No second verdicts: the ceiling has the feedback prompts only.
        rows = label.judge(conversations, config.judge, refusal=RefusalSection(enabled=False), counter=stamps)
        dataset.write_parquet(rows, judged, JUDGED)
        pipeline = ray.get(stamps.rate.remote())
        counts = dataset.counts(judged, "judge")
        fields = [
            f
            for table in ingest.read_tables(shards, config.limit)
            for r in table.to_pylist()
            for f in label.turn_fields(r)
        ]
        ceiling = ray.get(_Ceiling.options(num_cpus=config.judge.num_cpus).remote(config.judge).rate.remote(fields))  # type: ignore[attr-defined]
    found = {
        "stage": "extract",
        "judge": config.judge.model,
        "interactions": len(fields),
        "ceiling_per_s": round(ceiling["per_s"], 2),
        "pipeline_per_s": round(pipeline, 2),
        "ratio": round(pipeline / ceiling["per_s"], 3),
        "prompt_tokens_mean": round(ceiling["prompt_tokens"] / len(fields), 1),
        "static_prefix_tokens": ceiling["static"],
        "prefix_cache_hit_share": round(counts["cached_tokens"] / counts["prompt_tokens"], 3),
        "prefix_cache_hit_share_ceiling": round(ceiling["cached"], 3),
        "cpus": os.cpu_count(),
        **{f"version_{name}": version for name, version in versions().items()},
    }
    if config.output is not None:
        Path(config.output).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return found


@ray.remote(num_cpus=0)
class _Stamps:
    """Notes when each batch was done; takes the place of a progress counter."""

    def __init__(self) -> None:
        self._stamps: list[tuple[float, int]] = []

    def add(self, amount: int) -> None:
        if amount:
            self._stamps.append((time.monotonic(), amount))

    def rate(self) -> float:
        """Interactions a second after the first batch."""
        if len(self._stamps) < 2:
            raise UserError("all interactions fit in one batch", flag="--limit", hint="raise it")
        first, last = self._stamps[0][0], self._stamps[-1][0]
        return sum(amount for _, amount in self._stamps[1:]) / (last - first)


@ray.remote
class _Ceiling:
    """The bare engine."""

    def __init__(self, section: JudgeSection) -> None:
        self._llm = start_llm(section.model, section.engine, flag="--judge.model")
        self._prompt = JudgePrompt(
            SPECS["feedback", section.prompt_style], section.prompt_style, self._llm.get_tokenizer()
        )

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
