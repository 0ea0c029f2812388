"""Benches that measure nothing, in a module that a process of its own loads in no time."""

from __future__ import annotations

import os
from typing import Any

from wildreward_ray.core.config.bench import BenchConfig
from wildreward_ray.core.errors import UserError

EXTRACT = {"interactions": 40, "pipeline_per_s": 27.0, "ceiling_per_s": 30.0, "ratio": 0.9}
TRAIN = {
    "pipeline_tokens_per_s": 800.0,
    "bare_tokens_per_s": 1000.0,
    "ratio": 0.8,
    "padded_to_maximum_tokens_per_s": 500.0,
    "gain_over_padding_to_maximum": 2.0,
    "two_workers_tokens_per_s": 600.0,
    "two_workers_over_one": 0.75,
}


def gives_extract(config: BenchConfig, inputs: tuple[str, ...]) -> dict[str, Any]:
    return {**EXTRACT, "asked": [config.stage, *inputs], "process": os.getpid()}


def gives_train(config: BenchConfig, inputs: tuple[str, ...]) -> dict[str, Any]:
    return {**TRAIN, "asked": [config.stage, *inputs], "process": os.getpid()}


def is_refused(config: BenchConfig, inputs: tuple[str, ...]) -> dict[str, Any]:
    raise UserError("too few texts", flag="--limit", hint="raise it")


def is_broken(config: BenchConfig, inputs: tuple[str, ...]) -> dict[str, Any]:
    raise Unsendable("first", "second\nline")


def is_killed(config: BenchConfig, inputs: tuple[str, ...]) -> dict[str, Any]:
    os._exit(9)


class Unsendable(Exception):
    """One that another process can't build again, as many of libraries."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} {second}")
