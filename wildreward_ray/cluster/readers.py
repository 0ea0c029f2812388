"""Streaming raw records out of chat-log files. A file is never held whole, and what can't be read is reported, not skipped."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from wildreward_ray.cluster.byte_stream import DamagedStreamError, lines, pieces
from wildreward_ray.cluster.detect import content_of
from wildreward_ray.cluster.json_readers import read_array, read_lines
from wildreward_ray.cluster.parquet_reader import plan_row_groups, read_row_groups
from wildreward_ray.cluster.records import FORMATS, SUFFIXES, Broken, Record, Shard, UnreadableFileError
from wildreward_ray.cluster.storage import Location, first_line
from wildreward_ray.core.errors import UserError

__all__ = [
    "FORMATS",
    "SUFFIXES",
    "Broken",
    "Record",
    "Shard",
    "UnreadableFileError",
    "detect_format",
    "json_lines",
    "plan_shards",
    "read_shard",
]

# See the rows of a Parquet shard: about as much work.
_SHARD_BYTES = 64 * 1024 * 1024


def detect_format(file: Location) -> str:
    """The format of a file, one of `FORMATS`, by its content.

    Raises:
        UnreadableFileError: it is empty, broken at its beginning, or of no known format.
        OSError: it can't be reached.
    """
    return content_of(file).formats[0]


def plan_shards(file: Location, format: str) -> list[Shard]:
    """Cut a file into shards: row groups, byte ranges of lines, or the whole of a JSON array or packed file.

    Raises:
        UnreadableFileError: it is empty, broken at its beginning, or of another format (`wrong_format`).
        OSError: it can't be reached.
    """
    content = content_of(file)
    if format not in content.formats:
        raise UnreadableFileError(
            f"{file.uri!r} is of format {content.formats[0]}, not {format}", reason="wrong_format", flag="--format"
        )
    if content.layout == "parquet":
        return plan_row_groups(file, format)
    if content.layout == "array" or content.packed:
        return [Shard(file, format, content.layout)]
    size = file.info().size or 0
    starts = range(0, size, _SHARD_BYTES)
    return [Shard(file, format, "lines", i, byte_range=(i, min(i + _SHARD_BYTES, size))) for i in starts]


def read_shard(shard: Shard) -> Iterator[Record | Broken]:
    """The records of a shard in order, the same on every reading.

    Raises:
        OSError: the file can't be reached.
    """
    if shard.layout == "parquet":
        return read_row_groups(shard)
    return read_array(shard.file) if shard.layout == "array" else read_lines(shard.file, shard.byte_range)


def json_lines(file: Location, *, flag: str) -> Iterator[Any]:
    """The values of a JSONL file, line by line.

    Raises:
        UserError: a line that isn't JSON, or a packed file that is damaged; names the line and `flag`.
    """
    number = 0
    try:
        for number, line in enumerate(lines(pieces(file)), start=1):
            if line.content is None:
                raise UserError(f"line {number} of {file.uri!r} is too long to be a record", flag=flag)
            if line.content.strip() and not line.cut:
                yield json.loads(line.content)
    except (ValueError, RecursionError) as e:
        raise UserError(f"line {number} of {file.uri!r} is not JSON: {first_line(e)}", flag=flag) from e
    except DamagedStreamError as e:
        raise UserError(f"{file.uri!r} can't be unpacked after line {number}: {e}", flag=flag) from e
