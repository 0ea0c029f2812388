"""Rewards of a WildReward service as OpenRLHF's reward function, which posts conversations instead of rendered texts.

    --reward.remote_url examples/reward_clients/openrlhf_reward.py
    --data.input_key messages --data.label_key messages --data.apply_chat_template

The label is the conversation up to the user's message, as a list of messages or as JSON. Settings come from the environment of the
rollout workers: WILDREWARD_URL, WILDREWARD_TOKEN (where the service wants one) and REPLY_END, the text of the token that ends a
reply of the policy.
"""

from __future__ import annotations

import json
import os
import threading
from typing import Any

import requests
import torch
from requests.adapters import HTTPAdapter
from urllib3.util.retry import Retry

# A busy or restarting service is asked again for about three minutes; anything it refuses is not. The service's Retry-After says
# when a next try is worth while at the earliest: with it in place of the growing waits, ten tries would be over in seconds.
RETRY = Retry(
    total=10,
    backoff_factor=0.5,
    backoff_jitter=1.0,
    backoff_max=30,
    status_forcelist=(408, 425, 429, 502, 503, 504),
    allowed_methods=("POST",),
    respect_retry_after_header=False,
    raise_on_status=False,
)
_local = threading.local()


def reward_func(queries: list[str], prompts: list[str], labels: list[Any], **_: Any) -> dict[str, Any]:
    """Rewards in [1, K], and the same in 0..1 for dynamic filtering."""
    items = [item(*sample) for sample in zip(queries, prompts, labels, strict=True)]
    reply = _session().post(f"{os.environ['WILDREWARD_URL']}/v1/score", json={"items": items}, timeout=180)
    if reply.status_code != 200:
        raise RuntimeError(f"no rewards: HTTP {reply.status_code} {reply.text[:300]}")
    scores = reply.json()["scores"]
    rewards = torch.tensor([one["score"] for one in scores])
    return {
        "rewards": rewards,
        "scores": (rewards - 1) / (len(scores[0]["level_probs"]) - 1),
        "extra_logs": {"p_highest_level": torch.tensor([one["level_probs"][-1] for one in scores])},
    }


def item(query: str, prompt: str, label: Any) -> dict[str, Any]:
    """One sample as the service takes it. `query` is the prompt and the reply, as the policy's tokenizer decodes them."""
    messages = json.loads(label) if isinstance(label, str) else label
    if not query.startswith(prompt):
        raise ValueError(
            "the query does not start with its prompt: the tokenizer does not give texts back as they were"
        )
    response = query[len(prompt) :].rstrip().removesuffix(os.environ.get("REPLY_END", "<|im_end|>"))
    return {"messages": [*messages, {"role": "assistant", "content": response}]}


def _session() -> requests.Session:
    """A session a thread: OpenRLHF calls the function in several at once."""
    session: requests.Session | None = getattr(_local, "session", None)
    if session is None:
        session = _local.session = requests.Session()
        for scheme in ("http://", "https://"):
            session.mount(scheme, HTTPAdapter(max_retries=RETRY))
        if token := os.environ.get("WILDREWARD_TOKEN"):
            session.headers["Authorization"] = f"Bearer {token}"
    return session
