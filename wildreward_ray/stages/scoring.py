"""Reward models behind one small interface, whichever engine runs them."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from wildreward_ray.cluster.models import resolve_model
from wildreward_ray.cluster.vllm_engine import classify_logits, start_llm
from wildreward_ray.core.config.serve import ScorerSection, ServeConfig
from wildreward_ray.core.errors import RewardUnavailableError, UserError
from wildreward_ray.core.service import ModelCard, Reward
from wildreward_ray.core.template import RewardTemplate
from wildreward_ray.reward.config import RewardConfig
from wildreward_ray.reward.engine import TransformersScorer
from wildreward_ray.reward.inputs import InputEncoder
from wildreward_ray.reward.model import RewardCheckpoint, load_checkpoint, load_reward_config_and_tokenizer
from wildreward_ray.reward.ordinal import level_probs, score
from wildreward_ray.reward.pretrained import load_config

# Encoders read their whole input at once: vLLM's paged, prefix-cached attention has nothing to offer them.
_ENCODERS = frozenset({"bert", "roberta", "xlm-roberta", "distilbert", "modernbert", "deberta-v2", "electra", "albert"})


_VERSION_SAMPLES, _VERSION_SAMPLE_BYTES, _VERSION_END_BYTES = 64, 16_384, 2**20


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
        changed = {"max_model_len": max_length, "dtype": section.dtype}
        if section.trust_remote_code:
            changed["trust_remote_code"] = True
        engine = section.vllm.model_copy(update=changed)
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
        encoder, config = load_encoder(section)
        own = _VllmEngine(section, path, config.max_length)
        return Scorer(config, encoder, own, name, version, calibrated=section.calibrated)
    checkpoint = _load_for_transformers(section)
    engine = TransformersScorer(checkpoint, token_budget=section.token_budget)
    return Scorer(checkpoint.config, checkpoint.encoder, engine, name, version, calibrated=section.calibrated)


def load_transformers(section: ScorerSection) -> TransformersScorer:
    """The transformers engine alone, for inputs that were encoded elsewhere. Raises like `load_scorer`."""
    return TransformersScorer(_load_for_transformers(section), token_budget=section.token_budget)


def load_encoder(section: ScorerSection) -> tuple[InputEncoder, RewardConfig]:
    """What turns a model's inputs into token ids, and its configuration, without its weights. Raises like `load_scorer`."""
    config, tokenizer = load_reward_config_and_tokenizer(
        resolve_model(section.model, flag="--model"),
        template_file=section.template,
        levels=section.levels,
        trust_remote_code=section.trust_remote_code,
    )
    return InputEncoder(tokenizer, RewardTemplate(config.template), config.max_length), config


def _load_for_transformers(section: ScorerSection) -> RewardCheckpoint:
    import torch

    torch.set_num_threads(section.cpu_threads or len(os.sched_getaffinity(0)))
    return load_checkpoint(
        resolve_model(section.model, flag="--model"),
        template_file=section.template,
        levels=section.levels,
        dtype=section.dtype,
        trust_remote_code=section.trust_remote_code,
    )


def rewards_of(config: RewardConfig, logits: npt.NDArray[np.float32], *, calibrated: bool) -> list[Reward]:
    """Rewards of logits [N, K-1], in order.

    Raises:
        RewardUnavailableError: a logit is NaN or infinite; names the rows.
    """
    p_gt = config.p_gt(logits, calibrated=calibrated)
    columns = score(p_gt).tolist(), level_probs(p_gt).tolist(), p_gt.tolist()
    return [Reward(*row) for row in zip(*columns, strict=True)]


def model_card(section: ServeConfig, config: RewardConfig, engine: str) -> ModelCard:
    """What a service with these settings says about its model."""
    return ModelCard(
        id=section.name,
        source=section.model,
        version=checkpoint_version(resolve_model(section.model, flag="--model")),
        engine=engine,
        levels=config.levels,
        max_length=config.max_length,
        dtype=section.dtype,
        calibrated=section.calibrated,
        created=int(time.time()),
    )


def check_checkpoint(section: ScorerSection) -> RewardConfig:
    """Refuse a checkpoint that can't be served before any process is started for it.

    Raises:
        UserError: see `reward.model.load_reward_config_and_tokenizer`.
    """
    if section.engine == "vllm" and importlib.util.find_spec("vllm") is None:
        raise UserError(
            "the vllm engine is not installed", flag="--engine", hint="install the `cpu` or the `gpu` extra"
        )
    return load_encoder(section)[1]


def checkpoint_version(path: str) -> str:
    """12 hex digits over a local checkpoint's files: their names, sizes and samples of their content; of a hub name, over it.

    Copies of a checkpoint on other machines have the same version, and gigabytes of weights are not read for it. Both ends
    of a file are read whole: that is where the tensors of a head stand, and it may be all that training changed.
    """
    digest = hashlib.blake2b(digest_size=6)
    folder = Path(path)
    files = sorted(item for item in folder.iterdir() if item.is_file()) if folder.is_dir() else []
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name}\x00{size}\x00".encode())
        places = [(part * size // _VERSION_SAMPLES, _VERSION_SAMPLE_BYTES) for part in range(_VERSION_SAMPLES)]
        with file.open("rb") as content:
            for start, length in [
                (0, _VERSION_END_BYTES),
                (max(0, size - _VERSION_END_BYTES), _VERSION_END_BYTES),
                *places,
            ]:
                content.seek(start)
                digest.update(content.read(length))
    if not files:
        digest.update(path.encode())
    return digest.hexdigest()
