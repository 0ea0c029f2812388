"""`wildreward bench`: what a stage does against what its engine could do, measured in one run."""

from __future__ import annotations

import json
import os
from importlib import resources
from pathlib import Path
from typing import Any

from wildreward_ray.core.config.bench import BenchConfig
from wildreward_ray.core.manifest import versions


def run(config: BenchConfig) -> dict[str, Any]:
    """Measure. Returns the figures, which are also written to `config.output` where it is given.

    Raises:
        UserError: the input gives too few interactions to measure.
    """
    if config.input is not None:
        found = _measure(config, config.input)
    else:
        with resources.as_file(resources.files("wildreward_ray") / "sample") as sample:
            found = _measure(config, (str(sample / "conversations.parquet"),))
    found = {
        "stage": config.stage,
        **found,
        "cpus": os.cpu_count(),
        **{f"version_{name}": version for name, version in versions().items()},
    }
    if config.output is not None:
        Path(config.output).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return found


def _measure(config: BenchConfig, inputs: tuple[str, ...]) -> dict[str, Any]:
    if config.stage == "extract":
        from wildreward_ray.stages.bench_extract import measure
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
