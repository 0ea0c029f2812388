"""A real policy learns what a reward of a few lines asks for, whatever the seed; it takes minutes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.ray.helpers import reward_server, write_json_lines
from wildreward_ray.cluster.models import SMOLLM2
from wildreward_ray.core.config.online_dpo import OnlineDpoConfig
from wildreward_ray.stages import online_dpo

pytestmark = [pytest.mark.engine, pytest.mark.slow]

THINGS = ["rain", "bread", "cats", "trains", "tea", "snow", "bees", "maps", "ships", "salt"]
ASKED = ("What is good about {}?", "Tell me about {}.", "Why do people like {}?", "Give me a fact about {}.")
PROMPTS = [{"prompt": question.format(thing)} for thing in THINGS for question in ASKED]
LONGEST = 40


def fewer_words_are_better(reply: str) -> float:
    """From 4 for none to 1 for `LONGEST` words and more."""
    return 4 - 3 * min(len(reply.split()) / LONGEST, 1.0)


@pytest.mark.timeout(1500)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_reward_of_held_out_prompts_rises(ray_session: None, seed: int, tmp_path: Path) -> None:
    settings = {
        "policy": SMOLLM2,
        "prompts": write_json_lines(tmp_path / "prompts.jsonl", PROMPTS),
        "output": str(tmp_path / "out"),
        "steps": 8,
        "prompts_per_step": 8,
        "eval.prompts": 16,
        "eval.every": 4,
        "seed": seed,
        "rollout.samples": 4,
        "rollout.max_tokens": 48,
        "rollout.engine.max_model_len": 256,
        "learner.learning_rate": 4e-5,
        "learner.precision": "bfloat16",
        "tracking.kinds": (),
    }
    with reward_server(fewer_words_are_better) as server:
        result = online_dpo.run(OnlineDpoConfig.load(None, {**settings, "reward_url": server.url}))
    found = result.summary["eval"]
    # The intervals of the start and of the end don't meet, and most new replies beat most old ones.
    assert found["reward_after_interval"][0] > found["reward_before_interval"][1], found
    assert found["win_rate_interval"][0] > 0.6, found
