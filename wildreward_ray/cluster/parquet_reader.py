"""Records of Parquet files, row group by row group. Only columns that a format's parser looks at are read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from wildreward_ray.cluster.records import Broken, Record, Shard, UnreadableFileError
from wildreward_ray.cluster.storage import Location, first_line

# Columns by format, and the fields that are read of those that hold lists of structs.
_COLUMNS: dict[str, dict[str, frozenset[str]]] = {
    "wildchat": {
        "conversation": frozenset({"role", "content", "hashed_ip", "toxic", "redacted"}),
        **dict.fromkeys(
            (
                "conversation_hash",
                "conversation_id",
                "hashed_ip",
                "language",
                "model",
                "timestamp",
                "toxic",
                "redacted",
            ),
            frozenset[str](),
        ),
    },
    "lmsys": {
        "conversation": frozenset({"role", "content"}),
        "openai_moderation": frozenset({"flagged"}),
        **dict.fromkeys(("conversation_id", "language", "model", "redacted"), frozenset[str]()),
    },
    "openai": {
        "messages": frozenset({"role", "content", "refusal", "tool_calls", "function_call"}),
        "metadata": frozenset({"user_id"}),
        **dict.fromkeys(
            ("conversation_id", "id", "user", "user_id", "model", "language", "timestamp", "created"), frozenset[str]()
        ),
    },
}
# What WildChat has and LMSYS-Chat-1M hasn't; the first WildChat calls its id `conversation_id` as well.
_WILDCHAT_ONLY = {"conversation_hash", "hashed_ip", "detoxify_moderation", "toxic"}
_BATCH_ROWS = 256
# A shard is read by one task; small ones keep all readers busy and make a lost task cheap.
_SHARD_ROWS = 20_000


def formats_of_columns(names: Sequence[str]) -> tuple[str, ...]:
    """The formats that a file with these columns can have, the likeliest first."""
    if "conversation" not in names:
        return ("openai",) if "messages" in names else ()
    if _WILDCHAT_ONLY & set(names):
        return ("wildchat",)
    return ("lmsys", "wildchat") if "conversation_id" in names else ("wildchat", "lmsys")


def column_names(file: Location) -> list[str]:
    """The columns of a Parquet file.

    Raises:
        UnreadableFileError: its footer can't be read (`not_parquet`).
        OSError: the file can't be reached.
    """
    with _open(file) as (parquet, _):
        return list(parquet.schema_arrow.names)


def plan_row_groups(file: Location, format: str) -> list[Shard]:
    """Shards of whole row groups, of about 20,000 rows each; none for a file without rows.

    Raises:
        UnreadableFileError: its footer can't be read (`not_parquet`).
        OSError: the file can't be reached.
    """
    with _open(file) as (parquet, _):
        sizes = _group_sizes(parquet)
    shards: list[Shard] = []
    group: list[int] = []
    first = rows = 0
    for index, size in enumerate(sizes):
        if size:
            group.append(index)
            rows += size
        if group and (rows >= _SHARD_ROWS or index == len(sizes) - 1):
            shards.append(Shard(file, format, "parquet", first, row_groups=tuple(group)))
            first, group, rows = first + rows, [], 0
    return shards


def read_row_groups(shard: Shard) -> Iterator[Record | Broken]:
    """The rows of a shard. What can't be read of a row group is one `Broken` that counts its rows.

    Raises:
        UnreadableFileError: the file was replaced by one that isn't Parquet.
        OSError: the file can't be reached; never taken for damage in it.
    """
    with _open(shard.file) as (parquet, source):
        sizes = _group_sizes(parquet)
        columns = _leaves([parquet.schema.column(i).path for i in range(len(parquet.schema))], shard.format)
        begin = shard.first
        for index in shard.row_groups or ():
            given = 0
            detail = "it holds fewer rows than its footer says"
            try:
                for batch in parquet.iter_batches(batch_size=_BATCH_ROWS, row_groups=[index], columns=columns):
                    yield from _rows(batch, begin + given)
                    given += batch.num_rows
            except (pa.ArrowException, OSError) as e:
                if source.failure is not None:
                    raise source.failure from e
                detail = first_line(e)
            lost = sizes[index] - given
            if lost > 0:
                yield Broken(begin + given, "unreadable_parquet", f"row group {index}: {detail}", lost)
            begin += sizes[index]


def _rows(batch: pa.RecordBatch, begin: int) -> Iterator[Record | Broken]:
    try:
        rows = batch.to_pylist()
    except (ValueError, OverflowError, pa.ArrowException):
        # A text that isn't UTF-8, or a time out of range: the rows that hold none are good.
        yield from (_single_row(batch.slice(i, 1), begin + i) for i in range(batch.num_rows))
        return
    yield from (Record(begin + i, row) for i, row in enumerate(rows))


def _single_row(row: pa.RecordBatch, position: int) -> Record | Broken:
    try:
        return Record(position, row.to_pylist()[0])
    except UnicodeDecodeError as e:
        return Broken(position, "invalid_utf8", first_line(e))
    except (ValueError, OverflowError, pa.ArrowException) as e:
        return Broken(position, "unreadable_value", first_line(e))


def _leaves(paths: Sequence[str], format: str) -> list[str]:
    """The leaf columns that a format's parser looks at."""
    chosen = []
    for name, fields in _COLUMNS[format].items():
        own = [path for path in paths if path.split(".")[0] == name]
        # Where none of the fields is there the column is of another shape: it is read whole, and the parser says so.
        chosen += [path for path in own if fields & set(path.split(".")[1:])] or own
    return chosen


def _group_sizes(parquet: pq.ParquetFile) -> list[int]:
    metadata = parquet.metadata
    return [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]


class _Source:
    """A file that remembers that reading it failed: Arrow reports damage and a lost connection as the same error."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.failure: OSError | None = None

    def read(self, size: int = -1) -> Any:
        try:
            return self._stream.read(size)
        except OSError as e:
            self.failure = e
            raise

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()

    def close(self) -> None:
        self._stream.close()

    @property
    def closed(self) -> bool:
        return self._stream.closed


@contextmanager
def _open(file: Location) -> Iterator[tuple[pq.ParquetFile, _Source]]:
    with file.fs.open_input_file(file.path) as stream:
        source = _Source(stream)
        try:
            parquet = pq.ParquetFile(pa.PythonFile(source, mode="r"))
        except (pa.ArrowException, OSError) as e:
            if source.failure is not None:
                raise source.failure from e
            raise UnreadableFileError(
                f"{file.uri!r} is not readable as Parquet: {first_line(e)}", reason="not_parquet", flag="--input"
            ) from e
        yield parquet, source
