"""Rewards of a WildReward service as verl's custom reward function.

    reward.custom_reward_function.path=examples/reward_clients/verl_reward.py
    reward.custom_reward_function.name=compute_score
    +reward.custom_reward_function.reward_kwargs.reward_url=http://127.0.0.1:8000

The data's `extra_info` must hold `messages`: the conversation up to the user's message.
"""

from __future__ import annotations

import asyncio
import os
import random
from typing import Any

import aiohttp

AGAIN = frozenset({408, 425, 429, 502, 503, 504})
TRIES = 12


async def compute_score(
    data_source: str, solution_str: str, ground_truth: Any, extra_info: dict[str, Any], *, reward_url: str, **_: Any
) -> dict[str, float]:
    """The reward of one response, in [1, K], and the probability of the highest level, which verl logs."""
    messages = [{"role": m["role"], "content": m["content"]} for m in extra_info["messages"]]
    item = {"messages": [*messages, {"role": "assistant", "content": solution_str}]}
    reply = await post(f"{reward_url}/v1/score", {"items": [item]})
    (score,) = reply["scores"]
    return {"score": score["score"], "p_highest_level": score["level_probs"][-1]}


async def post(url: str, body: dict[str, Any]) -> Any:
    """The service's reply. Raises where it refuses the request, or is not there for about five minutes."""
    token = os.environ.get("WILDREWARD_TOKEN")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    failure = ""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=120), headers=headers) as session:
        for attempt in range(TRIES):
            if attempt:
                # Jitter: workers that failed together don't come back together.
                await asyncio.sleep(random.uniform(0.5, 1) * min(60, 0.5 * 2**attempt))
            try:
                async with session.post(url, json=body) as reply:
                    if reply.status == 200:
                        return await reply.json()
                    failure = f"HTTP {reply.status} {(await reply.text())[:300]}"
                    if reply.status not in AGAIN:
                        break
            except (TimeoutError, aiohttp.ClientError) as e:
                failure = repr(e)
    raise RuntimeError(f"no reward from {url}: {failure}")
