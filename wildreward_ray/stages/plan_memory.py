"""GPU memory of the actors of a configuration, for models whose shape is known; `core.model_memory` does the arithmetic."""

from __future__ import annotations

from wildreward_ray.core.config.extract import HindsightSection
from wildreward_ray.core.config.judge import EngineSection, JudgeSection
from wildreward_ray.core.config.online_dpo import OnlineDpoConfig
from wildreward_ray.core.config.serve import ScorerSection
from wildreward_ray.core.config.train import TrainConfig
from wildreward_ray.core.model_memory import MODELS, Memory, Training, engine_memory, training_memory

# What is known, or why nothing is.
Known = tuple[Memory | None, str]

_DEFAULT_LENGTH = 4096


def judge(section: JudgeSection) -> Known:
    """Of each GPU of a judge's engine."""
    return _engine(section.model, section.engine)


def rollout(config: OnlineDpoConfig) -> Known:
    """Of each GPU of a rollout actor's engine."""
    return _engine(config.policy, config.rollout.engine)


def scorer(section: ScorerSection, model: str) -> Known:
    """Of each GPU of an engine that scores.

    Args:
        model: what the reward model was trained from, where that is known.
    """
    shape = MODELS.get(model)
    if shape is None:
        return _unknown(model)
    float32 = section.dtype == "float32"
    if section.engine == "transformers":
        weights = (4 if float32 else 2) * shape.classifier_parameters
        return Memory((("weights", weights),)), "activations come on top: --token-budget bounds them"
    parallel = section.vllm.tensor_parallel
    return engine_memory(shape, length=_DEFAULT_LENGTH, parallel=parallel, float32=float32, classifier=True), ""


def embedder(section: HindsightSection) -> Known:
    """Of a refining actor's GPU."""
    shape = MODELS.get(section.model)
    return _unknown(section.model) if shape is None else (Memory((("weights", 4 * shape.parameters),)), "")


def trainer(config: TrainConfig) -> Known:
    """Of a training worker's GPU, with the fewest workers."""
    how = Training(
        tokens=max(config.optim.token_budget, config.max_length or _DEFAULT_LENGTH),
        workers=config.workers[0],
        sharded=config.parallel.strategy == "fsdp2",
        bfloat16=config.precision == "bfloat16",
        recompute=config.parallel.activation_checkpointing,
        rank=config.lora.rank,
    )
    memory, note = _training(config.base, how)
    least, most = config.workers
    if memory is not None and how.sharded and least < most:
        note = f"with {least} workers; less with more"
    return memory, note


def learner(config: OnlineDpoConfig) -> Known:
    """Of a learner's GPU."""
    section = config.learner
    sequences = 2 * section.micro_pairs
    how = Training(
        tokens=sequences * (config.max_prompt_tokens + config.rollout.max_tokens),
        workers=section.workers,
        sharded=section.parallel.strategy == "fsdp2",
        bfloat16=section.precision == "bfloat16",
        recompute=section.parallel.activation_checkpointing,
        rank=section.lora.rank,
        logits=sequences * config.rollout.max_tokens,
    )
    return _training(config.policy, how)


def _engine(model: str, section: EngineSection) -> Known:
    shape = MODELS.get(model)
    if shape is None:
        return _unknown(model)
    if section.quantization is not None:
        return None, f"weights quantised by {section.quantization}: no estimate of its GPU memory"
    float32 = section.dtype == "float32"
    memory = engine_memory(shape, length=section.max_model_len, parallel=section.tensor_parallel, float32=float32)
    return (
        memory,
        f"at the least; the engine takes {section.gpu_memory_share:.0%} of the GPU, the rest of it for its KV cache",
    )


def _training(model: str, how: Training) -> Known:
    shape = MODELS.get(model)
    if shape is None:
        return _unknown(model)
    memory = training_memory(shape, how)
    return memory, "" if memory is not None else f"{model!r} is a mixture of experts: no estimate of its GPU memory"


def _unknown(model: str) -> Known:
    return None, f"unknown model {model!r}: no estimate of its GPU memory"
