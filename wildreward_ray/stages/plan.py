"""What each command would do, from its configuration: `--dry-run`. Starts nothing, loads no model, asks nothing remote."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from wildreward_ray.cluster.preflight import ActorRequest
from wildreward_ray.core.config.evaluate import EvaluateConfig
from wildreward_ray.core.config.extract import ExtractConfig
from wildreward_ray.core.config.judge import JudgeSection
from wildreward_ray.core.config.online_dpo import OnlineDpoConfig
from wildreward_ray.core.config.run_all import RunAllConfig
from wildreward_ray.core.config.serve import ScoreConfig, ServeConfig
from wildreward_ray.core.config.train import TrainConfig
from wildreward_ray.core.model_memory import MODELS
from wildreward_ray.core.plan import Actors, Estimate, Phase, Plan, StagePlan, gigabytes
from wildreward_ray.feedback.judge import describe
from wildreward_ray.stages import plan_memory, requests
from wildreward_ray.stages.plan_inputs import look, look_models, rows_of, standing

# Of WildChat and ShareGPT: docs/scaling.md.
_INTERACTIONS_A_CONVERSATION = 2.5
_DEFAULT_LENGTH = 4096
# Bytes a trained parameter takes in a checkpoint: it and its two moments in float32.
_CHECKPOINT_BYTES = 12


def extract(config: ExtractConfig) -> Plan:
    """Plan of `wildreward extract`."""
    return Plan("extract", (_extract(config),))


def train(config: TrainConfig) -> Plan:
    """Plan of `wildreward train`."""
    return Plan("train", (_train(config),))


def score(config: ScoreConfig) -> Plan:
    """Plan of `wildreward score`."""
    reads = look(config.input, flag="--input")
    actors = _actors(requests.scoring(config), {"scoring": plan_memory.scorer(config, config.model)})
    rows = rows_of(reads)
    known = rows if config.limit is None or rows is None else min(rows, config.limit)
    how = "rows of the Parquet files, and --limit" if rows is not None else "the inputs are not read"
    stage = StagePlan(
        "score",
        (*look_models([config.model]), *reads),
        (config.output,),
        (Phase("score", actors, requests.SCORE_TASK_CPUS),),
        (Estimate("rows", known, how),),
        standing(config.output),
    )
    return Plan("score", (stage,))


def serve(config: ServeConfig) -> Plan:
    """Plan of `wildreward serve`."""
    where = f"http://{config.host}:{config.port}"
    phase = Phase("serve until it is stopped", _service(config, config.model))
    return Plan("serve", (StagePlan("serve", look_models([config.model]), (where,), (phase,)),))


def online_dpo(config: OnlineDpoConfig) -> Plan:
    """Plan of `wildreward online-dpo`.

    Raises:
        UserError: actors that can't be placed, see `cluster.placement.plan`.
    """
    return Plan("online-dpo", (_online_dpo(config, config.reward_model or ""),))


def evaluate(config: EvaluateConfig) -> Plan:
    """Plan of `wildreward evaluate`."""
    files = [*(config.data or ()), *(config.compare or ()), *filter(None, [config.scores])]
    notes = []
    if config.compare is None and config.data is None:
        notes.append(f"{config.benchmark} is read from where it is published")
    phases = []
    if config.model:
        actors = _actors(requests.scoring(config), {"scoring": plan_memory.scorer(config, config.model)})
        phases.append(Phase("score", actors, requests.EVALUATE_TASK_CPUS))
    elif config.reward_url:
        notes.append(f"rewards are asked from {config.reward_url}; no actors are started")
    inputs = (*look_models([config.model]), *look(files, flag="--data"))
    notes += standing(config.output)
    return Plan("evaluate", (StagePlan("evaluate", inputs, (config.output,), tuple(phases), notes=tuple(notes)),))


def run_all(config: RunAllConfig) -> Plan:
    """Plan of `wildreward run-all`: in its order, each stage when the one before is whole.

    Raises:
        UserError: see `online_dpo`.
    """
    stages = _extract(config.extract), _train(config.train), _online_dpo(config.online_dpo, config.train.base)
    return Plan("run-all", stages)


def _extract(config: ExtractConfig) -> StagePlan:
    reads = look(config.input, flag="--input")
    phases = [Phase("judge", (_judge(config.judge, "--judge"),), requests.EXTRACT_TASK_CPUS)]
    if config.cascade.enabled:
        second = _judge(config.cascade.judge, "--cascade.judge")
        phases.append(Phase("second judge, for what the first is unsure of", (second,), requests.EXTRACT_TASK_CPUS))
    section = config.hindsight
    embedder = {"refine": plan_memory.embedder(section)} if section.enabled else {}
    refine = _actors([requests.refine(section)], embedder)
    phases.append(Phase("refine", refine, requests.EXTRACT_TASK_CPUS))
    names = ("feedback", "dataset/train", "dataset/test", "quarantine")
    writes = tuple(f"{config.output.rstrip('/')}/{name}" for name in names)
    known = _judging(config, rows_of(reads))
    models = [config.judge.model] * (config.judge.backend == "vllm") + [section.model] * section.enabled
    return StagePlan("extract", (*reads, *look_models(models)), writes, tuple(phases), known, standing(config.output))


def _judging(config: ExtractConfig, conversations: int | None) -> tuple[Estimate, ...]:
    judge = config.judge
    fields = describe(judge)["feedback"]["fields"]
    budget = sum(tokens for _, _, tokens in fields)
    shown = " + ".join(f"{label.lower()} {tokens}" for label, _, tokens in fields)
    reasoning = judge.reasoning
    written = reasoning.votes * reasoning.max_tokens if judge.mode == "reasoning" else 0
    found, how = None, "the inputs are not read"
    if conversations is not None:
        found = round(conversations * _INTERACTIONS_A_CONVERSATION)
        how = f"{conversations:,} rows, were each a conversation of {_INTERACTIONS_A_CONVERSATION} interactions"
    if config.limit is not None:
        found, how = min(found or config.limit, config.limit), "--limit, at most"
    same = "the instructions before them are the same in all prompts, and cached"
    total = [] if found is None else [Estimate("new prompt tokens, at most", found * budget, same)]
    return (
        Estimate("interactions", found, how),
        Estimate("new prompt tokens an interaction, at most", budget, shown),
        Estimate(
            "written tokens an interaction, at most",
            written,
            f"{reasoning.votes} x {reasoning.max_tokens}" if written else "one prefill tells the verdict",
        ),
        *total,
    )


def _train(config: TrainConfig) -> StagePlan:
    reads = (*look([config.dataset], flag="--dataset"), *look_models([config.base]))
    rows = _training_rows(config)
    steps = None if rows is None else config.epochs * math.ceil(rows / config.optim.global_batch)
    length = config.max_length or _DEFAULT_LENGTH
    every = f"{config.epochs} x rows / {config.optim.global_batch}, rounded up"
    estimates = [
        Estimate("training rows", rows, "dataset/train" if rows is not None else "the dataset is not read"),
        Estimate("steps", steps, every),
        Estimate("tokens, at most", None if rows is None else config.epochs * rows * length, f"rows x {length}"),
        Estimate(
            "checkpoints",
            None if steps is None else math.ceil(steps / config.checkpoint.every),
            f"every {config.checkpoint.every} steps and at the end, {config.checkpoint.keep} kept",
        ),
        *_checkpoint(config.base, config.lora.rank, classifier=True),
    ]
    actors = _actors(requests.train(config), {"training": plan_memory.trainer(config)})
    notes = standing(config.output)
    return StagePlan("train", reads, (config.output,), (Phase("train", actors),), tuple(estimates), notes)


def _training_rows(config: TrainConfig) -> int | None:
    (train,) = look([f"{config.dataset.rstrip('/')}/dataset/train"], flag="--dataset")
    if train.rows is None:
        return None
    return train.rows if config.limit is None else min(train.rows, config.limit)


def _online_dpo(config: OnlineDpoConfig, served: str) -> StagePlan:
    """`served`: the model whose shape the reward model has that the run serves for its own length."""
    per_step = config.prompts_per_step
    replies = config.steps * per_step * config.rollout.samples
    actors = _actors(
        requests.online_dpo(config), {"rollout": plan_memory.rollout(config), "learner": plan_memory.learner(config)}
    )
    notes = list(standing(config.output))
    name = "sample and learn"
    if config.reward_model is not None:
        service = requests.own_service(config, port=1)
        actors += tuple(replace(group, flag="--reward-url") for group in _service(service, served))
        name += ", beside the reward service that the run starts"
        if config.learner.num_gpus and not service.num_gpus:
            notes.append("the reward service that the run starts computes on CPUs; --reward-url names another one")
    else:
        notes.append(f"rewards are asked from {config.reward_url}, which has to run already")
    if config.placement.mode == "colocated":
        notes.append("a rollout actor and a learner share a GPU and take turns on it")
    every = config.checkpoint.every
    estimates = [
        Estimate("steps", config.steps, "--steps"),
        Estimate("prompts", config.steps * per_step, f"steps x {per_step}, with repeats where there are fewer"),
        Estimate("replies to sample and score", replies, f"prompts x {config.rollout.samples}"),
        Estimate(
            "sampled tokens, at most", replies * config.rollout.max_tokens, f"replies x {config.rollout.max_tokens}"
        ),
        Estimate("checkpoints", config.steps // every, f"every {every} steps, {config.checkpoint.keep} kept"),
        *_checkpoint(config.policy, config.learner.lora.rank, classifier=False),
    ]
    reads = (*look([config.prompts], flag="--prompts"), *look_models([config.policy, config.reward_model or ""]))
    return StagePlan("online-dpo", reads, (config.output,), (Phase(name, actors),), tuple(estimates), tuple(notes))


def _service(config: ServeConfig, model: str) -> tuple[Actors, ...]:
    return _actors(requests.serve(config), {"engine": plan_memory.scorer(config, model)})


def _judge(section: JudgeSection, flag: str) -> Actors:
    gpus, where_any = requests.judge_gpus(section)
    request = requests.judge(section, 0.0 if where_any else gpus, flag)
    return _actor(request, plan_memory.judge(section) if gpus else None, gpus if where_any else 0.0)


def _actors(asked: Sequence[ActorRequest], known: Mapping[str, plan_memory.Known]) -> tuple[Actors, ...]:
    return tuple(_actor(request, known.get(request.name) if request.gpus else None) for request in asked)


def _actor(request: ActorRequest, known: plan_memory.Known | None, where_any: float = 0.0) -> Actors:
    memory, note = known or (None, "")
    return Actors(
        request.name,
        request.count,
        request.count if request.most is None else request.most,
        request.cpus,
        request.gpus,
        request.flag,
        where_any,
        request.memory_gib,
        dict(request.labels),
        memory,
        note,
    )


def _checkpoint(model: str, rank: int, *, classifier: bool) -> list[Estimate]:
    shape = MODELS.get(model)
    if shape is None:
        return []
    trained = shape.classifier_parameters if classifier else shape.parameters
    size = _CHECKPOINT_BYTES * (shape.adapter_parameters(rank) if rank else trained)
    return [Estimate("bytes a checkpoint", size, f"{gigabytes(size)}: weights and two moments in float32")]
