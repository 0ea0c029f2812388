"""`wildreward online-dpo`: prompts and a reward service in, better policy out.

Rollout actors sample replies, the service scores them, the best and the worst of each prompt make a pair, the learner makes a DPO
step on them against the frozen reference, and the new weights go into the rollout engines. A reward that can't be had is never
made up. A run that was cut off, by whatever, goes on from its last checkpoint when the same command is given again.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from wildreward_ray import __version__
from wildreward_ray.cluster.artifact import Artifact, is_done, open_artifact, read_manifest, without
from wildreward_ray.cluster.checkpoints import CheckpointStore
from wildreward_ray.cluster.models import resolve_model
from wildreward_ray.cluster.placement import actor_options, plan, reserve
from wildreward_ray.cluster.reward_source import RewardSource
from wildreward_ray.cluster.session import ray_errors, start_ray
from wildreward_ray.cluster.storage import Location, locate, upload
from wildreward_ray.cluster.tracking import Trackers, open_trackers
from wildreward_ray.cluster.waiting import watching
from wildreward_ray.cluster.weight_transfer import choose_transfer, engine_environment, engine_transfer_arguments
from wildreward_ray.cluster.weights import sleep_arguments
from wildreward_ray.core.config.online_dpo import OPERATIONAL, OnlineDpoConfig
from wildreward_ray.core.errors import UserError
from wildreward_ray.core.manifest import Manifest
from wildreward_ray.core.wire import Health
from wildreward_ray.report.dpo_page import dpo_page
from wildreward_ray.stages.dpo_learner import LearnerGroup
from wildreward_ray.stages.dpo_loop import Loop
from wildreward_ray.stages.dpo_monitor import Monitor
from wildreward_ray.stages.dpo_rollout import RolloutActor, RolloutPool
from wildreward_ray.stages.dpo_run import CHECKPOINTS, EVALS, METRICS, SAMPLES, Run
from wildreward_ray.stages.dpo_scoring import Scorer
from wildreward_ray.stages.dpo_sync import weight_sync
from wildreward_ray.stages.prompts import Prompts, load_prompts
from wildreward_ray.stages.requests import own_service

__all__ = ["EVALS", "METRICS", "SAMPLES", "OnlineDpoResult", "run"]

REPORT, SUMMARY, QUARANTINE = "report.html", "summary.json", "quarantine.jsonl"
_TRACKING = "tracking"


@dataclass(frozen=True)
class OnlineDpoResult:
    """Where the policy stands, a row of metrics a step, and the comparison of before and after."""

    output: str
    steps: list[dict[str, Any]]
    summary: dict[str, Any]
    fresh: bool = True


def run(config: OnlineDpoConfig) -> OnlineDpoResult:
    """Train a policy, or go on with a run of the same settings that was cut off; after one that came to its end nothing is done.

    Raises:
        UserError: no reward service, unusable prompts or policy, a busy port, too small a cluster, or settings that differ
            from those of the run to go on with.
        RewardUnavailableError: the service stopped giving rewards; the run's state is saved.
        RunStoppedError: SIGTERM or SIGINT; the run's state is saved.
    """
    started = time.monotonic()
    settings = config.model_dump(mode="json")
    # A run that has come to its end is not made longer: its optimizer is gone.
    if is_done(config.output, settings, OPERATIONAL - {"steps"}) and not config.overwrite:
        return _made_before(config)
    config = share_cores(config, len(os.sched_getaffinity(0)))
    tokenizer = _tokenizer(config)
    prompts = load_prompts(config, tokenizer)
    state = {"config": without(settings, OPERATIONAL), "prompts": _digest(prompts)}
    with (
        open_artifact(config.output, overwrite=config.overwrite, state=state) as artifact,
        ray_errors(config.output),
        _rewards(config, tokenizer) as (source, second, health),
    ):
        start_ray()
        held_out, train = prompts.usable[: config.eval.prompts], prompts.usable[config.eval.prompts :]
        with _trackers(config, artifact.work) as trackers:
            monitor = Monitor(config, trackers)
            with (
                watching("online-dpo", lambda: len(monitor.rows) + len(monitor.evals)),
                _actors(config) as (pool, learner),
            ):
                scorer = Scorer(source)
                loop = Loop(config, train, pool, learner, scorer)
                second_scorer = Scorer(second) if second is not None else None
                whole = Run(config, artifact, loop, learner, monitor, held_out, second_scorer)
                summary = asyncio.run(_run(whole, [s for s in (source, second) if s is not None]))
        manifest = Manifest.model_validate(
            {
                "kind": "online_dpo",
                "inputs": [config.prompts],
                "config": settings,
                "funnel": [prompts.funnel()],
                "seconds": round(time.monotonic() - started, 1),
                "reward": health.model_dump() if health is not None else {"url": config.reward_url},
                "summary": {k: v for k, v in summary.items() if k != "samples"},
            }
        )
        _write_records(artifact, prompts, summary, monitor, manifest)
        parts = ["policy", METRICS, EVALS, SAMPLES, SUMMARY, REPORT, QUARANTINE]
        artifact.commit(manifest, [*parts, *(n for n in (_TRACKING,) if n in artifact.work.names())])
    return OnlineDpoResult(config.output, monitor.rows, summary)


def share_cores(config: OnlineDpoConfig, cores: int) -> OnlineDpoConfig:
    """Give engines and learners half of a machine's cores each where they would compute on all of them at the same time.

    Threads that wait for one another at every layer lose several times what they share. Settings that are given stay.
    """
    if not config.staleness or config.rollout.num_gpus or config.learner.num_gpus:
        return config
    half = max(1, cores // 2)
    engine = config.rollout.engine
    engine = engine.model_copy(update={"cpu_threads": engine.cpu_threads or max(1, half // config.rollout.replicas)})
    learner = {"cpu_threads": config.learner.cpu_threads or max(1, half // config.learner.workers)}
    return config.model_copy(
        update={
            "rollout": config.rollout.model_copy(update={"engine": engine}),
            "learner": config.learner.model_copy(update=learner),
        }
    )


async def _run(whole: Run, sources: list[RewardSource]) -> dict[str, Any]:
    """The run, in the event loop that its connections belong to."""
    async with contextlib.AsyncExitStack() as stack:
        for source in sources:
            await stack.enter_async_context(source)
        return await whole.main()


def _made_before(config: OnlineDpoConfig) -> OnlineDpoResult:
    """The run that stands at the output already."""
    read_manifest(config.output, kind="online_dpo", flag="--output")
    place = locate(config.output)
    steps = [json.loads(line) for line in place.child(METRICS).read_bytes().splitlines()]
    return OnlineDpoResult(config.output, steps, json.loads(place.child(SUMMARY).read_bytes()), fresh=False)


@contextlib.contextmanager
def _rewards(
    config: OnlineDpoConfig, tokenizer: Any
) -> Iterator[tuple[RewardSource, RewardSource | None, Health | None]]:
    """The running service, or one started for the length of the run; asked before any engine loads. And the second one."""

    def render(history: Any, prompt: str, response: str) -> str:
        messages = [*history, {"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
        return str(tokenizer.apply_chat_template(messages, tokenize=False))

    with contextlib.ExitStack() as stack:
        url = config.reward_url
        if url is None:
            from wildreward_ray.stages.serve import free_port, service

            url = stack.enter_context(service(own_service(config, free_port())))
        source = RewardSource(url, config.reward, render)
        health = asyncio.run(source.check())
        second = None
        if config.eval.second_reward_url is not None:
            # The first service's token is not for the second one's eyes.
            own = {"protocol": "native", "path": None, "token_env": config.eval.second_token_env}
            section = config.reward.model_copy(update=own)
            second = RewardSource(config.eval.second_reward_url, section, render, flag="--eval.second-reward-url")
            asyncio.run(second.check())
        yield source, second, health


@contextlib.contextmanager
def _actors(config: OnlineDpoConfig) -> Iterator[tuple[RolloutPool, LearnerGroup]]:
    """All actors, placed, and the way that weights go between them; the actors are gone when the context ends."""
    placement = plan(config)
    colocated = config.placement.mode == "colocated"
    transfer = choose_transfer(
        config.weights,
        colocated=colocated,
        rollout_gpus=config.rollout.num_gpus,
        learner_gpus=config.learner.num_gpus,
    )
    engine = engine_transfer_arguments(transfer)
    if colocated:
        engine |= sleep_arguments(on_gpu=config.rollout.num_gpus > 0)
    environment = {"env_vars": engine_environment(transfer)}
    with reserve(placement, timeout_s=config.placement.timeout_s) as group, contextlib.ExitStack() as stack:

        def start(replica: int) -> Any:
            options = actor_options(placement, group, "rollout", replica)
            options |= {"runtime_env": environment} if environment["env_vars"] else {}
            return RolloutActor.options(**options).remote(config.policy, config.rollout, config.seed, engine)  # type: ignore[attr-defined]

        def start_pool() -> RolloutPool:
            pool = RolloutPool(start, config.rollout.replicas, max_restarts=config.rollout.max_restarts)
            stack.callback(pool.kill)
            return pool

        # An engine measures what is free on its GPU while it starts, so a learner that shares it has to stand there before.
        # Elsewhere both load the policy at the same time.
        pool = None if colocated else start_pool()
        options = [actor_options(placement, group, "learner", rank) for rank in range(config.learner.workers)]
        learner = LearnerGroup.start(config, options)
        stack.callback(learner.kill)
        pool = pool or start_pool()
        pool.sync = weight_sync(transfer, colocated=colocated, pool=pool, learner=learner)
        yield pool, learner


@contextlib.contextmanager
def _trackers(config: OnlineDpoConfig, work: Location) -> Iterator[Trackers]:
    """Trackers in a local directory, which goes to the output when the run ends, however it ends."""
    behind = CheckpointStore(work.child(CHECKPOINTS)).steps()
    with tempfile.TemporaryDirectory(prefix="wildreward-tracking-") as scratch:
        folder = Path(work.child(_TRACKING).path) if work.is_local else Path(scratch)
        trackers = open_trackers(
            config.tracking.kinds,
            experiment=config.tracking.experiment,
            run=Path(config.output).name,
            folder=folder,
            settings=config.model_dump(mode="json"),
            # Steps after the last checkpoint are done again.
            first_step=behind[-1] + 1 if behind else 1,
        )
        failed = True
        try:
            yield trackers
            failed = False
        finally:
            trackers.close({}, failed=failed)
            if not work.is_local and any(folder.iterdir()):
                upload(folder, work.child(_TRACKING))


def _write_records(
    artifact: Artifact, prompts: Prompts, summary: dict[str, Any], monitor: Monitor, manifest: Manifest
) -> None:
    """What the run leaves beside the policy; metrics and evaluations stand there already."""
    rows = [json.dumps(row, ensure_ascii=False) + "\n" for row in summary["samples"]]
    artifact.work.child(SAMPLES).write_bytes("".join(rows).encode())
    artifact.work.child(QUARANTINE).write_bytes(
        "".join(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in prompts.quarantine).encode()
    )
    artifact.work.child(SUMMARY).write_bytes((json.dumps(summary, ensure_ascii=False, indent=2) + "\n").encode())
    page = dpo_page(
        {
            "summary": summary,
            "steps": monitor.rows,
            "evals": monitor.evals,
            "samples": summary["samples"],
            "config": manifest.config,
            "manifest": {**manifest.model_dump(mode="json"), "version": __version__},
        }
    )
    artifact.work.child(REPORT).write_bytes(page.encode())


def _digest(prompts: Prompts) -> str:
    """Names the prompts and their order: a run goes on with those it began with."""
    digest = hashlib.blake2b(digest_size=8)
    for prompt in prompts.usable:
        digest.update(json.dumps(prompt.token_ids).encode())
    return digest.hexdigest()


def _tokenizer(config: OnlineDpoConfig) -> Any:
    from transformers import AutoTokenizer

    path = resolve_model(config.policy, flag="--policy")
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=config.trust_remote_code)
    except (OSError, ValueError) as e:
        raise UserError(
            f"can't load the policy {config.policy!r}: {' '.join(str(e).split())[:300]}", flag="--policy"
        ) from e
    if tokenizer.chat_template is None:
        raise UserError(f"the tokenizer of {config.policy!r} has no chat template", flag="--policy")
    return tokenizer
