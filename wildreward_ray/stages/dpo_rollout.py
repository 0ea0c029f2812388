"""Sampling from the policy: the actors with vLLM engines, and the pool that deals prompts to them and replaces lost ones.

A request's random numbers follow from the seed of the run, the step and the prompt's place in it, so that what is sampled does
not depend on which replica samples it, or on whether it was asked a second time after the first one was lost.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray
import torch
from ray.exceptions import RayActorError

from wildreward_ray.cluster.vllm_engine import start_llm
from wildreward_ray.cluster.weights import load_weights
from wildreward_ray.core.config.online_dpo import RolloutSection
from wildreward_ray.core.errors import WildRewardError
from wildreward_ray.policy.pairs import Sample
from wildreward_ray.policy.reasoning import answer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rollout:
    """The sampled replies to one prompt.

    Attributes:
        index: place of the prompt in its step.
        samples: as many as were asked for. The text is what the reward model reads; blank where a reply has no answer.
        version: version of the weights they were sampled with.
    """

    index: int
    samples: tuple[Sample, ...]
    version: int

    @property
    def tokens(self) -> int:
        """Tokens sampled."""
        return sum(len(sample.token_ids) for sample in self.samples)


def sampling_seed(seed: int, step: int, index: int) -> int:
    """The seed of a prompt's samples: an int of 31 bits, the same in every process."""
    return hash((seed, step, index)) & 0x7FFFFFFF


def read_reply(text: str, token_ids: Sequence[int], finish_reason: str | None, reasoning_end: str | None) -> Sample:
    """A sample as the reward model reads it. One whose reasoning never ended has no answer and is not finished."""
    read = answer(text, reasoning_end)
    return Sample(read or "", tuple(token_ids), finish_reason == "stop" and read is not None)


@ray.remote
class RolloutActor:
    """One vLLM engine with the policy.

    Args:
        engine: further arguments of the engine: how it takes over weights.
    """

    def __init__(self, policy: str, section: RolloutSection, seed: int, engine: dict[str, Any]) -> None:
        self._section, self._seed = section, seed
        self._llm = start_llm(policy, section.engine, flag="--policy", seed=seed, **engine)
        self.version = 0

    def sample(self, prompts: Sequence[tuple[int, Sequence[int]]], step: int) -> Iterator[Rollout]:
        """Sample replies; a prompt's are given as soon as they are all there.

        Args:
            prompts: place in the step and token ids of each prompt.
            step: decides the random numbers.
        """
        engine = self._llm.llm_engine
        for index, token_ids in prompts:
            engine.add_request(str(index), {"prompt_token_ids": list(token_ids)}, self._params(step, index))
        try:
            while engine.has_unfinished_requests():
                for output in engine.step():
                    if output.finished:
                        yield self._rollout(output)
        finally:
            # Whoever asked has gone: what is left must not run beside the next request.
            if engine.has_unfinished_requests():
                engine.abort_request([str(index) for index, _ in prompts], internal=False)

    def load(self, weights: dict[str, torch.Tensor], version: int) -> float:
        """Take over weights. Returns the seconds it took."""
        started = time.monotonic()
        load_weights(self._llm, weights)
        self.version = version
        return time.monotonic() - started

    def _params(self, step: int, index: int) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        section = self._section
        return SamplingParams(
            n=section.samples,
            max_tokens=section.max_tokens,
            temperature=section.temperature,
            top_p=section.top_p,
            seed=sampling_seed(self._seed, step, index),
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    def _rollout(self, output: Any) -> Rollout:
        replies = sorted(output.outputs, key=lambda reply: reply.index)
        end = self._section.reasoning_end
        samples = tuple(read_reply(r.text, r.token_ids, r.finish_reason, end) for r in replies)
        return Rollout(int(output.request_id), samples, self.version)


class RolloutPool:
    """Several rollout actors as one; used from one event loop, one call at a time.

    Args:
        start: starts the actor of a replica.
        replicas: how many there are.
        max_restarts: lost actors that are replaced before an error; -1: any number.
    """

    def __init__(self, start: Callable[[int], Any], replicas: int, *, max_restarts: int) -> None:
        self._start, self._max_restarts = start, max_restarts
        self._actors = [start(replica) for replica in range(replicas)]
        self._weights: tuple[Any, int] | None = None
        self.restarts = 0

    @property
    def version(self) -> int:
        """Version of the weights that the next samples are drawn with."""
        return 0 if self._weights is None else self._weights[1]

    async def ready(self) -> None:
        """Wait until all engines have loaded the policy; raises what their constructors raise."""
        await asyncio.gather(*(actor.__ray_ready__.remote() for actor in self._actors))

    async def load(self, weights: Any, version: int) -> None:
        """Give all engines new weights.

        Args:
            weights: object reference to tensors by name.
        """
        self._weights = (weights, version)
        await asyncio.gather(*(self._load(replica, weights, version) for replica in range(len(self._actors))))

    async def sample(self, prompts: Sequence[Sequence[int]], step: int) -> AsyncIterator[Rollout]:
        """Rollouts of all prompts (token ids), each as soon as it is there. Prompts of a lost actor are sampled again.

        Raises:
            WildRewardError: more actors were lost than may be replaced.
        """
        found: asyncio.Queue[Rollout | BaseException | None] = asyncio.Queue()
        shares: list[list[tuple[int, Sequence[int]]]] = [[] for _ in self._actors]
        for index, token_ids in enumerate(prompts):
            shares[index % len(shares)].append((index, token_ids))
        tasks = [asyncio.create_task(self._share(r, share, step, found)) for r, share in enumerate(shares) if share]
        try:
            working = len(tasks)
            while working:
                item = await found.get()
                if isinstance(item, Rollout):
                    yield item
                elif item is None:
                    working -= 1
                else:
                    raise item
        finally:
            for task in tasks:
                task.cancel()

    def kill(self) -> None:
        """End all actors and what they are doing."""
        for actor in self._actors:
            ray.kill(actor)

    async def _share(
        self,
        replica: int,
        share: list[tuple[int, Sequence[int]]],
        step: int,
        found: asyncio.Queue[Rollout | BaseException | None],
    ) -> None:
        """One replica's prompts, until all have their samples."""
        missing = dict(share)
        try:
            while missing:
                try:
                    stream = (
                        self._actors[replica].sample.options(num_returns="streaming").remote([*missing.items()], step)
                    )
                    async for reference in stream:
                        rollout: Rollout = await reference
                        del missing[rollout.index]
                        found.put_nowait(rollout)
                except RayActorError as e:
                    await self._replace(replica, e)
        except Exception as e:
            found.put_nowait(e)
        else:
            found.put_nowait(None)

    async def _load(self, replica: int, weights: Any, version: int) -> None:
        while True:
            try:
                await self._actors[replica].load.remote(weights, version)
                return
            except RayActorError as e:
                await self._start_again(replica, e)

    async def _replace(self, replica: int, error: RayActorError) -> None:
        """A new actor for a lost one, with the weights that the others have."""
        await self._start_again(replica, error)
        if self._weights is not None:
            await self._load(replica, *self._weights)

    async def _start_again(self, replica: int, error: RayActorError) -> None:
        reason = " ".join(str(error).split())[:300]
        if 0 <= self._max_restarts <= self.restarts:
            raise WildRewardError(
                f"rollout actor {replica} was lost after {self.restarts} were replaced (--rollout.max-restarts): {reason}"
            ) from error
        self.restarts += 1
        logger.warning("rollout actor %d was lost and is replaced (%d so far): %s", replica, self.restarts, reason)
        self._actors[replica] = self._start(replica)
        await self._actors[replica].__ray_ready__.remote()
