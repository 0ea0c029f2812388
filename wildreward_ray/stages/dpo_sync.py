"""How new weights come from the learner to the rollout engines, and whose turn it is where both share a GPU.

reload: weights go through the object store. They are copied out of the learner right after a step, so engines load them while
the next step runs.
nccl: the learner broadcasts its own tensors. It has to be between steps while it does: an update waits for a transfer that has
begun and a transfer for an update at work, which costs some of the overlap that staleness of 1 or more is there for.
colocated, with ipc or reload: engines sleep while the learner works, and have no weights until new ones come.

Weights are of `newest` updates, and engines sample with those of `given` updates. Versions count updates, not steps: a step
without pairs makes none.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any, Protocol

from wildreward_ray.cluster.weight_transfer import Transfer
from wildreward_ray.stages.dpo_learner import LearnerGroup
from wildreward_ray.stages.dpo_rollout import RolloutPool
from wildreward_ray.stages.dpo_together import actor_name, by_worker, in_time, through, worker


class WeightSync(Protocol):
    """Keeps the engines at the learner's weights; used from one event loop.

    Attributes:
        newest: updates behind the learner's weights. Whoever loads a checkpoint sets it.
        given: updates behind the weights that the next samples are drawn with.
    """

    newest: int
    given: int

    @property
    def due(self) -> bool:
        """The engines do not have the newest weights."""
        ...

    def learning(self) -> AbstractAsyncContextManager[None]:
        """The learner computes while the context is open."""
        ...

    def learnt(self) -> None:
        """An update is made. It is told before another one can begin."""
        ...

    async def give(self) -> None:
        """Give all engines the newest weights, also where they have them: their caches begin anew.

        Raises:
            UserError: weights were not through in time.
            WildRewardError: a side was lost on the way, or more rollout actors than may be replaced.
        """
        ...

    async def replaced(self, replica: int) -> None:
        """Bring an actor that was started again to the weights in use. Raises what `give` raises."""
        ...


def weight_sync(transfer: Transfer, *, colocated: bool, pool: RolloutPool, learner: LearnerGroup) -> WeightSync:
    """The way of weights that a placement allows (`choose_transfer`)."""
    if transfer == "nccl":
        return Nccl(pool, learner)
    if transfer == "ipc":
        return ColocatedIpc(pool, learner)
    return ColocatedReload(pool, learner) if colocated else Reload(pool, learner)


class Reload:
    """Through the object store, while the learner goes on."""

    def __init__(self, pool: RolloutPool, learner: LearnerGroup) -> None:
        self._pool, self._learner = pool, learner
        self.newest, self.given = 0, 0
        self._weights: Any = None
        self._in_use: Any = None

    @property
    def due(self) -> bool:
        """See `WeightSync`."""
        return self.given != self.newest

    @asynccontextmanager
    async def learning(self) -> AsyncIterator[None]:
        """See `WeightSync`. Nothing has to wait."""
        yield

    def learnt(self) -> None:
        """See `WeightSync`. The weights are asked for here: the next update can't overtake that."""
        self.newest += 1
        self._weights = self._learner.weights_ref()

    async def give(self) -> None:
        """See `WeightSync`. Before the first update engines have what they loaded."""
        if not self.newest:
            return
        if self._weights is None:
            self._weights = self._learner.weights_ref()
        self._in_use, self.given = self._weights, self.newest
        await self._pool.call_all(self._load())

    async def replaced(self, replica: int) -> None:
        """See `WeightSync`. It gets what the others have, not what is newest."""
        if self._in_use is not None:
            await self._pool.call(replica, self._load())

    def _load(self) -> Callable[[Any], Awaitable[Any]]:
        weights, version = self._in_use, self.given
        return lambda actor: actor.load.remote(weights, version)


class Nccl:
    """By broadcast from learner worker 0 to all engines, while the learner is between steps.

    The group of sender and engines dies with any of its members. An actor that is lost between transfers is replaced and a
    new group made, with the newest weights for all engines, once the others have sampled what they were asked for; what is
    sampled again still counts for the version its batch began with. One that is lost during a transfer leaves the others
    waiting in the broadcast for good, so it ends the run.
    """

    def __init__(self, pool: RolloutPool, learner: LearnerGroup) -> None:
        self._pool, self._learner = pool, learner
        self.newest, self.given = 0, 0
        self._members: list[Any] = []
        self._between_steps = asyncio.Lock()

    @property
    def due(self) -> bool:
        """See `WeightSync`."""
        return self.given != self.newest

    @asynccontextmanager
    async def learning(self) -> AsyncIterator[None]:
        """See `WeightSync`. It waits until a transfer at work is done."""
        async with self._between_steps:
            yield

    def learnt(self) -> None:
        """See `WeightSync`."""
        self.newest += 1

    async def give(self) -> None:
        """See `WeightSync`. It waits until an update at work is made, which is part of what is given then."""
        if self.newest:
            async with self._between_steps:
                await self._transfer()

    async def replaced(self, replica: int) -> None:
        """See `WeightSync`. The other engines get the newest weights too, when they have sampled what they were asked for."""
        if not self.given:
            return
        async with self._between_steps:
            # Another loss at the same time may have brought them already.
            if self._pool.actors[replica] is not self._members[replica]:
                await self._transfer()

    async def _transfer(self) -> None:
        # No engine is at work after this, and none is missing.
        await self._pool.call_all(_ready)
        actors, version = list(self._pool.actors), self.newest
        if actors != self._members:
            await self._open(actors)
        info = (await through(by_worker(self._learner.refs("announce"))))[worker(0)]
        sends = by_worker(self._learner.refs("send"))
        await through(sends | {actor_name(r): actor.receive.remote(info, version) for r, actor in enumerate(actors)})
        await through(by_worker(self._learner.refs("release")))
        self.given = version

    async def _open(self, actors: list[Any]) -> None:
        infos = (await through(by_worker(self._learner.refs("prepare_sender", "nccl"))))[worker(0)]
        opens = by_worker(self._learner.refs("open_sender"))
        await through(opens | {actor_name(r): a.open_transfer.remote(infos[r]) for r, a in enumerate(actors)})
        self._members = actors


class _Colocated(ABC):
    """Engines and learner workers take turns on the devices they share; staleness is 0, so a turn never has to be waited for.

    Engines that sleep have no weights. They get some with every `give`, whether the learner made an update or not.
    """

    def __init__(self, pool: RolloutPool, learner: LearnerGroup) -> None:
        self._pool, self._learner = pool, learner
        self.newest, self.given = 0, 0
        self._asleep = False
        self._handing_over = asyncio.Lock()

    @property
    def due(self) -> bool:
        """See `WeightSync`."""
        return self._asleep or self.given != self.newest

    @asynccontextmanager
    async def learning(self) -> AsyncIterator[None]:
        """See `WeightSync`. The engines fall asleep before, and stay so until `give`."""
        await self._rest()
        yield

    def learnt(self) -> None:
        """See `WeightSync`."""
        self.newest += 1

    async def give(self) -> None:
        """See `WeightSync`. Before the first update and the first sleep engines have what they loaded."""
        if not self.newest and not self._asleep:
            return
        await self._rest()
        async with self._handing_over:
            await self._wake(range(len(self._pool.actors)))
        self._asleep, self.given = False, self.newest

    async def replaced(self, replica: int) -> None:
        """See `WeightSync`. The learner is idle while engines sample, so its weights are those in use."""
        if self.given:
            async with self._handing_over:
                await self._wake([replica])

    async def _rest(self) -> None:
        if not self._asleep:
            # Before any of them is: if this fails half way, they all need weights again.
            self._asleep = True
            await self._pool.call_all(lambda actor: actor.sleep.remote())

    @abstractmethod
    async def _wake(self, replicas: Sequence[int]) -> None:
        """Wake some engines, with the newest weights."""

    async def _make_room(self) -> None:
        await through(by_worker(self._learner.refs("make_room")))


class ColocatedReload(_Colocated):
    """Through the object store, into engines that take turns with the learner."""

    async def _wake(self, replicas: Sequence[int]) -> None:
        weights, version = self._learner.weights_ref(), self.newest
        await self._make_room()

        async def wake(replica: int, actor: Any) -> None:
            # One that was started just now is awake.
            await actor.sleep.remote()
            await in_time(replica, actor.wake_and_load.remote(weights, version))

        await asyncio.gather(*(self._pool.call(r, partial(wake, r)) for r in replicas))


class ColocatedIpc(_Colocated):
    """Each engine reads the tensors of the learner worker on its GPU where they are."""

    def __init__(self, pool: RolloutPool, learner: LearnerGroup) -> None:
        super().__init__(pool, learner)
        self._infos: list[dict[str, Any]] = []

    async def _wake(self, replicas: Sequence[int]) -> None:
        if not self._infos:
            self._infos = (await through(by_worker(self._learner.refs("prepare_sender", "ipc"))))[worker(0)]
            await through(by_worker(self._learner.refs("open_sender")))
        await self._make_room()
        announced, version = await through(by_worker(self._learner.refs("announce"))), self.newest

        async def wake(replica: int, actor: Any) -> None:
            # One that was started just now is awake and knows of no transfer; to the others this is nothing new.
            await in_time(replica, actor.open_transfer.remote(self._infos[replica]))
            await actor.sleep.remote()
            await in_time(replica, actor.wake_and_receive.remote(announced[worker(replica)], version))

        await asyncio.gather(*(self._pool.call(r, partial(wake, r)) for r in replicas))
        await through(by_worker(self._learner.refs("release")))


async def _ready(actor: Any) -> None:
    await actor.__ray_ready__.remote()
