"""Chunks: what is done is told from names alone, and nothing is done twice or half."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from wildreward_ray.cluster.storage import locate
from wildreward_ray.stages.chunks import (
    done_parts,
    each_part,
    groups_of,
    list_parts,
    pack,
    part_file,
    part_name,
    unpack,
    write_parts,
)

SHARD = "00ff00ff00ff00ff"


def names(*indices: int, end: int | None = None) -> list[str]:
    return [part_name(SHARD, i, end=i == end) for i in indices]


def test_shard_is_whole_only_with_its_last_chunk_and_all_before_it() -> None:
    assert done_parts(names(0, 1, 2, end=2))[SHARD].whole
    assert not done_parts(names(0, 1, 2))[SHARD].whole
    assert not done_parts(names(0, 2, end=2))[SHARD].whole
    assert done_parts(names(0, end=0))[SHARD].whole


def test_chunk_that_is_missing_between_others_is_not_taken_for_done() -> None:
    done = done_parts(names(0, 2, end=2))[SHARD]
    assert [i in done for i in range(4)] == [True, False, True, False]


def test_file_that_is_no_part_says_nothing() -> None:
    assert done_parts(["state", "empty", f"{SHARD}-1", f"{SHARD}-000001-end-2"]) == {}


def test_packed_table_comes_out_as_it_went_in_however_chunks_are_put_together() -> None:
    tables = [
        pa.table({"a": [1, 2], "b": ["x", None]}),
        pa.table({"a": pa.array([], pa.int64()), "b": pa.array([], pa.string())}),
    ]
    chunks = pa.concat_tables([pack(f"p{i}", t) for i, t in enumerate(tables)])
    assert [(name, table.to_pydict()) for name, table in unpack(chunks)] == [
        (f"p{i}", t.to_pydict()) for i, t in enumerate(tables)
    ]


def test_part_that_is_written_twice_is_one_file(tmp_path: Path) -> None:
    folder = locate(str(tmp_path))
    chunks = pack(part_name(SHARD, 0, end=True), pa.table({"a": [1, 2, 3]}))
    for _ in range(2):
        write_parts(chunks, folder)
    assert list_parts(folder) == [f"{SHARD}-000000-end"]
    assert [p.name for p in tmp_path.iterdir()] == [f"{SHARD}-000000-end.parquet"]
    assert part_file(folder, f"{SHARD}-000000-end").read_table()["a"].to_pylist() == [1, 2, 3]


def test_half_written_part_of_a_killed_writer_is_not_listed(tmp_path: Path) -> None:
    (tmp_path / f".{SHARD}-000000-end.parquet.0a0b0c0d.partial").write_bytes(b"half")
    assert list_parts(locate(str(tmp_path))) == []


def test_directory_that_is_not_there_has_no_parts(tmp_path: Path) -> None:
    assert list_parts(locate(str(tmp_path / "absent"))) == []


@pytest.mark.parametrize("count", [1, 4096, 4097, 10_000])
def test_groups_hold_every_part_once_and_in_order(count: int) -> None:
    parts = [str(i) for i in range(count)]
    groups = groups_of(parts)
    assert len(groups) <= 4096
    assert list(each_part({"parts": [g["parts"] for g in groups]})) == parts
