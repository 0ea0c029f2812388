"""Sampling from the policy: the actors with vLLM engines, and the pool that deals prompts to them and replaces lost ones.

A request's random numbers follow from the seed of the run, the step and the prompt's place in it, so that what is sampled does
not depend on which replica samples it, or on whether it was asked a second time after the first one was lost.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray
import torch
from ray.exceptions import RayActorError

from wildreward_ray.cluster import weight_transfer
from wildreward_ray.cluster import weights as engine_weights
from wildreward_ray.cluster.vllm_engine import start_llm
from wildreward_ray.core.config.online_dpo import RolloutSection
from wildreward_ray.core.errors import WildRewardError
from wildreward_ray.policy.pairs import Sample
from wildreward_ray.policy.reasoning import answer, opening

if TYPE_CHECKING:
    from wildreward_ray.stages.dpo_sync import WeightSync

logger = logging.getLogger(__name__)

# Enough to hold an opening tag, whatever tokens it is made of, and the white space after it.
_TAIL_TOKENS = 16


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


def sampling_params(section: RolloutSection, seed: int) -> Any:
    """What an engine is asked for: the `vllm.SamplingParams` of one prompt.

    Args:
        seed: of the prompt's samples (`sampling_seed`).
    """
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        n=section.samples,
        max_tokens=section.max_tokens,
        temperature=section.temperature,
        top_p=section.top_p,
        seed=seed,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def begun_reasoning(prompt_end: str, reasoning_end: str | None) -> str:
    """The opening tag of reasoning where a prompt, as some chat templates render it, ends with it; else nothing.

    Args:
        prompt_end: the last tokens of the prompt, decoded.
        reasoning_end: what closes reasoning; None where replies don't reason.
    """
    tag = None if reasoning_end is None else opening(reasoning_end)
    return tag if tag is not None and prompt_end.rstrip().endswith(tag) else ""


def read_reply(
    text: str, token_ids: Sequence[int], finish_reason: str | None, reasoning_end: str | None, begun: str = ""
) -> Sample:
    """A sample as the reward model reads it. One whose reasoning never ended has no answer and is not finished.

    Args:
        begun: what the prompt has written of the reply already (`begun_reasoning`).
    """
    read = answer(text if reasoning_end is None else begun + text, reasoning_end)
    return Sample(read or "", tuple(token_ids), finish_reason == "stop" and read is not None)


@ray.remote
class RolloutActor:
    """One vLLM engine with the policy.

    Args:
        engine: further arguments of the engine: how it takes over weights, and whether it can sleep.
    """

    def __init__(self, policy: str, section: RolloutSection, seed: int, engine: dict[str, Any]) -> None:
        self._section, self._seed = section, seed
        self._llm = start_llm(policy, section.engine, flag="--policy", seed=seed, **engine)
        self._tokenizer = self._llm.get_tokenizer()
        self.version, self._asleep = 0, False

    def sample(self, prompts: Sequence[tuple[int, Sequence[int]]], step: int) -> Iterator[Rollout]:
        """Sample replies; a prompt's are given as soon as they are all there.

        Args:
            prompts: place in the step and token ids of each prompt.
            step: decides the random numbers.
        """
        if self._asleep:
            raise RuntimeError("a rollout engine was asked for samples while it slept: it has no weights")
        engine = self._llm.llm_engine
        for index, token_ids in prompts:
            params = sampling_params(self._section, sampling_seed(self._seed, step, index))
            engine.add_request(str(index), {"prompt_token_ids": list(token_ids)}, params)
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
        return self._take(lambda: engine_weights.load_weights(self._llm, weights), version)

    def open_transfer(self, info: dict[str, Any]) -> None:
        """See `weight_transfer.open_transfer`."""
        weight_transfer.open_transfer(self._llm, info)

    def receive(self, info: dict[str, Any], version: int) -> float:
        """Take over the weights that the learner announced. Returns the seconds it took."""
        return self._take(lambda: weight_transfer.receive(self._llm, info), version)

    def sleep(self) -> None:
        """Leave the GPU to the learner, until one of the `wake` methods. Asleep already, nothing happens."""
        if not self._asleep:
            engine_weights.sleep(self._llm)
            self._asleep = True

    def wake_and_load(self, weights: dict[str, torch.Tensor], version: int) -> float:
        """`load` into an engine that sleeps."""
        return self._wake(lambda: engine_weights.load_weights(self._llm, weights), version)

    def wake_and_receive(self, info: dict[str, Any], version: int) -> float:
        """`receive` into an engine that sleeps."""
        return self._wake(lambda: weight_transfer.receive(self._llm, info), version)

    def _wake(self, load: Callable[[], int], version: int) -> float:
        seconds = self._take(lambda: engine_weights.wake(self._llm, load), version)
        self._asleep = False
        return seconds

    def _take(self, load: Callable[[], int], version: int) -> float:
        started = time.monotonic()
        load()
        self.version = version
        return time.monotonic() - started

    def _rollout(self, output: Any) -> Rollout:
        replies = sorted(output.outputs, key=lambda reply: reply.index)
        end = self._section.reasoning_end
        begun = begun_reasoning(self._tokenizer.decode(output.prompt_token_ids[-_TAIL_TOKENS:]), end)
        samples = tuple(read_reply(r.text, r.token_ids, r.finish_reason, end, begun) for r in replies)
        return Rollout(int(output.request_id), samples, self.version)


class RolloutPool:
    """Several rollout actors as one; used from one event loop, one call at a time.

    Args:
        start: starts the actor of a replica.
        replicas: how many there are.
        max_restarts: lost actors that are replaced before an error; -1: any number.

    Attributes:
        actors: the actor of each replica; another one once it is replaced.
        sync: how weights come to the actors. Set by whoever joins pool and learner, before anything is sampled.
    """

    sync: WeightSync

    def __init__(self, start: Callable[[int], Any], replicas: int, *, max_restarts: int) -> None:
        self._start, self._max_restarts = start, max_restarts
        self.actors = [start(replica) for replica in range(replicas)]
        self._replacing = [asyncio.Lock() for _ in self.actors]
        self.restarts = 0

    async def ready(self) -> None:
        """Wait until all engines have loaded the policy; raises what their constructors raise."""
        await asyncio.gather(*(actor.__ray_ready__.remote() for actor in self.actors))

    async def call(self, replica: int, ask: Callable[[Any], Awaitable[Any]]) -> Any:
        """What `ask` gives for the actor of a replica. If it is lost, the one in its place is asked.

        That one has the weights it was started with: `ask` gives it the newest, or asks for what needs none.

        Raises:
            WildRewardError: more actors were lost than may be replaced.
        """
        while True:
            actor = self.actors[replica]
            try:
                return await ask(actor)
            except RayActorError as e:
                await self._start_again(replica, actor, e)

    async def call_all(self, ask: Callable[[Any], Awaitable[Any]]) -> list[Any]:
        """`call` on all replicas at once."""
        return await asyncio.gather(*(self.call(replica, ask) for replica in range(len(self.actors))))

    async def sample(self, prompts: Sequence[Sequence[int]], step: int) -> AsyncIterator[Rollout]:
        """Rollouts of all prompts (token ids), each as soon as it is there. Prompts of a lost actor are sampled again.

        Raises:
            WildRewardError: more actors were lost than may be replaced.
        """
        found: asyncio.Queue[Rollout | BaseException | None] = asyncio.Queue()
        shares: list[list[tuple[int, Sequence[int]]]] = [[] for _ in self.actors]
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
        for actor in self.actors:
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
                actor = self.actors[replica]
                try:
                    stream = actor.sample.options(num_returns="streaming").remote([*missing.items()], step)
                    async for reference in stream:
                        rollout: Rollout = await reference
                        del missing[rollout.index]
                        found.put_nowait(rollout)
                except RayActorError as e:
                    await self._start_again(replica, actor, e)
                    await self.sync.replaced(replica)
        except Exception as e:
            found.put_nowait(e)
        else:
            found.put_nowait(None)

    async def _start_again(self, replica: int, lost: Any, error: RayActorError) -> None:
        """A new actor in the place of a lost one, with the policy as it was at first."""
        async with self._replacing[replica]:
            if self.actors[replica] is not lost:
                # Somebody else met the loss as well and was first.
                return
            reason = " ".join(str(error).split())[:300]
            if 0 <= self._max_restarts <= self.restarts:
                raise WildRewardError(
                    f"rollout actor {replica} was lost after {self.restarts} were replaced (--rollout.max-restarts): "
                    f"{reason}"
                ) from error
            self.restarts += 1
            logger.warning("rollout actor %d was lost and is replaced (%d so far): %s", replica, self.restarts, reason)
            started = self._start(replica)
            self.actors[replica] = started
            await started.__ray_ready__.remote()
