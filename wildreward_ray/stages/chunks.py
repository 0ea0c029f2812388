"""Chunks: the unit of work of an extraction, and how a killed run goes on.

A shard's records are cut into chunks by nothing but their own number and size, so the same input gives the same chunks on
every run and every cluster. A chunk is judged and written as one Parquet file under its own name, in one go. What stands
there is done: a resumed run, a task that Ray repeats, or two tasks that race for the same chunk make the same file, and
nothing is there twice or half.

Ray Data's own checkpoints (2.60) keep ids of rows instead: they need a unique id in every row, and logs repeat ids; rows
without one (quarantined records, counts) can't be kept; every id of the corpus is loaded when a run is resumed; and
reading, judging and writing must be one pipeline. File names need none of this.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from wildreward_ray.cluster.schema import CHUNKS
from wildreward_ray.cluster.storage import Location

# A chunk ends at the first of these. Few conversations can be many turns or many bytes.
CHUNK_INTERACTIONS = 1024
CHUNK_CHARACTERS = 8 * 1024 * 1024

_SUFFIX = ".parquet"
_NAME = re.compile(r"(?P<shard>[0-9a-f]+)-(?P<index>\d{6})(?P<end>-end)?")
# More items than this in one list cost the driver more than they spread the work.
_MOST_GROUPS = 4096


def part_name(shard: str, index: int, *, end: bool) -> str:
    """The name of a chunk's part; the last one of a shard says so."""
    return f"{shard}-{index:06d}{'-end' if end else ''}"


@dataclass(frozen=True)
class Done:
    """Which chunks of a shard were finished by an earlier run."""

    indices: frozenset[int]
    whole: bool

    def __contains__(self, index: int) -> bool:
        return index in self.indices


def done_parts(names: Collection[str]) -> dict[str, Done]:
    """What the names of finished parts say, by shard. A shard is whole when its last chunk and all before it are there."""
    indices: dict[str, set[int]] = {}
    ends: dict[str, int] = {}
    for name in names:
        match = _NAME.fullmatch(name)
        if match is None:
            continue
        index = int(match["index"])
        indices.setdefault(match["shard"], set()).add(index)
        if match["end"]:
            ends[match["shard"]] = index
    return {s: Done(frozenset(found), s in ends and len(found) == ends[s] + 1) for s, found in indices.items()}


def list_parts(folder: Location) -> list[str]:
    """Names of the finished parts below a directory, sorted, without their suffix."""
    return [name.removesuffix(_SUFFIX) for name in folder.names() if name.endswith(_SUFFIX)]


def part_file(folder: Location, part: str) -> Location:
    """The file of a part."""
    return folder.child(part + _SUFFIX)


def pack(part: str, table: pa.Table) -> pa.Table:
    """A table of one `CHUNKS` row."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    data = sink.getvalue()
    offsets = pa.py_buffer(np.array([0, data.size], dtype=np.int64))
    packed = pa.LargeBinaryArray.from_buffers(pa.large_binary(), 1, [None, offsets, data])
    return pa.table([pa.array([part]), packed], schema=CHUNKS)


def unpack(chunks: pa.Table) -> Iterator[tuple[str, pa.Table]]:
    """(part, table) of every `CHUNKS` row."""
    for part, data in zip(chunks["part"], chunks["table"], strict=True):
        with pa.ipc.open_stream(data.as_buffer()) as reader:
            yield part.as_py(), reader.read_all()


def write_parts(chunks: pa.Table, folder: Location) -> pa.Table:
    """Write every `CHUNKS` row to its part below `folder`; their names out.

    A task of its own, so that an engine never waits for a store.
    """
    names = []
    for part, table in unpack(chunks):
        part_file(folder, part).write_table(table)
        names.append(part)
    return pa.table({"part": pa.array(names, pa.string())})


def groups_of(parts: Sequence[str]) -> list[dict[str, Any]]:
    """Parts as items for `ray.data.from_items`: one a part, or several where there are very many."""
    size = -(-len(parts) // _MOST_GROUPS) or 1
    return [{"parts": list(parts[i : i + size])} for i in range(0, len(parts), size)]


def each_part(batch: dict[str, Any]) -> Iterator[str]:
    """The parts of a batch of `groups_of` items."""
    for group in batch["parts"]:
        yield from (str(part) for part in group)
