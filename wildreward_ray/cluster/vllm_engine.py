"""vLLM engines inside an actor: started from an `EngineSection`, imported only where one runs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from wildreward_ray.cluster.judge_backends import Answer
from wildreward_ray.cluster.models import resolve_model
from wildreward_ray.core.errors import JudgeUnavailableError, UserError

if TYPE_CHECKING:
    from vllm import LLM

    from wildreward_ray.core.config.judge import EngineSection

# vLLM's CPU attention wants multiples of 32; the smallest lets the prefix cache reuse most of a short static prompt.
_CPU_BLOCK = 32


def start_llm(model: str, section: EngineSection, *, flag: str, seed: int = 0, **extra: Any) -> LLM:
    """Start an offline vLLM engine in this process.

    Args:
        model: hub name, path or demo model.
        extra: further arguments of `vllm.LLM`, e.g. `runner="pooling"`.

    Raises:
        UserError: vLLM isn't installed, or the model can't be loaded by it.
    """
    arguments = engine_arguments(model, section, flag=flag, seed=seed)
    try:
        from vllm import LLM
    except ImportError as e:
        raise cannot_import_vllm(e) from e
    try:
        return LLM(**{**arguments, **extra})
    except (OSError, ValueError) as e:
        raise cannot_load(model, e, flag) from e


def engine_arguments(model: str, section: EngineSection, *, flag: str, seed: int = 0) -> dict[str, Any]:
    """Arguments of a vLLM engine on this machine's hardware. Sets what a CPU engine reads from the environment."""
    path = resolve_model(model, flag=flag)
    on_gpu = _gpu_visible()
    if not on_gpu:
        _prepare_cpu(section)
    arguments: dict[str, Any] = {
        "model": path,
        "dtype": section.dtype,
        "max_model_len": section.max_model_len,
        "tensor_parallel_size": section.tensor_parallel,
        "trust_remote_code": section.trust_remote_code,
        "quantization": section.quantization,
        "enable_prefix_caching": True,
        "seed": seed,
        "disable_log_stats": True,
    }
    block = section.block_size or (None if on_gpu else _CPU_BLOCK)
    if block is not None:
        arguments["block_size"] = block
    if on_gpu:
        arguments["gpu_memory_utilization"] = section.gpu_memory_share
    else:
        arguments["enforce_eager"] = True
    if section.tensor_parallel > 1:
        # The engine's own processes share the actor's GPUs; Ray has already placed the actor.
        arguments["distributed_executor_backend"] = "mp"
    return arguments


def cannot_import_vllm(error: ImportError) -> UserError:
    """What a user reads where vLLM is missing or broken."""
    return UserError(f"vLLM can't be imported: {error}", hint="install the `cpu` or the `gpu` extra")


def cannot_load(model: str, error: Exception, flag: str) -> UserError:
    """What a user reads where vLLM refuses a model."""
    return UserError(f"vLLM can't load {model!r}: {' '.join(str(error).split())[:400]}", flag=flag)


@dataclass
class PrefixCacheCount:
    """Prompt tokens seen, how many of them came from the prefix cache, and tokens written."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0


def verdict_logprobs(
    llm: LLM, prompts: Sequence[Sequence[int]], verdict_ids: Sequence[int], count: PrefixCacheCount | None = None
) -> npt.NDArray[np.float64]:
    """Log-probabilities of `verdict_ids` as the next token of every prompt, over the whole vocabulary: float64 [N, K].

    One prefill a prompt; the single token that vLLM has to emit is ignored.

    Raises:
        JudgeUnavailableError: the model gave a log-probability that isn't finite.
    """
    from vllm import SamplingParams

    params = SamplingParams(max_tokens=1, temperature=0.0, logprob_token_ids=list(verdict_ids), detokenize=False)
    outputs = llm.generate([{"prompt_token_ids": list(p)} for p in prompts], params, use_tqdm=False)
    result = np.empty((len(prompts), len(verdict_ids)))
    for i, output in enumerate(outputs):
        found = output.outputs[0].logprobs[0]
        result[i] = [found[token].logprob for token in verdict_ids]
        if count is not None:
            count.prompt_tokens += len(output.prompt_token_ids)
            count.cached_tokens += output.num_cached_tokens or 0
    if not np.isfinite(result).all():
        bad = int(np.flatnonzero(~np.isfinite(result).all(axis=1))[0])
        raise JudgeUnavailableError(f"the judge gave a non-finite log-probability for prompt {bad} of {len(prompts)}")
    return result


def sample_answers(
    llm: LLM,
    prompts: Sequence[Sequence[int]],
    *,
    n: int,
    temperature: float,
    max_tokens: int,
    seeds: Sequence[int | None],
    count: PrefixCacheCount | None = None,
) -> list[list[Answer]]:
    """`n` sampled answers to each of N prompts: [N][n].

    Special tokens stay in the text: they mark where some models stop reasoning.

    Args:
        max_tokens: longest answer, in tokens; one that is longer comes back with `whole` false.
        seeds: seed of each prompt's first answer; answer i takes seed + i. None: random.
    """
    from vllm import SamplingParams

    params = [
        SamplingParams(n=n, temperature=temperature, max_tokens=max_tokens, seed=seed, skip_special_tokens=False)
        for seed in seeds
    ]
    outputs = llm.generate([{"prompt_token_ids": list(p)} for p in prompts], params, use_tqdm=False)
    if count is not None:
        for output in outputs:
            count.prompt_tokens += len(output.prompt_token_ids)
            count.cached_tokens += output.num_cached_tokens or 0
            count.output_tokens += sum(len(answer.token_ids) for answer in output.outputs)
    return [[Answer(a.text, whole=a.finish_reason == "stop") for a in output.outputs] for output in outputs]


def classify_logits(llm: LLM, prompts: Sequence[Sequence[int]]) -> npt.NDArray[np.float32]:
    """Raw classification logits of a pooling engine: float32 [N, K-1]."""
    outputs = llm.encode(
        [{"prompt_token_ids": list(p)} for p in prompts],
        pooling_params=raw_logits(),
        pooling_task="classify",
        use_tqdm=False,
    )
    return np.stack([o.outputs.data.float().numpy() for o in outputs])


def raw_logits() -> Any:
    """Pooling parameters that ask for logits as the head gives them."""
    from vllm import PoolingParams

    return PoolingParams(task="classify", use_activation=False)


def _gpu_visible() -> bool:
    import torch

    return torch.cuda.is_available()


def _prepare_cpu(section: EngineSection) -> None:
    """Settings that a CPU engine reads from the environment when vLLM is first imported, and its threads."""
    import torch

    threads = section.cpu_threads or len(os.sched_getaffinity(0))
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(max(1, round(section.cpu_kv_cache_gib)))
    # Ray gives an actor OMP_NUM_THREADS=num_cpus, which would hold the engine to one core.
    os.environ["OMP_NUM_THREADS"] = str(threads)
    # The variable is for processes that the engine starts: this one's OpenMP read it when torch was loaded.
    torch.set_num_threads(threads)
    # One process an engine: a crash takes the actor with it, which Ray sees and restarts.
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
