"""The check before anything starts: what a cluster has, what it can grow to, and what no node of it can hold."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
from ray._private.label_utils import validate_label_selector_value

from wildreward_ray.cluster.growth import Growth, Node, NodeType
from wildreward_ray.cluster.preflight import ActorRequest, describe, matches, missing

GIB = 2.0**30
NOTHING: dict[str, float] = {}
HEAD = Node({"memory": 64 * GIB})  # Ray leaves out what a node has none of: a head without work has no CPU


def judge(count: int = 2, cpus: float = 4, gpus: float = 0, **more: object) -> ActorRequest:
    return ActorRequest("judge", count, cpus, gpus, "--judge.num-cpus", **more)  # type: ignore[arg-type]


def static(*nodes: Node) -> tuple[Mapping[str, float], Growth, tuple[Node, ...]]:
    """What a cluster has that does not grow."""
    have: dict[str, float] = {}
    for node in nodes:
        for name, amount in node.resources.items():
            have[name] = have.get(name, 0.0) + amount
    return have, Growth(False, have), nodes


def growing(*types: NodeType, cpus: float, gpus: float = 0.0) -> Growth:
    return Growth(True, {"CPU": cpus, "GPU": gpus}, types)


def test_a_cluster_without_workers_that_can_grow_is_not_refused() -> None:
    worker = NodeType("cpu", {"CPU": 4}, 3)
    assert missing([judge()], NOTHING, growing(worker, cpus=12), [HEAD]) is None
    assert missing([judge()], NOTHING, Growth(True, None), [HEAD]) is None
    # Ray tells neither way: to wait, with a watch beside it, is better than to refuse without cause.
    assert missing([judge()], NOTHING, Growth(None, None), [HEAD]) is None
    refused = missing([judge()], *static(HEAD))
    assert str(refused) == (
        "the graph needs 9 CPUs (8 judge + 1 tasks) and the cluster has 0; lower (--judge.num-cpus)"
    )


def test_what_is_beyond_the_growth_is_refused_with_what_there_is_and_can_be() -> None:
    worker = NodeType("gpu", {"CPU": 4, "GPU": 1}, 3)
    other = ActorRequest("refine", 1, 1, 0, "--hindsight.num-cpus")
    error = missing([judge(3), other], {"CPU": 4.0}, growing(worker, cpus=12, gpus=3), [HEAD])
    assert str(error) == (
        "the graph needs 14 CPUs (12 judge + 1 refine + 1 tasks) and the cluster has 4 and can grow to 12; "
        "lower (--judge.num-cpus)"
    )
    gpus = missing([judge(4, 1, 1)], {"CPU": 4.0, "GPU": 1.0}, growing(worker, cpus=12, gpus=3), [HEAD])
    assert "the graph needs 4 GPUs (4 judge) and the cluster has 1 and can grow to 3" in str(gpus)
    assert gpus is not None
    assert gpus.flag == "--judge.num-gpus"


def test_an_actor_larger_than_every_node_is_refused_though_the_sum_is_enough() -> None:
    small = Node({"CPU": 2.0})
    error = missing([judge(1)], *static(small, small, small))
    assert str(error) == "judge takes 4 CPUs an actor, and no node has more than 2; lower (--judge.num-cpus)"
    four = Node({"CPU": 8.0, "GPU": 4.0})
    gpus = missing([judge(1, 1, 8)], *static(four, four))
    assert gpus is not None
    assert "takes 8 GPUs an actor, and no node has more than 4" in str(gpus)
    assert gpus.flag == "--judge.num-gpus"
    assert missing([judge(1, 1, 4)], *static(four, four)) is None


def test_a_node_type_counts_as_a_node_and_one_that_is_too_small_does_not_help() -> None:
    many = NodeType("small", {"CPU": 2}, math.inf)
    error = missing([judge(1)], NOTHING, growing(many, cpus=math.inf), [HEAD])
    assert "no node that the cluster has or can start has more than 2" in str(error)
    large = NodeType("large", {"CPU": 4}, 1)
    assert missing([judge(1)], NOTHING, growing(many, large, cpus=math.inf), [HEAD]) is None
    two = missing([judge(2)], NOTHING, growing(many, large, cpus=math.inf), [HEAD])
    assert "2 judge actors of 4 CPUs are needed, and the nodes have room for 1 as far as the cluster can grow" in str(
        two
    )


def test_pieces_of_nodes_do_not_add_up_to_room_for_an_actor() -> None:
    error = missing([judge(2, 3)], *static(Node({"CPU": 4.0}), Node({"CPU": 4.0}), HEAD), task_cpus=0)
    assert error is None
    pieces = missing([judge(3, 3)], *static(Node({"CPU": 4.0}), Node({"CPU": 5.0})), task_cpus=0)
    assert "3 judge actors of 3 CPUs are needed, and the nodes have room for 2; lower" in str(pieces)


def test_cpus_and_gpus_on_different_nodes_hold_no_actor_that_needs_both() -> None:
    error = missing([judge(1, 4, 1)], *static(Node({"CPU": 8.0}), Node({"CPU": 1.0, "GPU": 1.0})))
    assert "judge takes 4 CPUs + 1 GPU an actor, and no node has that much of everything" in str(error)


def test_shares_of_a_gpu_fill_it_in_spite_of_rounding() -> None:
    node = Node({"CPU": 10.0, "GPU": 1.0})
    assert missing([judge(10, 0.1, 0.1)], *static(node)) is None
    assert missing([judge(11, 0.1, 0.1)], *static(node)) is not None


def test_memory_is_asked_of_one_node_and_the_head_without_work_lends_none() -> None:
    worker = Node({"CPU": 8.0, "memory": 16 * GIB})
    error = missing([judge(1, 1, memory_gib=24)], *static(HEAD, worker))
    assert "judge takes 1 CPU + 24 GiB of memory an actor" in str(error)
    assert "no node has that much of everything" in str(error)
    alone = missing([judge(1, 1, memory_gib=24)], *static(worker))
    assert "takes 24 GiB of memory an actor, and no node has more than 16 GiB" in str(alone)
    assert missing([judge(1, 1, memory_gib=16)], *static(HEAD, worker)) is None
    # A node type whose memory isn't told may have enough.
    untold, told = NodeType("cpu", {"CPU": 4}, 1), NodeType("cpu", {"CPU": 4, "memory": 8 * GIB}, 1)
    assert missing([judge(1, 1, memory_gib=24)], NOTHING, growing(untold, cpus=4), [HEAD]) is None
    assert missing([judge(1, 1, memory_gib=24)], NOTHING, growing(told, cpus=4), [HEAD]) is not None


def test_actors_stand_only_on_nodes_with_their_labels() -> None:
    spot, kept = Node({"CPU": 4.0}, {"market": "spot"}), Node({"CPU": 8.0}, {"market": "on-demand"})
    assert missing([judge(1, labels={"market": "spot"})], *static(spot, kept)) is None
    larger = missing([judge(1, 8, labels={"market": "spot"})], *static(spot, kept))
    assert "takes 8 CPUs an actor, and no node with market=spot has more than 4" in str(larger)
    none = missing([judge(1, labels={"zone": "a"})], *static(spot, kept))
    assert str(none) == "judge asks for nodes with zone=a, and no node has these labels (--judge.num-cpus)"
    untold, told = NodeType("a", {"CPU": 4}, 3), NodeType("b", {"CPU": 4}, 3, {"market": "spot"})
    zone = [judge(1, labels={"zone": "a"})]
    assert missing(zone, NOTHING, growing(untold, cpus=12), [HEAD]) is None
    assert missing(zone, NOTHING, growing(told, cpus=12), [HEAD]) is not None


@pytest.mark.parametrize(
    ("condition", "spot", "unlabelled"),
    [
        ("spot", True, False),
        ("!spot", False, True),
        ("in(spot, other)", True, False),
        ("in(one,other)", False, False),
        ("!in(spot, other)", False, True),
    ],
)
def test_label_selectors_mean_what_ray_means_by_them(condition: str, spot: bool, unlabelled: bool) -> None:
    assert validate_label_selector_value(condition) is None
    assert matches({"market": "spot"}, {"market": condition}) is spot
    assert matches({}, {"market": condition}) is unlabelled


def test_what_holds_nothing_and_what_is_beyond_the_least_is_not_asked_for() -> None:
    assert missing([judge(1, 2, most=100)], *static(Node({"CPU": 3.0}))) is None
    assert missing([judge(3, 0)], *static(HEAD), task_cpus=0) is None
    assert missing([judge(0, 64)], *static(Node({"CPU": 1.0}))) is None


def test_requests_are_told_for_a_plan_as_they_stand() -> None:
    rows = describe([judge(2, 4, 1, memory_gib=16, labels={"market": "spot"}, most=8), judge()])
    assert rows[0] == {
        "kind": "judge",
        "least": 2,
        "most": 8,
        "cpus": 4,
        "gpus": 1,
        "memory": 16,
        "labels": {"market": "spot"},
        "flag": "--judge.num-cpus",
    }
    assert (rows[1]["most"], rows[1]["memory"]) == (2, 0)
