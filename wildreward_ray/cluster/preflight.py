"""Whether a cluster, as it is or as far as it can grow, can ever hold what a stage asks for. Nothing here asks Ray."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from wildreward_ray.cluster.growth import Growth, Node
from wildreward_ray.core.errors import ResourceError

_GIB = 2**30
# Ray counts resources in steps of 1/10000.
_STEP = 1e-4


@dataclass(frozen=True)
class ActorRequest:
    """What one kind of actor holds.

    Attributes:
        name: for messages.
        count: how many at the least.
        cpus, gpus: of each.
        flag: the flag that changes it.
        memory_gib: of each, in GiB (2**30 bytes).
        labels: Ray's label selectors, by label: `spot`, `!spot`, `in(a, b)` or `!in(a, b)`.
        most: how many at the most; what is beyond `count` is not needed. None: no more than `count`.
    """

    name: str
    count: int
    cpus: float
    gpus: float
    flag: str
    memory_gib: float = 0.0
    labels: Mapping[str, str] = field(default_factory=dict)
    most: int | None = None

    def holds(self) -> dict[str, float]:
        """What each holds, by Ray's names; memory in bytes."""
        amounts = {"CPU": self.cpus, "GPU": self.gpus, "memory": self.memory_gib * _GIB}
        return {name: amount for name, amount in amounts.items() if amount > 0}


def describe(requests: Sequence[ActorRequest]) -> list[dict[str, Any]]:
    """Requests as rows for a plan.

    Returns:
        `kind`, `least`, `most` (counts), `cpus`, `gpus` and `memory` (of each; memory in GiB), `labels`, `flag`.
    """
    return [
        {
            "kind": r.name,
            "least": r.count,
            "most": r.count if r.most is None else r.most,
            "cpus": r.cpus,
            "gpus": r.gpus,
            "memory": r.memory_gib,
            "labels": dict(r.labels),
            "flag": r.flag,
        }
        for r in requests
    ]


def missing(
    requests: Sequence[ActorRequest],
    have: Mapping[str, float],
    growth: Growth,
    nodes: Sequence[Node],
    task_cpus: float = 1.0,
) -> ResourceError | None:
    """Why a cluster can never hold the least of all requests at once with one task beside them, as far as is known.

    Where Ray tells no limit of a cluster that grows or may grow, nothing is refused: to wait is then better.

    Args:
        have: what the cluster has in all, by Ray's names.
        nodes: those that are alive.
        task_cpus: what the largest plain task of the graph needs.
    """
    for resource, extra in (("CPU", task_cpus), ("GPU", 0.0)):
        error = _too_little(requests, resource, extra, have, growth)
        if error is not None:
            return error
    for request in requests:
        error = _no_room(request, growth, nodes)
        if error is not None:
            return error
    return None


def matches(labels: Mapping[str, str], selector: Mapping[str, str]) -> bool:
    """Whether a node with these labels is one that a label selector of Ray's means.

    A label that isn't there is none of the wanted values, and so it meets `!value` and `!in(...)`, as in Ray:
    https://docs.ray.io/en/latest/ray-core/scheduling/labels.html
    """
    return all(_meets(labels.get(name), condition) for name, condition in selector.items())


def _meets(value: str | None, condition: str) -> bool:
    wanted = condition.removeprefix("!")
    several = re.fullmatch(r"in\((.*)\)", wanted)
    values = [v.strip() for v in several[1].split(",")] if several else [wanted]
    return (value in values) != condition.startswith("!")


def _too_little(
    requests: Sequence[ActorRequest], resource: str, extra: float, have: Mapping[str, float], growth: Growth
) -> ResourceError | None:
    """An error where the sum of one resource is beyond all that the cluster has or can grow to."""
    amounts = [(r, r.count * r.holds().get(resource, 0.0)) for r in requests]
    needed = sum(amount for _, amount in amounts) + extra
    there = have.get(resource, 0.0)
    if needed <= _reach(resource, there, growth) + _STEP / 2:
        return None
    parts = " + ".join(f"{amount:g} {r.name}" for r, amount in amounts if amount)
    tasks = f" + {extra:g} tasks" if extra else ""
    grow = f" and can grow to {_reach(resource, there, growth):g}" if growth.autoscaler else ""
    largest = max(amounts, key=lambda a: a[1])[0]
    return ResourceError(
        f"the graph needs {needed:g} {resource}s ({parts}{tasks}) and the cluster has {there:g}{grow}",
        flag=_flag(largest, resource),
        hint="lower",
    )


def _reach(resource: str, there: float, growth: Growth) -> float:
    if growth.autoscaler is False:
        return there
    return max(there, growth.most.get(resource, 0.0)) if growth.most is not None else math.inf


def _no_room(request: ActorRequest, growth: Growth, nodes: Sequence[Node]) -> ResourceError | None:
    """An error where no node, or too few of them, can hold one actor of a kind. A node without CPUs holds none that needs some."""
    holds = request.holds()
    if request.count == 0 or not holds or (growth.autoscaler is not False and not growth.types):
        return None
    types = growth.types if growth.autoscaler is not False else ()
    now = sum(_fit(request, node.resources, node.labels) for node in nodes)
    # Nodes that are there count among those of the types.
    later = sum(fit * t.most for t in types if (fit := _fit(request, _told(t.resources), t.labels)))
    room = max(now, later)
    if room >= request.count:
        return None
    where = "no node that the cluster has or can start" if types else "no node"
    if room > 0:
        each, many = _amounts(holds), " as far as the cluster can grow" if types else ""
        fact = f"{request.count} {request.name} actors of {each} are needed, and the nodes have room for {room:g}{many}"
        return ResourceError(fact, flag=_flag(request, next(iter(holds))), hint="lower")
    shapes = [n.resources for n in nodes if matches(n.labels, request.labels)]
    shapes += [_told(t.resources) for t in types if t.labels is None or matches(t.labels, request.labels)]
    return _too_large(request, shapes, where)


def _too_large(request: ActorRequest, shapes: Sequence[Mapping[str, float]], where: str) -> ResourceError:
    """What to say where no node of these shapes, which are all that have the labels, holds one actor."""
    labels = ", ".join(f"{name}={value}" for name, value in request.labels.items())
    if not shapes:
        return ResourceError(
            f"{request.name} asks for nodes with {labels}, and {where} has these labels", flag=request.flag
        )
    those = f" with {labels}" if labels else ""
    for resource, amount in request.holds().items():
        best = max(shape.get(resource, 0.0) for shape in shapes)
        if best + _STEP / 2 < amount:
            takes, most = _amount(resource, amount), _number(resource, best)
            fact = f"{request.name} takes {takes} an actor, and {where}{those} has more than {most}"
            return ResourceError(fact, flag=_flag(request, resource), hint="lower")
    each = _amounts(request.holds())
    return ResourceError(
        f"{request.name} takes {each} an actor, and {where}{those} has that much of everything",
        flag=request.flag,
        hint="lower",
    )


def _fit(request: ActorRequest, resources: Mapping[str, float], labels: Mapping[str, str] | None) -> float:
    """How many actors an empty node holds; one whose labels aren't told may have the right ones."""
    if labels is not None and not matches(labels, request.labels):
        return 0.0
    fits = min((resources.get(name, 0.0) + _STEP / 2) / amount for name, amount in request.holds().items())
    return fits if math.isinf(fits) else math.floor(fits)


def _told(resources: Mapping[str, float]) -> dict[str, float]:
    # A configuration that leaves a node type's memory out says nothing about it.
    return {"memory": math.inf, **resources}


def _flag(request: ActorRequest, resource: str) -> str:
    return request.flag.replace("num-cpus", "num-gpus") if resource == "GPU" else request.flag


def _number(resource: str, amount: float) -> str:
    return f"{amount / _GIB:.4g} GiB" if resource == "memory" else f"{amount:g}"


def _amount(resource: str, amount: float) -> str:
    if resource == "memory":
        return f"{_number(resource, amount)} of memory"
    return f"{amount:g} {resource}{'' if amount == 1 else 's'}"


def _amounts(holds: Mapping[str, float]) -> str:
    return " + ".join(_amount(name, amount) for name, amount in holds.items())
