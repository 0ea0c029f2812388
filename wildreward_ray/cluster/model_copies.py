"""Models that stand in an object store: copied to the disk of the node that loads them, once for each content.

Engines read local files. A node of a cluster may have several processes that load one model, and may have loaded an older one of the
same name before, so a copy is named after what the store says of its files, and is there whole or not at all.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from filelock import FileLock
from pyarrow import fs as pafs

from wildreward_ray.cluster.storage import Location, again, first_line, locate
from wildreward_ray.core.errors import UserError

_PIECE_BYTES = 1 << 24
# What training leaves beside the weights, and no engine reads.
_NOT_OF_THE_MODEL = (".parquet", ".jsonl", ".png", ".html", ".md")


def local_copy(uri: str, cache: Path, *, flag: str) -> Path:
    """A directory on this machine with the files of the model at `uri`.

    Args:
        uri: of a directory; what stands deeper is no part of a model.
        cache: directory that copies are kept in. They are never removed here: a name that is given new weights leaves its old copy.

    Raises:
        UserError: nothing there, no model there, or it can't be read or kept.
    """
    place = locate(uri, flag=flag)
    try:
        found = place.fs.get_file_info(pafs.FileSelector(place.path, allow_not_found=True))
        files = sorted((f for f in found if _belongs(f)), key=lambda f: str(f.base_name))
        if not any(file.base_name == "config.json" for file in files):
            raise UserError(f"{uri!r} holds no config.json: it is no model's directory", flag=flag)
        target = cache / "models" / _name(uri, files)
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            if not target.is_dir():
                _copy(place, [file.base_name for file in files], target)
    except OSError as e:
        raise UserError(f"can't copy the model {uri!r} to {str(cache)!r}: {first_line(e)}", flag=flag) from e
    return target


def _belongs(file: pafs.FileInfo) -> bool:
    name = str(file.base_name)
    return file.type == pafs.FileType.File and not name.startswith(".") and not name.endswith(_NOT_OF_THE_MODEL)


def _name(uri: str, files: Sequence[pafs.FileInfo]) -> str:
    """The model's own name for people, and 16 hex digits over its files' names, sizes and times."""
    digest = hashlib.blake2b(uri.encode(), digest_size=8)
    for file in files:
        digest.update(f"\x00{file.base_name}\x00{file.size}\x00{file.mtime_ns}".encode())
    last = uri.split("?")[0].rstrip("/").rsplit("/", 1)[-1]
    safe = "".join(c if c.isalnum() or c in "-_." else "_" for c in last)
    return f"{safe[:40]}-{digest.hexdigest()}"


def _copy(place: Location, names: Sequence[str], target: Path) -> None:
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        for name in names:
            again(partial(_download, place.child(name), scratch / name))
        os.replace(scratch, target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _download(source: Location, target: Path) -> None:
    with source.open_input() as stream, target.open("wb") as sink:
        shutil.copyfileobj(stream, sink, _PIECE_BYTES)
