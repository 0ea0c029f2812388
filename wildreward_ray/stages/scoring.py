"""Reward models behind one small interface, whichever engine runs them."""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from wildreward_ray.cluster.models import resolve_model
from wildreward_ray.cluster.vllm_engine import classify_logits, start_llm
from wildreward_ray.core.config.serve import ScorerSection
from wildreward_ray.core.errors import RewardUnavailableError, UserError
from wildreward_ray.core.template import RewardTemplate
from wildreward_ray.reward.config import RewardConfig
from wildreward_ray.reward.engine import TransformersScorer
from wildreward_ray.reward.inputs import InputEncoder
from wildreward_ray.reward.model import load_checkpoint, load_reward_config_and_tokenizer
from wildreward_ray.reward.ordinal import level_probs, score
from wildreward_ray.reward.pretrained import load_config

# Encoders read their whole input at once: vLLM's paged, prefix-cached attention has nothing to offer them.
_ENCODERS = frozenset({"bert", "roberta", "xlm-roberta", "distilbert", "modernbert", "deberta-v2", "electra", "albert"})


class Engine(Protocol):
    """Runs a reward model over token ids."""

    def logits(self, inputs: Sequence[Sequence[int]]) -> npt.NDArray[np.float32]:
        """Raw logits: float32 [N, K-1]."""
        ...


@dataclass(frozen=True)
class Scored:
    """Rewards of N inputs.

    Attributes:
        score: float64 [N], in [1, K].
        level_probs: float64 [N, K].
        p_gt: float64 [N, K-1].
    """

    score: npt.NDArray[np.float64]
    level_probs: npt.NDArray[np.float64]
    p_gt: npt.NDArray[np.float64]


class Scorer:
    """A loaded reward model: encodes inputs, runs the engine, decodes logits.

    Attributes:
        engine_name: `transformers` or `vllm`.
        version: changes when the checkpoint's files do.

    Args:
        calibrated: see `RewardConfig.p_gt`.
    """

    def __init__(
        self,
        config: RewardConfig,
        encoder: InputEncoder,
        engine: Engine,
        engine_name: str,
        version: str,
        *,
        calibrated: bool,
    ) -> None:
        self.config, self.encoder, self.engine_name, self.version = config, encoder, engine_name, version
        self._engine, self._calibrated = engine, calibrated

    def score(self, inputs: Sequence[Sequence[int]]) -> Scored:
        """Rewards of encoded inputs.

        Raises:
            RewardUnavailableError: the model gave a NaN or infinite logit; names the rows.
        """
        p_gt = self.config.p_gt(self._engine.logits(inputs), calibrated=self._calibrated)
        return Scored(score(p_gt), level_probs(p_gt), p_gt)

    def score_each(self, inputs: Sequence[Sequence[int]]) -> list[Scored | RewardUnavailableError]:
        """Like `score`, for inputs of unrelated requests: a failure is given to its own input only."""
        logits = self._engine.logits(inputs)
        results: list[Scored | RewardUnavailableError] = []
        for row in logits:
            try:
                p_gt = self.config.p_gt(row[None], calibrated=self._calibrated)
                results.append(Scored(score(p_gt), level_probs(p_gt), p_gt))
            except RewardUnavailableError as e:
                results.append(e)
        return results


class _VllmEngine:
    """A vLLM pooling engine: replies to one prompt share their prefix in its cache."""

    def __init__(self, section: ScorerSection, path: str, max_length: int) -> None:
        engine = section.vllm.model_copy(update={"max_model_len": max_length, "dtype": section.dtype})
        self._llm = start_llm(path, engine, flag="--model", runner="pooling")

    def logits(self, inputs: Sequence[Sequence[int]]) -> npt.NDArray[np.float32]:
        return classify_logits(self._llm, inputs)


def choose_engine(section: ScorerSection) -> str:
    """The engine that `section` gets: `auto` is vLLM for decoders where vLLM is installed, else transformers."""
    if section.engine != "auto":
        return section.engine
    hf_config = load_config(resolve_model(section.model, flag="--model"), "--model", section.trust_remote_code)
    if hf_config.model_type in _ENCODERS or importlib.util.find_spec("vllm") is None:
        return "transformers"
    return "vllm"


def load_scorer(section: ScorerSection) -> Scorer:
    """Load a reward model in this process.

    Raises:
        UserError: the checkpoint can't be used; see `reward.model.load_checkpoint`.
    """
    path = resolve_model(section.model, flag="--model")
    name, version = choose_engine(section), checkpoint_version(path)
    if name == "vllm":
        config, tokenizer = load_reward_config_and_tokenizer(
            path, template_file=section.template, levels=section.levels, trust_remote_code=section.trust_remote_code
        )
        encoder = InputEncoder(tokenizer, RewardTemplate(config.template), config.max_length)
        own = _VllmEngine(section, path, config.max_length)
        return Scorer(config, encoder, own, name, version, calibrated=section.calibrated)
    import torch

    torch.set_num_threads(section.cpu_threads or len(os.sched_getaffinity(0)))
    checkpoint = load_checkpoint(
        path,
        template_file=section.template,
        levels=section.levels,
        dtype=section.dtype,
        trust_remote_code=section.trust_remote_code,
    )
    engine = TransformersScorer(checkpoint, token_budget=section.token_budget)
    return Scorer(checkpoint.config, checkpoint.encoder, engine, name, version, calibrated=section.calibrated)


def check_checkpoint(section: ScorerSection) -> RewardConfig:
    """Refuse a checkpoint that can't be served before any process is started for it.

    Raises:
        UserError: see `reward.model.load_reward_config_and_tokenizer`.
    """
    path = resolve_model(section.model, flag="--model")
    if section.engine == "vllm" and importlib.util.find_spec("vllm") is None:
        raise UserError(
            "the vllm engine is not installed", flag="--engine", hint="install the `cpu` or the `gpu` extra"
        )
    config, _ = load_reward_config_and_tokenizer(
        path, template_file=section.template, levels=section.levels, trust_remote_code=section.trust_remote_code
    )
    return config


def checkpoint_version(path: str) -> str:
    """12 hex digits over names, sizes and times of a local checkpoint's files; of a hub name, over the name."""
    digest = hashlib.blake2b(digest_size=6)
    folder = Path(path)
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    for file in files:
        info = file.stat()
        digest.update(f"{file.name}\x00{info.st_size}\x00{info.st_mtime_ns}\x00".encode())
    if not files:
        digest.update(path.encode())
    return digest.hexdigest()
