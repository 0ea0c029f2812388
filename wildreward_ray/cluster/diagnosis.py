"""What waits for what in a Ray cluster, in one line. It is asked of the cluster's head process, and needs no dashboard."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from wildreward_ray.cluster.growth import Growth, cluster_status, current_growth

_GIB = 2**30
# Ray counts resources in steps of 1/10000.
_STEP = 1e-4
_WAITING = ("DEPENDENCIES_UNREADY", "PENDING_CREATION", "RESTARTING")
_SHOWN = 3  # of each list: the line stays one that can be read


class Diagnosis:
    """A call says what waits for what; made when a stage begins, so that nodes lost since then are seen."""

    def __init__(self) -> None:
        self._dead_before = set(_dead())

    def __call__(self) -> str:
        import ray

        # It is told beside a run that may yet come to its end: no failure to look may end it.
        try:
            reply = cluster_status()
            growth = current_growth(ray.cluster_resources())
            lost = [address for node, address in _dead().items() if node not in self._dead_before]
            return tell(reply, _unready_actors(), growth, lost)
        except Exception as e:
            return f"what waits can't be asked ({type(e).__name__}: {str(e).partition(chr(10))[0]})"


def tell(reply: Any, actors: Sequence[Any], growth: Growth, lost: Sequence[str]) -> str:
    """The line, from what Ray tells.

    Args:
        reply: `GetClusterStatusReply` (ray/protobuf/autoscaler.proto).
        actors: `ActorTableData` (ray/protobuf/gcs.proto) of actors that are not yet at work.
        growth: what is known of the cluster's.
        lost: addresses of nodes that died since the stage began.
    """
    from ray.core.generated.autoscaler_pb2 import NodeStatus

    state = reply.cluster_resource_state
    nodes = [node for node in state.node_states if node.status != NodeStatus.Value("DEAD")]
    single = Counter[str]()
    shapes: dict[str, Mapping[str, float]] = {}
    for pending in state.pending_resource_requests:
        text = _request(pending.request)
        single[text] += pending.count
        shapes[text] = _shape(pending.request.resources_bundle)
    groups = [_bundles(gang) for gang in state.pending_gang_resource_requests]
    for gang in groups:
        shapes.update({_request(r): _shape(r.resources_bundle) for r in gang})
    shapes.update(
        {_resources(_shape(a.required_resources)): _shape(a.required_resources) for a in actors if not _placed(a)}
    )
    idle = "" if shapes else "nothing waits for room, so what is placed is busy, starting or stuck"
    parts = [idle, _waits(single, groups), _actors(actors), _free(nodes), _never(shapes, nodes)]
    parts += [_growth(reply, growth) if shapes else ""]
    parts += [f"{_count(len(lost), 'node')} lost since the stage began ({_some(lost)})" if lost else ""]
    return "; ".join(part for part in parts if part)


def _waits(single: Counter[str], groups: Sequence[Sequence[Any]]) -> str:
    parts = []
    if single:
        verb = "waits" if single.total() == 1 else "wait"
        what = _some(f"{n} x {text}" for text, n in single.most_common())
        parts.append(f"{_count(single.total(), 'task or actor', 'tasks or actors')} {verb} for room ({what})")
    for text, n in Counter(_group(gang) for gang in groups).most_common(_SHOWN):
        parts.append(f"{_count(n, 'placement group')} of {text} {'waits' if n == 1 else 'wait'} for room")
    return "; ".join(parts)


def _actors(actors: Sequence[Any]) -> str:
    """Actors that are not at work, by class: those without a node wait; those with one are being made there."""
    waiting = Counter(f"{a.class_name} of {_resources(_shape(a.required_resources))}" for a in actors if not _placed(a))
    starting = Counter(a.class_name for a in actors if _placed(a))
    parts = [f"not placed: {_some(f'{n} x {name}' for name, n in waiting.most_common())}"] if waiting else []
    if starting:
        names = _some(f"{n} x {name}" for name, n in starting.most_common())
        parts.append(f"starting, e.g. loading a model: {names}")
    return "; ".join(parts)


def _placed(actor: Any) -> bool:
    # Ray's id of nothing is all ones.
    return bool(actor.address.node_id.strip(b"\xff"))


def _free(nodes: Sequence[Any]) -> str:
    def of(name: str) -> str:
        total = sum(node.total_resources.get(name, 0.0) for node in nodes)
        free = sum(node.available_resources.get(name, 0.0) for node in nodes)
        return f"{free:g} of {total:g} {name}s"

    return f"free are {of('CPU')} and {of('GPU')} on {_count(len(nodes), 'node')}"


def _never(shapes: Mapping[str, Mapping[str, float]], nodes: Sequence[Any]) -> str:
    """Which of the requests no node that is there could hold, were it empty; labels are left aside."""
    never = [text for text, shape in shapes.items() if not any(_holds(n.total_resources, shape) for n in nodes)]
    return f"no node that is there is large enough for {_some(never)}" if never else ""


def _holds(total: Mapping[str, float], shape: Mapping[str, float]) -> bool:
    return all(total.get(name, 0.0) + _STEP / 2 >= amount for name, amount in shape.items())


def _growth(reply: Any, growth: Growth) -> str:
    """Whether an autoscaler can help, and what it is about."""
    if growth.autoscaler is False:
        return "the cluster has no autoscaler, so what waits stays until something is freed or a node is added"
    if growth.autoscaler is None:
        return "Ray doesn't tell whether an autoscaler is at work"
    if not reply.HasField("autoscaling_state"):
        return "an autoscaler is at work (`ray status` on the head tells what it does)"
    state = reply.autoscaling_state
    coming = Counter[str](node.ray_node_type_name for node in state.pending_instances)
    for request in state.pending_instance_requests:
        coming[request.ray_node_type_name] += request.count
    nodes = _some(f"{n} x {name}" for name, n in coming.most_common())
    parts = [f"the autoscaler is bringing {nodes}" if coming else "the autoscaler is bringing no node"]
    infeasible = [_request(r) for r in state.infeasible_resource_requests]
    infeasible += [_group(_bundles(gang)) for gang in state.infeasible_gang_resource_requests]
    if infeasible:
        parts.append(f"none of its node types, within their limits, holds {_some(dict.fromkeys(infeasible))}")
    failed = [f"{f.count} x {f.ray_node_type_name}: {_line(f.reason)}" for f in state.failed_instance_requests]
    if failed:
        parts.append(f"it could not start {_some(dict.fromkeys(failed))}")
    return "; ".join(parts)


def _bundles(gang: Any) -> list[Any]:
    return list(gang.bundle_selectors[0].resource_requests if gang.bundle_selectors else gang.requests)


def _group(bundles: Sequence[Any]) -> str:
    return " and ".join(f"{n} x {text}" for text, n in Counter(map(_request, bundles)).most_common())


def _request(request: Any) -> str:
    """What one request asks for, and the labels of its first choice of nodes."""
    text = _resources(_shape(request.resources_bundle))
    selectors = request.label_selectors
    return text + (f" with {_labels(selectors[0])}" if selectors and selectors[0].label_constraints else "")


def _resources(shape: Mapping[str, float]) -> str:
    return " + ".join(_amount(*item) for item in shape.items()) or "no resources"


def _labels(selector: Any) -> str:
    from ray.core.generated.common_pb2 import LabelSelectorOperator

    without = LabelSelectorOperator.Value("LABEL_OPERATOR_NOT_IN")
    return ", ".join(
        f"{c.label_key}{'!=' if c.operator == without else '='}{'|'.join(c.label_values)}"
        for c in selector.label_constraints
    )


def _shape(bundle: Mapping[str, float]) -> dict[str, float]:
    """Resources by their plain names: in a placement group Ray calls them `CPU_group_<id>`, once more with an index."""
    found: dict[str, float] = {}
    for name, amount in sorted(bundle.items()):
        plain = name.partition("_group_")[0]
        if plain != "bundle" and not plain.startswith("node:"):
            found[plain] = max(found.get(plain, 0.0), amount)
    return found


def _amount(name: str, amount: float) -> str:
    if name in ("memory", "object_store_memory"):
        return f"{amount / _GIB:.4g} GiB of {name.replace('_', ' ')}"
    return _count(amount, name)


def _count(n: float, one: str, many: str | None = None) -> str:
    return f"{n:g} {one if n == 1 else many or one + 's'}"


def _some(texts: Iterable[str]) -> str:
    listed = list(texts)
    more = len(listed) - _SHOWN
    return ", ".join(listed[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 200 else f"{line[:200]}..."


def _dead() -> dict[str, str]:
    """Address by id of every node that died and that Ray still remembers."""
    import ray

    return {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if not node["Alive"]}


def _unready_actors() -> list[Any]:
    # Ray's state API, which is public, asks the dashboard, and a cluster of this process has none.
    from ray._private import state
    from ray.core.generated.gcs_pb2 import ActorTableData

    table: Callable[..., list[bytes]] = state.state._connect_and_get_accessor().get_actor_table
    return [ActorTableData.FromString(row) for name in _WAITING for row in table(None, name)]
