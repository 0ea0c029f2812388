"""URIs: where files are, whatever store they are in, and reading and writing them whole."""

from __future__ import annotations

import os
import posixpath
import shutil
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from wildreward_ray.cluster import s3
from wildreward_ray.core.errors import StorageError

_COPY_BYTES = 1 << 22
_READ_BYTES = 1 << 22
_PAUSES_S = (0.2, 1.0, 5.0, 20.0)
_FINAL = (
    "ACCESS_DENIED",
    "INVALID_ACCESS_KEY_ID",
    "NO_SUCH_BUCKET",
    "NO_SUCH_KEY",
    "SIGNATURE",
    "INVALID_CLIENT_TOKEN",
)

T = TypeVar("T")


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

        def read() -> bytes:
            with self.fs.open_input_file(self.path) as file:
                return bytes(file.read())

        return again(read)

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

        def read() -> pa.Table:
            with self.fs.open_input_file(self.path) as source:
                return pq.ParquetFile(source).read(columns=columns)

        return again(read)

    def names(self) -> list[str]:
        """The names of what stands directly below a directory, sorted, without hidden ones; none where there is no directory."""
        found = self.fs.get_file_info(pafs.FileSelector(self.path, allow_not_found=True))
        return sorted(item.base_name for item in found if not item.base_name.startswith("."))

    def open_input(self) -> IO[bytes]:
        """A stream over the bytes as they are, whatever the file's name ends in; a store is asked for megabytes at a time."""
        return self.fs.open_input_stream(self.path, compression=None, buffer_size=_READ_BYTES)  # type: ignore[no-any-return]


def again(read: Callable[[], T]) -> T:
    """The result of a read that an object store may cut off; it is made again a few times, after longer and longer pauses.

    Stores' own clients retry requests that fail, but not every answer that breaks off in its middle.

    Raises:
        OSError: it failed to the end, or for a reason that has nothing to do with an object store.
    """
    for pause in _PAUSES_S:
        try:
            return read()
        except OSError as e:
            if not is_transient(e):
                raise
            time.sleep(pause)
    return read()


def is_transient(error: OSError) -> bool:
    """Whether an error is an object store's, and neither a missing thing nor a missing right."""
    text = str(error)
    return "AWS Error" in text and not any(word in text for word in _FINAL)


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


def upload(folder: Path, target: Location) -> None:
    """Copy a local folder and all below it to `target`, in pieces."""
    target.fs.create_dir(target.path, recursive=True)
    for item in sorted(folder.iterdir()):
        if item.is_dir():
            upload(item, target.child(item.name))
        else:
            upload_file(item, target.child(item.name))


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
            try:
                shutil.rmtree(place.path)
            except FileNotFoundError:
                # Another process was still renaming a file into place below it.
                if os.path.isdir(place.path):
                    shutil.rmtree(place.path)
        else:
            place.fs.delete_dir(place.path)
    elif kind == pafs.FileType.File:
        place.fs.delete_file(place.path)
