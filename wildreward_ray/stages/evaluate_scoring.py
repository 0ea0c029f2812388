"""Scoring an evaluation's jobs with a model that is loaded here: tasks encode, engine actors score, tasks write the parts."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from wildreward_ray.cluster.progress import Progress
from wildreward_ray.cluster.session import check_resources, start_ray
from wildreward_ray.cluster.telemetry import Telemetry, telemetry_of
from wildreward_ray.core.config.evaluate import EvaluateConfig
from wildreward_ray.stages import requests
from wildreward_ray.stages.evaluate_jobs import Chunk, Failures, Parts
from wildreward_ray.stages.evaluate_models import ResponseEncoder, load_response_encoder, load_response_scorer

# One task encodes and one writes beside the engines.
_TASK_CPUS = requests.EVALUATE_TASK_CPUS / 2
_CHUNKS = pa.schema([("name", pa.string()), ("jobs", pa.string())])
_ENCODED = pa.schema(
    [
        ("name", pa.string()),
        ("ids", pa.list_(pa.string())),
        ("sizes", pa.list_(pa.int32())),
        ("inputs", pa.list_(pa.list_(pa.int32()))),
    ]
)
_SCORED = pa.schema(
    [
        ("name", pa.string()),
        ("ids", pa.list_(pa.string())),
        ("scores", pa.list_(pa.list_(pa.float64()))),
        ("failures", pa.list_(pa.string())),
    ]
)
_FAILED = pa.schema([("job", pa.string()), ("why", pa.string())])


class EvaluateActor:
    """Scores encoded chunks with one reward model.

    Args:
        counter: a progress counter, or None.
        telemetry: of the evaluation.
    """

    def __init__(self, config: EvaluateConfig, counter: Any | None, telemetry: Telemetry) -> None:
        self._scorer = load_response_scorer(config)
        self._counter, self._telemetry = counter, telemetry

    def __call__(self, table: pa.Table) -> pa.Table:
        """Encoded chunks in, scored ones out; a response without a score is told in `failures` of its job."""
        rows = [self._scored(row) for row in table.to_pylist()]
        return pa.Table.from_pylist(rows, schema=_SCORED)

    def _scored(self, row: dict[str, Any]) -> dict[str, Any]:
        found = self._scorer.score(row["inputs"])
        if self._counter is not None:
            self._counter.add.remote(len(found))
        failed = sum(isinstance(one, Exception) for one in found)
        self._telemetry.responses(len(found) - failed, failed)
        scores: list[list[float]] = []
        failures: list[str | None] = []
        start = 0
        for size in row["sizes"]:
            own = found[start : start + size]
            why = next((str(one) for one in own if isinstance(one, Exception)), None)
            scores.append([] if why else [float(one) for one in own if not isinstance(one, Exception)])
            failures.append(why)
            start += size
        return {"name": row["name"], "ids": row["ids"], "scores": scores, "failures": failures}


def score_with_model(config: EvaluateConfig, chunks: Sequence[Chunk], parts: Parts) -> float:
    """Score chunks and write their parts.

    Returns:
        seconds from the first engine's start to the last part, engines' loading included.

    Raises:
        ResourceError: the cluster can't hold the actors.
        WildRewardError: a response has no score. The parts of chunks without such a response are written.
    """
    start_ray()
    check_resources(requests.scoring(config), task_cpus=requests.EVALUATE_TASK_CPUS)
    began = time.monotonic()
    with Progress("evaluate", "responses", sum(chunk.responses for chunk in chunks)) as progress:
        score_chunks(config, chunks, parts, progress.counter)
    return time.monotonic() - began


def score_chunks(config: EvaluateConfig, chunks: Sequence[Chunk], parts: Parts, counter: Any) -> None:
    """`score_with_model` on a Ray that runs, with any counter of responses. Raises like it."""
    import ray.data

    rows = [{"name": chunk.name, "jobs": _packed(chunk)} for chunk in chunks]
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
    encoded = dataset.map_batches(
        encode_chunks, fn_args=(config,), batch_size=1, batch_format="pyarrow", num_cpus=_TASK_CPUS
    )
    scored = encoded.map_batches(
        EvaluateActor,
        fn_constructor_args=(config, counter, telemetry_of("evaluate")),
        batch_size=1,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=config.replicas),
        num_cpus=config.num_cpus,
        num_gpus=config.num_gpus or None,
    )
    written = scored.map_batches(
        write_scores, fn_args=(parts,), batch_size=1, batch_format="pyarrow", num_cpus=_TASK_CPUS
    )
    failed = {row["job"]: row["why"] for row in written.iter_rows()}
    Failures(failed).check(sum(len(chunk.jobs) for chunk in chunks))


def encode_chunks(table: pa.Table, config: EvaluateConfig) -> pa.Table:
    """Chunks of jobs in, their token ids out: a task of its own, so that an engine never waits for a tokenizer."""
    encoder = _encoder(config.model_dump_json())
    rows = []
    for row in table.to_pylist():
        jobs = json.loads(row["jobs"])
        items = [(job["history"], job["prompt"], text) for job in jobs for text in job["responses"]]
        rows.append(
            {
                "name": row["name"],
                "ids": [job["id"] for job in jobs],
                "sizes": [len(job["responses"]) for job in jobs],
                "inputs": encoder.encode(items),
            }
        )
    return pa.Table.from_pylist(rows, schema=_ENCODED)


def write_scores(table: pa.Table, parts: Parts) -> pa.Table:
    """Write the part of every chunk that is whole; the jobs of the others that have no scores out."""
    failed = []
    for row in table.to_pylist():
        bad = [{"job": job, "why": why} for job, why in zip(row["ids"], row["failures"], strict=True) if why]
        if not bad:
            parts.write(row["name"], dict(zip(row["ids"], row["scores"], strict=True)))
        failed += bad
    return pa.Table.from_pylist(failed, schema=_FAILED)


@functools.lru_cache(maxsize=1)
def _encoder(config: str) -> ResponseEncoder:
    """What encodes a model's inputs, loaded once a worker process."""
    return load_response_encoder(EvaluateConfig.model_validate_json(config))


def _packed(chunk: Chunk) -> str:
    return json.dumps(
        [
            {"id": job.id, "history": [dict(m) for m in job.history], "prompt": job.prompt, "responses": job.responses}
            for job in chunk.jobs
        ]
    )
