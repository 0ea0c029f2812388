"""`wildreward score`: conversations in, rewards out, in batch by Ray Data."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from wildreward_ray.cluster.artifact import open_artifact
from wildreward_ray.cluster.progress import Progress
from wildreward_ray.cluster.session import check_resources, ray_errors, start_ray
from wildreward_ray.cluster.storage import Location, list_files
from wildreward_ray.cluster.telemetry import Telemetry, telemetry_of
from wildreward_ray.core.config.serve import ScoreConfig
from wildreward_ray.core.errors import UserError
from wildreward_ray.core.manifest import FunnelStep, Manifest
from wildreward_ray.core.template import split_messages
from wildreward_ray.stages import requests
from wildreward_ray.stages.dataset import write_parquet
from wildreward_ray.stages.scoring import check_checkpoint, load_scorer

SCORES = pa.schema(
    [
        ("id", pa.string()),
        ("score", pa.float64()),
        ("level_probs", pa.list_(pa.float64())),
        ("p_gt", pa.list_(pa.float64())),
    ]
)
QUARANTINE = pa.schema([("id", pa.string()), ("reason", pa.string())])
_ITEMS = pa.schema([("id", pa.string()), ("item", pa.string()), ("reason", pa.string())])
_CHUNK_ROWS = 256
_ID_COLUMNS = ("id", "interaction_id")


class ScoreActor:
    """Scores batches of rows with one reward model; rows that can't be scored pass through with their reason."""

    def __init__(self, config: ScoreConfig, counter: Any | None, telemetry: Telemetry) -> None:
        self._scorer = load_scorer(config)
        self._counter, self._telemetry = counter, telemetry

    def __call__(self, table: pa.Table) -> pa.Table:
        rows = table.to_pylist()
        usable = [row for row in rows if row["reason"] is None]
        items = [json.loads(row["item"]) for row in usable]
        inputs = self._scorer.encoder.encode_batch([(i["history"], i["prompt"], i["response"]) for i in items])
        out: list[dict[str, Any]] = [{"id": row["id"], "reason": row["reason"]} for row in rows if row["reason"]]
        for row, scored in zip(usable, self._scorer.score_each(inputs), strict=True):
            if isinstance(scored, Exception):
                out.append({"id": row["id"], "reason": str(scored)})
                continue
            out.append(
                {
                    "id": row["id"],
                    "score": float(scored.score[0]),
                    "level_probs": scored.level_probs[0].tolist(),
                    "p_gt": scored.p_gt[0].tolist(),
                }
            )
        if self._counter is not None:
            self._counter.add.remote(len(rows))
        given = sum("score" in row for row in out)
        self._telemetry.responses(given, len(rows) - given)
        return pa.Table.from_pylist(out, schema=pa.schema([*SCORES, pa.field("reason", pa.string())]))


def run(config: ScoreConfig) -> dict[str, Any]:
    """Score every row of the input. Returns the manifest.

    Raises:
        UserError: an unusable checkpoint or input, or too small a cluster.
    """
    started = time.monotonic()
    check_checkpoint(config)
    files = [f for uri in config.input for f in list_files(uri, flag="--input", suffixes=(".jsonl", ".parquet"))]
    with open_artifact(config.output, overwrite=config.overwrite) as artifact, ray_errors(config.output):
        start_ray()
        check_resources(requests.scoring(config), task_cpus=requests.SCORE_TASK_CPUS)
        work = artifact.work
        with Progress("score", "rows", config.limit) as progress:
            write_parquet(_scored(files, config, progress.counter), work.child("all"), SCORES)
        rows, bad = _separate(work)
        manifest = Manifest.model_validate(
            {
                "kind": "scores",
                "inputs": list(config.input),
                "config": config.model_dump(mode="json"),
                "funnel": [
                    FunnelStep(
                        name="score",
                        unit="rows",
                        rows_in=rows + bad,
                        rows_out=rows,
                        dropped={"quarantined": bad} if bad else {},
                    )
                ],
                "seconds": round(time.monotonic() - started, 1),
            }
        )
        artifact.commit(manifest, ["scores", "quarantine"])
    return manifest.model_dump()


def _scored(files: list[Location], config: ScoreConfig, counter: Any) -> Any:
    import ray.data

    groups = [files] if config.limit is not None else [[file] for file in files]

    def read(batch: dict[str, Any]) -> Iterator[pa.Table]:
        for index in batch["group"]:
            yield from _tables(groups[int(index)], config.limit)

    items = ray.data.from_items([{"group": i} for i in range(len(groups))], override_num_blocks=len(groups))
    return items.map_batches(read, batch_size=1, num_cpus=requests.SCORE_TASK_CPUS).map_batches(
        ScoreActor,
        fn_constructor_args=(config, counter, telemetry_of("score")),
        batch_size=config.batch_size,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=config.replicas),
        num_cpus=config.num_cpus,
        num_gpus=config.num_gpus or None,
    )


def _tables(files: list[Location], limit: int | None) -> Iterator[pa.Table]:
    rows: list[dict[str, Any]] = []
    taken = 0
    for file in files:
        for number, record in enumerate(_records(file)):
            if limit is not None and taken >= limit:
                break
            taken += 1
            rows.append(_item(record, file, number))
            if len(rows) >= _CHUNK_ROWS:
                yield pa.Table.from_pylist(rows, schema=_ITEMS)
                rows = []
    yield pa.Table.from_pylist(rows, schema=_ITEMS)


def _item(record: Any, file: Location, number: int) -> dict[str, Any]:
    """A row to score, or the reason why it can't be."""
    fallback = f"{file.uri}#{number}"
    if not isinstance(record, dict):
        return {"id": fallback, "reason": f"not an object but a {type(record).__name__}"}
    name = str(next((record[c] for c in _ID_COLUMNS if record.get(c) is not None), fallback))
    try:
        if record.get("messages") is not None:
            history, prompt, response = split_messages(record["messages"])
        else:
            history, prompt, response = record.get("history") or [], record["prompt"], record["response"]
        if not isinstance(prompt, str) or not isinstance(response, str):
            raise UserError("prompt and response must be texts")
        item = {
            "history": [{"role": str(m["role"]), "content": str(m["content"])} for m in history],
            "prompt": prompt,
            "response": response,
        }
    except (KeyError, TypeError, AttributeError, UserError) as e:
        missing = f"no field {e}" if isinstance(e, KeyError) else str(e)
        return {"id": name, "reason": missing}
    return {"id": name, "item": json.dumps(item, ensure_ascii=False), "reason": None}


def _records(file: Location) -> Iterator[Any]:
    if file.path.endswith(".parquet"):
        with file.fs.open_input_file(file.path) as source:
            reader = pq.ParquetFile(source)
            wanted = [*_ID_COLUMNS, "messages", "history", "prompt", "response"]
            columns = [c for c in wanted if c in reader.schema_arrow.names]
            for batch in reader.iter_batches(batch_size=_CHUNK_ROWS, columns=columns):
                yield from batch.to_pylist()
        return
    from wildreward_ray.cluster.readers import json_lines

    yield from json_lines(file, flag="--input")


def _separate(work: Location) -> tuple[int, int]:
    """Put scores and rows without one into their own directories. Returns how many there are of each."""
    dataset = pads.dataset(work.child("all").path, filesystem=work.fs)
    counts = []
    for name, schema, keep in (
        ("scores", SCORES, pads.field("score").is_valid()),
        ("quarantine", QUARANTINE, ~pads.field("score").is_valid()),
    ):
        target = work.child(name)
        target.fs.create_dir(target.path, recursive=True)
        rows = 0
        with pq.ParquetWriter(f"{target.path}/{name}.parquet", schema, filesystem=target.fs) as writer:
            available = [c for c in schema.names if c in dataset.schema.names]
            if len(available) == len(schema.names):
                for batch in dataset.to_batches(columns=schema.names, filter=keep):
                    writer.write_batch(batch.cast(schema))
                    rows += batch.num_rows
        counts.append(rows)
    return counts[0], counts[1]
