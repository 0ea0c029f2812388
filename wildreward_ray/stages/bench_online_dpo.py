"""`wildreward bench online-dpo`: a step over its slowest part, sampling over the bare engine, and prompts a second over TRL's.

Overlap: the run with staleness 0, where each part works alone, against the run with staleness 1, where sampling goes on while
the last samples are learnt from. Where there is no GPU, engine and learner get half of the cores each: two that overlap need
cores of their own. Generation: the rollouts of the run with staleness 0 against `LLM.generate` on the same batches, with the
same random numbers and the same threads, in a process of its own; it runs before and after, since a shared machine drifts.
TRL: the same prompts in the same batches, with all cores, against the faster one of two runs: that with staleness 1, and one with
staleness 0 whose parts take turns with all cores. All get their rewards from one server, which has no model.
The figures leave out steps that warm up: `bench_online_dpo_figures`.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wildreward_ray.core.config.bench import BenchConfig, OnlineDpoBench
from wildreward_ray.core.config.online_dpo import OnlineDpoConfig
from wildreward_ray.core.errors import UserError, WildRewardError
from wildreward_ray.stages.bench_online_dpo_figures import (
    Figures,
    Sampled,
    counted,
    generation,
    overlap,
    ratios,
    throughput,
    trl_figures,
)
from wildreward_ray.stages.bench_online_dpo_reward import reward_server
from wildreward_ray.stages.bench_online_dpo_trl import TrlResult, TrlRun, check_trl, train
from wildreward_ray.stages.bench_serve_load import apart

if TYPE_CHECKING:
    from wildreward_ray.stages.prompts import Prompt

_CHUNK = 64
_PROMPT_TOKENS = 1024
_FLAG = "--online-dpo.policy"


def measure(config: BenchConfig, inputs: tuple[str, ...]) -> Figures:
    """Measure the parts that are asked for.

    Raises:
        UserError: too few short prompts, an unusable policy, too small a cluster, or TRL is asked for and not installed.
        WildRewardError: a step made no pair, so that nothing was learnt in it.
    """
    section = config.online_dpo
    if "trl" in section.parts:
        check_trl()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        write_prompts(config, inputs, folder / "prompts.jsonl")
        bench = Bench(section, str(folder), stack.enter_context(reward_server()))
        found: Figures = {
            "policy": section.policy,
            "prompts_per_step": section.prompts_per_step,
            "samples": section.samples,
            "max_tokens": section.max_tokens,
            "precision": section.precision,
            "steps_counted": len(counted(range(section.steps))),
            "prompt_tokens_mean": round(statistics.fmean(len(p.token_ids) for b in bench.batches for p in b), 1),
        }
        # TRL comes first: no Ray is running yet, so the machine is its own.
        if "trl" in section.parts:
            found |= trl_figures(bench.trl, section.prompts_per_step)
        raw = [bench.raw()] if "generation" in section.parts else []
        alone = bench.rows(0) if {"overlap", "generation"} & set(section.parts) else []
        if raw:
            raw.append(bench.raw())
            found |= generation(alone, *raw)
        if "trl" in section.parts:
            ways = {"in_turn": bench.rows(0, in_turn=True), "overlapped": bench.rows(1)}
            found |= throughput(ways, section.prompts_per_step)
        if "overlap" in section.parts:
            found |= overlap(alone, bench.rows(1))
    return found | ratios(found)


class Bench:
    """What is measured, each at the most once but for the raw engine.

    Args:
        folder: with `prompts.jsonl`.
        url: of a reward service.
    """

    def __init__(self, section: OnlineDpoBench, folder: str, url: str) -> None:
        self._section, self._folder, self._url = section, folder, url
        self._rows: dict[tuple[int, bool], list[dict[str, Any]]] = {}

    def settings(self, staleness: int, *, in_turn: bool = False, output: str = "unused") -> OnlineDpoConfig:
        """The run's settings; with `in_turn` engine and learner have all cores each, without half of them."""
        section = self._section
        gpus = 1.0 if section.gpu else 0.0
        threads = None if section.gpu else _cores() if in_turn else max(1, _cores() // 2)
        # Room for the longest prompt and its reply, since this engine's own settings can't be given.
        longest = max(2048, _PROMPT_TOKENS + section.max_tokens)
        settings: dict[str, Any] = {
            "policy": section.policy,
            "reward_url": self._url,
            "prompts": f"{self._folder}/prompts.jsonl",
            "output": output,
            "steps": section.steps,
            "prompts_per_step": section.prompts_per_step,
            "staleness": staleness,
            "max_prompt_tokens": _PROMPT_TOKENS,
            "seed": section.seed,
            "rollout": {
                "samples": section.samples,
                "max_tokens": section.max_tokens,
                "temperature": section.temperature,
                "reasoning_end": None,
                "num_gpus": gpus,
                "engine": {"cpu_threads": threads, "max_model_len": longest},
            },
            "learner": {
                "learning_rate": section.learning_rate,
                "precision": section.precision,
                "num_gpus": gpus,
                "cpu_threads": threads,
            },
            # TRL makes a pair of every prompt, however alike its replies are.
            "pairs": {"max_similarity": 1.0},
            "eval": {"prompts": 0},
            # A checkpoint between steps would wait for all parts.
            "checkpoint": {"every": section.steps},
        }
        return OnlineDpoConfig.model_validate(settings)

    @cached_property
    def batches(self) -> list[list[Prompt]]:
        """The prompts of every step, as the run takes them."""
        from transformers import AutoTokenizer

        from wildreward_ray.cluster.models import resolve_model
        from wildreward_ray.stages.prompts import batch, load_prompts

        config = self.settings(0)
        tokenizer = AutoTokenizer.from_pretrained(resolve_model(config.policy, flag=_FLAG))
        usable = load_prompts(config, tokenizer).usable
        check_enough(len(usable), self._section)
        size, seed = config.prompts_per_step, config.seed
        return [batch(usable, step, size, seed) for step in range(1, config.steps + 1)]

    def rows(self, staleness: int, *, in_turn: bool = False) -> list[dict[str, Any]]:
        """Metrics of every step of the run."""
        if (staleness, in_turn) not in self._rows:
            from wildreward_ray.stages import online_dpo

            with tempfile.TemporaryDirectory(dir=self._folder) as output:
                settings = self.settings(staleness, in_turn=in_turn, output=f"{output}/run")
                self._rows[staleness, in_turn] = online_dpo.run(settings).steps
        return self._rows[staleness, in_turn]

    def raw(self) -> list[Sampled]:
        """Every step of the bare engine."""
        return apart(raw_steps, self.settings(0), [[p.token_ids for p in batch] for batch in self.batches])

    @property
    def trl(self) -> TrlResult:
        """TRL on the same batches."""
        section, learner = self._section, self.settings(1).learner
        batches = [
            [[*prompt.history, {"role": "user", "content": prompt.prompt}] for prompt in batch]
            for batch in self.batches
        ]
        run = TrlRun(
            policy=section.policy,
            batches=batches,
            reward_url=self._url,
            max_tokens=section.max_tokens,
            max_length=_PROMPT_TOKENS + section.max_tokens,
            temperature=section.temperature,
            learning_rate=learner.learning_rate,
            beta=learner.beta,
            clip_norm=learner.clip_norm,
            precision=section.precision,
            seed=section.seed,
            threads=_cores(),
        )
        return apart(train, run)


def raw_steps(config: OnlineDpoConfig, batches: Sequence[Sequence[Sequence[int]]]) -> list[Sampled]:
    """Sample batches of prompts (token ids) with a bare engine. Call it in a fresh process, which has not loaded torch yet."""
    threads = config.rollout.engine.cpu_threads
    if threads is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        # OpenMP reads it once, when torch is loaded.
        os.environ["OMP_NUM_THREADS"] = str(threads)
    from wildreward_ray.cluster.vllm_engine import start_llm

    llm = start_llm(config.policy, config.rollout.engine, flag=_FLAG, seed=config.seed)
    import torch

    from wildreward_ray.stages.dpo_rollout import sampling_params, sampling_seed

    if threads is not None and torch.get_num_threads() != threads:
        raise WildRewardError(f"the bare engine has {torch.get_num_threads()} threads instead of {threads}")
    found = []
    for step, prompts in enumerate(batches, start=1):
        seeds = [sampling_seed(config.seed, step, index) for index in range(len(prompts))]
        params = [sampling_params(config.rollout, seed) for seed in seeds]
        began = time.perf_counter()
        outputs = llm.generate([{"prompt_token_ids": list(ids)} for ids in prompts], params, use_tqdm=False)
        seconds = time.perf_counter() - began
        found.append(Sampled(sum(len(reply.token_ids) for output in outputs for reply in output.outputs), seconds))
    return found


def write_prompts(config: BenchConfig, inputs: tuple[str, ...], target: Path) -> None:
    """Write the first message of the user of every conversation with feedback, where it is short enough, each text once.

    Raises:
        UserError: there are too few.
    """
    found = list(islice(_first_messages(config, inputs), config.limit))
    check_enough(len(found), config.online_dpo)
    target.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in found), encoding="utf-8")


def _first_messages(config: BenchConfig, inputs: tuple[str, ...]) -> Iterator[str]:
    from wildreward_ray.stages import ingest

    seen = set()
    plan = ingest.plan(inputs, config.format, strict=False)
    for _, table in ingest.read_chunks(plan.shards, size=_CHUNK, limit=None, done={}):
        for row in table.to_pylist():
            text = next((m["content"].strip() for m in row["messages"] or () if m["role"] == "user"), "")
            if 0 < len(text) <= config.online_dpo.prompt_chars and text not in seen:
                seen.add(text)
                yield text


def check_enough(prompts: int, section: OnlineDpoBench) -> None:
    """Return if no step needs a prompt again, which the engine's cache would remember.

    Raises:
        UserError: one does.
    """
    wanted = section.steps * section.prompts_per_step
    if prompts < wanted:
        raise UserError(
            f"{prompts} different prompts of {section.prompt_chars} characters at most are no {section.steps} steps of "
            f"{section.prompts_per_step}: {wanted} are needed",
            flag="--input",
            hint="give longer logs, raise --limit, or lower --online-dpo.steps",
        )


def _cores() -> int:
    return len(os.sched_getaffinity(0))
