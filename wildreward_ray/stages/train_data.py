"""Where training rows come from, an extracted dataset or JSONL in WildFB's format, and where unusable ones go."""

from __future__ import annotations

import hashlib
import posixpath
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from wildreward_ray.cluster.artifact import has_manifest, read_manifest
from wildreward_ray.cluster.json_readers import read_lines
from wildreward_ray.cluster.records import Broken
from wildreward_ray.cluster.schema import MESSAGES, QUARANTINE
from wildreward_ray.cluster.storage import Location, list_files, locate, remove, upload_file
from wildreward_ray.core.config.train import TrainConfig
from wildreward_ray.core.errors import StorageError, UserError
from wildreward_ray.core.scale import check_k
from wildreward_ray.feedback import wildfb
from wildreward_ray.feedback.split import assign
from wildreward_ray.stages.dataset import SPLITS
from wildreward_ray.stages.tokens import TASK_CPUS, TOKENS, check_label

if TYPE_CHECKING:
    import ray.data

_ROWS = pa.schema(
    [
        ("row_id", pa.string()),
        ("history", MESSAGES),
        ("prompt", pa.string()),
        ("response", pa.string()),
        ("label", pa.int64()),
        ("user_id", pa.string()),
        ("language", pa.string()),
        ("origin", pa.string()),
        ("source", pa.string()),
        ("position", pa.int64()),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)
_EXTRACTED = [
    "interaction_id",
    "history",
    "prompt",
    "response",
    "label",
    "label_probs",
    "user_id",
    "language",
    "origin",
]
# `QUARANTINE` calls a row's id by the name that it has in extracted data.
_QUARANTINED = {"interaction_id": "row_id", **{name: name for name in ("source", "position", "reason", "detail")}}
_CHUNK_ROWS = 256
_WILDFB_LEVELS = 4


@dataclass(frozen=True)
class Source:
    """Labelled rows.

    Columns are `row_id, history, prompt, response, label, user_id, language, origin`; of extracted datasets `label_probs`;
    and of JSONL `source, position, reason, detail`, where `reason` isn't null for rows that can't be used.

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


def identity(config: TrainConfig) -> str:
    """A hash of the names and sizes of the dataset's files, which tells a dataset that was made anew from the one before.

    Raises:
        UserError: there is no dataset, or an unfinished one.
    """
    place = locate(config.dataset, flag="--dataset")
    suffix = ".jsonl"
    uri = config.dataset
    if not (config.dataset.rstrip("/").endswith(".jsonl") or _holds_jsonl(place)):
        uri, suffix = _extracted(config)[0], ".parquet"
    files = list_files(uri, flag="--dataset", suffixes=(suffix,))
    sizes = [(posixpath.basename(file.path), file.info().size) for file in files]
    return hashlib.sha256(repr(sizes).encode()).hexdigest()[:16]


def _extracted(config: TrainConfig) -> tuple[str, dict[str, Any]]:
    """Where the artefact stands that `--dataset` or its `dataset/` names, and its manifest."""
    root = config.dataset.rstrip("/")
    if root.endswith("/dataset") and not has_manifest(locate(root)):
        root = root.removesuffix("/dataset")
    return root, read_manifest(root, kind="feedback", flag="--dataset")


def _from_extract(config: TrainConfig) -> Source:
    root, manifest = _extracted(config)
    k = int(manifest["levels"])
    if config.levels not in (None, k):
        raise UserError(
            f"{config.dataset!r} has labels 1..{k}, not 1..{config.levels}",
            flag="--levels",
            hint="extract it again with",
        )
    place = locate(root, flag="--dataset").child("dataset")

    def reader(split: str) -> ray.data.Dataset:
        folder = place.child(split)
        files = [folder.child(name) for name in folder.names() if name.endswith(".parquet")]
        return _read(len(files), lambda index: _parquet_tables(files[index]))

    return Source(k, {split: reader(split) for split in SPLITS})


def _parquet_tables(file: Location) -> Iterator[pa.Table]:
    """Rows of a part of an extracted dataset, some at a time."""
    part = pads.dataset(file.path, filesystem=file.fs, format="parquet")
    for batch in part.to_batches(columns=_EXTRACTED, batch_size=_CHUNK_ROWS):
        yield pa.Table.from_batches([batch]).rename_columns({"interaction_id": "row_id"})


def _read(files: int, tables: Callable[[int], Iterator[pa.Table]]) -> ray.data.Dataset:
    """A streaming dataset of what files hold.

    Tasks of our own read them, which are made again when their node is lost; of `ray.data.read_parquet` (Ray 2.60) actors read
    the files' footers, and one that is lost ends the run.

    Args:
        files: how many there are.
        tables: gives the tables of a file by its index.
    """
    import ray.data

    def read(batch: dict[str, Any]) -> Iterator[pa.Table]:
        for index in batch["file"]:
            yield from tables(int(index))

    items = ray.data.from_items([{"file": i} for i in range(files)], override_num_blocks=files)
    return items.map_batches(read, batch_size=1, num_cpus=TASK_CPUS)


def _from_jsonl(config: TrainConfig) -> Source:
    k = check_k(config.levels or _WILDFB_LEVELS)
    files = split_files(list_files(config.dataset, flag="--dataset", suffixes=(".jsonl",)), config.dataset)
    share = config.test_share if files["train"] == files["test"] else None

    def reader(split: str) -> ray.data.Dataset:
        chosen = files[split]
        return _read(len(chosen), lambda index: jsonl_tables(chosen[index], split, share, k))

    return Source(k, {split: reader(split) for split in SPLITS})


def split_files(files: list[Location], uri: str) -> dict[str, list[Location]]:
    """Files with `test` in their name are the test part; where there are none, both parts are rows of all files.

    Raises:
        UserError: there are test files only.
    """
    test = [f for f in files if "test" in posixpath.basename(f.path)]
    if not test:
        return {"train": files, "test": files}
    train = [f for f in files if f not in test]
    if not train:
        raise UserError(f"{uri!r} holds test files only", flag="--dataset")
    return {"train": train, "test": test}


def jsonl_tables(file: Location, split: str, test_share: float | None, k: int) -> Iterator[pa.Table]:
    """One side's rows of a WildFB file, in pieces; lines that can't be used are rows with a reason, each on one side.

    Args:
        test_share: expected share of users on the test side, or of rows that name no user: a hash decides, so that no user is
            on both sides. None: all rows are on this side.
        k: number of levels.

    Raises:
        UserError: a label that is no whole number in 1..k; names the file, the row and the label.
        OSError: the file can't be read.
    """
    rows = []
    for row in _jsonl_rows(file, k):
        key = row["user_id"] or row["row_id"]
        if test_share is None or assign(key, test_share=test_share, salt="wildfb") == split:
            rows.append(row)
        if len(rows) >= _CHUNK_ROWS:
            yield pa.Table.from_pylist(rows, schema=_ROWS)
            rows = []
    yield pa.Table.from_pylist(rows, schema=_ROWS)


def _jsonl_rows(file: Location, k: int) -> Iterator[dict[str, Any]]:
    for item in read_lines(file, None):
        if isinstance(item, Broken):
            reason = item.reason if item.reason == "not_an_object" else "damaged_line"
            row = wildfb.unusable(item.position, reason, f"{item.reason}: {item.detail}")
        else:
            try:
                row = wildfb.parse(item.value, item.position)
                if row["reason"] is None:
                    check_label(row["row_id"], row["label"], k)
            except UserError as e:
                raise UserError(f"{file.uri!r}: {e.problem}", flag=e.flag, hint=e.hint) from e
        yield {**row, "source": file.uri, "position": item.position}


def quarantine(source: Location, target: Location) -> dict[str, int]:
    """Write what can't be used of `TOKENS` files to a Parquet file of `QUARANTINE` rows, and count it.

    Args:
        source: directory of `TOKENS` Parquet files.
        target: the Parquet file; one of an earlier run is replaced, and there is none where every row can be used.

    Returns:
        Rows by reason, in the order of the reasons.

    Raises:
        OSError: `source` can't be read or `target` can't be written.
    """
    remove(target)
    counts: Counter[str] = Counter()
    found = pads.dataset(source.path, filesystem=source.fs, schema=TOKENS)
    with tempfile.TemporaryDirectory(prefix="wildreward-") as folder:
        file = Path(folder) / "quarantine.parquet"
        with pq.ParquetWriter(file, QUARANTINE) as writer:
            for batch in found.to_batches(
                columns=list(_QUARANTINED.values()), filter=pads.field("reason").is_valid(), fragment_readahead=1
            ):
                counts.update(batch.column("reason").to_pylist())
                columns = [batch.column(_QUARANTINED[name]) for name in QUARANTINE.names]
                writer.write_batch(pa.record_batch(columns, schema=QUARANTINE))
        if counts:
            target.fs.create_dir(posixpath.dirname(target.path), recursive=True)
            upload_file(file, target)
    return dict(sorted(counts.items()))


def _holds_jsonl(place: Location) -> bool:
    from pyarrow.fs import FileSelector, FileType

    try:
        if place.info().type != FileType.Directory:
            return False
        return any(i.path.endswith(".jsonl") for i in place.fs.get_file_info(FileSelector(place.path)))
    except OSError as e:
        raise StorageError(f"can't read {place.uri!r}: {' '.join(str(e).split())}", flag="--dataset") from e
