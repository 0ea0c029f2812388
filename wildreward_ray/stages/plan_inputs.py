"""What a dry run may know of a stage's inputs: sizes of local files and the row counts in Parquet footers; nothing remote is asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pyarrow.parquet as pq

from wildreward_ray.cluster.artifact import has_manifest
from wildreward_ray.cluster.storage import Location, list_files, locate
from wildreward_ray.core.plan import Input


def look(uris: Sequence[str], *, flag: str) -> tuple[Input, ...]:
    """Files and bytes of every local input, and its rows where all its files are Parquet.

    Raises:
        StorageError: a local directory that holds no files.
        pyarrow.ArrowInvalid: a damaged Parquet file.
    """
    return tuple(_look(uri, flag) for uri in uris)


def look_models(names: Sequence[str]) -> tuple[Input, ...]:
    """Models that are read: a local directory's files; a hub name or a demo model is not looked for."""
    found = look([name for name in names if name], flag="--model")
    return tuple(replace(model, state="not read") if model.state == "not there" else model for model in found)


def rows_of(inputs: Sequence[Input]) -> int | None:
    """Rows of all inputs together, or None where those of one aren't known."""
    rows = [given.rows for given in inputs if given.rows is not None]
    return sum(rows) if inputs and len(rows) == len(inputs) else None


def is_here(uri: str) -> bool:
    """Whether a path or URI is this machine's, so that looking there costs nothing."""
    return "://" not in uri or uri.startswith("file://")


def standing(output: str) -> tuple[str, ...]:
    """A note where a whole artefact stands at a local output."""
    if is_here(output) and has_manifest(locate(output, flag="--output")):
        return (f"{output} is whole: nothing is done if it was made with these settings, and it is refused otherwise",)
    return ()


def _look(uri: str, flag: str) -> Input:
    if not is_here(uri):
        return Input(uri)
    place = locate(uri, flag=flag)
    if place.info().type.name == "NotFound":
        return Input(uri, "not there")
    files = list_files(uri, flag=flag)
    size = sum(file.info().size or 0 for file in files)
    rows = sum(map(_rows, files)) if all(file.path.endswith(".parquet") for file in files) else None
    return Input(uri, "read", len(files), size, rows)


def _rows(file: Location) -> int:
    with file.fs.open_input_file(file.path) as source:
        return int(pq.read_metadata(source).num_rows)
