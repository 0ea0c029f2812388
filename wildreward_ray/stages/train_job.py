"""What the driver and the workers of a training run agree on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from wildreward_ray.cluster.artifact import differences
from wildreward_ray.cluster.checkpoints import read_info
from wildreward_ray.cluster.storage import Location, locate
from wildreward_ray.core.config.train import SELECTABLE, TrainConfig
from wildreward_ray.core.errors import UserError
from wildreward_ray.reward.config import RewardConfig


@dataclass(frozen=True)
class Job:
    """What every worker needs to know.

    Attributes:
        run_id: of this command, for what workers of one node share.
        train, test: directories of token rows.
        checkpoints: where they are written and found again.
        model: where the finished model is put.
        fingerprint: what a checkpoint must have been made with.
        mailbox: the monitor's.
    """

    config: TrainConfig
    reward: RewardConfig
    run_id: str
    train: Location
    test: Location
    checkpoints: Location
    model: Location
    fingerprint: dict[str, Any]
    mailbox: Any


def fingerprint_of(config: TrainConfig, reward: RewardConfig) -> dict[str, Any]:
    """What a checkpoint depends on: weights, moments and row order mean nothing with other data or another model."""
    return {
        "dataset": config.dataset,
        "base": config.base,
        "levels": reward.levels,
        "template": reward.template,
        "max_length": reward.max_length,
        "seed": config.seed,
        "limit": config.limit,
        "test_share": config.test_share,
        "objective": {"loss": config.objective.loss},
        "optim": {"global_batch": config.optim.global_batch},
        "lora": config.lora.model_dump(mode="json"),
    }


def frozen_bf16(config: TrainConfig) -> bool:
    """Whether weights that are not trained are held in bfloat16. FSDP2 wants one type for all weights of a layer."""
    return bool(config.lora.rank) and config.precision == "bfloat16" and config.parallel.strategy == "ddp"


def best_step(evals: list[dict[str, Any]], metric: str) -> int | None:
    """The first step with the best value of a metric; None where none is to choose or it was never defined."""
    if metric == "none":
        return None
    sign = 1.0 if SELECTABLE[metric] else -1.0
    defined = [e for e in evals if e.get(metric) is not None]
    return int(max(defined, key=lambda e: (sign * e[metric], -e["step"]))["step"]) if defined else None


def resume_folder(uri: str, fingerprint: dict[str, Any]) -> Location:
    """The checkpoint that `--resume-from` names.

    Raises:
        UserError: it is none, or was made with other data, another model or another objective.
    """
    folder = locate(uri, flag="--resume-from")
    differing = differences(read_info(folder).get("fingerprint"), fingerprint)
    if differing:
        raise UserError(
            f"checkpoint {uri!r} is of a run that differs in {', '.join(differing)}",
            flag="--resume-from",
            hint="give these settings as that run had them, or leave out",
        )
    return folder
