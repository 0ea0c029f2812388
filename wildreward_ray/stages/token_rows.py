"""Token rows by number, from a memory-mapped Arrow file that a node makes once and all its workers share."""

from __future__ import annotations

import hashlib
import itertools
import os
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads

from wildreward_ray.cluster.storage import Location
from wildreward_ray.core.errors import UserError
from wildreward_ray.stages.tokens import TOKENS

_COLUMNS = ["row_id", "input_ids", "length", "label", "label_probs", "user_id", "language", "origin"]
# `content` and `sample` are hashes of the ids of tokens and of the row's id: what would need all texts or tokens to be told
# apart or drawn at random needs 8 bytes a row.
_STORED = pa.schema([*(TOKENS.field(name) for name in _COLUMNS), ("content", pa.uint64()), ("sample", pa.uint64())])
_ORDER = [("row_id", "ascending"), ("content", "ascending"), ("label", "ascending")]
_BATCH_ROWS = 4096


def build(source: Location, file: Path) -> None:
    """Copy the usable rows of `TOKENS` Parquet files, in one pass, to an Arrow file that `TokenRows` reads.

    The file appears whole or not at all, under a temporary name before: workers of one node may race for it.

    Args:
        source: directory of `TOKENS` Parquet files.
        file: the Arrow file; its directory must exist.

    Raises:
        OSError: `source` can't be read or `file` can't be written.
    """
    temporary = file.with_name(f".{file.name}.{uuid.uuid4().hex[:8]}.partial")
    rows = pads.dataset(source.path, filesystem=source.fs, schema=TOKENS)
    try:
        with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, _STORED) as writer:
            for batch in rows.to_batches(
                columns=_COLUMNS, filter=pads.field("reason").is_null(), batch_size=_BATCH_ROWS, fragment_readahead=1
            ):
                if batch.num_rows:
                    writer.write_batch(_with_hashes(batch))
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


class TokenRows:
    """Token rows of a file that `build` made; satisfies `reward.loop.Rows`.

    Rows are numbered in the order of their ids, and rows of one id by a hash of their tokens, then by label. So the
    numbering doesn't depend on how the rows were split into files, nor on who wrote them first.

    Args:
        file: the Arrow file; it stays open, mapped into memory.
        limit: keep only so many rows: a random sample, the first by a hash of their ids, which doesn't depend on what an id
            means and is the same on every run. Numbering is in the order of ids all the same.

    Attributes:
        lengths: [N] tokens of every row.
        labels: [N] labels.
        label_probs: [N, k] float32, or None unless all rows of the file have them.
        users, languages, origins: [N] str or None; None altogether where no row of the file has one.
        over_limit: how many rows the limit left out.

    Raises:
        UserError: rows whose `label_probs` differ in number.
    """

    def __init__(self, file: Path, limit: int | None = None) -> None:
        self._table = pa.ipc.open_file(pa.memory_map(str(file))).read_all()
        self._order = _order(self._table, limit)
        self.over_limit = self._table.num_rows - len(self._order)
        chunks = self._table["input_ids"].chunks
        self._starts = np.cumsum([0, *(len(chunk) for chunk in chunks)])
        self._tokens = [(chunk.offsets.to_numpy(), chunk.values.to_numpy()) for chunk in chunks]
        self.lengths: npt.NDArray[np.int64] = self._column("length").astype(np.int64)
        self.labels: npt.NDArray[np.int64] = self._column("label").astype(np.int64)
        self.label_probs = self._probs()
        self.users = self._texts("user_id")
        self.languages = self._texts("language")
        self.origins = self._texts("origin")

    def ids(self, row: int) -> Sequence[int]:
        """Token ids of one row."""
        position = int(self._order[row])
        chunk = int(np.searchsorted(self._starts, position, side="right")) - 1
        offsets, values = self._tokens[chunk]
        at = position - int(self._starts[chunk])
        ids: list[int] = values[offsets[at] : offsets[at + 1]].tolist()
        return ids

    def row_ids(self, rows: npt.NDArray[np.int64]) -> list[str]:
        """The ids of some rows, by their numbers."""
        column = self._table["row_id"]
        return [column[int(position)].as_py() for position in self._order[rows]]

    def _column(self, name: str) -> npt.NDArray[Any]:
        values: npt.NDArray[Any] = self._table[name].to_numpy()[self._order]
        return values

    def _probs(self) -> npt.NDArray[np.float32] | None:
        column = self._table["label_probs"]
        if column.null_count or len(column) == 0:
            return None
        sizes = pc.min_max(pc.list_value_length(column)).as_py()
        if sizes["min"] != sizes["max"]:
            raise UserError(
                f"rows have {sizes['min']} to {sizes['max']} probabilities in `label_probs`: one a level is needed",
                flag="--dataset",
            )
        values: npt.NDArray[np.float32] = pc.list_flatten(column).to_numpy().reshape(len(column), sizes["max"])
        return values[self._order]

    def _texts(self, name: str) -> npt.NDArray[np.object_] | None:
        """A column of texts; rows of one text share one object."""
        column = self._table[name]
        if column.null_count == len(column):
            return None
        encoded = column.dictionary_encode().combine_chunks()
        texts = np.array([*encoded.dictionary.to_pylist(), None], dtype=object)
        indices = encoded.indices.fill_null(len(texts) - 1).to_numpy(zero_copy_only=False)
        found: npt.NDArray[np.object_] = texts[indices[self._order]]
        return found


def _order(table: pa.Table, limit: int | None) -> npt.NDArray[np.int64]:
    """Positions in the file of the rows that are kept, in the order of their numbers."""
    keys = table.select([name for name, _ in _ORDER])
    order: npt.NDArray[np.int64] = pc.sort_indices(keys, sort_keys=_ORDER).to_numpy().astype(np.int64)
    if limit is None or limit >= len(order):
        return order
    drawn = np.argsort(table["sample"].to_numpy()[order], kind="stable")[:limit]
    return order[np.sort(drawn)]


def _with_hashes(batch: pa.RecordBatch) -> pa.RecordBatch:
    """A batch of `_STORED` rows."""
    tokens = batch.column("input_ids")
    offsets, values = tokens.offsets.to_numpy().tolist(), tokens.values.to_numpy()
    content = _hashes([values[begin:end].tobytes() for begin, end in itertools.pairwise(offsets)])
    sample = _hashes([str(name).encode() for name in batch.column("row_id").to_pylist()])
    return pa.record_batch([*(batch.column(name) for name in _COLUMNS), content, sample], schema=_STORED)


def _hashes(contents: list[bytes]) -> pa.Array:
    """64-bit hashes, the same on every machine."""
    digests = b"".join(hashlib.blake2b(content, digest_size=8).digest() for content in contents)
    return pa.array(np.frombuffer(digests, dtype="<u8"), pa.uint64())
