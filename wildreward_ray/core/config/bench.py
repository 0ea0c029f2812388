"""Settings of `wildreward bench`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from wildreward_ray.core.config.base import Section
from wildreward_ray.core.config.extract import Format
from wildreward_ray.core.config.judge import JudgeSection


class BenchConfig(Section):
    """A stage's throughput against the engine's own, in one run."""

    stage: Literal["extract", "ingest", "judge"] = Field(
        "extract",
        description="extract: the judge's throughput in the pipeline over the bare engine's; ingest: everything but the judge; "
        "judge: how often hostile text moves its label, and how its modes agree",
    )
    input: tuple[str, ...] | None = Field(None, description="chat logs that are read; default: the shipped sample")
    format: Format = Field("auto", description="shape of the logs")
    limit: int | None = Field(500, ge=32, description="interactions measured; null: all")
    refine_replicas: int = Field(2, ge=1, description="actors that refine, for `ingest`")
    output: str | None = Field(None, description="file the figures are also written to, as JSON")
    judge: JudgeSection = Field(default_factory=JudgeSection)
