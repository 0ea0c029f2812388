"""The actors that learn in an online DPO run: workers that hold one policy together and answer as one."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import ray

from wildreward_ray.cluster.storage import Location
from wildreward_ray.core.config.online_dpo import OnlineDpoConfig
from wildreward_ray.policy.pairs import Pair, Sample
from wildreward_ray.stages.dpo_learner_worker import LearnerWorker

LearnerActor = ray.remote(LearnerWorker)


class LearnerGroup:
    """The driver's handle on all workers. A worker that dies fails the call at work, and the group is of no more use.

    Args:
        actors: in order of rank, joined.
    """

    def __init__(self, actors: Sequence[Any]) -> None:
        self._actors = list(actors)
        self._behind: list[Any] = []
        self._calling = threading.Lock()

    @classmethod
    def start(cls, config: OnlineDpoConfig, placement_options: Sequence[dict[str, Any]]) -> LearnerGroup:
        """Start the actors and wait until all have loaded the policy.

        Args:
            placement_options: Ray's options of each actor.

        Raises:
            UserError: see `LearnerWorker.join`.
        """
        size = len(placement_options)
        actors = [LearnerActor.options(**o).remote(config, rank, size) for rank, o in enumerate(placement_options)]
        group = cls(actors)
        try:
            address = ray.get(actors[0].rendezvous.remote())
            group._all("join", address)
        except BaseException:
            group.kill()
            raise
        return group

    def step(
        self, prompt_ids: Sequence[Sequence[int]], pairs: Sequence[Pair], *, beta: float | None = None
    ) -> dict[str, float]:
        """See `Learner.step`."""
        found: dict[str, float] = ray.get(self.step_refs(prompt_ids, pairs, beta=beta))[0]
        return found

    def step_refs(
        self, prompt_ids: Sequence[Sequence[int]], pairs: Sequence[Pair], *, beta: float | None = None
    ) -> list[Any]:
        """References to what `step` gives, one a worker: the step is done when all are there."""
        return self.refs("step", list(prompt_ids), list(pairs), beta)

    def margin(self, prompt_ids: Sequence[Sequence[int]], pairs: Sequence[Pair]) -> float:
        """See `Learner.margin`."""
        return float(self._all("margin", list(prompt_ids), list(pairs)))

    def kl(self, prompt_ids: Sequence[Sequence[int]], samples: Sequence[Sample]) -> float:
        """See `Learner.kl`."""
        return float(self._all("kl", list(prompt_ids), list(samples)))

    def weights_ref(self) -> Any:
        """A reference to the policy's weights by name, as they are after all calls made so far."""
        first, *self._behind = self.refs("weights")
        return first

    def save_checkpoint(self, step: int, place: Location, info: dict[str, Any]) -> None:
        """See `LearnerWorker.save_checkpoint`."""
        self._all("save_checkpoint", step, place, info)

    def wait_checkpoint(self) -> None:
        """See `LearnerWorker.wait_checkpoint`."""
        self._all("wait_checkpoint")

    def load_checkpoint(self, folder: Location) -> dict[str, Any]:
        """See `LearnerWorker.load_checkpoint`."""
        found: dict[str, Any] = self._all("load_checkpoint", folder)
        return found

    def export(self, target: Location) -> None:
        """See `LearnerWorker.export`."""
        self._all("export", target)

    def refs(self, method: str, *args: Any) -> list[Any]:
        """References to what a method of `LearnerWorker` gives, one a worker. All calls run in the order they are made."""
        # One copy in the object store, however many workers read it.
        shared = [ray.put(arg) for arg in args]
        # All workers get all calls in one order, whichever threads they come from: two that differ would wait for each other.
        with self._calling:
            return [getattr(actor, method).remote(*shared) for actor in self._actors]

    def kill(self) -> None:
        """End all actors and what they are doing."""
        for actor in self._actors:
            ray.kill(actor)

    def _all(self, method: str, *args: Any) -> Any:
        """Rank 0's result, once all workers are through; the first error of any of them."""
        return ray.get(self.refs(method, *args))[0]
