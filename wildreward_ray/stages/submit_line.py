"""The `ray job submit` line of a submission: what is run, and what is shown, which works when it is typed."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from wildreward_ray.core.config.submit import SubmitConfig
from wildreward_ray.stages.job_server import ADDRESS_VARIABLES, address_here

STOP_WAIT = "RAY_JOB_STOP_WAIT_TIME_S"


@dataclass(frozen=True)
class Line:
    """A `ray job submit` command.

    Attributes:
        words: what follows `ray`.
        shown: the whole line for a shell, with the names of secret variables and without their values.
        stdin: what it reads: the runtime environment where that has secrets, which must not be among the words, for
            everybody on a machine can read those.
        environment: variables that it needs beside this process's own.
    """

    words: tuple[str, ...]
    shown: str
    stdin: str | None
    environment: Mapping[str, str]


def default_name(stage: str, arguments: Sequence[str]) -> str:
    """`extract-1a2b3c4d`: the same for the same stage and flags, so that what is submitted again is recognised."""
    digest = hashlib.blake2b(json.dumps([stage, *arguments]).encode(), digest_size=4).hexdigest()
    return f"{stage}-{digest}"


def entrypoint(stage: str) -> str:
    """The file of the working directory that runs a stage."""
    return str(PurePosixPath("jobs") / f"{stage.replace('-', '_')}.py")


def line(config: SubmitConfig, job: str, working_dir: str, arguments: Sequence[str]) -> Line:
    """The command that submits `job`.

    Args:
        working_dir: a directory or URI.
        arguments: the stage's flags as the job is to get them.
    """
    address = config.address or address_here()
    words = ["job", "submit", *(["--address", address] if address else []), "--submission-id", job]
    words += ["--working-dir", working_dir]
    if config.entrypoint_num_cpus is not None:
        words += ["--entrypoint-num-cpus", f"{config.entrypoint_num_cpus:g}"]
    if config.label:
        selector = {key: value for key, _, value in (label.partition("=") for label in config.label)}
        words += ["--entrypoint-label-selector", json.dumps(selector)]
    words += ["--no-wait"] if config.no_wait else []
    fixed = {STOP_WAIT: str(config.stop_wait_s)}
    before, stdin = "", None
    if config.env:
        words += ["--runtime-env", "/dev/stdin"]
        stdin = _yaml({"env_vars": {**fixed, **{name: os.environ[name] for name in config.env}}})
        form = json.dumps({"env_vars": {**fixed, **dict.fromkeys(config.env, "%s")}})
        values = " ".join(f'"${name}"' for name in config.env)
        before = f"printf {shlex.quote(form)} {values} | "
    else:
        words += ["--runtime-env-json", json.dumps({"env_vars": fixed})]
    words += ["--", "python", entrypoint(config.stage), *arguments]
    # Ray lets these variables win over --address.
    environment = {ADDRESS_VARIABLES[0]: address} if address and address != address_here() and address_here() else {}
    before += "".join(f"{name}={shlex.quote(value)} " for name, value in environment.items())
    return Line(tuple(words), before + shlex.join(["ray", *words]), stdin, environment)


def _yaml(tree: Mapping[str, object]) -> str:
    import yaml

    return yaml.safe_dump(dict(tree))
