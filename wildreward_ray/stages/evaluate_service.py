"""Scoring an evaluation's jobs by a reward service, in whichever protocol it speaks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wildreward_ray.cluster.reward_source import RewardSource
from wildreward_ray.cluster.run_log import say
from wildreward_ray.cluster.telemetry import telemetry_of
from wildreward_ray.core.config.evaluate import EvaluateConfig
from wildreward_ray.core.errors import RewardBrokenError, RewardRefusedError, RewardUnavailableError, UserError
from wildreward_ray.core.template import DEFAULT_TEMPLATE, RewardTemplate
from wildreward_ray.core.wire import Health
from wildreward_ray.stages.evaluate_jobs import Chunk, Failures, Job, Parts

# Chunks in flight at a time: enough that requests never wait for a part to be written.
_CHUNKS_AT_ONCE = 4
_INTERVAL_S = 10.0


def check_service(config: EvaluateConfig) -> Health | None:
    """What the service says of itself, asked before anything is sent; None where its protocol has no words for that.

    Raises:
        UserError: there is no such service, it can't give scores now, or it refuses this client.
    """
    return asyncio.run(_source(config).check())


def score_by_service(config: EvaluateConfig, chunks: Sequence[Chunk], parts: Parts) -> float:
    """Score chunks and write their parts. Returns seconds.

    Raises:
        RewardUnavailableError: the service gave no scores however often it was asked, or none that can be believed. What was
            scored before is kept: the same command goes on.
        WildRewardError: it refused a prompt for good.
    """
    began = time.monotonic()
    asyncio.run(_Run(config, parts).all(chunks))
    return time.monotonic() - began


class _Run:
    def __init__(self, config: EvaluateConfig, parts: Parts) -> None:
        self._config, self._parts = config, parts
        self._failures = Failures({})
        self._room = asyncio.Semaphore(_CHUNKS_AT_ONCE)
        self._scored = 0
        self._telemetry = telemetry_of("evaluate")
        self._began = time.monotonic()

    async def all(self, chunks: Sequence[Chunk]) -> None:
        responses = sum(chunk.responses for chunk in chunks)
        async with _source(self._config) as source:
            talk = asyncio.create_task(self._talk(responses))
            try:
                async with asyncio.TaskGroup() as group:
                    for chunk in chunks:
                        await self._room.acquire()
                        group.create_task(self._chunk(source, chunk))
            except* (RewardUnavailableError, UserError) as e:
                # One failure stops all chunks; the first says why.
                raise _first(e) from None
            finally:
                talk.cancel()
        self._print(responses, final=True)
        self._failures.check(sum(len(chunk.jobs) for chunk in chunks))

    async def _chunk(self, source: RewardSource, chunk: Chunk) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                tasks = {job.id: group.create_task(self._job(source, job)) for job in chunk.jobs}
            scores = {job: task.result() for job, task in tasks.items()}
            whole = {job: values for job, values in scores.items() if values is not None}
            if len(whole) == len(scores):
                await asyncio.to_thread(self._parts.write, chunk.name, whole)
        finally:
            self._room.release()

    async def _job(self, source: RewardSource, job: Job) -> list[float] | None:
        try:
            rewards = await source.score(job.history, job.prompt, job.responses)
        except RewardRefusedError as e:
            self._failures.found[job.id] = str(e)
            self._telemetry.responses(0, len(job.responses))
            return None
        self._scored += len(rewards)
        self._telemetry.responses(len(rewards))
        return [reward.score for reward in rewards]

    async def _talk(self, responses: int) -> None:
        while True:
            await asyncio.sleep(_INTERVAL_S)
            self._print(responses, final=False)

    def _print(self, responses: int, *, final: bool) -> None:
        seconds = time.monotonic() - self._began
        rate = self._scored / seconds if seconds else 0.0
        line = f"{self._scored:,} responses, {rate:.1f}/s, {seconds:.0f} s"
        if not final and rate:
            line += f", about {max(responses - self._scored, 0) / rate:.0f} s left of {responses:,}"
        say(
            "evaluate",
            line + (", done" if final else ""),
            event="done" if final else "progress",
            done=self._scored,
            total=responses,
            unit="responses",
            per_s=rate,
            seconds=seconds,
        )


def _first(group: BaseExceptionGroup[Any]) -> BaseException:
    """The first failure of nested groups, a broken or missing service before what it led to."""
    leaves: list[BaseException] = []
    waiting: list[BaseException] = [group]
    while waiting:
        error = waiting.pop(0)
        if isinstance(error, BaseExceptionGroup):
            waiting += error.exceptions
        else:
            leaves.append(error)
    return next((error for error in leaves if isinstance(error, RewardBrokenError)), leaves[0])


def _source(config: EvaluateConfig) -> RewardSource:
    if config.reward_url is None:
        raise ValueError("no reward service is given")
    return RewardSource(config.reward_url, config.reward, _render(config.template))


def _render(template_file: str | None) -> Any:
    """What makes the one text of the protocols that take no conversation: the given template, or this project's own."""
    text = DEFAULT_TEMPLATE
    if template_file is not None:
        try:
            text = Path(template_file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as e:
            raise UserError(f"can't read {template_file!r}: {e}", flag="--template") from e
    template = RewardTemplate(text)

    def render(history: Sequence[Mapping[str, str]], prompt: str, response: str) -> str:
        return template.render(history, prompt, response)

    return render
