"""Settings of `wildreward bench`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from wildreward_ray.core.config.base import Section
from wildreward_ray.core.config.extract import Format, JudgeSection


class BenchConfig(Section):
    """A stage's throughput against the engine's own, in one run."""

    stage: Literal["extract"] = Field("extract", description="what is measured")
    input: tuple[str, ...] | None = Field(None, description="chat logs to judge; default: the shipped sample")
    format: Format = Field("auto", description="shape of the logs")
    limit: int = Field(500, ge=32, description="interactions measured")
    output: str | None = Field(None, description="file the figures are also written to, as JSON")
    judge: JudgeSection = Field(default_factory=JudgeSection)
