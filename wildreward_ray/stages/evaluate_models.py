"""The model that `wildreward evaluate` loads: one of this project, or another's, behind one interface."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from wildreward_ray.cluster.models import resolve_model
from wildreward_ray.cluster.vllm_engine import classify_logits, start_llm
from wildreward_ray.core.config.evaluate import EvaluateConfig
from wildreward_ray.core.errors import RewardUnavailableError, UserError
from wildreward_ray.reward.config import REWARD_CONFIG
from wildreward_ray.reward.foreign import (
    ForeignInputs,
    ForeignScorer,
    Kind,
    KindChoice,
    load_foreign,
    load_foreign_inputs,
    scores_of,
)
from wildreward_ray.reward.inputs import Item
from wildreward_ray.reward.model import stored_reward_config
from wildreward_ray.reward.pretrained import local_or_hub
from wildreward_ray.stages.scoring import check_checkpoint, checkpoint_version, choose_engine, load_encoder, load_scorer

Score = float | RewardUnavailableError
Logits = Callable[[Sequence[Sequence[int]]], npt.NDArray[np.float32]]


@dataclass(frozen=True)
class ResponseEncoder:
    """What makes a reward model's inputs, without the model.

    Attributes:
        encode: (history, prompt, response) of many -> token ids of each, at most `max_length`; what fills it may be cut.
        max_length: longest input in tokens.
    """

    encode: Callable[[Sequence[Item]], list[list[int]]]
    max_length: int


@dataclass(frozen=True)
class ResponseScorer:
    """A loaded reward model of any kind.

    Attributes:
        encode: as in `ResponseEncoder`.
        score: token ids of many -> the score of each, or why it has none. Higher is better; only scores of one model compare.
        engine: `transformers` or `vllm`.
        kind: `ordinal`, `scalar` or `two-class`.
        version: changes when the checkpoint's files do.
        levels: ordered levels of an ordinal model, whose scores are in [1, levels]; else None.
        max_length: longest input in tokens.
    """

    encode: Callable[[Sequence[Item]], list[list[int]]]
    score: Callable[[Sequence[Sequence[int]]], list[Score]]
    engine: str
    kind: str
    version: str
    levels: int | None
    max_length: int


def load_response_scorer(config: EvaluateConfig) -> ResponseScorer:
    """Load the model of `--model` in this process.

    Raises:
        UserError: see `check_model`, `reward.model.load_checkpoint` and `reward.foreign.load_foreign`.
    """
    kind = _foreign_kind(config)
    return _ordinal(config) if kind is None else _foreign(config, kind)


def load_response_encoder(config: EvaluateConfig) -> ResponseEncoder:
    """What makes the inputs of the model of `--model`: the same ids as `load_response_scorer`'s. Raises like `check_model`."""
    kind = _foreign_kind(config)
    if kind is None:
        own, reward_config = load_encoder(config)
        return ResponseEncoder(own.encode_batch, reward_config.max_length)
    foreign = _foreign_inputs(config, kind).encoder
    return ResponseEncoder(foreign.encode_batch, foreign.max_length)


def check_model(config: EvaluateConfig) -> dict[str, Any]:
    """What `load_response_scorer` will load, from configurations and the tokenizer alone.

    Returns:
        `kind`, `engine`, `version` and `levels` as in `ResponseScorer`; `max_length` in tokens; of a foreign model also
        `input`, the form of its inputs, and of one with two logits `positive`, the label of the class read as good.

    Raises:
        UserError: the model can't be used with these settings.
    """
    path = resolve_model(config.model, flag="--model")
    kind = _foreign_kind(config)
    if kind is None:
        own = check_checkpoint(config)
        return _said("ordinal", choose_engine(config), path, own.levels, own.max_length)
    inputs = _foreign_inputs(config, kind)
    said = _said(inputs.kind, _foreign_engine(config, inputs), path, None, inputs.encoder.max_length)
    said["input"] = inputs.encoder.form
    if inputs.kind == "two-class":
        said["positive"] = inputs.label
    return said


def _said(kind: str, engine: str, path: str, levels: int | None, max_length: int) -> dict[str, Any]:
    version = checkpoint_version(path)
    return {"kind": kind, "engine": engine, "version": version, "levels": levels, "max_length": max_length}


def _foreign_kind(config: EvaluateConfig) -> KindChoice | None:
    """What the logits of a foreign model should be; None for an ordinal model."""
    if config.model_kind == "ordinal":
        return None
    path = local_or_hub(resolve_model(config.model, flag="--model"), "--model")
    own = stored_reward_config(path) is not None
    if config.model_kind == "auto":
        if own or config.levels is not None:
            return None
    elif own:
        raise UserError(
            f"{config.model!r} has a {REWARD_CONFIG}, which says how to read it: as a model of ordered levels",
            flag="--model-kind",
            hint="leave the flag out",
        )
    elif config.levels is not None:
        raise UserError(f"{config.levels} levels of a {config.model_kind} model, which has none", flag="--levels")
    if config.calibrated:
        raise UserError(
            f"{config.model!r} is no model of ordered levels: there is no calibration to apply", flag="--calibrated"
        )
    return config.model_kind


def _foreign_inputs(config: EvaluateConfig, kind: KindChoice) -> ForeignInputs:
    return load_foreign_inputs(
        resolve_model(config.model, flag="--model"),
        kind=kind,
        template_file=config.template,
        trust_remote_code=config.trust_remote_code,
    )


def _foreign_engine(config: EvaluateConfig, inputs: ForeignInputs) -> str:
    """The engine of a foreign model. vLLM takes token ids alone: the types of two segments would be lost."""
    if inputs.encoder.form == "two segments":
        if config.engine == "vllm":
            raise UserError(
                f"{config.model!r} reads a prompt and a response as two segments, which the vllm engine does not take",
                flag="--engine",
                hint="use transformers",
            )
        return "transformers"
    if config.engine == "vllm" and importlib.util.find_spec("vllm") is None:
        raise UserError(
            "the vllm engine is not installed", flag="--engine", hint="install the `cpu` or the `gpu` extra"
        )
    return choose_engine(config)


def _ordinal(config: EvaluateConfig) -> ResponseScorer:
    scorer = load_scorer(config)

    def score(inputs: Sequence[Sequence[int]]) -> list[Score]:
        found = scorer.score_each(inputs) if inputs else []
        return [one if isinstance(one, RewardUnavailableError) else float(one.score[0]) for one in found]

    return ResponseScorer(
        encode=scorer.encoder.encode_batch,
        score=score,
        engine=scorer.engine_name,
        kind="ordinal",
        version=scorer.version,
        levels=scorer.config.levels,
        max_length=scorer.config.max_length,
    )


def _foreign(config: EvaluateConfig, kind: KindChoice) -> ResponseScorer:
    path = resolve_model(config.model, flag="--model")
    inputs = _foreign_inputs(config, kind)
    engine = _foreign_engine(config, inputs)
    logits = _vllm_logits(config, path, inputs) if engine == "vllm" else _transformers_logits(config, path, inputs)

    def score(token_ids: Sequence[Sequence[int]]) -> list[Score]:
        return finite_scores(logits(token_ids), inputs.kind, inputs.positive) if token_ids else []

    return ResponseScorer(
        encode=inputs.encoder.encode_batch,
        score=score,
        engine=engine,
        kind=inputs.kind,
        version=checkpoint_version(path),
        levels=None,
        max_length=inputs.encoder.max_length,
    )


def _transformers_logits(config: EvaluateConfig, path: str, inputs: ForeignInputs) -> Logits:
    import torch

    torch.set_num_threads(config.cpu_threads or len(os.sched_getaffinity(0)))
    checkpoint = load_foreign(path, inputs, dtype=config.dtype, trust_remote_code=config.trust_remote_code)
    return ForeignScorer(checkpoint, token_budget=config.token_budget).logits


def _vllm_logits(config: EvaluateConfig, path: str, inputs: ForeignInputs) -> Logits:
    section = config.vllm.model_copy(
        update={
            "max_model_len": inputs.encoder.max_length,
            "dtype": config.dtype,
            "trust_remote_code": config.trust_remote_code or config.vllm.trust_remote_code,
        }
    )
    llm = start_llm(path, section, flag="--model", runner="pooling")
    return lambda token_ids: classify_logits(llm, token_ids)


def finite_scores(logits: npt.NDArray[np.float32], kind: Kind, positive: int) -> list[Score]:
    """`reward.foreign.scores_of` of logits [N, 1 or 2], with an error in place of a score that is NaN or infinite."""
    return [
        float(score) if np.isfinite(score) else RewardUnavailableError(f"the model gave the logits {row.tolist()}")
        for score, row in zip(scores_of(logits, kind, positive), logits, strict=True)
    ]
