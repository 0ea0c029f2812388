"""Settings of an online DPO run that follow from others."""

from __future__ import annotations

from typing import Any

from wildreward_ray.core.config.online_dpo import OPERATIONAL, OnlineDpoConfig
from wildreward_ray.stages.online_dpo import share_cores

GIVEN = {"policy": "p", "reward_url": "http://127.0.0.1:1", "prompts": "x.jsonl", "output": "out"}


def threads(cores: int, **settings: Any) -> tuple[int | None, int | None]:
    """Threads of an engine and of a learner."""
    config = share_cores(OnlineDpoConfig.load(None, {**GIVEN, **settings}), cores)
    return config.rollout.engine.cpu_threads, config.learner.cpu_threads


def test_engines_and_learners_that_compute_at_the_same_time_share_the_cores() -> None:
    assert threads(8) == (4, 4)
    assert threads(1) == (1, 1)
    assert threads(8, **{"rollout.replicas": 2, "learner.workers": 4}) == (2, 1)
    assert threads(8, **{"rollout.engine.cpu_threads": 6}) == (6, 4)


def test_those_that_take_turns_or_have_gpus_have_all_cores() -> None:
    assert threads(8, staleness=0) == (None, None)
    assert threads(8, **{"rollout.num_gpus": 1}) == (None, None)


def test_settings_that_may_change_when_a_run_goes_on_exist() -> None:
    tree = OnlineDpoConfig.load(None, GIVEN).model_dump()
    for name in OPERATIONAL:
        branch: Any = tree
        for part in name.split("."):
            assert part in branch, name
            branch = branch[part]
