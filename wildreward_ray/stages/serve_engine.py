"""The deployment that holds the model: token ids in, rewards out.

Requests are batched across clients here: trainers post one reply at a time, and a model that took them one at a time would
do little else than wait for memory. Serve pickles a deployment when its decorator runs, so what it uses is defined above it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
from ray import serve

from wildreward_ray.core.config.serve import ServeConfig
from wildreward_ray.core.errors import RewardUnavailableError
from wildreward_ray.core.service import ModelCard, Reward
from wildreward_ray.stages.serve_metrics import EngineMetrics

Tokens = list[list[int]]


def count_tokens(batch: Sequence[Tokens]) -> int:
    """Tokens of several requests: what a batch is measured in."""
    return sum(len(ids) for inputs in batch for ids in inputs)


class _Engine(Protocol):
    async def logits(self, inputs: Tokens) -> npt.NDArray[np.float32]:
        """Raw logits [N, K-1]."""
        ...

    async def check(self) -> None: ...

    def cache_counts(self) -> tuple[int, int]: ...


class _Vllm:
    """vLLM batches by itself: an input joins at the model's next step."""

    def __init__(self, config: ServeConfig, max_length: int, metrics: EngineMetrics) -> None:
        from wildreward_ray.cluster.vllm_pooling import start_pooling_engine

        section = config.vllm.model_copy(update={"max_model_len": max_length, "dtype": config.dtype})
        self._engine = start_pooling_engine(config.model, section, flag="--model")
        self._metrics = metrics

    async def logits(self, inputs: Tokens) -> npt.NDArray[np.float32]:
        from wildreward_ray.cluster.vllm_pooling import gather_logits

        begin = time.perf_counter()
        self._metrics.waiting(self._engine.waiting + len(inputs))
        try:
            logits, cached = await gather_logits(self._engine, inputs)
        finally:
            self._metrics.waiting(self._engine.waiting)
        tokens = count_tokens([inputs])
        self._metrics.batch(len(inputs), tokens, time.perf_counter() - begin)
        self._metrics.prompt(tokens, cached)
        return logits

    async def check(self) -> None:
        await self._engine.check()

    def cache_counts(self) -> tuple[int, int]:
        return self._engine.prompt_tokens, self._engine.cached_tokens


class _Transformers:
    """A plain forward pass over what has come together up to a budget of tokens; sorted by length inside."""

    def __init__(self, config: ServeConfig, max_length: int, metrics: EngineMetrics) -> None:
        from wildreward_ray.stages.scoring import load_transformers

        self._scorer = load_transformers(config)
        self._metrics = metrics
        self._budget = max(config.token_budget, max_length)
        self._batch.set_max_batch_size(self._budget)
        self._batch.set_batch_wait_timeout_s(config.batch_wait_ms / 1000)

    async def logits(self, inputs: Tokens) -> npt.NDArray[np.float32]:
        parts = await asyncio.gather(*(self._batch(part) for part in self._parts(inputs)))
        return np.concatenate(parts)

    def _parts(self, inputs: Tokens) -> Iterator[Tokens]:
        """A request in pieces that fit a batch each."""
        part: Tokens = []
        taken = 0
        for ids in inputs:
            if part and taken + len(ids) > self._budget:
                yield part
                part, taken = [], 0
            part.append(ids)
            taken += len(ids)
        yield part

    @serve.batch(batch_size_fn=count_tokens)  # type: ignore[untyped-decorator]
    async def _batch(self, requests: list[Tokens]) -> list[npt.NDArray[np.float32]]:
        inputs = [ids for request in requests for ids in request]
        begin = time.perf_counter()
        # The model runs in a thread, so that the replica goes on accepting requests for the next batch.
        logits = await asyncio.get_running_loop().run_in_executor(None, self._scorer.logits, inputs)
        tokens = count_tokens(requests)
        self._metrics.batch(len(inputs), tokens, time.perf_counter() - begin)
        self._metrics.prompt(tokens, 0)
        ends = np.cumsum([len(request) for request in requests])[:-1]
        return np.split(logits, ends)

    async def check(self) -> None:
        return

    def cache_counts(self) -> tuple[int, int]:
        return 0, 0


class RewardEngine:
    """One copy of the model; scores the inputs of all waiting requests together."""

    def __init__(self, config: ServeConfig) -> None:
        from wildreward_ray.stages.scoring import check_checkpoint, choose_engine, model_card

        name = choose_engine(config)
        self._config, self._reward = config, check_checkpoint(config)
        self._metrics = EngineMetrics()
        build = _Vllm if name == "vllm" else _Transformers
        self._engine: _Engine = build(config, self._reward.max_length, self._metrics)
        self._card = model_card(config, self._reward, name)

    async def card(self) -> ModelCard:
        """What is served."""
        return self._card

    async def score(self, inputs: Tokens) -> list[Reward]:
        """The rewards of one request's inputs, in order.

        Raises:
            RewardUnavailableError: some input's logits are not finite; other requests of its batch are not touched.
        """
        from wildreward_ray.stages.scoring import rewards_of

        logits = await self._engine.logits(inputs)
        try:
            return rewards_of(self._reward, logits, calibrated=self._config.calibrated)
        except RewardUnavailableError:
            self._metrics.lost("not_finite")
            raise

    async def cache_counts(self) -> tuple[int, int]:
        """Tokens of all inputs so far, and how many of them came from the prefix cache."""
        return self._engine.cache_counts()

    async def check_health(self) -> None:
        """Asked by Serve at regular times; an engine whose process died is replaced."""
        await self._engine.check()
