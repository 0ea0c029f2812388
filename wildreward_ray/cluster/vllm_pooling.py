"""A vLLM pooling engine that serves: inputs join and leave its running batch one by one."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from wildreward_ray.cluster.vllm_engine import cannot_import_vllm, cannot_load, engine_arguments, raw_logits

if TYPE_CHECKING:
    from wildreward_ray.core.config.judge import EngineSection


@dataclass
class PoolingEngine:
    """A running engine.

    A batch engine answers when its whole batch is done and idles until the next one has come together; this one takes an
    input at the next step of the model, and its process does nothing but run the model.

    Attributes:
        prompt_tokens: tokens of all inputs so far.
        cached_tokens: how many of them came from the prefix cache.
        waiting: inputs that are in the engine now.
    """

    _engine: Any
    prompt_tokens: int = 0
    cached_tokens: int = 0
    waiting: int = 0

    def __post_init__(self) -> None:
        self._params = raw_logits()
        self._ids = count()

    async def logits(self, token_ids: Sequence[int]) -> tuple[npt.NDArray[np.float32], int]:
        """Raw logits of one input, float32 [K-1], and how many of its tokens came from the prefix cache.

        A cancelled call leaves the engine's batch.

        Raises:
            vllm.v1.engine.exceptions.EngineDeadError: the engine's process is gone.
        """
        self.waiting += 1
        try:
            answers = self._engine.encode(
                {"prompt_token_ids": list(token_ids)}, self._params, request_id=str(next(self._ids))
            )
            async for answer in answers:
                last = answer
        finally:
            self.waiting -= 1
        cached = last.num_cached_tokens or 0
        self.prompt_tokens += len(token_ids)
        self.cached_tokens += cached
        return last.outputs.data.float().numpy(), cached

    async def check(self) -> None:
        """Return if the engine's process lives. Raises like `logits`."""
        await self._engine.check_health()

    def close(self) -> None:
        """Stop the engine's process."""
        self._engine.shutdown()


def start_pooling_engine(model: str, section: EngineSection, *, flag: str) -> PoolingEngine:
    """Start a pooling engine for a classification model; call it where its event loop runs or will run.

    Raises:
        UserError: vLLM isn't installed, or can't load the model.
    """
    arguments = engine_arguments(model, section, flag=flag)
    try:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.usage.usage_lib import UsageContext
        from vllm.v1.engine.async_llm import AsyncLLM
    except ImportError as e:
        raise cannot_import_vllm(e) from e
    try:
        # By its context vLLM chooses how much a step of the model takes. A server of chats keeps steps short, for the tokens
        # that others wait for; here nobody waits for a next token, and what counts is throughput.
        args = AsyncEngineArgs(**arguments, runner="pooling")
        return PoolingEngine(AsyncLLM.from_engine_args(args, usage_context=UsageContext.LLM_CLASS))
    except (OSError, ValueError) as e:
        raise cannot_load(model, e, flag) from e


async def gather_logits(engine: PoolingEngine, inputs: Sequence[Sequence[int]]) -> tuple[npt.NDArray[np.float32], int]:
    """Raw logits of several inputs, in order, float32 [N, K-1]; and how many of their tokens were cached."""
    answers = await asyncio.gather(*(engine.logits(ids) for ids in inputs))
    return np.stack([logits for logits, _ in answers]), sum(cached for _, cached in answers)
