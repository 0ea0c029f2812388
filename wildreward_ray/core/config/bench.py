"""Settings of `wildreward bench`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from wildreward_ray.core.config.base import Section
from wildreward_ray.core.config.extract import Format
from wildreward_ray.core.config.judge import JudgeSection
from wildreward_ray.core.config.train import OptimSection


class TrainBench(Section):
    """What is trained for `bench train`."""

    base: str = Field("demo:minilm", description="base model: hub name, path, or demo:minilm")
    max_length: int = Field(512, ge=16, description="longest input in tokens")
    optim: OptimSection = Field(
        default_factory=lambda: OptimSection(global_batch=64, token_budget=4096), description="batches"
    )
    checkpoint_every: int = Field(3, ge=1, description="optimizer steps between checkpoints")
    padded_batches: int = Field(
        6, ge=2, description="micro-batches that are padded to the maximum to see what it costs"
    )


class BenchConfig(Section):
    """A stage's throughput against the engine's own, in one run."""

    stage: Literal["extract", "ingest", "judge", "train"] = Field(
        "extract",
        description="extract: the judge's throughput in the pipeline over the bare engine's; ingest: everything but the judge; "
        "judge: how often hostile text moves its label, and how its modes agree; "
        "train: tokens a second over a bare PyTorch loop's, padding, two workers, and what checkpoints cost",
    )
    input: tuple[str, ...] | None = Field(None, description="chat logs that are read; default: the shipped sample")
    format: Format = Field("auto", description="shape of the logs")
    limit: int | None = Field(500, ge=32, description="interactions measured; null: all")
    refine_replicas: int = Field(2, ge=1, description="actors that refine, for `ingest`")
    output: str | None = Field(None, description="file the figures are also written to, as JSON")
    judge: JudgeSection = Field(default_factory=JudgeSection)
    train: TrainBench = Field(default_factory=TrainBench)
