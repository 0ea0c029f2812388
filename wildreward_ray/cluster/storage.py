"""URIs, and writing an artefact so that it is either whole or visibly unfinished.

A stage writes below `OUTPUT/_unfinished/`. When everything is there, the parts move to their place and `manifest.json` is
written last. Readers take a directory only with its manifest, so a killed run leaves nothing that looks like a dataset.
A stage that can be resumed leaves a `state.json` there as well: what it was asked to do, so that a run with other settings
never mixes its rows into those of an earlier one.
"""

from __future__ import annotations

import errno
import json
import os
import posixpath
import shutil
import uuid
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from wildreward_ray.cluster import s3
from wildreward_ray.core.errors import StorageError
from wildreward_ray.core.manifest import MANIFEST, Manifest

UNFINISHED = "_unfinished"
STATE = "state.json"
_COPY_BYTES = 1 << 22
_READ_BYTES = 1 << 22
# Less free space than this and no stage can finish; it is checked before an engine starts.
MIN_FREE_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True)
class Location:
    """A place in a filesystem.

    Attributes:
        uri: as the user wrote it, for messages.
        fs: the pyarrow filesystem.
        path: the path inside it.
        s3_options: where an S3 store is, None elsewhere.
    """

    uri: str
    fs: pafs.FileSystem
    path: str
    s3_options: s3.Options | None = None

    def __reduce__(self) -> tuple[object, ...]:
        # A pickled S3 filesystem forgets its retries; another process makes its own.
        if self.s3_options is not None:
            return (_relocate, (self.uri, self.path, self.s3_options))
        return (Location, (self.uri, self.fs, self.path))

    def child(self, name: str) -> Location:
        """A place below this one."""
        return replace(self, uri=posixpath.join(self.uri, name), path=posixpath.join(self.path, name))

    @property
    def is_local(self) -> bool:
        """Whether this is a path of this machine."""
        return isinstance(self.fs, pafs.LocalFileSystem)

    def info(self) -> pafs.FileInfo:
        """What stands here (type `NotFound` for nothing)."""
        return self.fs.get_file_info(self.path)

    def read_bytes(self) -> bytes:
        """The whole content of a small file."""
        with self.fs.open_input_file(self.path) as file:
            return bytes(file.read())

    def write_bytes(self, data: bytes | pa.Buffer) -> None:
        """Write a file in one go: a reader sees the old content or the new, never a part.

        An object store shows an object when its upload is complete. On a local disk the file is renamed into place; the name
        before that is hidden, and a writer's own, for a task that was taken for dead may still be writing.
        """
        if self.s3_options is not None:
            s3.put_bytes(self.s3_options, self.path, data)
            return
        if not self.is_local:
            with self.fs.open_output_stream(self.path) as stream:
                stream.write(data)
            return
        folder, name = os.path.split(self.path)
        temporary = os.path.join(folder, f".{name}.{uuid.uuid4().hex[:8]}.partial")
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.path)

    def write_table(self, table: pa.Table) -> None:
        """Write a Parquet file in one go, see `write_bytes`."""
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        self.write_bytes(sink.getvalue())

    def read_table(self, columns: list[str] | None = None) -> pa.Table:
        """A Parquet file that `write_table` wrote."""
        with self.fs.open_input_file(self.path) as source:
            return pq.ParquetFile(source).read(columns=columns)

    def names(self) -> list[str]:
        """The names of what stands directly below a directory, sorted, without hidden ones; none where there is no directory."""
        found = self.fs.get_file_info(pafs.FileSelector(self.path, allow_not_found=True))
        return sorted(item.base_name for item in found if not item.base_name.startswith("."))

    def open_input(self) -> IO[bytes]:
        """A stream over the bytes as they are, whatever the file's name ends in; a store is asked for megabytes at a time."""
        return self.fs.open_input_stream(self.path, compression=None, buffer_size=_READ_BYTES)  # type: ignore[no-any-return]


def locate(uri: str, *, flag: str | None = None) -> Location:
    """Find the filesystem of a path or URI (`file`, `s3://`, `gs://`, `hf://`).

    An S3 store other than AWS is named by `AWS_ENDPOINT_URL`, or by `?endpoint_override=…&scheme=http` at the end of the URI.

    Raises:
        StorageError: a scheme that isn't known, or a filesystem that can't be reached.
    """
    try:
        if "://" not in uri:
            return Location(uri, pafs.LocalFileSystem(), os.path.abspath(os.path.expanduser(uri)))
        if uri.startswith("hf://"):
            from huggingface_hub import HfFileSystem

            return Location(uri, pafs.PyFileSystem(pafs.FSSpecHandler(HfFileSystem())), uri.removeprefix("hf://"))
        if uri.startswith("s3://"):
            return _relocate(*s3.parse(uri))
        filesystem, path = pafs.FileSystem.from_uri(uri)
    except (pa.ArrowInvalid, OSError, ValueError) as e:
        raise StorageError(f"can't reach {uri!r}: {first_line(e)}", flag=flag) from e
    return Location(uri, filesystem, path)


def _relocate(uri: str, path: str, options: s3.Options) -> Location:
    return Location(uri, s3.filesystem(options), path, options)


def list_files(uri: str, *, flag: str, suffixes: tuple[str, ...] = ()) -> list[Location]:
    """The file at `uri`, or all files below it in order of their paths. Hidden files and `_`-prefixed ones are passed over.

    Raises:
        StorageError: nothing there, nothing of the right kind there, or it can't be read.
    """
    place = locate(uri, flag=flag)
    try:
        info = place.info()
        if info.type == pafs.FileType.File:
            return [place]
        if info.type == pafs.FileType.NotFound:
            raise StorageError(f"{uri!r} does not exist", flag=flag)
        found = place.fs.get_file_info(pafs.FileSelector(place.path, recursive=True))
    except OSError as e:
        raise StorageError(f"can't read {uri!r}: {first_line(e)}", flag=flag) from e
    root = place.path.rstrip("/")
    files = []
    for item in sorted(found, key=lambda i: i.path):
        relative = item.path[len(root) :].lstrip("/")
        hidden = any(part.startswith(("_", ".")) for part in relative.split("/"))
        if item.type == pafs.FileType.File and not hidden and (not suffixes or relative.lower().endswith(suffixes)):
            files.append(place.child(relative))
    if not files:
        kinds = f" of kind {', '.join(suffixes)}" if suffixes else ""
        raise StorageError(f"{uri!r} holds no files{kinds}", flag=flag)
    return files


class Artifact:
    """An artefact being written: use `open_artifact`.

    Attributes:
        output: where it will stand.
        work: where its parts are written; moved to `output` by `commit`.
        replaced: names of what belongs to the artefact that this one replaces.
        resumed: whether the work of an earlier run with the same settings stands in `work`.
    """

    def __init__(self, output: Location) -> None:
        self.output = output
        self.work = output.child(UNFINISHED)
        self.replaced: set[str] = set()
        self.resumed = False

    def commit(self, manifest: Manifest, parts: list[str]) -> None:
        """Move `parts` (names below `work`) into place, write the manifest, and remove what is left of the work."""
        for part in parts:
            target = self.output.child(part)
            remove(target)
            move(self.work.child(part), target)
        for name in sorted(self.replaced - {part.split("/")[0] for part in parts}):
            remove(self.output.child(name))
        self.output.child(MANIFEST).write_bytes(manifest.checked_json().encode())
        remove(self.work)


@contextmanager
def open_artifact(
    output: str, *, overwrite: bool, flag: str = "--output", state: Mapping[str, Any] | None = None
) -> Iterator[Artifact]:
    """Start writing an artefact at `output`, or go on with it.

    A whole artefact is removed only with `overwrite`. What an earlier, unfinished run left there is removed as well, unless
    the stage can be resumed.

    Args:
        state: what a resumable stage was asked to do, as JSON values. Work that was begun with the same state is kept;
            work of another state is removed only with `overwrite`.

    Raises:
        StorageError: a whole artefact, foreign files or another run's work stand at `output`, it can't be written, or the
            disk is full.
    """
    place = locate(output, flag=flag)
    try:
        artifact = Artifact(place)
        if place.child(MANIFEST).info().type == pafs.FileType.File:
            if not overwrite:
                raise StorageError(
                    f"{output!r} already holds a whole result", flag="--overwrite", hint="replace it with"
                )
            artifact.replaced = _names(place) - {MANIFEST, UNFINISHED}
            remove(place.child(MANIFEST))
        elif _foreign_files(place):
            raise StorageError(
                f"{output!r} holds files that no unfinished run of this program left there",
                flag=flag,
                hint="give another",
            )
        artifact.resumed = state is not None and _resumes(artifact.work, state, overwrite=overwrite)
        if not artifact.resumed:
            remove(artifact.work)
        artifact.work.fs.create_dir(artifact.work.path, recursive=True)
        if state is not None and not artifact.resumed:
            artifact.work.child(STATE).write_bytes(json.dumps(state, indent=1).encode())
        artifact.work.child("probe").write_bytes(b"probe")
        artifact.work.fs.delete_file(artifact.work.child("probe").path)
        if place.is_local:
            _check_space(place, flag)
    except StorageError:
        raise
    except OSError as e:
        raise StorageError(f"can't write {output!r}: {first_line(e)}", flag=flag) from e
    try:
        yield artifact
    except OSError as e:
        space = storage_error_of(e, output, flag)
        if space is None:
            raise
        raise space from e


def _resumes(work: Location, state: Mapping[str, Any], *, overwrite: bool) -> bool:
    """Whether there is work of an earlier run that was asked to do the same.

    Raises:
        StorageError: it was asked to do something else, and may not be thrown away.
    """
    file = work.child(STATE)
    if file.info().type != pafs.FileType.File:
        return False
    differing = differences(json.loads(file.read_bytes()), json.loads(json.dumps(state)))
    if differing and not overwrite:
        shown = ", ".join(differing[:6]) + (f" and {len(differing) - 6} more" if len(differing) > 6 else "")
        raise StorageError(
            f"{work.uri!r} holds an unfinished run that differs in {shown}: rows of two runs are never mixed",
            flag="--overwrite",
            hint="finish it with its own settings, give another --output, or discard it with",
        )
    return not differing


def differences(before: Any, after: Any, prefix: str = "") -> list[str]:
    """Dotted names of what differs between two trees of JSON mappings."""
    if isinstance(before, dict) and isinstance(after, dict):
        names = sorted(before.keys() | after.keys())
        return [d for n in names for d in differences(before.get(n), after.get(n), f"{prefix}{n}.")]
    return [] if before == after else [prefix.rstrip(".")]


def storage_error_of(error: BaseException, output: str, flag: str = "--output") -> StorageError | None:
    """The user's view of a write that failed for want of space, wherever in a chain of causes it stands."""
    current: BaseException | None = error
    seen: set[int] = set()
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        if isinstance(current, OSError) and current.errno in (errno.ENOSPC, errno.EDQUOT):
            return StorageError(f"no space left while writing {output!r}", flag=flag, hint="free some or give another")
        current = getattr(current, "cause", None) or current.__cause__ or current.__context__
    text = str(error)
    if "No space left on device" in text or "Errno 28" in text:
        return StorageError(f"no space left while writing {output!r}", flag=flag, hint="free some or give another")
    return None


def has_manifest(place: Location) -> bool:
    """Whether a whole artefact stands at a place."""
    return bool(place.child(MANIFEST).info().type == pafs.FileType.File)


def is_done(uri: str, config: dict[str, Any], ignored: Collection[str] = ()) -> bool:
    """Whether a whole artefact made with this very configuration stands at `uri`, so that its stage can be skipped.

    Args:
        ignored: dotted names of settings that don't change what is made.

    Raises:
        StorageError: a whole artefact of another configuration stands there; names the settings that differ.
    """
    place = locate(uri, flag="--output")
    if not has_manifest(place):
        return False
    made_with = json.loads(place.child(MANIFEST).read_bytes()).get("config", {})
    differing = [d for d in differences(made_with, config) if d != "overwrite" and d not in ignored]
    if differing and not config.get("overwrite"):
        raise StorageError(
            f"{uri!r} was made with other settings: {', '.join(differing)} differ", flag="--output", hint="give another"
        )
    return not differing


def read_manifest(uri: str, *, kind: str, flag: str) -> dict[str, Any]:
    """The manifest of a whole artefact.

    Raises:
        StorageError: nothing there, an unfinished artefact, or one of another kind.
    """
    place = locate(uri, flag=flag)
    try:
        if place.info().type == pafs.FileType.NotFound:
            raise StorageError(f"{uri!r} does not exist", flag=flag)
        file = place.child(MANIFEST)
        if file.info().type != pafs.FileType.File:
            raise StorageError(f"{uri!r} has no {MANIFEST}: it is unfinished, or no {kind} artefact", flag=flag)
        manifest = json.loads(file.read_bytes())
        if not isinstance(manifest, dict):
            raise StorageError(f"{uri!r} has a {MANIFEST} that is no mapping", flag=flag)
    except (OSError, ValueError) as e:
        raise StorageError(f"can't read {uri!r}: {first_line(e)}", flag=flag) from e
    if manifest.get("kind") != kind:
        raise StorageError(f"{uri!r} is a {manifest.get('kind')} artefact, not a {kind} one", flag=flag)
    return manifest


def upload(folder: Path, target: Location) -> None:
    """Copy the files of a local folder to `target`, in pieces."""
    target.fs.create_dir(target.path, recursive=True)
    for file in sorted(folder.iterdir()):
        upload_file(file, target.child(file.name))


def upload_file(file: Path, target: Location) -> None:
    """Copy a local file to `target`, in pieces."""
    if target.s3_options is not None:
        s3.put_file(target.s3_options, target.path, file)
        return
    with file.open("rb") as source, target.fs.open_output_stream(target.path) as sink:
        shutil.copyfileobj(source, sink, _COPY_BYTES)


def move(source: Location, target: Location) -> None:
    """Move a file or directory; object stores have no rename, so there every object is copied and then deleted."""
    if source.is_local:
        os.replace(source.path, target.path)
        return
    if source.info().type == pafs.FileType.File:
        source.fs.move(source.path, target.path)
        return
    for item in source.fs.get_file_info(pafs.FileSelector(source.path, recursive=True)):
        if item.type == pafs.FileType.File:
            relative = item.path[len(source.path) :].lstrip("/")
            source.fs.copy_file(item.path, target.child(relative).path)
    source.fs.delete_dir(source.path)


def first_line(error: BaseException) -> str:
    """An error's text as one line."""
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else text[:297] + "..."


def remove(place: Location) -> None:
    """Remove a file or a directory with all that is in it; nothing there is fine."""
    kind = place.info().type
    if kind == pafs.FileType.Directory:
        if place.is_local:
            shutil.rmtree(place.path)
        else:
            place.fs.delete_dir(place.path)
    elif kind == pafs.FileType.File:
        place.fs.delete_file(place.path)


def _foreign_files(place: Location) -> bool:
    """Whether a non-empty directory stands there that this program didn't begin."""
    info = place.info()
    if info.type == pafs.FileType.NotFound:
        return False
    if info.type == pafs.FileType.File:
        return True
    names = _names(place)
    return bool(names) and UNFINISHED not in names


def _names(place: Location) -> set[str]:
    """What stands directly below a directory."""
    return {item.base_name for item in place.fs.get_file_info(pafs.FileSelector(place.path))}


def _check_space(place: Location, flag: str) -> None:
    free = shutil.disk_usage(place.path).free
    if free < MIN_FREE_BYTES:
        raise StorageError(
            f"{place.uri!r} is on a disk with {free / 2**20:.0f} MiB free: at least {MIN_FREE_BYTES / 2**20:.0f} MiB are needed",
            flag=flag,
        )
