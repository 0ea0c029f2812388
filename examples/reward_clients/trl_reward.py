"""Rewards of a WildReward service as a reward function of TRL's trainers (GRPO, RLOO, online DPO).

    GRPOTrainer(model=..., reward_funcs=wildreward("http://127.0.0.1:8000"), ...)

Needs this package beside TRL; importing the client needs neither Ray nor vLLM.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from wildreward_ray.cluster.reward_client import RewardClient

Prompt = str | list[dict[str, str]]


def wildreward(url: str, token_env: str | None = None) -> Callable[..., list[float]]:
    """A reward function that asks the service at `url`.

    It raises where a reward can't be had. TRL makes NaN of a None, and online DPO makes 0 of that.
    """
    client = RewardClient(url, token_env=token_env)

    def reward(prompts: Sequence[Prompt], completions: Sequence[Prompt], **_: Any) -> list[float]:
        items = [item(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]
        return [score.score for score in client.score(items)]

    return reward


def item(prompt: Prompt, completion: Prompt) -> dict[str, Any]:
    """One completion as the service takes it: TRL gives texts, or messages for conversational data."""
    if isinstance(prompt, str) and isinstance(completion, str):
        return {"prompt": prompt, "response": completion}
    if isinstance(prompt, list) and isinstance(completion, list):
        return {"messages": [{"role": m["role"], "content": m["content"]} for m in [*prompt, *completion]]}
    raise TypeError(f"a {type(prompt).__name__} as prompt with a {type(completion).__name__} as completion")
