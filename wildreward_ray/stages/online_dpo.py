"""`wildreward online-dpo`: prompts and a reward service in, better policy out.

Each step samples replies with the newest weights, asks the service for their rewards, pairs best with worst, makes one DPO
step against the frozen reference, and puts the new weights into the rollout engine. A prompt whose replies could not all be scored ends the
run: a reward is never made up.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray

from wildreward_ray.cluster.artifact import Artifact, open_artifact
from wildreward_ray.cluster.models import resolve_model
from wildreward_ray.cluster.reward_client import RewardClient
from wildreward_ray.cluster.session import ActorRequest, check_resources, ray_errors, start_ray
from wildreward_ray.core.config.online_dpo import OnlineDpoConfig
from wildreward_ray.core.config.serve import ServeConfig
from wildreward_ray.core.errors import UserError
from wildreward_ray.core.manifest import FunnelStep, Manifest
from wildreward_ray.core.wire import Health
from wildreward_ray.policy.pairs import Pair, Sample, build_pairs, rollout_spread
from wildreward_ray.stages.dpo_actors import LearnerActor, RolloutActor
from wildreward_ray.stages.prompts import Prompt, load_prompts

METRICS, SAMPLES, SUMMARY = "metrics.jsonl", "samples.jsonl", "summary.json"
_EVAL_SEED = 1_000_003


@dataclass(frozen=True)
class OnlineDpoResult:
    """Where the policy stands, a row of metrics a step, and the comparison of before and after."""

    output: str
    steps: list[dict[str, Any]]
    summary: dict[str, Any]


@dataclass
class _Run:
    """The parts of a run."""

    config: OnlineDpoConfig
    client: RewardClient
    rollout: Any
    learner: Any
    train: list[Prompt]
    held_out: list[Prompt]
    first_pairs: list[Pair] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)


def run(config: OnlineDpoConfig) -> OnlineDpoResult:
    """Train a policy.

    Raises:
        UserError: no reward service, unusable prompts or policy, a busy port, too small a cluster.
        RewardUnavailableError: the service stopped giving rewards; nothing looks whole then.
    """
    started = time.monotonic()
    tokenizer = _tokenizer(config)
    prompts, skipped = load_prompts(config, tokenizer)
    with (
        open_artifact(config.output, overwrite=config.overwrite) as artifact,
        ray_errors(config.output),
        _reward(config) as (client, health),
    ):
        start_ray()
        check_resources(
            [
                ActorRequest("rollout", 1, config.rollout.num_cpus, config.rollout.num_gpus, "--rollout.num-cpus"),
                ActorRequest("learner", 1, config.learner.num_cpus, config.learner.num_gpus, "--learner.num-cpus"),
            ],
            task_cpus=0.0,
        )
        parts = _start(config, client, prompts)
        before = _evaluate(parts)
        for step in range(1, config.steps + 1):
            parts.rows.append(_step(parts, step))
            _write_lines(artifact, METRICS, parts.rows)
        summary = _finish(parts, artifact, before)
        manifest = Manifest.model_validate(
            {
                "kind": "online_dpo",
                "inputs": [config.prompts],
                "config": config.model_dump(mode="json"),
                "funnel": [_prompt_funnel(len(prompts), dict(skipped))],
                "seconds": round(time.monotonic() - started, 1),
                "reward": health.model_dump(),
                "summary": {k: v for k, v in summary.items() if k != "samples"},
            }
        )
        artifact.commit(manifest, ["policy", METRICS, SAMPLES, SUMMARY])
    return OnlineDpoResult(config.output, parts.rows, summary)


def _start(config: OnlineDpoConfig, client: RewardClient, prompts: list[Prompt]) -> _Run:
    """Start both actors and wait until both have loaded the policy."""
    held_out, train = prompts[: config.eval_prompts], prompts[config.eval_prompts :]
    rollout = RolloutActor.options(num_cpus=config.rollout.num_cpus, num_gpus=config.rollout.num_gpus).remote(  # type: ignore[attr-defined]
        config.policy, config.rollout, config.seed
    )
    learner = LearnerActor.options(num_cpus=config.learner.num_cpus, num_gpus=config.learner.num_gpus).remote(config)  # type: ignore[attr-defined]
    ray.get([rollout.__ray_ready__.remote(), learner.__ray_ready__.remote()])
    return _Run(config, client, rollout, learner, train, held_out)


def _step(parts: _Run, step: int) -> dict[str, Any]:
    config = parts.config
    prompts = _batch(parts.train, step, config.prompts_per_step)
    ids = [p.token_ids for p in prompts]
    rollout = ray.get(parts.rollout.sample.remote(ids, config.rollout.samples, step))
    scoring = time.monotonic()
    rewards = _score(parts.client, prompts, rollout["samples"])
    scoring = time.monotonic() - scoring
    groups = list(zip(range(len(prompts)), rollout["samples"], rewards, strict=True))
    pairs, skipped = build_pairs(groups, min_margin=config.pairs.min_margin, require_eos=config.pairs.require_eos)
    learned: dict[str, Any] = dict.fromkeys(
        ("dpo_loss", "dpo_margin", "dpo_margin_after", "dpo_accuracy", "kl", "grad_norm")
    )
    learn_s = sync_s = 0.0
    tokens = 0.0
    if pairs:
        learned = ray.get(parts.learner.step.remote([ids[p.prompt_index] for p in pairs], pairs))
        learn_s, tokens = learned.pop("seconds"), learned.pop("tokens")
        sync = time.monotonic()
        ray.get(parts.rollout.load.remote(parts.learner.weights.remote(), step))
        sync_s = time.monotonic() - sync
        if not parts.first_pairs:
            parts.first_pairs = [_rekeyed(p, prompts, parts.train) for p in pairs]
    spread = rollout_spread(groups)
    row = {
        "step": step,
        "policy_version": rollout["version"],
        "reward_mean": spread["reward_mean"],
        "reward_std": spread["reward_std_within"],
        "reward_range": spread["reward_range"],
        "response_length": spread["response_tokens"],
        "finished_share": spread["finished_share"],
        "pairs": len(pairs),
        "skipped": dict(skipped),
        "margin": statistics.fmean(p.chosen_reward - p.rejected_reward for p in pairs) if pairs else None,
        **learned,
        "rollout_tokens_per_s": round(rollout["tokens"] / rollout["seconds"], 1),
        "learn_tokens_per_s": round(tokens / learn_s, 1) if learn_s else None,
        "seconds": {"rollout": rollout["seconds"], "score": scoring, "learn": learn_s, "sync": sync_s},
    }
    _print_step(row, config.steps)
    return row


def _score(client: RewardClient, prompts: Sequence[Prompt], samples: Sequence[Sequence[Sample]]) -> list[list[float]]:
    """Rewards of all samples; one request a prompt, so that an engine sees replies to one prompt together."""
    requests = [
        [{"history": list(p.history), "prompt": p.prompt, "response": s.text} for s in group]
        for p, group in zip(prompts, samples, strict=True)
    ]
    return [[s.score for s in scores] for scores in client.score_groups(requests)]


def _evaluate(parts: _Run) -> list[dict[str, Any]]:
    """Replies to the held-out prompts and their rewards, with the same sampling seeds on every call."""
    if not parts.held_out:
        return []
    samples = parts.config.rollout.samples
    rollout = ray.get(parts.rollout.sample.remote([p.token_ids for p in parts.held_out], samples, _EVAL_SEED))
    rewards = _score(parts.client, parts.held_out, rollout["samples"])
    return [
        {
            "prompt": p.prompt,
            "replies": [s.text for s in group],
            "rewards": scores,
            "lengths": [len(s.token_ids) for s in group],
        }
        for p, group, scores in zip(parts.held_out, rollout["samples"], rewards, strict=True)
    ]


def _finish(parts: _Run, artifact: Artifact, before: list[dict[str, Any]]) -> dict[str, Any]:
    """Compare before and after, export the policy, write the records."""
    after = _evaluate(parts)
    margin = None
    if parts.first_pairs:
        ids = [parts.train[p.prompt_index].token_ids for p in parts.first_pairs]
        margin = ray.get(parts.learner.margin.remote(ids, parts.first_pairs))
    samples = [
        {
            "prompt": b["prompt"],
            "before": b["replies"][0],
            "after": a["replies"][0],
            "reward_before": b["rewards"][0],
            "reward_after": a["rewards"][0],
        }
        for b, a in zip(before, after, strict=True)
    ]
    summary = {
        "policy": parts.config.policy,
        # Policy and reference are the same model before the first step, so the gap starts at exactly 0.
        "first_pairs": {"margin_before": 0.0, "margin_after": margin} if margin is not None else None,
        "eval": _compare(before, after),
        "samples": samples,
    }
    ray.get(parts.learner.save.remote(artifact.work.child("policy")))
    _write_lines(artifact, SAMPLES, samples)
    artifact.work.child(SUMMARY).write_bytes((json.dumps(summary, ensure_ascii=False, indent=2) + "\n").encode())
    return summary


def _compare(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> dict[str, Any] | None:
    if not before:
        return None

    def flat(rows: list[dict[str, Any]], name: str) -> list[float]:
        return [value for row in rows for value in row[name]]

    old, new = flat(before, "rewards"), flat(after, "rewards")
    wins = sum((n > o) + 0.5 * (n == o) for o, n in zip(old, new, strict=True))
    return {
        "prompts": len(before),
        "replies": len(old),
        "reward_before": statistics.fmean(old),
        "reward_after": statistics.fmean(new),
        "length_before": statistics.fmean(flat(before, "lengths")),
        "length_after": statistics.fmean(flat(after, "lengths")),
        "win_rate": wins / len(old),
    }


@contextlib.contextmanager
def _reward(config: OnlineDpoConfig) -> Iterator[tuple[RewardClient, Health]]:
    """The running service, or one started for the length of the run; asked before any engine loads."""
    with contextlib.ExitStack() as stack:
        url = config.reward_url
        if url is None:
            from wildreward_ray.stages.serve import free_port, service

            serve_config = ServeConfig.load(
                None, {"model": config.reward_model, "port": free_port(), "too_long": "cut"}
            )
            url = stack.enter_context(service(serve_config))
        section = config.reward
        client = RewardClient(
            url,
            timeout_s=section.timeout_s,
            retries=section.retries,
            concurrency=section.concurrency,
            token_env=section.token_env,
        )
        stack.callback(client.close)
        yield client, client.health()


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


def _batch(prompts: list[Prompt], step: int, size: int) -> list[Prompt]:
    """The prompts of a step: the list is gone through in order, again and again."""
    start = (step - 1) * size
    return [prompts[(start + i) % len(prompts)] for i in range(min(size, len(prompts)))]


def _rekeyed(pair: Pair, batch: list[Prompt], prompts: list[Prompt]) -> Pair:
    """A pair whose index points into all prompts instead of the step's batch."""
    index = prompts.index(batch[pair.prompt_index])
    return Pair(index, pair.chosen, pair.rejected, pair.chosen_reward, pair.rejected_reward)


def _prompt_funnel(kept: int, dropped: dict[str, int]) -> FunnelStep:
    return FunnelStep(
        name="prompts", unit="prompts", rows_in=kept + sum(dropped.values()), rows_out=kept, dropped=dropped
    )


def _print_step(row: dict[str, Any], steps: int) -> None:
    def number(name: str) -> str:
        return f"{row[name]:.3f}" if row[name] is not None else "-"

    seconds = sum(row["seconds"].values())
    print(
        f"[online-dpo] step {row['step']}/{steps}: reward {number('reward_mean')}, {row['pairs']} pairs, "
        f"loss {number('dpo_loss')}, margin {number('dpo_margin')} -> {number('dpo_margin_after')}, KL {number('kl')}, {seconds:.1f} s, "
        f"about {seconds * (steps - row['step']):.0f} s left",
        file=sys.stderr,
        flush=True,
    )


def _write_lines(artifact: Artifact, name: str, rows: list[dict[str, Any]]) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    artifact.work.child(name).write_bytes(text.encode())
