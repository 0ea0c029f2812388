"""`wildreward bench all`: several benches one after the other, each in a process of its own, and one table of their ratios.

A process of its own gives every bench a fresh Ray and the whole memory. A bench that fails takes no other with it: its error
stands in the table, and the command fails at the end.
"""

from __future__ import annotations

import logging
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures.process import BrokenProcessPool
from datetime import UTC, datetime
from typing import Any

from wildreward_ray.cluster.run_log import say
from wildreward_ray.core.config.bench import BenchConfig
from wildreward_ray.core.errors import WildRewardError
from wildreward_ray.core.manifest import versions
from wildreward_ray.stages.bench_machine import checkout, commit_text, machine, text_of
from wildreward_ray.stages.bench_ratios import aligned, measured
from wildreward_ray.stages.bench_serve_load import apart

Figures = dict[str, Any]
Measure = Callable[[BenchConfig, tuple[str, ...]], Figures]

_SHOWN = 300


def measure_all(
    config: BenchConfig,
    inputs: tuple[str, ...],
    measurers: Mapping[str, Measure],
    *,
    separately: Callable[..., Figures] = apart,
) -> Figures:
    """Run the benches in order.

    Args:
        config: the settings of all; each bench gets them with its own `stage`.
        inputs: chat logs.
        measurers: what measures each stage, a function that a process can be started with.
        separately: calls a function with arguments, in another process.

    Returns:
        `benches`: by stage, `seconds` of wall time with loading, and `figures` or, where it failed, `error`; `ratios`: see
        `ratio_rows`; `failed`: stages; `cpu`, `cpus`, `memory_gib`, `gpus`, `commit`, `dirty`, `versions`, `config`, `created`.
    """
    facts = {**machine(), **checkout(), "versions": versions(), "config": config.model_dump(mode="json")}
    created = datetime.now(UTC).isoformat(timespec="seconds")
    benches: dict[str, Figures] = {}
    for number, (stage, measure) in enumerate(measurers.items(), start=1):
        say(f"bench {stage}", f"{number} of {len(measurers)}", done=number - 1, total=len(measurers))
        began = time.monotonic()
        try:
            own = config.model_copy(update={"stage": stage})
            found = separately(outcome, measure, own, inputs, logging.getLogger("wildreward_ray").getEffectiveLevel())
        except BrokenProcessPool:
            found = {"error": "its process ended without a word, as one does that takes too much memory"}
        benches[stage] = {"seconds": round(time.monotonic() - began, 1), **found}
    return {
        "stage": "all",
        "benches": benches,
        "ratios": [row for stage, bench in benches.items() for row in ratio_rows(stage, bench.get("figures", {}))],
        "failed": [stage for stage, bench in benches.items() if "error" in bench],
        **facts,
        "created": created,
    }


def outcome(measure: Measure, config: BenchConfig, inputs: tuple[str, ...], log_level: int) -> Figures:
    """What a bench gives, as `figures`, or the text of what ended it, as `error`. Called in the bench's own process.

    Errors cross to the other process as text, since those of a library can often not be sent. One that is not ours is a bug,
    so its traceback is printed.
    """
    logging.basicConfig(level=log_level, format="%(levelname)s %(name)s: %(message)s")
    try:
        return {"figures": measure(config, inputs)}
    except WildRewardError as e:
        return {"error": str(e)}
    except Exception as e:
        traceback.print_exc()
        return {"error": f"{type(e).__name__}: {' '.join(str(e).split())[:_SHOWN]}"}
    finally:
        _stop_ray()


def _stop_ray() -> None:
    """Stop the Ray that the bench started; one that it joined goes on without it."""
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        ray.shutdown()


def ratio_rows(stage: str, figures: Mapping[str, Any]) -> list[Figures]:
    """The ratios that a bench gave: `bench`, `name`, `what`, `measured`, `against`, `ratio`, `aim`, `less_is_better`."""
    rows = []
    for ratio in measured(stage, figures):
        above, below = ratio.operands(figures)
        rows.append(
            {
                "bench": stage,
                "name": ratio.name,
                "what": ratio.what,
                "measured": above,
                "against": below,
                "ratio": figures[ratio.name],
                "aim": ratio.aim,
                "less_is_better": ratio.less_is_better,
            }
        )
    return rows


def table(found: Figures) -> str:
    """What `measure_all` found, to be printed: a line a ratio or failure, and below them machine, versions and commit."""
    aims = any(row["aim"] is not None for row in found["ratios"])
    rows = [["bench", "what is compared", "measured", "against", "ratio", *(["aim"] if aims else []), "seconds"]]
    for stage, bench in found["benches"].items():
        seconds = f"{bench['seconds']:,.0f}"
        own = [row for row in found["ratios"] if row["bench"] == stage]
        for number, row in enumerate(own):
            # The seconds are those of the whole bench.
            name, total = ("", "") if number else (stage, seconds)
            numbers = [f"{row[key]:,.3f}" for key in ("measured", "against", "ratio")]
            rows.append([name, row["what"], *numbers, *([_aim(row)] if aims else []), total])
        if not own:
            rows.append([stage, _why_empty(bench), *[""] * (len(rows[0]) - 3), seconds])
    packages = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    errors = [f"{stage}: {bench['error']}" for stage, bench in found["benches"].items() if "error" in bench]
    return "\n".join(
        [
            aligned(rows, numbers=frozenset(range(2, len(rows[0])))),
            *errors,
            f"machine: {text_of(found)}",
            f"versions: {packages}",
            f"commit: {commit_text(found)}",
        ]
    )


def check(found: Figures) -> None:
    """Return if every bench gave its figures.

    Raises:
        WildRewardError: one failed.
    """
    if found["failed"]:
        raise WildRewardError(
            f"{len(found['failed'])} of {len(found['benches'])} benches failed: {', '.join(found['failed'])}"
        )


def _why_empty(bench: Figures) -> str:
    return "failed" if "error" in bench else "no ratio: the parts that were asked for give none"


def _aim(row: Figures) -> str:
    if row["aim"] is None:
        return ""
    return f"{'<=' if row['less_is_better'] else '>='} {row['aim']:g}"
