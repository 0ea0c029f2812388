"""What a cluster has, node by node, and what Ray lets know about how far it can grow."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_RESOURCES = ("GPU", "CPU")


@dataclass(frozen=True)
class Node:
    """A node that is there.

    Attributes:
        resources: what it has in all, by Ray's names; memory in bytes.
        labels: Ray's and those it was started with.
    """

    resources: Mapping[str, float]
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class NodeType:
    """A kind of node that an autoscaler may start.

    Attributes:
        name: as the cluster's configuration calls it.
        resources: what one node of it has, by Ray's names; memory in bytes, where it is told.
        most: how many there can be; infinite where there is no limit.
        labels: of every node of it; None: Ray doesn't tell.
    """

    name: str
    resources: Mapping[str, float]
    most: float
    labels: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Growth:
    """What a cluster may come to have.

    Attributes:
        autoscaler: one is at work; None: Ray doesn't tell.
        most: CPUs and GPUs it can have at the most; None: Ray doesn't tell.
        types: of the nodes it can have; empty where Ray doesn't tell, or nothing can grow.
    """

    autoscaler: bool | None
    most: Mapping[str, float] | None
    types: tuple[NodeType, ...] = ()


def current_growth(total: Mapping[str, float]) -> Growth:
    """What Ray lets know about the growth of the cluster that was joined.

    Args:
        total: what the cluster has.
    """
    growth = read_growth(*_reported(), total)
    return growth if growth.autoscaler is not None else read_state(cluster_status(), total)


def live_nodes() -> list[Node]:
    """The nodes that are alive."""
    import ray

    return [Node(node["Resources"], node.get("Labels") or {}) for node in ray.nodes() if node["Alive"]]


def read_growth(config: Any | None, status: bytes | None, own: bool, total: Mapping[str, float]) -> Growth:
    """What Ray lets know about a cluster's growth.

    Args:
        config: `ClusterConfig` (ray/protobuf/autoscaler.proto) that a managed cluster reports, or None.
        status: JSON that the monitor of Ray's first autoscaler leaves in the cluster's key-value store, or None. A cluster
            without an autoscaler has a monitor too: it calls every node a type of its own (`node_<id>`).
        own: this process started the cluster, without an autoscaler.
        total: what the cluster has.
    """
    groups = [g for g in config.node_group_configs if g.resources and g.max_count] if config is not None else []
    if any(g.max_count == -1 or g.max_count > g.min_count for g in groups):
        most = {r: _limit(config, groups, r, total.get(r, 0.0)) for r in _RESOURCES}
        return Growth(True, most, tuple(_type(g) for g in groups))
    if groups or own:
        return Growth(False, total)
    report = (json.loads(status).get("autoscaler_report") if status else None) or {}
    types = report.get("active_nodes") or {}
    if not types:
        return Growth(None, None)
    return Growth(False, total) if all(t.startswith("node_") for t in types) else Growth(True, None)


def read_state(reply: Any, total: Mapping[str, float]) -> Growth:
    """What Ray's second autoscaler lets know, which writes no JSON status. `ray up` starts it since Ray 2.50.

    Args:
        reply: `GetClusterStatusReply` (ray/protobuf/autoscaler.proto). Without an autoscaler to start nodes, a monitor may
            report its state too; then no node was started as one of a type.
        total: what the cluster has.
    """
    if not reply.HasField("autoscaling_state"):
        return Growth(None, None)
    dead = _node_status("DEAD")
    alive = [node for node in reply.cluster_resource_state.node_states if node.status != dead]
    return Growth(True, None) if any(node.ray_node_type_name for node in alive) else Growth(False, total)


def cluster_status() -> Any:
    """`GetClusterStatusReply`: every node, what waits for room, and what the second autoscaler is about, if there is one.

    It comes from the cluster's head process, so that no dashboard is needed.

    Raises:
        ray.exceptions.RpcError: the head did not answer within 10 s.
    """
    from ray._private import worker
    from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply

    reply = GetClusterStatusReply()
    reply.ParseFromString(worker.global_worker.gcs_client.get_cluster_status(timeout_s=10))
    return reply


def _node_status(name: str) -> int:
    from ray.core.generated.autoscaler_pb2 import NodeStatus

    return int(NodeStatus.Value(name))


def _type(group: Any) -> NodeType:
    most = math.inf if group.max_count == -1 else group.max_count
    return NodeType(group.name, {name: float(amount) for name, amount in group.resources.items()}, most)


def _limit(config: Any, groups: Sequence[Any], resource: str, total: float) -> float:
    with_it = [g for g in groups if g.resources.get(resource, 0)]
    most = (
        math.inf
        if any(g.max_count == -1 for g in with_it)
        else sum(g.max_count * g.resources[resource] for g in with_it)
    )
    cap = dict(config.max_resources).get(resource, math.inf)
    return float(max(total, min(most, cap)))


def _reported() -> tuple[Any | None, bytes | None, bool]:
    # Ray has no public way to ask. Its own libraries (Train's worker group, Data's autoscaler) read the same places.
    from ray._private import ray_constants, state, worker
    from ray.experimental.internal_kv import _internal_kv_get

    node = worker._global_node
    own = node is not None and node.is_head() and node._ray_params.autoscaling_config is None
    return state.state.get_cluster_config(), _internal_kv_get(ray_constants.DEBUG_AUTOSCALING_STATUS), own
