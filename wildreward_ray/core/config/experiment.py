"""Settings of `wildreward experiment`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from wildreward_ray.core.config.base import Section
from wildreward_ray.core.config.train import TrainConfig


class VariantTraining(TrainConfig):
    """Training settings that all runs of an experiment share."""

    dataset: str = Field("", description="not to be given: every run reads its own variant")
    output: str = Field("", description="not to be given: every run writes below the experiment's output")
    seed: int = Field(0, description="seed of the first run; the others count up from it")
    resume_from: str | None = Field(None, description="not to be given: every run begins at the base model")
    overwrite: bool = Field(False, description="not to be given: --overwrite replaces the whole experiment")

    @field_validator("dataset", "output", "resume_from", "overwrite")
    @classmethod
    def _is_not_given(cls, value: Any) -> Any:
        if value:
            raise ValueError("an experiment sets this itself")
        return value


class ExperimentConfig(Section):
    """Train on variants of one dataset with several seeds, and compare them on the same held-out rows."""

    kind: Literal["ablation", "diversity"] = Field(
        "ablation",
        description="ablation: with and without either refinement of the labels; "
        "diversity: sets of equal size from fewer and more users",
    )
    dataset: str = Field(description="output of `wildreward extract`")
    output: str = Field(description="directory or URI the results are written to; a run that was killed goes on there")
    seeds: int = Field(3, ge=1, description="runs of each variant, with seeds train.seed, train.seed + 1, ...")
    users: tuple[int, ...] = Field(
        (1, 3, 10), description="diversity: how many times as many users each set is drawn from as the first one"
    )
    bootstrap: int = Field(1000, ge=100, description="resamples of the held-out rows for the 95 % intervals")
    keep_models: bool = Field(
        False, description="keep the weights of all reward models, and not only their predictions and metrics"
    )
    overwrite: bool = Field(False, description="replace a whole experiment that stands at the output")
    train: VariantTraining = Field(default_factory=VariantTraining)

    @field_validator("users")
    @classmethod
    def _ascending_from_one(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if len(value) < 2 or value[0] != 1 or list(value) != sorted(set(value)):
            raise ValueError("the multiples are 1 and then one or more greater numbers, in ascending order")
        return value
