"""Where the actors of an online DPO run stand: one Ray placement group that holds all of them or none.

separate: every actor has a bundle of its own. colocated: a rollout actor and a learner worker share a bundle and its GPU, half
each by Ray's count, and take turns (`weights.sleep`, `weights.wake`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from wildreward_ray.cluster.growth import Growth, current_growth
from wildreward_ray.core.config.online_dpo import OnlineDpoConfig
from wildreward_ray.core.errors import ResourceError, UserError

Kind = Literal["rollout", "learner"]

_RESOURCES = ("GPU", "CPU")
_FLAGS = {"CPU": "num-cpus", "GPU": "num-gpus"}
# Ray counts resources in steps of 1/10000.
_STEP = 1e-4


@dataclass(frozen=True)
class ActorShare:
    """What one actor holds of its bundle."""

    cpus: float
    gpus: float


@dataclass(frozen=True)
class Placement:
    """A placement group and who stands where in it.

    Attributes:
        bundles: resources of each bundle, none of them empty.
        rollout, learner: bundle of each rollout replica and of each learner worker.
        shares: what one actor of each kind holds.
    """

    bundles: tuple[dict[str, float], ...]
    rollout: tuple[int, ...]
    learner: tuple[int, ...]
    shares: Mapping[Kind, ActorShare]
    strategy: Literal["PACK"] = "PACK"

    def total(self, resource: str) -> float:
        """What all bundles hold together."""
        return sum(bundle.get(resource, 0.0) for bundle in self.bundles)


def plan(config: OnlineDpoConfig) -> Placement:
    """The placement that a configuration asks for.

    Raises:
        UserError: actors that hold nothing, a number of GPUs that Ray can't give, or that the mode can't share.
    """
    rollout, learner = config.rollout, config.learner
    _check_gpus(config)
    shares: dict[Kind, ActorShare] = {
        "rollout": ActorShare(rollout.num_cpus, rollout.num_gpus),
        "learner": ActorShare(learner.num_cpus, learner.num_gpus),
    }
    if config.placement.mode == "separate":
        counts: dict[Kind, int] = {"rollout": rollout.replicas, "learner": learner.workers}
        bundles = tuple(
            _bundle(share.cpus, share.gpus, kind) for kind, share in shares.items() for _ in range(counts[kind])
        )
        places = tuple(range(len(bundles)))
        return Placement(bundles, places[: rollout.replicas], places[rollout.replicas :], shares)
    gpus = max(rollout.num_gpus, learner.num_gpus)
    couples = tuple(range(rollout.replicas))
    bundle = _bundle(rollout.num_cpus + learner.num_cpus, gpus, "rollout")
    halves: dict[Kind, ActorShare] = {kind: ActorShare(share.cpus, gpus / 2) for kind, share in shares.items()}
    return Placement(tuple(dict(bundle) for _ in couples), couples, couples, halves)


def _check_gpus(config: OnlineDpoConfig) -> None:
    held = {"rollout": config.rollout.num_gpus, "learner": config.learner.num_gpus}
    parallel = config.rollout.engine.tensor_parallel
    for kind, gpus in held.items():
        if gpus > 1 and gpus != int(gpus):
            raise UserError(f"{gpus:g} GPUs: Ray gives a part of one or whole ones", flag=f"--{kind}.num-gpus")
    if config.placement.mode == "separate":
        if 0 < held["rollout"] < parallel:
            raise UserError(
                f"tensor parallel {parallel} needs {parallel} GPUs an engine, and it holds {held['rollout']:g}",
                flag="--rollout.num-gpus",
            )
        return
    if parallel > 1:
        raise UserError(
            f"colocated actors share one GPU, and tensor parallel is {parallel}: Ray gives two actors no part of several GPUs",
            flag="--rollout.engine.tensor-parallel",
            hint="set it to 1, or placement.mode to separate",
        )
    for kind, gpus in held.items():
        if gpus > 1:
            raise UserError(
                f"colocated actors share one GPU, not {gpus:g}", flag=f"--{kind}.num-gpus", hint="lower it to 1"
            )
    if (held["rollout"] > 0) != (held["learner"] > 0):
        without = "learner" if held["rollout"] else "rollout"
        raise UserError(
            f"colocated actors share a GPU, and {without}.num_gpus is 0",
            flag=f"--{without}.num-gpus",
            hint="give both one, or none",
        )


def _bundle(cpus: float, gpus: float, kind: Kind) -> dict[str, float]:
    bundle = {name: amount for name, amount in (("CPU", cpus), ("GPU", gpus)) if amount > 0}
    if not bundle:
        raise UserError(f"a {kind} actor holds nothing, and Ray reserves no empty bundle", flag=f"--{kind}.num-cpus")
    return bundle


def actor_options(placement: Placement, group: PlacementGroup, kind: Kind, index: int) -> dict[str, Any]:
    """Options of the Ray actor that is rollout replica or learner worker `index`."""
    bundle = (placement.rollout if kind == "rollout" else placement.learner)[index]
    share = placement.shares[kind]
    return {
        "num_cpus": share.cpus,
        "num_gpus": share.gpus,
        "scheduling_strategy": PlacementGroupSchedulingStrategy(
            placement_group=group, placement_group_bundle_index=bundle
        ),
    }


@contextmanager
def reserve(placement: Placement, *, timeout_s: float) -> Iterator[PlacementGroup]:
    """Hold what a placement needs; actors that still stand in it at the end are stopped with it.

    Args:
        timeout_s: longest wait for resources that others hold or an autoscaler has yet to bring, in seconds.

    Raises:
        ResourceError: the cluster can't hold it (at once, if Ray tells so much), or didn't within `timeout_s`.
    """
    total = ray.cluster_resources()
    growth = current_growth(total)
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    never = impossible(placement, growth, nodes)
    if never is not None:
        raise never
    group = placement_group([dict(bundle) for bundle in placement.bundles], strategy=placement.strategy)
    try:
        if not group.wait(math.ceil(timeout_s)):
            raise shortage(
                placement,
                ray.cluster_resources(),
                ray.available_resources(),
                waited_s=timeout_s,
                autoscaler=growth.autoscaler,
            )
        yield group
    finally:
        remove_placement_group(group)


def impossible(placement: Placement, growth: Growth, nodes: Sequence[Mapping[str, float]] = ()) -> ResourceError | None:
    """Why a cluster can never hold a placement, as far as is known: too little of it all, or no node for one bundle.

    Args:
        nodes: resources of each node; they count only where no autoscaler may bring other ones.
    """
    if growth.most is None:
        return None
    for resource in _RESOURCES:
        if placement.total(resource) > growth.most.get(resource, 0.0) + _STEP / 2:
            has = "can grow to" if growth.autoscaler else "has"
            return _error(placement, resource, f"the cluster {has} {growth.most.get(resource, 0.0):g} {resource}s")
    if growth.autoscaler:
        return None
    for bundle in placement.bundles:
        if not any(all(node.get(k, 0.0) + _STEP / 2 >= v for k, v in bundle.items()) for node in nodes):
            resource = "GPU" if "GPU" in bundle else "CPU"
            return _error(placement, resource, f"no node of the cluster has {_show(bundle)} for one of them")
    return None


def shortage(
    placement: Placement,
    total: Mapping[str, float],
    free: Mapping[str, float],
    *,
    waited_s: float,
    autoscaler: bool | None,
) -> ResourceError:
    """What to say after waiting in vain.

    Args:
        total, free: what the cluster has, and how much of it nobody holds.
        waited_s: in seconds.
        autoscaler: see `Growth`.
    """
    short = [r for r in _RESOURCES if placement.total(r) > free.get(r, 0.0) + _STEP / 2]
    amounts = ", ".join(f"{total.get(r, 0.0):g} {r}s, {free.get(r, 0.0):g} of them free" for r in _RESOURCES)
    scaler = {
        True: "; its autoscaler did not bring enough in time",
        False: "; it has no autoscaler",
        None: "",
    }[autoscaler]
    # With enough of everything free it is spread over nodes, none of which has room for a whole bundle.
    spread = "" if short else "; no node has room for a whole bundle"
    resource = short[0] if short else ("GPU" if placement.total("GPU") else "CPU")
    return _error(placement, resource, f"after {waited_s:g} s the cluster has {amounts}{scaler}{spread}", waited=True)


def _error(placement: Placement, resource: str, fact: str, *, waited: bool = False) -> ResourceError:
    counts: dict[Kind, int] = {"rollout": len(placement.rollout), "learner": len(placement.learner)}
    held: dict[Kind, float] = {
        kind: counts[kind] * (share.gpus if resource == "GPU" else share.cpus)
        for kind, share in placement.shares.items()
    }
    largest = max(held, key=lambda kind: held[kind])
    ways = ["lower " + {"rollout": "--rollout.replicas", "learner": "--learner.workers"}[largest]]
    ways = [*(ways if counts[largest] > 1 else []), *(["raise --placement.timeout-s"] if waited else [])]
    needs = " and ".join(f"{placement.total(r):g} {r}s" for r in _RESOURCES if placement.total(r))
    return ResourceError(
        f"the actors need {needs} in {len(placement.bundles)} bundles ({_groups(placement)}), and {fact}",
        flag=f"--{largest}.{_FLAGS[resource]}",
        hint=", ".join([*ways, "or lower"]) if ways else "lower",
    )


def _groups(placement: Placement) -> str:
    shown = [_show(bundle) for bundle in placement.bundles]
    return ", ".join(f"{shown.count(text)} of {text}" for text in dict.fromkeys(shown))


def _show(bundle: Mapping[str, float]) -> str:
    return " + ".join(f"{bundle[r]:g} {r}" for r in _RESOURCES if r in bundle)
