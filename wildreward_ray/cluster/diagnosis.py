"""What waits for what in a Ray cluster, in one line. It is asked of the cluster's head process, and needs no dashboard."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from wildreward_ray.cluster.growth import Growth, cluster_status, current_growth
from wildreward_ray.cluster.preflight import matches

_GIB = 2**30
# Ray counts resources in steps of 1/10000.
_STEP = 1e-4
_WAITING = ("DEPENDENCIES_UNREADY", "PENDING_CREATION", "RESTARTING")
_AT_WORK = ("ALIVE",)
_SHOWN = 3  # of each list: the line stays one that can be read
_Labels = Mapping[str, str]


class _Request(NamedTuple):
    """What one request asks of a node: resources by their plain names, and label selectors of which one must be met."""

    shape: Mapping[str, float]
    selectors: tuple[_Labels, ...] = ()

    def fits(self, node: Any) -> bool:
        """Whether a node (`NodeState`) could hold it, were the node empty."""
        enough = all(node.total_resources.get(name, 0.0) + _STEP / 2 >= n for name, n in self.shape.items())
        return enough and (not self.selectors or any(matches(node.labels, s) for s in self.selectors))


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
            return tell(reply, _actors_that_are(_WAITING), growth, lost, _actors_that_are(_AT_WORK))
        except Exception as e:
            return f"what waits can't be asked ({type(e).__name__}: {str(e).partition(chr(10))[0]})"


def tell(reply: Any, actors: Sequence[Any], growth: Growth, lost: Sequence[str], at_work: Sequence[Any] = ()) -> str:
    """The line, from what Ray tells.

    Args:
        reply: `GetClusterStatusReply` (ray/protobuf/autoscaler.proto).
        actors: `ActorTableData` (ray/protobuf/gcs.proto) of actors that are not yet at work.
        growth: what is known of the cluster's.
        lost: addresses of nodes that died since the stage began.
        at_work: `ActorTableData` of the others that are alive.
    """
    from ray.core.generated.autoscaler_pb2 import NodeStatus

    state = reply.cluster_resource_state
    nodes = [node for node in state.node_states if node.status != NodeStatus.Value("DEAD")]
    single = Counter[str]()
    asked: dict[str, _Request] = {}
    for pending in state.pending_resource_requests:
        text = _text(pending.request)
        single[text] += pending.count
        asked[text] = _request(pending.request)
    groups = [_bundles(gang) for gang in state.pending_gang_resource_requests]
    for gang in groups:
        asked.update({_text(r): _request(r) for r in gang})
    known = [request.shape for request in asked.values()]
    unready = _by_cause(actors, known)
    for a in unready.get(_ROOM, ()):
        shape = _shape(a.required_resources)
        if shape not in known:
            asked[_resources(shape)] = _Request(shape, (a.label_selector,) if a.label_selector else ())
    idle = "" if asked else "nothing waits for room, so what is placed is busy, starting or stuck"
    parts = [idle, _waits(single, groups), _actors(unready), _free(nodes), _held(at_work) if asked else ""]
    parts += [_never(asked, nodes), _growth(reply, growth) if asked else ""]
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


_ROOM, _ARGUMENTS, _PROCESS, _START = (
    "not placed",
    "without their arguments",
    "placed, and their process or its environment not up",
    "starting, e.g. loading a model",
)


def _by_cause(actors: Sequence[Any], asked: Sequence[Mapping[str, float]]) -> dict[str, list[Any]]:
    """Actors that are not at work, by what they wait for.

    Ray gives an actor the node that is to find room for it, and a worker once there is some and a process runs. So one
    without a worker waits for room if such a request waits, and else for its process.

    Args:
        asked: resources of all requests that wait for room.
    """
    from ray.core.generated.gcs_pb2 import ActorTableData

    found: dict[str, list[Any]] = {}
    for actor in actors:
        if actor.state == ActorTableData.ActorState.Value("DEPENDENCIES_UNREADY"):
            cause = _ARGUMENTS
        elif _is_id(actor.address.worker_id):
            cause = _START
        elif not _is_id(actor.address.node_id) or _shape(actor.required_resources) in asked:
            cause = _ROOM
        else:
            cause = _PROCESS
        found.setdefault(cause, []).append(actor)
    return found


def _actors(unready: Mapping[str, Sequence[Any]]) -> str:
    parts = []
    for cause in (_ROOM, _ARGUMENTS, _PROCESS, _START):
        names = Counter(_name(a) + (_of_resources(a) if cause == _ROOM else "") for a in unready.get(cause, ()))
        parts += [f"{cause}: {_counted(names)}"] if names else []
    return "; ".join(parts)


def _held(at_work: Sequence[Any]) -> str:
    """Actors that hold CPUs or GPUs, by class: it is for them that others wait."""
    names = Counter(
        _name(a) + _of_resources(a) for a in at_work if {"CPU", "GPU"} & _shape(a.required_resources).keys()
    )
    return f"actors hold {_counted(names)}" if names else ""


def _name(actor: Any) -> str:
    # Ray Data's pools are named `MapWorker(MapBatches(JudgeActor))`.
    return str(actor.class_name).rpartition("(")[2].rstrip(")")


def _of_resources(actor: Any) -> str:
    return f" of {_resources(_shape(actor.required_resources))}"


def _is_id(value: bytes) -> bool:
    # Ray's id of nothing is all ones, or nothing.
    return bool(value.strip(b"\xff"))


def _free(nodes: Sequence[Any]) -> str:
    def of(name: str) -> str:
        total = sum(node.total_resources.get(name, 0.0) for node in nodes)
        free = sum(node.available_resources.get(name, 0.0) for node in nodes)
        return f"{free:g} of {total:g} {name}s"

    return f"free are {of('CPU')} and {of('GPU')} on {_count(len(nodes), 'node')}"


def _never(asked: Mapping[str, _Request], nodes: Sequence[Any]) -> str:
    """Which of the requests no node that is there could hold, were it empty."""
    never = [text for text, request in asked.items() if not any(map(request.fits, nodes))]
    return f"no node that is there could hold {_some(never)}, were it empty" if never else ""


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
    infeasible = [_text(r) for r in state.infeasible_resource_requests]
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
    return " and ".join(f"{n} x {text}" for text, n in Counter(map(_text, bundles)).most_common())


def _request(request: Any) -> _Request:
    return _Request(_shape(request.resources_bundle), tuple(map(_selector, request.label_selectors)))


def _selector(selector: Any) -> _Labels:
    """A label selector as programs write it, see `preflight.matches`."""
    return {
        c.label_key: f"{'!' if _is_without(c) else ''}in({', '.join(c.label_values)})"
        for c in selector.label_constraints
    }


def _is_without(constraint: Any) -> bool:
    from ray.core.generated.common_pb2 import LabelSelectorOperator

    return bool(constraint.operator == LabelSelectorOperator.Value("LABEL_OPERATOR_NOT_IN"))


def _text(request: Any) -> str:
    """What one request asks for, and the labels of its first choice of nodes."""
    text = _resources(_shape(request.resources_bundle))
    selectors = request.label_selectors
    return text + (f" with {_labels(selectors[0])}" if selectors and selectors[0].label_constraints else "")


def _resources(shape: Mapping[str, float]) -> str:
    return " + ".join(_amount(*item) for item in shape.items()) or "no resources"


def _labels(selector: Any) -> str:
    return ", ".join(
        f"{c.label_key}{'!=' if _is_without(c) else '='}{'|'.join(c.label_values)}" for c in selector.label_constraints
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


def _counted(names: Counter[str]) -> str:
    return _some(f"{n} x {name}" for name, n in names.most_common())


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


def _actors_that_are(states: Iterable[str]) -> list[Any]:
    # Ray's state API, which is public, asks the dashboard, and a cluster of this process has none.
    from ray._private import state
    from ray.core.generated.gcs_pb2 import ActorTableData

    table: Callable[..., list[bytes]] = state.state._connect_and_get_accessor().get_actor_table
    return [ActorTableData.FromString(row) for name in states for row in table(None, name)]
