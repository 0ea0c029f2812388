"""Rewards of a WildReward service as slime's custom reward function, which posts the conversation and not the rendered prompt.

    --custom-rm-path slime_reward.custom_rm --rm-url http://127.0.0.1:8000

The data's `metadata` must hold `messages`, the conversation up to the user's message, unless the prompt is such a list itself (no
`--apply-chat-template`). The folder of this file must be on PYTHONPATH.
"""

from __future__ import annotations

import asyncio
import os
import random
from typing import Any

import aiohttp

AGAIN = frozenset({408, 425, 429, 502, 503, 504})
TRIES = 12


async def custom_rm(args: Any, sample: Any, **_: Any) -> float:
    """The reward of one sample, in [1, K]."""
    messages = sample.prompt if isinstance(sample.prompt, list) else sample.metadata["messages"]
    item = {"messages": [*messages, {"role": "assistant", "content": sample.response}]}
    reply = await post(f"{args.rm_url}/v1/score", {"items": [item]})
    (score,) = reply["scores"]
    return float(score["score"])


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
