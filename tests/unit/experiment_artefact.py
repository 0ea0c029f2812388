"""A synthetic extraction with its dataset, whose refined rows are of every kind that an ablation takes back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.unit.inspect_artefact import clean_rows, probabilities, table, write
from wildreward_ray.core.config.extract import QualitySection
from wildreward_ray.core.scale import training_label
from wildreward_ray.stages.dataset import to_dataset

Rows = list[dict[str, Any]]


def refined_rows(n: int = 2_000, k: int = 4) -> Rows:
    """Rows of K levels: every third validated refusal was judged neutral, half of those minable, and every fifth is toxic."""
    rows = clean_rows(n)
    refusals = [row for row in rows if row["origin"] == "refusal"]
    for i, row in enumerate(refusals):
        row["toxic"] = i % 5 == 4
        if i % 3 == 0:
            row["judge_level"], row["judge_probs"] = 3, probabilities(3, 0.6)
            row["similarity"] = 0.7 if i % 6 == 0 else None
        else:
            row["judge_level"] = 2 if i % 3 == 1 else row["level"]
            row["judge_probs"] = probabilities(row["judge_level"], 0.7)
    for row in rows:
        kept = row["drop_reason"] in (None, "neutral")
        row["label"] = training_label(row["level"], k) if kept else None
        if kept:
            row["drop_reason"] = None if row["label"] else "neutral"
            row["split"] = None if row["label"] is None else row["split"] or "train"
        row["toxic"] = row["toxic"] and (row["origin"] == "refusal" or row["split"] is None)
    return rows


def write_extraction(folder: Path, rows: Rows, *, k: int = 4, **quality: Any) -> str:
    """Write `feedback/`, `dataset/` and the manifest of these rows; return their place.

    Args:
        quality: settings of the filters other than their defaults.
    """
    settings = QualitySection(**quality).model_dump(mode="json")
    write(folder, rows, levels=k, config={"quality": settings})
    for split in ("train", "test"):
        (folder / "dataset" / split).mkdir(parents=True)
        for i in range(2):
            kept = [row for row in rows if row["split"] == split][i::2]
            pq.write_table(to_dataset(table(kept), k), folder / "dataset" / split / f"part-{i:05d}.parquet")
    return str(folder)


def dataset_rows(uri: str, split: str = "train") -> dict[str, dict[str, Any]]:
    """Rows of a dataset by interaction id; raises where an id is there twice."""
    files = sorted((Path(uri) / "dataset" / split).glob("*.parquet"))
    rows = pa.concat_tables([pq.read_table(file) for file in files]).to_pylist()
    by_id = {row["interaction_id"]: row for row in rows}
    assert len(by_id) == len(rows)
    return by_id
