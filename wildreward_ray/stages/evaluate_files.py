"""What an evaluation leaves at its output, and reading it again."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from wildreward_ray.cluster.artifact import read_manifest
from wildreward_ray.cluster.storage import Location, first_line, locate, upload
from wildreward_ray.core.errors import StorageError
from wildreward_ray.reward.benchmarks.items import Benchmark, Floats, Item, Outcomes, Pair

KIND = "evaluation"
RESULTS, PAGE, SCORES, OUTCOMES, PLOTS = "results.json", "report.html", "scores.parquet", "outcomes.parquet", "plots"
TABLES = ("table.md", "table.tex")
_COMPARE = "--compare"
_MESSAGE = pa.struct([("role", pa.string()), ("content", pa.string())])
_SCORES = pa.schema(
    [
        ("id", pa.string()),
        ("own_id", pa.string()),
        ("group", pa.string()),
        ("history", pa.list_(_MESSAGE)),
        ("prompt", pa.string()),
        ("responses", pa.list_(pa.string())),
        ("correct", pa.list_(pa.bool_())),
        ("scores", pa.list_(pa.float64())),
        ("pairs", pa.list_(pa.list_(pa.int32()))),
    ]
)


@dataclass(frozen=True)
class Evaluation:
    """An evaluation that stands at a place.

    Attributes:
        results: content of results.json.
        items, scores: what was scored; items have no attributes.
        pairs: of every item, those that calibration and margins are measured on.
        outcomes: of its units.
    """

    uri: str
    results: dict[str, Any]
    items: list[Item]
    scores: list[Floats]
    pairs: list[list[Pair]]
    outcomes: Outcomes


def write_scores_file(work: Location, benchmark: Benchmark, items: Sequence[Item], scores: Sequence[Floats]) -> None:
    """Every item with its responses, their scores and its pairs (right, wrong), one row an item."""
    rows = [
        {
            "id": item.id,
            "own_id": item.own_id,
            "group": item.group,
            "history": [{"role": m["role"], "content": m["content"]} for m in item.history],
            "prompt": item.prompt,
            "responses": list(item.responses),
            "correct": list(item.correct),
            "scores": own.tolist(),
            "pairs": [list(pair) for pair in benchmark.pairs(item)],
        }
        for item, own in zip(items, scores, strict=True)
    ]
    work.child(SCORES).write_table(pa.Table.from_pylist(rows, schema=_SCORES))


def write_outcomes(work: Location, outcomes: Outcomes) -> None:
    """The outcomes of every unit, one column for each thing that is measured."""
    columns: dict[str, Any] = {"id": list(outcomes.ids), "group": list(outcomes.groups)}
    columns |= {f"value/{name}": outcomes.values[:, i] for i, name in enumerate(outcomes.names)}
    work.child(OUTCOMES).write_table(pa.table(columns))


def write_json(place: Location, value: Mapping[str, Any]) -> None:
    """A JSON file; a NaN in it is a bug and an error."""
    place.write_bytes((json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False) + "\n").encode())


def write_plots(results: Mapping[str, Any], target: Location) -> None:
    """The pictures as PNG files below `target`."""
    from wildreward_ray.report.evaluation_plots import write_plots as draw

    with tempfile.TemporaryDirectory() as folder:
        draw(results, Path(folder))
        upload(Path(folder), target)


def read_evaluation(uri: str) -> Evaluation:
    """An evaluation that was finished.

    Raises:
        StorageError: there is none at `uri`, or it can't be read.
    """
    read_manifest(uri, kind=KIND, flag=_COMPARE)
    place = locate(uri, flag=_COMPARE)
    try:
        results = json.loads(place.child(RESULTS).read_bytes())
        rows = place.child(SCORES).read_table().to_pylist()
        outcomes = place.child(OUTCOMES).read_table()
    except (OSError, ValueError) as e:
        raise StorageError(f"can't read {uri!r}: {first_line(e)}", flag=_COMPARE) from e
    names = tuple(name.removeprefix("value/") for name in outcomes.column_names if name.startswith("value/"))
    values = [outcomes[f"value/{name}"].to_numpy(zero_copy_only=False) for name in names]
    return Evaluation(
        uri,
        results,
        [_item(row) for row in rows],
        [np.asarray(row["scores"], dtype=np.float64) for row in rows],
        [[(right, wrong) for right, wrong in row["pairs"]] for row in rows],
        Outcomes(
            tuple(outcomes["group"].to_pylist()),
            tuple(outcomes["id"].to_pylist()),
            names,
            np.stack(values, axis=1).astype(np.float64) if values else np.zeros((outcomes.num_rows, 0)),
        ),
    )


def _item(row: Mapping[str, Any]) -> Item:
    return Item(
        own_id=row["own_id"],
        group=row["group"],
        history=tuple(row["history"]),
        prompt=row["prompt"],
        responses=tuple(row["responses"]),
        correct=tuple(row["correct"]),
    )
