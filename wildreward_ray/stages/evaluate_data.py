"""The files of a benchmark as its items. A file that can't be read whole ends the evaluation: a part is not the benchmark."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from wildreward_ray.cluster.byte_stream import BOM, DamagedStreamError, lines, pieces
from wildreward_ray.cluster.json_readers import read_array, read_lines
from wildreward_ray.cluster.records import SUFFIXES, Broken
from wildreward_ray.cluster.storage import Location, first_line, list_files
from wildreward_ray.core.errors import UserError
from wildreward_ray.reward.benchmarks.items import DATA_FLAG, Benchmark, Reading, Row, check_unique

T = TypeVar("T")
_BATCH_ROWS = 64


def read_benchmark(benchmark: Benchmark, data: Sequence[str] | None) -> Reading:
    """The items of a benchmark.

    Args:
        data: URIs of its files or of directories with them; None: where they are published.

    Raises:
        UserError: nothing there, a record that can't be read or used, an id that stands twice, or no items.
    """
    uris = tuple(data or benchmark.hub)
    if not uris:
        raise UserError(
            f"{benchmark.title} is published nowhere that could be read from", flag=DATA_FLAG, hint="give files with"
        )
    files = [file for uri in uris for file in list_files(uri, flag=DATA_FLAG, suffixes=SUFFIXES)]
    reading = benchmark.read(row for file in files for row in _rows(file))
    if not reading.items:
        raise UserError(f"{', '.join(uris)}: no items of {benchmark.title}", flag=DATA_FLAG)
    check_unique(reading.items)
    return reading


def spread(items: Sequence[T], count: int | None) -> tuple[T, ...]:
    """`count` items at even distances, so that every group keeps about its share; all where there are no more, or for None."""
    if count is None or count >= len(items):
        return tuple(items)
    return tuple(items[i * len(items) // count] for i in range(count))


def _rows(file: Location, flag: str = DATA_FLAG) -> Iterator[Row]:
    name = file.path.rstrip("/").rsplit("/", 1)[-1]
    try:
        records = _parquet(file) if name.lower().endswith(".parquet") else _json(file)
        for number, value in enumerate(records, start=1):
            if isinstance(value, Broken):
                raise UserError(f"record {number} of {file.uri!r}: {value.detail}", flag=flag)
            yield Row(name, number, value)
    except (OSError, pa.ArrowInvalid) as e:
        raise UserError(f"can't read {file.uri!r}: {first_line(e)}", flag=flag) from e


def _json(file: Location) -> Iterator[dict[str, object] | Broken]:
    for record in read_array(file) if _is_array(file) else read_lines(file, None):
        yield record if isinstance(record, Broken) else record.value


def _is_array(file: Location) -> bool:
    for piece in pieces(file):
        begin = piece.removeprefix(BOM).lstrip()
        if begin:
            return begin.startswith(b"[")
    return False


def _parquet(file: Location) -> Iterator[dict[str, object]]:
    with file.fs.open_input_file(file.path) as source:
        for batch in pq.ParquetFile(source).iter_batches(batch_size=_BATCH_ROWS):
            yield from batch.to_pylist()


def scores_lines(file: Location) -> Iterator[tuple[int, object]]:
    """(line, value) of every line of a file of scores that isn't blank; of a JSON array, the number of each value and the value.

    NaN and infinity are read as Python's JSON reads them.

    Raises:
        UserError: a line that isn't JSON, or a file that can't be read.
    """
    if _is_array(file):
        yield from ((row.number, row.value) for row in _rows(file, "--scores"))
        return
    number = 0
    try:
        for number, line in enumerate(lines(pieces(file)), start=1):
            if line.content is None:
                raise UserError(f"line {number} of {file.uri!r} is too long to be scores", flag="--scores")
            if line.content.strip():
                yield number, json.loads(line.content)
    except ValueError as e:
        raise UserError(f"line {number} of {file.uri!r} is not JSON: {first_line(e)}", flag="--scores") from e
    except (OSError, DamagedStreamError) as e:
        raise UserError(f"can't read {file.uri!r} after line {number}: {first_line(e)}", flag="--scores") from e
