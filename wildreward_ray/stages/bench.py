"""`wildreward bench`: what a stage does against what its engine could do, measured in one run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

from wildreward_ray.core.config.bench import BenchConfig
from wildreward_ray.core.errors import UserError
from wildreward_ray.core.manifest import versions
from wildreward_ray.stages.bench_machine import checkout, machine


def run(config: BenchConfig) -> dict[str, Any]:
    """Measure, or compare two files of figures.

    Returns:
        the figures, which are also written to `config.output` where it is given. One stage's come with `cpu`, `cpus`,
        `memory_gib`, `gpus`, `commit`, `dirty`, `config` and versions; for the others see `bench_all.measure_all` and
        `bench_compare.compare`.

    Raises:
        UserError: the input gives too few interactions to measure, files can't be compared, or there is no directory for the
            output.
    """
    output = None if config.output is None else Path(config.output)
    if output is not None and not output.parent.is_dir():
        # A bench is too long to find that out after it.
        raise UserError(f"there is no directory {str(output.parent)!r} to write to", flag="--output")
    found = _found(config)
    if output is not None:
        output.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return found


def _found(config: BenchConfig) -> dict[str, Any]:
    if config.stage == "compare":
        from wildreward_ray.stages.bench_compare import compare

        return compare(config)
    with _inputs(config) as inputs:
        if config.stage == "all":
            from wildreward_ray.stages.bench_all import measure_all

            return measure_all(config, inputs, dict.fromkeys(config.stages, _measure))
        found = _measure(config, inputs)
    return {
        "stage": config.stage,
        **found,
        **machine(),
        **checkout(),
        "config": config.model_dump(mode="json"),
        **{f"version_{name}": version for name, version in versions().items()},
    }


@contextmanager
def _inputs(config: BenchConfig) -> Iterator[tuple[str, ...]]:
    """The logs that are given, or the shipped sample."""
    if config.input is not None:
        yield config.input
        return
    with resources.as_file(resources.files("wildreward_ray") / "sample") as sample:
        yield (str(sample / "conversations.parquet"),)


def _measure(config: BenchConfig, inputs: tuple[str, ...]) -> dict[str, Any]:
    if config.stage == "extract":
        from wildreward_ray.stages.bench_extract import measure
    elif config.stage == "evaluate":
        from wildreward_ray.stages.bench_evaluate import measure
    elif config.stage == "ingest":
        from wildreward_ray.stages.bench_ingest import measure
    elif config.stage == "online-dpo":
        from wildreward_ray.stages.bench_online_dpo import measure
    elif config.stage == "serve":
        from wildreward_ray.stages.bench_serve import measure
    elif config.stage == "train":
        from wildreward_ray.stages.bench_train import measure
    else:
        from wildreward_ray.stages.bench_judge import measure
    return measure(config, inputs)
