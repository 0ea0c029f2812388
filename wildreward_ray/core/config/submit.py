"""Settings of `wildreward submit` and `wildreward status`."""

from __future__ import annotations

from functools import reduce
from pathlib import PurePath
from typing import Any

from pydantic import Field, field_validator

from wildreward_ray.core.config.base import Section, flag_of, leaves
from wildreward_ray.core.errors import UserError

STAGES = ("extract", "train", "score", "serve", "online-dpo", "evaluate", "experiment", "run-all")
_ADDRESS = (
    "job server of the cluster, e.g. http://HEAD:8265; default: RAY_API_SERVER_ADDRESS, RAY_ADDRESS, or the cluster that "
    "runs on this machine"
)


class SubmitConfig(Section):
    """A stage that runs as a job of a Ray cluster."""

    stage: str = Field(description=f"what is run: {', '.join(STAGES)}; all that follows belongs to the stage")
    arguments: tuple[str, ...] = Field((), description="the stage's own flags")
    address: str | None = Field(None, description=_ADDRESS)
    submission_id: str | None = Field(
        None, description="name of the job; default: the stage and a hash of its flags, numbered where it is taken"
    )
    working_dir: str | None = Field(
        None,
        description="directory that the job's nodes get, without what its .rayignore and .gitignore name, or the URI of a "
        "zip of it; default: this directory, or the repository, whichever has the stage's jobs/ file",
    )
    env: tuple[str, ...] = Field(
        (), description="name of an environment variable that the job gets with its value here; may be repeated"
    )
    label: tuple[str, ...] = Field(
        (), description="KEY=VALUE that the node of the job's driver must be labelled with; may be repeated"
    )
    entrypoint_num_cpus: float | None = Field(
        None, ge=0, description="Ray CPUs that the job's driver holds; default: none, on the head node"
    )
    stop_wait_s: int = Field(
        300, ge=1, description="seconds that `ray job stop` gives the job to save its state before it is killed"
    )
    no_wait: bool = Field(False, description="return when the job is submitted instead of following its log")
    dry_run: bool = Field(False, description="print the command and submit nothing")

    @field_validator("label")
    @classmethod
    def _pairs(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for label in value:
            if not all(label.partition("=")):
                raise ValueError(f"{label!r} is not KEY=VALUE")
        return value


class StatusConfig(Section):
    """How far runs and jobs are."""

    runs: tuple[str, ...] = Field(
        min_length=1, description="outputs of stages or of run-all, whole or unfinished, or submission ids of jobs"
    )
    address: str | None = Field(None, description=_ADDRESS)
    log_lines: int = Field(10, ge=0, description="last lines of a job's log that are shown")
    as_json: bool = Field(False, description="print JSON: a list with one object a run")


def check_outputs(stage: Section) -> None:
    """Return if what a stage writes is not lost with its job.

    Raises:
        UserError: an output is a relative path: it would stand in the job's own copy of the working directory, which Ray
            removes.
    """
    for key, _ in leaves(type(stage)):
        if key.rsplit(".", 1)[-1] != "output":
            continue
        output: Any = reduce(getattr, key.split("."), stage)
        if output and "://" not in output and not PurePath(output).is_absolute():
            raise UserError(
                f"{output!r} is a relative path: the job would write it to its copy of the working directory, which is "
                "removed after it",
                flag=flag_of(key),
                hint="give a URI, or the absolute path of a directory that all nodes share",
            )
