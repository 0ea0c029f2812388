"""Placement of a run's actors: what is reserved, what Ray could never give, and what is said where the cluster is too small."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
from ray.util.placement_group import _validate_bundles

from wildreward_ray.cluster import placement as module
from wildreward_ray.cluster.growth import Growth
from wildreward_ray.cluster.placement import actor_options, impossible, plan, reserve, shortage
from wildreward_ray.core.config.online_dpo import OnlineDpoConfig
from wildreward_ray.core.errors import ResourceError, UserError


def config(mode: str = "separate", **sections: dict[str, Any]) -> OnlineDpoConfig:
    base: dict[str, Any] = {
        "policy": "p",
        "reward_url": "http://x",
        "prompts": "q",
        "output": "o",
        "placement": {"mode": mode},
    }
    return OnlineDpoConfig.model_validate({**base, "staleness": 0, **sections})


def test_separate_actors_have_a_bundle_each_that_holds_what_they_ask_for() -> None:
    placed = plan(config(rollout={"replicas": 2, "num_gpus": 2}, learner={"workers": 3, "num_gpus": 1, "num_cpus": 4}))
    assert list(placed.bundles) == [{"CPU": 0.5, "GPU": 2}] * 2 + [{"CPU": 4, "GPU": 1}] * 3
    assert (placed.rollout, placed.learner) == ((0, 1), (2, 3, 4))
    assert (placed.total("GPU"), placed.total("CPU")) == (7, 13)


def test_a_couple_shares_one_bundle_and_its_halves_fill_it() -> None:
    placed = plan(
        config(
            "colocated", rollout={"replicas": 2, "num_gpus": 1}, learner={"workers": 2, "num_gpus": 0.5, "num_cpus": 3}
        )
    )
    assert placed.bundles == ({"CPU": 3.5, "GPU": 1},) * 2
    assert placed.rollout == placed.learner == (0, 1)
    assert sum(share.gpus for share in placed.shares.values()) == 1
    assert sum(share.cpus for share in placed.shares.values()) == 3.5


def test_a_couple_without_gpus_shares_cpus() -> None:
    placed = plan(config("colocated"))
    assert placed.bundles == ({"CPU": 1.0},)
    assert all(share.gpus == 0 for share in placed.shares.values())


@pytest.mark.parametrize(
    ("mode", "rollout", "learner", "flag"),
    [
        ("separate", {"num_gpus": 1.5}, {}, "--rollout.num-gpus"),
        ("separate", {}, {"num_gpus": 2.5}, "--learner.num-gpus"),
        ("separate", {"num_gpus": 1, "engine": {"tensor_parallel": 2}}, {}, "--rollout.num-gpus"),
        ("separate", {"num_cpus": 0}, {}, "--rollout.num-cpus"),
        (
            "colocated",
            {"num_gpus": 1, "engine": {"tensor_parallel": 2}},
            {"num_gpus": 1},
            "--rollout.engine.tensor-parallel",
        ),
        ("colocated", {"num_gpus": 2}, {"num_gpus": 1}, "--rollout.num-gpus"),
        ("colocated", {"num_gpus": 1}, {}, "--learner.num-gpus"),
    ],
)
def test_what_ray_can_not_give_is_refused_with_its_flag(
    mode: str, rollout: dict[str, Any], learner: dict[str, Any], flag: str
) -> None:
    with pytest.raises(UserError) as e:
        plan(config(mode, rollout=rollout, learner=learner))
    assert e.value.flag == flag


def test_ray_accepts_the_bundles_and_options_point_at_their_bundle() -> None:
    placed = plan(config(rollout={"replicas": 2}, learner={"num_gpus": 1}))
    _validate_bundles([dict(b) for b in placed.bundles])
    group: Any = object()
    options = actor_options(placed, group, "learner", 0)
    assert (options["num_cpus"], options["num_gpus"]) == (0.5, 1)
    strategy = options["scheduling_strategy"]
    assert (strategy.placement_group, strategy.placement_group_bundle_index) == (group, 2)
    assert actor_options(placed, group, "rollout", 1)["scheduling_strategy"].placement_group_bundle_index == 1


GPU_RUN: dict[str, Any] = {"rollout": {"replicas": 4, "num_gpus": 1}, "learner": {"num_gpus": 1}}


def test_too_small_a_static_cluster_is_known_at_once_and_a_growing_one_is_waited_for() -> None:
    placed = plan(config(**GPU_RUN))
    small = {"CPU": 8.0, "GPU": 2.0}
    error = impossible(placed, Growth(False, small), [small])
    assert error is not None
    assert error.flag == "--rollout.num-gpus"
    assert "need 5 GPUs and 2.5 CPUs in 5 bundles (5 of 1 GPU + 0.5 CPU)" in str(error)
    assert "the cluster has 2 GPUs; lower --rollout.replicas, or lower" in str(error)
    assert impossible(placed, Growth(True, {"CPU": 8.0, "GPU": math.inf}), [small]) is None
    assert impossible(placed, Growth(None, None), [small]) is None
    limited = impossible(placed, Growth(True, {"CPU": 8.0, "GPU": 4.0}), [small])
    assert limited is not None
    assert "can grow to 4 GPUs" in str(limited)


def test_a_bundle_larger_than_every_node_is_known_at_once_though_the_sum_is_enough() -> None:
    placed = plan(config(learner={"num_cpus": 6}))
    total, node = {"CPU": 8.0}, {"CPU": 4.0}
    error = impossible(placed, Growth(False, total), [node, node])
    assert error is not None
    assert error.flag == "--learner.num-cpus"
    assert "no node of the cluster has 6 CPU" in str(error)
    assert impossible(placed, Growth(False, total), [node, {"CPU": 6.0}]) is None


def test_waiting_in_vain_says_what_is_there_what_is_free_and_what_to_change() -> None:
    placed = plan(config(**GPU_RUN))
    error = shortage(placed, {"CPU": 8, "GPU": 8}, {"CPU": 1, "GPU": 5}, waited_s=60, autoscaler=True)
    text = str(error)
    assert "after 60 s the cluster has 8 GPUs, 5 of them free, 8 CPUs, 1 of them free" in text
    assert "its autoscaler did not bring enough" in text
    assert error.flag == "--rollout.num-cpus"  # CPUs are short, not GPUs
    assert "raise --placement.timeout-s" in text
    whole = shortage(placed, {"CPU": 8, "GPU": 8}, {"CPU": 8, "GPU": 8}, waited_s=60, autoscaler=None)
    assert "no node has room for a whole bundle" in str(whole)
    assert "autoscaler" not in str(whole)


class Group:
    """A placement group that is never ready, or at once."""

    def __init__(self, ready: bool) -> None:
        self.ready = ready
        self.waited: list[float] = []

    def wait(self, timeout: float) -> bool:
        self.waited.append(timeout)
        return self.ready


@pytest.mark.parametrize("ready", [True, False])
def test_the_reservation_ends_with_the_run_and_when_it_was_not_met(
    ready: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    group, removed, asked = Group(ready), list[Any](), list[Any]()
    have = {"CPU": 8.0}

    def reserved(bundles: list[dict[str, float]], strategy: str) -> Group:
        asked.append((bundles, strategy))
        return group

    ray = SimpleNamespace(
        cluster_resources=lambda: have,
        available_resources=lambda: {"CPU": 0.25},
        nodes=lambda: [{"Alive": True, "Resources": have}, {"Alive": False, "Resources": {}}],
    )
    monkeypatch.setattr(module, "ray", ray)
    monkeypatch.setattr(module, "current_growth", lambda total: Growth(False, total))
    monkeypatch.setattr(module, "placement_group", reserved)
    monkeypatch.setattr(module, "remove_placement_group", removed.append)
    placed = plan(config())
    if ready:
        with reserve(placed, timeout_s=2.5) as held:
            assert held is group
            assert removed == []
    else:
        with (
            pytest.raises(ResourceError, match=r"after 2\.5 s the cluster has .*8 CPUs, 0\.25 of them free"),
            reserve(placed, timeout_s=2.5),
        ):
            pytest.fail("the run must not start")
    assert asked == [([{"CPU": 0.5}, {"CPU": 0.5}], "PACK")]
    assert group.waited == [3]
    assert removed == [group]


def test_what_can_never_be_held_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    have = {"CPU": 1.0}
    ray = SimpleNamespace(cluster_resources=lambda: have, nodes=lambda: [{"Alive": True, "Resources": have}])
    monkeypatch.setattr(module, "ray", ray)
    monkeypatch.setattr(module, "current_growth", lambda total: Growth(False, total))
    monkeypatch.setattr(module, "placement_group", lambda *_, **__: pytest.fail("it must not be asked for"))
    with (
        pytest.raises(ResourceError, match="the cluster has 1 CPUs"),
        reserve(plan(config(learner={"num_cpus": 2})), timeout_s=600),
    ):
        pytest.fail("the run must not start")
