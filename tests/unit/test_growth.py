"""What Ray lets know of a cluster's growth, by the first and the second autoscaler and by a managed cluster's configuration."""

from __future__ import annotations

import json
import math
import sys
from types import SimpleNamespace

import pytest
from ray.core.generated.autoscaler_pb2 import (
    AutoscalingState,
    ClusterConfig,
    ClusterResourceState,
    GetClusterStatusReply,
    NodeGroupConfig,
    NodeState,
    NodeStatus,
)

from wildreward_ray.cluster import growth as module
from wildreward_ray.cluster.growth import Growth, Node, NodeType, current_growth, live_nodes, read_growth, read_state


def test_what_a_managed_cluster_tells_of_growth_is_read() -> None:
    total = {"CPU": 4.0, "GPU": 0.0}
    grows = ClusterConfig(
        node_group_configs=[
            NodeGroupConfig(name="cpu", resources={"CPU": 4}, min_count=1, max_count=1),
            NodeGroupConfig(name="gpu", resources={"CPU": 8, "GPU": 2}, max_count=3),
            NodeGroupConfig(name="none", resources={"CPU": 8, "GPU": 8}, max_count=0),
        ]
    )
    types = (NodeType("cpu", {"CPU": 4}, 1), NodeType("gpu", {"CPU": 8, "GPU": 2}, 3))
    assert read_growth(grows, None, False, total) == Growth(True, {"GPU": 6, "CPU": 28}, types)
    grows.max_resources["GPU"] = 4
    assert read_growth(grows, None, False, total) == Growth(True, {"GPU": 4, "CPU": 28}, types)
    endless = ClusterConfig(node_group_configs=[NodeGroupConfig(name="cpu", resources={"CPU": 4}, max_count=-1)])
    without_end = (NodeType("cpu", {"CPU": 4}, math.inf),)
    assert read_growth(endless, None, False, total) == Growth(True, {"GPU": 0, "CPU": math.inf}, without_end)
    fixed = ClusterConfig(node_group_configs=[NodeGroupConfig(resources={"CPU": 4}, min_count=2, max_count=2)])
    assert read_growth(fixed, None, False, total) == Growth(False, total)


def status(**active: int) -> bytes:
    return json.dumps({"autoscaler_report": {"active_nodes": active}}).encode()


def test_a_monitor_without_an_autoscaler_is_told_from_one_with() -> None:
    total = {"CPU": 4.0}
    assert read_growth(None, status(node_ab12=1, node_cd34=1), False, total) == Growth(False, total)
    assert read_growth(None, status(**{"ray.head.default": 1, "worker": 2}), False, total) == Growth(True, None)
    assert read_growth(None, None, True, total) == Growth(False, total)
    # Nothing is known: a run that waits is better than one that is refused without cause.
    for unknown in (None, b"{}", status()):
        assert read_growth(None, unknown, False, total) == Growth(None, None)


def reply(*nodes: NodeState, reports: bool = True) -> GetClusterStatusReply:
    found = GetClusterStatusReply(cluster_resource_state=ClusterResourceState(node_states=nodes))
    if reports:
        found.autoscaling_state.CopyFrom(AutoscalingState(autoscaler_state_version=1))
    return found


def test_the_second_autoscaler_is_known_by_its_report_and_the_types_of_its_nodes() -> None:
    total = {"CPU": 4.0}
    head = NodeState(ray_node_type_name="head", status=NodeStatus.IDLE)
    assert read_state(reply(head), total) == Growth(True, None)
    by_hand = NodeState(status=NodeStatus.RUNNING)
    gone = NodeState(ray_node_type_name="worker", status=NodeStatus.DEAD)
    assert read_state(reply(by_hand, gone), total) == Growth(False, total)
    # Nodes of a static Kubernetes cluster have a type as well; without a report nothing is known.
    assert read_state(reply(head, reports=False), total) == Growth(None, None)


def test_the_second_autoscaler_is_asked_only_where_the_first_leaves_it_open(monkeypatch: pytest.MonkeyPatch) -> None:
    total = {"CPU": 4.0}
    monkeypatch.setattr(module, "cluster_status", lambda: pytest.fail("it need not be asked"))
    monkeypatch.setattr(module, "_reported", lambda: (None, None, True))
    assert current_growth(total) == Growth(False, total)
    monkeypatch.setattr(module, "cluster_status", lambda: reply(NodeState(ray_node_type_name="head")))
    monkeypatch.setattr(module, "_reported", lambda: (None, None, False))
    assert current_growth(total) == Growth(True, None)


def test_nodes_that_died_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"Alive": True, "Resources": {"CPU": 2.0}, "Labels": {"market-type": "spot"}}
    ray = SimpleNamespace(nodes=lambda: [there, {**there, "Alive": False}])
    monkeypatch.setitem(sys.modules, "ray", ray)
    assert live_nodes() == [Node({"CPU": 2.0}, {"market-type": "spot"})]
