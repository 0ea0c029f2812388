"""Labelled interactions -> the files that training reads: feedback, train and test, without what was decided against."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from wildreward_ray.cluster.schema import DATASET, DROPS, FEEDBACK, REFINED
from wildreward_ray.cluster.storage import Location, again, remove
from wildreward_ray.core.scale import fold_probs
from wildreward_ray.stages.chunks import list_parts, part_file

if TYPE_CHECKING:
    import ray.data

SPLITS = ("train", "test")
# Size of a file of the dataset: large enough for fast scans, small enough for one task to hold.
_FILE_BYTES = 64 * 1024 * 1024


def write_parquet(dataset: ray.data.Dataset, target: Location, schema: pa.Schema) -> None:
    """Write a dataset as Parquet; one without rows becomes one empty file, so that readers find the schema."""
    target.fs.create_dir(target.path, recursive=True)
    dataset.write_parquet(target.path, filesystem=target.fs, try_create_dir=False)
    if not target.names():
        target.child("empty.parquet").write_table(schema.empty_table())


def write_final(work: Location, drops: Location, levels: int) -> None:
    """Write `feedback/`, `dataset/train/` and `dataset/test/` below `work` from the refined parts, without what was decided against.

    Parts are put together to files of a handy size; a task writes one of each kind.
    """
    import ray.data

    refined = work.child("refined")
    targets = {name: work.child(name) for name in ("feedback", "dataset/train", "dataset/test")}
    for target in targets.values():
        remove(target)  # of a run that was killed here
        target.fs.create_dir(target.path, recursive=True)
    groups = _by_size(refined)
    tasks = ray.data.from_items(
        [{"file": i, "parts": parts} for i, parts in enumerate(groups)], override_num_blocks=max(1, len(groups))
    )

    def write(batch: dict[str, Any]) -> dict[str, Any]:
        for file, parts in zip(batch["file"], batch["parts"], strict=True):
            _write_group(int(file), [str(p) for p in parts], refined, drops, targets, levels)
        return {"file": batch["file"]}

    for _ in tasks.map_batches(write, batch_size=1).iter_batches(batch_size=None):
        pass
    for name, target in targets.items():
        if not target.names():
            schema = FEEDBACK if name == "feedback" else DATASET
            target.child("empty.parquet").write_table(schema.empty_table())


def _by_size(refined: Location) -> list[list[str]]:
    """Names of parts, in order, in groups of about `_FILE_BYTES`."""
    groups: list[list[str]] = []
    size = _FILE_BYTES
    for part in list_parts(refined):
        if size >= _FILE_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(part)
        size += part_file(refined, part).info().size or 0
    return groups


def _write_group(
    file: int, parts: list[str], refined: Location, drops: Location, targets: dict[str, Location], levels: int
) -> None:
    dropped = again(lambda: _drops_of(parts, drops))
    with _Files(f"part-{file:05d}.parquet", targets) as files:
        for part in parts:
            rows = part_file(refined, part).read_table(REFINED.names).cast(REFINED)
            table = apply_drops(rows, dropped.filter(pc.equal(dropped["part"], part)))
            files.write("feedback", table.select(FEEDBACK.names))
            for split in SPLITS:
                kept = table.filter(pc.equal(table["split"], split))
                if kept.num_rows:
                    files.write(f"dataset/{split}", to_dataset(kept, levels))


def _drops_of(parts: list[str], drops: Location) -> pa.Table:
    with drops.fs.open_input_file(drops.path) as source:
        return pq.read_table(source, filters=pads.field("part").isin(parts)).cast(DROPS)


def apply_drops(rows: pa.Table, drops: pa.Table) -> pa.Table:
    """`REFINED` rows of one part without repeated ones, and with the reason written into those that are dropped."""
    reasons: list[str | None] = [None] * rows.num_rows
    for row, reason in zip(drops["row"].to_pylist(), drops["reason"].to_pylist(), strict=True):
        # An interaction that is repeated is one row too many, whatever else may be said of it.
        if reasons[row] != "repeated":
            reasons[row] = reason
    reason = pa.array(reasons, pa.string())
    decided = pc.is_valid(reason)
    for name in ("label", "split"):
        at = rows.schema.get_field_index(name)
        nothing = pa.nulls(rows.num_rows, rows.schema.field(at).type)
        rows = rows.set_column(at, rows.schema.field(at), pc.if_else(decided, nothing, rows[name]))
    at = rows.schema.get_field_index("drop_reason")
    rows = rows.set_column(at, rows.schema.field(at), pc.if_else(decided, reason, rows["drop_reason"]))
    return rows.filter(pc.fill_null(pc.not_equal(reason, "repeated"), True))


def to_dataset(rows: pa.Table, levels: int) -> pa.Table:
    """`DATASET` rows of kept `FEEDBACK` rows, with the probabilities of five levels folded into those of the labels."""
    folded = [fold_probs(p, levels) for p in rows["level_probs"].to_pylist()]
    rows = rows.append_column("label_probs", pa.array(folded, type=DATASET.field("label_probs").type))
    return rows.select(DATASET.names).cast(DATASET)


class _Files:
    """Parquet files of one name in several directories, each begun with its first rows and written in one go at the end."""

    def __init__(self, name: str, targets: dict[str, Location]) -> None:
        self._name, self._targets = name, targets
        self._open: dict[str, tuple[pa.BufferOutputStream, pq.ParquetWriter]] = {}

    def __enter__(self) -> _Files:
        return self

    def write(self, target: str, table: pa.Table) -> None:
        if target not in self._open:
            sink = pa.BufferOutputStream()
            self._open[target] = sink, pq.ParquetWriter(sink, table.schema, compression="zstd")
        self._open[target][1].write_table(table)

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        for target, (sink, writer) in self._open.items():
            writer.close()
            if kind is None:
                self._targets[target].child(self._name).write_bytes(sink.getvalue())
