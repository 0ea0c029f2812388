"""What becomes of sampled replies: what the reward model reads of them, and which random numbers they are drawn with."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayActorError

from wildreward_ray.core.config.online_dpo import RolloutSection
from wildreward_ray.core.errors import WildRewardError
from wildreward_ray.stages.dpo_rollout import (
    Rollout,
    RolloutPool,
    begun_reasoning,
    read_reply,
    sampling_params,
    sampling_seed,
)

END = "</think>"


@pytest.mark.parametrize(
    ("prompt_end", "begun"),
    [
        ("<|assistant|>\n<think>\n", "<think>"),
        ("<think>", "<think>"),
        # A template that turns reasoning off closes it at once.
        ("<think>\n\n</think>\n\n", ""),
        ("Put <think> before it.<|assistant|>", ""),
    ],
)
def test_only_a_prompt_that_ends_with_the_opening_tag_begins_reasoning(prompt_end: str, begun: str) -> None:
    assert begun_reasoning(prompt_end, END) == begun
    assert begun_reasoning(prompt_end, None) == ""
    # Nothing is known to open it.
    assert begun_reasoning(prompt_end, "Final answer:") == ""


@pytest.mark.parametrize("reason", ["stop", "length"])
def test_a_reply_cut_in_the_reasoning_that_its_prompt_opened_has_no_answer(reason: str) -> None:
    cut = read_reply("Let me see", (5, 6), reason, END, "<think>")
    assert (cut.text, cut.token_ids, cut.finished) == ("", (5, 6), False)
    assert read_reply("Let me see", (5, 6), reason, END).text == "Let me see"


def test_a_reply_that_closes_the_reasoning_of_its_prompt_has_its_answer_alone() -> None:
    whole = read_reply("Let me see</think>\n\nYes.", (5, 6, 7), "stop", END, "<think>")
    assert (whole.text, whole.finished) == ("Yes.", True)
    assert not read_reply("hm</think>Yes, and", (5,), "length", END, "<think>").finished


def test_a_reply_without_reasoning_is_read_as_it_is() -> None:
    assert read_reply(" Yes. ", (5,), "stop", None).text == " Yes. "
    assert read_reply("<think>hm", (5,), "stop", None).finished


def test_seeds_do_not_depend_on_the_process_and_differ_for_every_prompt_and_step() -> None:
    assert sampling_seed(1, 2, 3) == 1729875179
    seeds = {sampling_seed(seed, step, index) for seed in range(3) for step in range(20) for index in range(20)}
    assert len(seeds) == 1200
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_engines_are_asked_for_what_the_section_says() -> None:
    from vllm.sampling_params import RequestOutputKind

    section = RolloutSection(samples=3, max_tokens=7, temperature=0.5, top_p=0.9)
    params = sampling_params(section, 11)
    assert (params.n, params.max_tokens, params.temperature, params.top_p, params.seed) == (3, 7, 0.5, 0.9, 11)
    # Replies of a prompt come together, when all are there.
    assert params.output_kind == RequestOutputKind.FINAL_ONLY


class Actor:
    """A rollout actor that writes down what it is asked, and is lost after some rollouts."""

    def __init__(self, log: list[Any], name: str, lives_for: int | None = None) -> None:
        self.log, self.name, self.lives_for = log, name, lives_for

    def __getattr__(self, method: str) -> Any:
        if method == "sample":
            return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=self._sample))
        return SimpleNamespace(remote=lambda *args: self._called(method))

    async def _called(self, method: str) -> None:
        self.log.append((self.name, method))

    async def _sample(self, prompts: list[tuple[int, Any]], step: int) -> AsyncIterator[Any]:
        self.log.append((self.name, "sample", [index for index, _ in prompts]))
        for given, (index, _) in enumerate(prompts):
            if given == self.lives_for:
                raise RayActorError
            # As a reference that is there.
            reference: asyncio.Future[Rollout] = asyncio.get_running_loop().create_future()
            reference.set_result(Rollout(index, (), 0))
            yield reference


class Sync:
    def __init__(self, log: list[Any]) -> None:
        self.log = log

    async def replaced(self, replica: int) -> None:
        self.log.append(("sync", replica))


def pool_of(log: list[Any], *, max_restarts: int) -> RolloutPool:
    started: list[str] = []

    def start(replica: int) -> Any:
        started.append(f"{replica}{'abc'[sum(name[0] == str(replica) for name in started)]}")
        return Actor(log, started[-1], lives_for=1 if started[-1] == "0a" else None)

    pool = RolloutPool(start, 2, max_restarts=max_restarts)
    pool.sync = Sync(log)  # type: ignore[assignment]
    return pool


async def sampled(pool: RolloutPool) -> list[int]:
    return [rollout.index async for rollout in pool.sample([(1,), (2,), (3,), (4,), (5,)], 1)]


def test_a_lost_actors_prompts_are_sampled_again_by_one_that_has_got_weights() -> None:
    log: list[Any] = []
    pool = pool_of(log, max_restarts=1)
    assert sorted(asyncio.run(sampled(pool))) == [0, 1, 2, 3, 4]
    of_first = [entry for entry in log if entry[0] != "1a"]
    assert of_first == [
        ("0a", "sample", [0, 2, 4]),
        ("0b", "__ray_ready__"),
        ("sync", 0),
        # What had come before the loss is not sampled twice.
        ("0b", "sample", [2, 4]),
    ]
    assert pool.restarts == 1


def test_more_losses_than_may_be_replaced_are_an_error_that_names_the_flag() -> None:
    with pytest.raises(WildRewardError, match=r"rollout actor 0 was lost.*--rollout\.max-restarts"):
        asyncio.run(sampled(pool_of([], max_restarts=0)))


def test_two_that_meet_the_same_loss_replace_the_actor_once() -> None:
    log: list[Any] = []
    pool = pool_of(log, max_restarts=5)
    lost = pool.actors[0]

    async def ask(actor: Any) -> str:
        await asyncio.sleep(0)
        if actor is lost:
            raise RayActorError
        return str(actor.name)

    async def twice() -> list[str]:
        return list(await asyncio.gather(pool.call(0, ask), pool.call(0, ask)))

    assert asyncio.run(twice()) == ["0b", "0b"]
    assert pool.restarts == 1
