"""Settings of `wildreward demo`."""

from __future__ import annotations

from pydantic import Field

from wildreward_ray.core.config.base import Section


class DemoConfig(Section):
    """The whole loop on the shipped sample."""

    output: str = Field("runs/demo", description="local directory everything is written to; replaced if it is there")
    dpo_steps: int = Field(8, ge=1, description="optimizer steps of the online DPO part")
    service_requests: int = Field(200, ge=1, description="requests sent to the service to measure its latency")
