"""Datasets made of another dataset: rows are streamed in, and each variant becomes an artefact that train reads."""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from wildreward_ray.cluster.artifact import Artifact, open_artifact, read_manifest
from wildreward_ray.cluster.schema import DATASET
from wildreward_ray.cluster.storage import Location, first_line, locate, upload_file
from wildreward_ray.core.errors import StorageError, UserError
from wildreward_ray.core.manifest import FunnelStep, Manifest
from wildreward_ray.stages.dataset import SPLITS

# Few rows at a time, through a buffer: single conversations can be megabytes.
_BATCH_ROWS, _BUFFER_BYTES = 1024, 1 << 20
# Size from which a variant's next rows go to a new file.
_FILE_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True)
class Extraction:
    """A whole extraction that variants are made of.

    Attributes:
        uri: as the user gave it.
        place: where it stands.
        levels: number of training labels K.
        manifest: its manifest.
    """

    uri: str
    place: Location
    levels: int
    manifest: dict[str, Any]


def open_extraction(uri: str) -> Extraction:
    """Find what `--dataset` names.

    Raises:
        StorageError: nothing there, an unfinished artefact, or one that extract did not write.
    """
    manifest = read_manifest(uri, kind="feedback", flag="--dataset")
    return Extraction(uri, locate(uri, flag="--dataset"), int(manifest["levels"]), manifest)


def scan(folder: Location, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Stream some columns of the Parquet files of a directory, always in the same order: that of the files' names.

    Raises:
        StorageError: no such files, or one that can't be read.
        UserError: a file lacks one of the columns.
    """
    files = [folder.child(name) for name in folder.names() if name.endswith(".parquet")]
    if not files:
        raise StorageError(f"{folder.uri!r} holds no Parquet files", flag="--dataset")
    for place in files:
        try:
            with place.fs.open_input_file(place.path) as source:
                file = pq.ParquetFile(source, buffer_size=_BUFFER_BYTES, pre_buffer=False)
                missing = [name for name in columns if name not in file.schema_arrow.names]
                if missing:
                    raise UserError(
                        f"{place.uri!r} has no column {missing[0]!r}", flag="--dataset", hint="extract it again"
                    )
                yield from file.iter_batches(batch_size=_BATCH_ROWS, columns=list(columns))
        except (OSError, pa.ArrowInvalid) as e:
            raise StorageError(f"can't read {place.uri!r}: {first_line(e)}", flag="--dataset") from e


def count_origins(extraction: Extraction, split: str) -> Counter[str]:
    """Rows of `dataset/<split>` by origin: `explicit`, `hindsight` or `refusal`."""
    found: Counter[str] = Counter()
    for batch in scan(extraction.place.child(f"dataset/{split}"), ["origin"]):
        for item in pc.value_counts(batch["origin"]).to_pylist():
            found[item["values"]] += item["counts"]
    return found


class Variant:
    """A dataset that is being written: `add` rows as they come, then `finish`. Made by `new_variants`.

    Attributes:
        rows: rows added, by split.
        dropped: training rows that were left out, by reason.
        notes: counts that drop nothing.
    """

    def __init__(self, name: str, artifact: Artifact, scratch: Path) -> None:
        self.rows: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()
        self.notes: Counter[str] = Counter()
        self._name, self._artifact = name, artifact
        self._users: set[str] = set()
        self._files = {split: _Files(artifact.work.child(f"dataset/{split}"), scratch / split) for split in SPLITS}

    def add(self, split: str, rows: pa.Table) -> None:
        """Append `DATASET` rows to a split."""
        if not rows.num_rows:
            return
        self.rows[split] += rows.num_rows
        if split == "train":
            self._users.update(user for user in pc.unique(rows["user_id"]).to_pylist() if user)
        self._files[split].write(rows)

    def finish(self, extraction: Extraction, about: Mapping[str, Any], started: float) -> None:
        """Write what is still open, and the manifest: that of the extraction with this variant's own funnel.

        Args:
            about: what makes this variant, for the manifest.
            started: `time.monotonic()` when it was begun.

        Raises:
            UserError: no training row is left.
        """
        if not self.rows["train"]:
            raise UserError(f"the variant {self._name!r} of {extraction.uri!r} has no training rows", flag="--dataset")
        for files in self._files.values():
            files.close()
        dropped, notes = dict(self.dropped), dict(self.notes)
        rows, held_out = self.rows["train"], self.rows["test"]
        train = FunnelStep(
            name="train", unit="rows", rows_in=rows + sum(dropped.values()), rows_out=rows, dropped=dropped, notes=notes
        )
        manifest = Manifest.model_validate(
            {
                "kind": "feedback",
                "inputs": [extraction.uri],
                "config": extraction.manifest["config"],
                "funnel": [train, FunnelStep(name="test", unit="rows", rows_in=held_out, rows_out=held_out)],
                "seconds": round(time.monotonic() - started, 1),
                "levels": extraction.levels,
                "variant": {"name": self._name, "rows": rows, "users": len(self._users), **about},
            }
        )
        self._artifact.commit(manifest, ["dataset"])


@contextmanager
def new_variants(uris: Mapping[str, str]) -> Iterator[dict[str, Variant]]:
    """Begin datasets at the URIs, by name. What stands there unfinished is removed.

    Raises:
        StorageError: see `open_artifact`.
    """
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="wildreward-")))
        yield {
            name: Variant(name, stack.enter_context(open_artifact(uri, overwrite=False)), scratch / str(i))
            for i, (name, uri) in enumerate(uris.items())
        }


def add_held_out(extraction: Extraction, variants: Sequence[Variant]) -> None:
    """Give all variants the held-out rows as they are, so that all are measured on the same."""
    for batch in scan(extraction.place.child("dataset/test"), DATASET.names):
        rows = pa.Table.from_batches([batch]).cast(DATASET)
        for variant in variants:
            variant.add("test", rows)


class _Files:
    """Parquet files of a directory, each written on this machine first: a store takes whole files only."""

    def __init__(self, target: Location, scratch: Path) -> None:
        self._target, self._scratch = target, scratch
        self._count = 0
        self._writer: pq.ParquetWriter | None = None
        scratch.mkdir(parents=True)
        target.fs.create_dir(target.path, recursive=True)

    def write(self, rows: pa.Table) -> None:
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._file, rows.schema, compression="zstd")
        self._writer.write_table(rows)
        if self._file.stat().st_size >= _FILE_BYTES:
            self._end(self._writer)

    def close(self) -> None:
        """End the last file; a directory without rows gets an empty one, so that readers find the schema."""
        if self._writer is not None:
            self._end(self._writer)
        if not self._count:
            self._target.child("empty.parquet").write_table(DATASET.empty_table())

    @property
    def _file(self) -> Path:
        return self._scratch / f"part-{self._count:05d}.parquet"

    def _end(self, writer: pq.ParquetWriter) -> None:
        writer.close()
        upload_file(self._file, self._target.child(self._file.name))
        self._file.unlink()
        self._writer = None
        self._count += 1
