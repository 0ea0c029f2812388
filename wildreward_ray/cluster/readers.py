"""Streaming raw records out of chat-log files. A file is never held whole, and what can't be read is reported, not skipped."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from wildreward_ray.cluster.storage import Location, first_line
from wildreward_ray.core.errors import UserError

_PARQUET_MAGIC = b"PAR1"
_BOM = b"\xef\xbb\xbf"
_BATCH_ROWS = 256
# A shard is read by one task; small ones keep all readers busy and make a lost task cheap.
_SHARD_ROWS = 20_000


@dataclass(frozen=True)
class Record:
    """A raw record and its position in the file."""

    position: int
    value: Any


@dataclass(frozen=True)
class Broken:
    """A place from which a file can't be read on."""

    position: int
    reason: str
    detail: str


@dataclass(frozen=True)
class Shard:
    """A part of a file that one task reads.

    Attributes:
        row_groups: of a Parquet file, or None for the whole file.
        first: position of the shard's first record in the file.
    """

    file: Location
    format: str
    row_groups: tuple[int, ...] | None
    first: int


def detect_format(file: Location) -> str:
    """`wildchat` or `sharegpt`, by a file's first bytes and columns.

    Raises:
        UserError: neither.
    """
    with file.open_input() as stream:
        head = bytes(stream.read(64))
    if head[:4] == _PARQUET_MAGIC:
        return "wildchat"
    if head.removeprefix(_BOM).lstrip()[:1] == b"[":
        return "sharegpt"
    raise UserError(
        f"the format of {file.uri!r} is not recognised (it begins with {head[:16]!r})",
        flag="--format",
        hint="known are WildChat Parquet and ShareGPT JSON",
    )


def plan_shards(file: Location, format: str, required_columns: Sequence[str]) -> list[Shard]:
    """Cut a file into shards.

    Raises:
        UserError: the file isn't of the format, or lacks a column.
    """
    if format != "wildchat":
        if detect_format(file) != format:
            raise UserError(f"{file.uri!r} is not a JSON array, as {format} logs are", flag="--format")
        return [Shard(file, format, None, 0)]
    try:
        with file.fs.open_input_file(file.path) as source:
            metadata = pq.ParquetFile(source).metadata
            names = pq.ParquetFile(source).schema_arrow.names
    except (pa.ArrowException, OSError) as e:
        raise UserError(f"{file.uri!r} is not readable as Parquet: {first_line(e)}", flag="--input") from e
    missing = [c for c in required_columns if c not in names]
    if missing:
        raise UserError(f"{file.uri!r} has no column {missing[0]!r} (it has {', '.join(names[:8])})", flag="--format")
    shards: list[Shard] = []
    group: list[int] = []
    rows = first = seen = 0
    for index in range(metadata.num_row_groups):
        group.append(index)
        rows += metadata.row_group(index).num_rows
        if rows >= _SHARD_ROWS or index == metadata.num_row_groups - 1:
            shards.append(Shard(file, format, tuple(group), first))
            seen += rows
            first, group, rows = seen, [], 0
    return shards


def read_shard(shard: Shard, columns: Sequence[str]) -> Iterator[Record | Broken]:
    """The records of a shard, in order; at most one `Broken`, at the end."""
    return _read_parquet(shard, columns) if shard.format == "wildchat" else _read_json_array(shard)


def _read_parquet(shard: Shard, columns: Sequence[str]) -> Iterator[Record | Broken]:
    position = shard.first
    try:
        with shard.file.fs.open_input_file(shard.file.path) as source:
            file = pq.ParquetFile(source)
            present = [c for c in columns if c in file.schema_arrow.names]
            for batch in file.iter_batches(
                batch_size=_BATCH_ROWS, row_groups=list(shard.row_groups or ()), columns=present
            ):
                for row in batch.to_pylist():
                    yield Record(position, row)
                    position += 1
    except (pa.ArrowException, OSError, UnicodeDecodeError) as e:
        yield Broken(position, "unreadable_parquet", first_line(e))


def _read_json_array(shard: Shard) -> Iterator[Record | Broken]:
    import ijson

    position = shard.first
    with shard.file.open_input() as raw:
        stream = io.BufferedReader(raw)  # type: ignore[type-var]
        if stream.peek(len(_BOM)).startswith(_BOM):
            stream.read(len(_BOM))
        try:
            for value in ijson.items(stream, "item"):
                yield Record(position, value)
                position += 1
        except (ijson.JSONError, UnicodeDecodeError) as e:
            # Everything before the break has been given out; the record cut off can't be trusted. The parser calls any
            # error an incomplete file: only its text tells.
            truncated = any(words in str(e) for words in ("premature EOF", "Incomplete"))
            yield Broken(position, "truncated_json" if truncated else "invalid_json", first_line(e))


def json_lines(file: Location, *, flag: str) -> Iterator[Any]:
    """The values of a JSONL file, line by line.

    Raises:
        UserError: a line that isn't JSON; names the line and `flag`.
    """
    with file.open_input() as stream:
        for number, line in enumerate(_lines(stream), start=1):
            if line.strip():
                try:
                    yield json.loads(line)
                except ValueError as e:
                    raise UserError(f"line {number} of {file.uri!r} is not JSON: {first_line(e)}", flag=flag) from e


def _lines(stream: IO[bytes]) -> Iterator[bytes]:
    """Lines of a byte stream, read in pieces."""
    rest = b""
    while piece := bytes(stream.read(1 << 20)):
        *whole, rest = (rest + piece).split(b"\n")
        yield from whole
    if rest:
        yield rest
