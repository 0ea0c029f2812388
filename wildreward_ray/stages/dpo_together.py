"""Calls of learner workers and rollout actors that wait for each other: heard together, with a limit, and late sides named."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any

from ray.exceptions import RayActorError

from wildreward_ray.core.errors import UserError, WildRewardError

# Beyond what vLLM waits for the members of a nccl group (300 s), and what a transfer takes.
TIMEOUT_S = 600.0


def worker(rank: int) -> str:
    """What a learner worker is called in errors."""
    return f"learner worker {rank}"


def actor_name(replica: int) -> str:
    """What a rollout actor is called in errors."""
    return f"rollout actor {replica}"


def by_worker(references: Sequence[Any]) -> dict[str, Any]:
    """One reference a learner worker by the workers' names."""
    return {worker(rank): reference for rank, reference in enumerate(references)}


async def through(calls: Mapping[str, Awaitable[Any]]) -> dict[str, Any]:
    """What several sides give, by their names.

    Args:
        calls: started already, all of them: a side may be waiting for the others.

    Raises:
        UserError: some were not through after `TIMEOUT_S` seconds.
        WildRewardError: a side was lost. What another one raises comes as it is, without waiting for the rest.
    """
    tasks = {side: asyncio.ensure_future(_heard(side, call)) for side, call in calls.items()}
    try:
        done, _ = await asyncio.wait(tasks.values(), timeout=TIMEOUT_S, return_when=asyncio.FIRST_EXCEPTION)
        errors = [error for task in tasks.values() if task in done and (error := task.exception()) is not None]
        if errors:
            raise errors[0]
        late = [side for side, task in tasks.items() if task not in done]
        if late:
            raise _late(late)
        return {side: task.result() for side, task in tasks.items()}
    finally:
        for task in tasks.values():
            task.cancel()


async def in_time(replica: int, call: Awaitable[Any]) -> Any:
    """What a rollout actor gives. A lost one is the caller's to replace.

    Raises:
        UserError: it was not through after `TIMEOUT_S` seconds.
    """
    try:
        return await asyncio.wait_for(call, TIMEOUT_S)
    except TimeoutError as e:
        raise _late([actor_name(replica)]) from e


async def _heard(side: str, call: Awaitable[Any]) -> Any:
    try:
        return await call
    except RayActorError as e:
        reason = " ".join(str(e).split())[:300]
        raise WildRewardError(
            f"{side} was lost while weights were on their way; the same command goes on from the last checkpoint: {reason}"
        ) from e


def _late(sides: Sequence[str]) -> UserError:
    return UserError(
        f"new weights were not through after {TIMEOUT_S:g} s: {', '.join(sides)} did not come to the end",
        flag="--weights",
        hint="look at the network between them, or use reload",
    )
