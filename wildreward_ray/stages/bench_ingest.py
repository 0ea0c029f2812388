"""`wildreward bench ingest`: everything of an extraction but the judge, and the memory it takes.

Verdicts are drawn at random, mostly neutral as real ones are, so that every later step has its usual work; embedding for
hindsight is left out, since that is a model's time. Each pass is timed from the end of its first chunk.
"""

from __future__ import annotations

import json
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from wildreward_ray.cluster.schema import JUDGED
from wildreward_ray.cluster.session import check_resources, ray_errors, start_ray
from wildreward_ray.cluster.storage import locate
from wildreward_ray.core.config.bench import BenchConfig
from wildreward_ray.core.config.extract import ExtractConfig
from wildreward_ray.stages import dataset, decide, extract, funnel, ingest, judged, refine
from wildreward_ray.stages.bench_extract import Stamps
from wildreward_ray.stages.chunks import pack, unpack

# Shares of levels that arXiv 2602.08829 finds in WildChat.
_SHARES = (0.03, 0.14, 0.76, 0.06, 0.01)


def measure(config: BenchConfig, inputs: tuple[str, ...]) -> dict[str, Any]:
    """Measure. Rates are interactions a second."""
    with PeakMemory() as memory:
        started = time.monotonic()
        plan = ingest.plan(inputs, config.format, strict=False)
        planned = time.monotonic() - started
        start_ray()
        with tempfile.TemporaryDirectory() as folder, ray_errors(folder):
            found = _passes(config, plan, folder)
    n = found.pop("interactions")
    seconds = {"plan": planned, **found.pop("seconds")}
    return {
        "input_mib": round(sum(size for _, size in plan.files) / 2**20, 1),
        "interactions": n,
        **{f"{name}_s": round(value, 2) for name, value in seconds.items()},
        "ingest_per_s": round(found["ingest_per_s"], 1),
        "refine_per_s": round(found["refine_per_s"], 1),
        # What one interaction costs in each pass, added up.
        "ingest_and_refine_per_s": round(
            1 / (1 / found["ingest_per_s"] + 1 / found["refine_per_s"] + (seconds["decide"] + seconds["write"]) / n), 1
        ),
        "rows_kept": found["rows_kept"],
        "peak_memory_mib": memory.peak_mib,
    }


def _passes(config: BenchConfig, plan: ingest.Plan, folder: str) -> dict[str, Any]:
    work = locate(folder)
    settings = ExtractConfig.load(
        None,
        {
            "input": list(config.input or ("sample",)),
            "output": folder,
            "hindsight.enabled": False,
            "hindsight.replicas": [config.refine_replicas, config.refine_replicas],
            "judge.prior": "none",
        },
    )
    check_resources([refine.resources(settings.hindsight)], task_cpus=0.0)
    seconds: dict[str, float] = {}
    stamps = [Stamps.remote(), Stamps.remote()]  # type: ignore[attr-defined]
    with _timed(seconds, "ingest"):
        extract.judge_parts(
            plan.shards,
            work.child("judged"),
            lambda chunks: chunks.map_batches(
                random_verdicts, fn_kwargs={"counter": stamps[0]}, batch_size=1, batch_format="pyarrow", num_cpus=0.5
            ),
            size=config.judge.batch_size,
            judges=1,
            limit=config.limit,
        )
    with _timed(seconds, "survey"):
        corpus = judged.survey(work.child("judged"), settings.judge, work.child("quarantine.parquet"), plan.unreadable)
    with _timed(seconds, "refine"):
        refine.refine(settings, corpus.priors, None, work, stamps[1])
    with _timed(seconds, "decide"):
        decide.decide(work.child("refined"), work.child("drops.parquet"), settings.quality)
    with _timed(seconds, "write"):
        dataset.write_final(work, work.child("drops.parquet"), settings.levels)
    counts = funnel.feedback_counts(work.child("feedback"))
    return {
        "interactions": corpus.judge["judged"],
        "seconds": seconds,
        "ingest_per_s": ray.get(stamps[0].rate.remote()),
        "refine_per_s": ray.get(stamps[1].rate.remote()),
        "rows_kept": sum(n for split, n in counts["split"].items() if split is not None),
    }


def random_verdicts(chunks: pa.Table, counter: Any) -> Iterator[pa.Table]:
    """`CHUNKS` of `CONVERSATIONS` rows in, `CHUNKS` of `JUDGED` rows out; the same part always gets the same verdicts."""
    for part, table in unpack(chunks):
        rows = table.to_pylist()
        draw = np.random.default_rng(int(part[:15], 16) + int(part.split("-")[1]))
        judged_here = 0
        for row in rows:
            if row["kind"] != "conversation":
                continue
            n = len(row["turns"])
            judged_here += n
            noise = draw.gumbel(size=(n, len(_SHARES))) + np.log(_SHARES)
            row |= {"logprobs": (noise - noise.max(axis=1, keepdims=True)).tolist(), "failures": [None] * n}
            row |= {"refusal_logprobs": [None] * n, "refusal_suspect": [False] * n, "masked": [False] * n}
        rows.append({"kind": "judge", "counts": json.dumps({"judged": judged_here})})
        counter.add.remote(judged_here)
        yield pack(part, pa.Table.from_pylist(rows, schema=JUDGED))


class _timed:
    """Adds the seconds of a block to a table."""

    def __init__(self, table: dict[str, float], name: str) -> None:
        self._table, self._name = table, name

    def __enter__(self) -> None:
        self._begin = time.monotonic()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._table[self._name] = time.monotonic() - self._begin


class PeakMemory:
    """The most memory that the machine had in use over what it had at the start; every process and Ray's store counts."""

    def __enter__(self) -> PeakMemory:
        self._stop = threading.Event()
        self._least = self._before = _available_kib()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def peak_mib(self) -> int:
        return round((self._before - self._least) / 1024)

    def _watch(self) -> None:
        while not self._stop.wait(0.2):
            self._least = min(self._least, _available_kib())


def _available_kib() -> int:
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
