"""Where training rows come from: an extracted dataset, or JSONL in WildFB's format."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from wildreward_ray.cluster.artifact import has_manifest, read_manifest
from wildreward_ray.cluster.readers import json_lines
from wildreward_ray.cluster.schema import MESSAGES
from wildreward_ray.cluster.storage import Location, list_files, locate
from wildreward_ray.core.config.train import TrainConfig
from wildreward_ray.core.errors import StorageError, UserError
from wildreward_ray.core.scale import check_k
from wildreward_ray.feedback.split import assign
from wildreward_ray.stages.dataset import SPLITS
from wildreward_ray.stages.tokens import wildfb_rows

if TYPE_CHECKING:
    import ray.data

_ROWS = pa.schema(
    [
        ("row_id", pa.string()),
        ("history", MESSAGES),
        ("prompt", pa.string()),
        ("response", pa.string()),
        ("label", pa.int64()),
    ]
)
_CHUNK_ROWS = 256
_WILDFB_LEVELS = 4


@dataclass(frozen=True)
class Source:
    """Labelled rows: columns `row_id, history, prompt, response, label` and, of extracted datasets, `label_probs`.

    Attributes:
        k: number of levels.
        splits: a streaming dataset for `train` and for `test`.
    """

    k: int
    splits: dict[str, ray.data.Dataset]


def open_source(config: TrainConfig) -> Source:
    """Find the dataset that `--dataset` names.

    Raises:
        UserError: nothing there, an unfinished artefact, or levels that don't fit it.
    """
    place = locate(config.dataset, flag="--dataset")
    if config.dataset.rstrip("/").endswith(".jsonl") or _holds_jsonl(place):
        return _from_jsonl(config)
    return _from_extract(config)


def _from_extract(config: TrainConfig) -> Source:
    import ray.data

    root = config.dataset.rstrip("/")
    if root.endswith("/dataset") and not has_manifest(locate(root)):
        root = root.removesuffix("/dataset")
    manifest = read_manifest(root, kind="feedback", flag="--dataset")
    k = int(manifest["levels"])
    if config.levels not in (None, k):
        raise UserError(
            f"{config.dataset!r} has labels 1..{k}, not 1..{config.levels}",
            flag="--levels",
            hint="extract it again with",
        )
    place = locate(root, flag="--dataset").child("dataset")
    columns = ["interaction_id", "history", "prompt", "response", "label", "label_probs"]

    def rename(table: pa.Table) -> pa.Table:
        return table.rename_columns(["row_id", *columns[1:]])

    splits = {
        split: ray.data.read_parquet(place.child(split).path, filesystem=place.fs, columns=columns).map_batches(
            rename, batch_format="pyarrow"
        )
        for split in SPLITS
    }
    return Source(k, splits)


def _from_jsonl(config: TrainConfig) -> Source:
    """JSONL: files with `test` in their name are the test part; where there are none, rows are split by the hash of their id."""
    import ray.data

    files = list_files(config.dataset, flag="--dataset", suffixes=(".jsonl",))
    marked = [f for f in files if "test" in f.path.rsplit("/", 1)[-1]]
    parts = (
        {"train": [f for f in files if f not in marked], "test": marked} if marked else {"train": files, "test": files}
    )

    def reader(split: str) -> ray.data.Dataset:
        chosen = parts[split]
        share = None if marked else config.test_share

        def read(batch: dict[str, Any]) -> Iterator[pa.Table]:
            for index in batch["file"]:
                yield from _jsonl_tables(chosen[int(index)], split, share)

        items = ray.data.from_items([{"file": i} for i in range(len(chosen))], override_num_blocks=max(1, len(chosen)))
        return items.map_batches(read, batch_size=1)

    if not parts["train"]:
        raise UserError(f"{config.dataset!r} holds test files only", flag="--dataset")
    return Source(check_k(config.levels or _WILDFB_LEVELS), {split: reader(split) for split in SPLITS})


def _jsonl_tables(file: Location, split: str, test_share: float | None) -> Iterator[pa.Table]:
    rows = []
    for row in wildfb_rows(json_lines(file, flag="--dataset")):
        if test_share is None or assign(row["row_id"], test_share=test_share, salt="wildfb") == split:
            rows.append(row)
        if len(rows) >= _CHUNK_ROWS:
            yield _table(rows, file)
            rows = []
    yield _table(rows, file)


def _table(rows: list[dict[str, Any]], file: Location) -> pa.Table:
    for row in rows:
        if not isinstance(row["label"], int):
            raise UserError(
                f"row {row['row_id']!r} of {file.uri!r} has label {row['label']!r}: labels are whole numbers",
                flag="--dataset",
            )
    return pa.Table.from_pylist(rows, schema=_ROWS)


def _holds_jsonl(place: Location) -> bool:
    from pyarrow.fs import FileSelector, FileType

    try:
        if place.info().type != FileType.Directory:
            return False
        return any(i.path.endswith(".jsonl") for i in place.fs.get_file_info(FileSelector(place.path)))
    except OSError as e:
        raise StorageError(f"can't read {place.uri!r}: {' '.join(str(e).split())}", flag="--dataset") from e
