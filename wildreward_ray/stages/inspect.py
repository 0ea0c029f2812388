"""`wildreward inspect`: an extraction in, a page to look at it out.

Two passes over `feedback/`: one counts every row and draws the sample, one fetches the drawn rows with all their texts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from wildreward_ray.cluster.artifact import read_manifest
from wildreward_ray.cluster.storage import Location, first_line, locate
from wildreward_ray.core.config.inspect import InspectConfig
from wildreward_ray.core.errors import StorageError, UserError
from wildreward_ray.feedback.prior import MIN_GROUP_ROWS
from wildreward_ray.report import inspect_browser
from wildreward_ray.report.inspect_checks import Check, checks
from wildreward_ray.report.inspect_page import Inspection, render
from wildreward_ray.report.inspect_sample import Sampler
from wildreward_ray.report.inspect_stats import COLUMNS, REQUIRED, Statistics, levels

# Few rows at a time, through a buffer: single conversations can be megabytes.
_BATCH_ROWS, _BUFFER_BYTES = 1024, 1 << 20


@dataclass(frozen=True)
class InspectResult:
    """What was written where.

    Attributes:
        output: the page.
        rows: interactions counted.
        shown: interactions the page holds.
        warnings: the checks that failed.
    """

    output: str
    rows: int
    shown: int
    warnings: list[Check]


def run(config: InspectConfig) -> InspectResult:
    """Count, draw, fetch and write.

    Raises:
        StorageError: `uri` is no whole extraction or can't be read, or `output` can't be written.
        UserError: a column that every extraction has is missing, or holds what it can't.
    """
    target = _target(config.output)
    manifest = read_manifest(config.uri, kind="feedback", flag="URI")
    whole = locate(config.uri, flag="URI")
    place = whole.child("feedback")
    with _reading(place):
        files = _files(place)
        stats, sampler = count_rows(files, config.limit)
        sample = sampler.choose()
        entries = fetch(files, sample.ids)
    found = checks(stats, manifest, MIN_GROUP_ROWS)
    html = render(Inspection(whole.uri, manifest, stats, found, sample, entries))
    try:
        target.write_bytes(html.encode())
    except OSError as e:
        raise StorageError(f"can't write {config.output!r}: {first_line(e)}", flag="--output") from e
    warnings = [check for check in found if check.state == "warning"]
    return InspectResult(config.output, stats.rows, len(entries), warnings)


def count_rows(files: Sequence[Location], limit: int) -> tuple[Statistics, Sampler]:
    """The first pass: counters over all rows, and up to `limit` ids a group to draw from."""
    stats, sampler = Statistics(), Sampler(limit)
    for batch in _scan(files, COLUMNS):
        stats.add(batch)
        sampler.add(
            batch["interaction_id"].to_pylist(),
            _strings(batch, "origin"),
            levels(batch, "level").tolist(),
            _strings(batch, "evidence_id"),
        )
    return stats, sampler


def fetch(files: Sequence[Location], ids: list[str]) -> list[dict[str, Any]]:
    """The second pass: what the page holds of the rows with these ids, in their order; of doubled ids the first row."""
    found: dict[str, dict[str, Any]] = {}
    wanted = pa.array(ids, pa.string())
    for batch in _scan(files, inspect_browser.COLUMNS):
        for row in batch.filter(pc.is_in(batch["interaction_id"], value_set=wanted)).to_pylist():
            found.setdefault(row["interaction_id"], inspect_browser.entry(row))
    # The source of a mined level may be in no file, where a run was cut short by a limit.
    return [found[name] for name in ids if name in found]


def _files(place: Location) -> list[Location]:
    """The Parquet files of a directory, in order of their names."""
    found = [place.child(name) for name in place.names() if name.endswith(".parquet")]
    if not found:
        raise StorageError(f"{place.uri!r} holds no Parquet files", flag="URI")
    return found


def _scan(files: Sequence[Location], columns: tuple[str, ...]) -> Iterator[pa.RecordBatch]:
    """Stream those of the columns that there are.

    File by file and not as an Arrow dataset, which reads ahead of a slow consumer by up to a gigabyte.
    """
    names: list[str] | None = None
    for place in files:
        with place.fs.open_input_file(place.path) as source:
            file = pq.ParquetFile(source, buffer_size=_BUFFER_BYTES, pre_buffer=False)
            found = file.schema_arrow.names
            names = found if names is None else names
            missing = [name for name in REQUIRED if name not in found]
            if missing:
                raise UserError(f"{place.uri!r} has no column {missing[0]!r}: extract did not write it", flag="URI")
            if set(found) != set(names):
                raise UserError(
                    f"{place.uri!r} has other columns than {files[0].uri!r}: not of one extraction", flag="URI"
                )
            yield from file.iter_batches(batch_size=_BATCH_ROWS, columns=[name for name in columns if name in found])


def _strings(batch: pa.RecordBatch, name: str) -> list[str | None]:
    return batch[name].to_pylist() if name in batch.schema.names else [None] * batch.num_rows


def _target(output: str) -> Location:
    """Where the page goes.

    Raises:
        StorageError: a directory stands there, or the directory it should stand in doesn't exist.
    """
    target = locate(output, flag="--output")
    folder = target.path.rpartition("/")[0] or "/"
    try:
        if target.info().type == pafs.FileType.Directory:
            raise StorageError(f"{output!r} is a directory: the page is one file", flag="--output")
        # An object store has no directories to be missing.
        if target.is_local and target.fs.get_file_info(folder).type != pafs.FileType.Directory:
            raise StorageError(f"the directory {folder!r} does not exist", flag="--output")
    except OSError as e:
        raise StorageError(f"can't reach {output!r}: {first_line(e)}", flag="--output") from e
    return target


@contextmanager
def _reading(place: Location) -> Iterator[None]:
    """Turn what a damaged file or a lost store raises into one error that names the directory."""
    try:
        yield
    except (OSError, pa.ArrowInvalid) as e:
        raise StorageError(f"can't read {place.uri!r}: {first_line(e)}", flag="URI") from e
