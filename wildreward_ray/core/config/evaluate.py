"""Settings of `wildreward evaluate`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from wildreward_ray.core.config.base import Section
from wildreward_ray.core.config.online_dpo import RewardClientSection
from wildreward_ray.core.config.serve import ScorerSection

BenchmarkName = Literal[
    "rm_bench",
    "rewardbench",
    "rewardbench2",
    "ppe_human",
    "ppe_correctness",
    "judgebench",
    "pairs",
    "labelled",
]


class ProbesSection(Section):
    """How far the reward follows what does not make a reply better."""

    items: int = Field(
        100, ge=0, description="prompts whose replies are scored again in changed forms; 0: none; not with --scores"
    )


class EvaluateConfig(ScorerSection):
    """A reward model measured on a benchmark, as its authors measure it."""

    model: str = Field(
        "",
        description="reward model that is loaded here: one of this project, or any sequence classifier with one logit or two",
    )
    model_kind: Literal["auto", "ordinal", "scalar", "two-class"] = Field(
        "auto",
        description="how the logits are read; auto: ordinal with reward_config.json or --levels, else by their number",
    )
    reward_url: str | None = Field(None, description="reward service that is asked instead of a model")
    scores: str | None = Field(
        None,
        description='JSONL of scores that were computed elsewhere: {"id", "chosen", "rejected"} or {"id", "scores"}',
    )
    compare: tuple[str, ...] | None = Field(
        None, description="outputs of evaluations of the same benchmark to put side by side, instead of a measurement"
    )
    benchmark: BenchmarkName | None = Field(None, description="which benchmark is measured")
    data: tuple[str, ...] | None = Field(
        None,
        description="the benchmark's files or their directory, JSON, JSONL or Parquet; default: where they are published",
    )
    output: str = Field(description="directory or URI the results are written to")
    limit: int | None = Field(None, ge=1, description="measure this many prompts only, spread over the benchmark")
    name: str | None = Field(None, description="what the model is called in the report; default: as it was given")
    bootstrap: int = Field(2000, ge=100, description="resamples for the 95 % intervals")
    splits: int = Field(20, ge=2, description="random halves that calibration is fitted and measured on")
    seed: int = Field(0, ge=0, description="seed of resamples and halves")
    batch_size: int = Field(256, ge=1, description="responses handed to an engine at a time")
    replicas: int = Field(1, ge=1, description="scoring actors")
    num_cpus: float = Field(1.0, ge=0, description="Ray CPUs a scoring actor holds")
    overwrite: bool = Field(False, description="replace whole results that stand at the output")
    probes: ProbesSection = Field(default_factory=ProbesSection)
    reward: RewardClientSection = Field(default_factory=RewardClientSection)

    @model_validator(mode="after")
    def _one_way_in(self) -> EvaluateConfig:
        if self.compare is not None:
            if len(self.compare) < 2:
                raise ValueError("--compare puts two or more evaluations side by side")
            if self.model or self.reward_url or self.scores or self.benchmark:
                raise ValueError(
                    "--compare takes the outputs of evaluations, and no model, service, scores or benchmark"
                )
            return self
        given = [flag for flag, value in self._ways.items() if value]
        if len(given) != 1:
            raise ValueError(f"{' and '.join(given) or 'nothing'} given: one of {', '.join(self._ways)} is needed")
        if self.benchmark is None:
            raise ValueError("--benchmark is needed")
        return self

    @property
    def _ways(self) -> dict[str, str | None]:
        return {"--model": self.model, "--reward-url": self.reward_url, "--scores": self.scores}
