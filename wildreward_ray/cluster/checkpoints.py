"""Checkpoints of a training run: written by all workers at once in the background, found again by any number of them.

A checkpoint is the directory `step-00000050` with the files of torch's distributed checkpoints (one a worker) and
`checkpoint.json`, which is written last, when every worker's file is there: a directory without it is unfinished and is never
read. Ray Train's own checkpoints aren't used: they keep either the latest or the best, not both, and bind a run to one
trainer object, where here a run may go on in another command with another number of workers.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wildreward_ray.cluster.storage import Location, again, remove, upload_file
from wildreward_ray.core.errors import StorageError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

INFO = "checkpoint.json"
_NAME = re.compile(r"step-(\d{8})")


class CheckpointStore:
    """The checkpoints below a place.

    Args:
        place: directory that all workers reach.
    """

    def __init__(self, place: Location) -> None:
        self.place = place

    def folder(self, step: int) -> Location:
        """Where the checkpoint of a step is."""
        return self.place.child(f"step-{step:08d}")

    def steps(self) -> list[int]:
        """Steps of the whole checkpoints, rising."""
        names = again(self.place.names)
        found = [int(match[1]) for match in map(_NAME.fullmatch, names) if match]
        return [step for step in sorted(found) if INFO in again(self.folder(step).names)]

    def info(self, step: int) -> dict[str, Any]:
        """What was written beside the weights."""
        return read_info(self.folder(step))

    def prune(self, keep: int) -> None:
        """Remove all whole checkpoints but the `keep` latest and the best one, and the unfinished ones before the latest."""
        whole = self.steps()
        best = [step for step in whole if self.info(step).get("best")][-1:]
        latest = whole[-1] if whole else 0
        for name in self.place.names():
            match = _NAME.fullmatch(name)
            if match and int(match[1]) < latest and int(match[1]) not in {*whole[-keep:], *best}:
                # First the mark, so that one that is removed half is not taken for a whole one.
                remove(self.place.child(name).child(INFO))
                remove(self.place.child(name))


class CheckpointWriter:
    """One worker's hand in writing checkpoints. Only the copy of the weights holds training up; writing goes on beside it.

    Args:
        rank, size: this worker's place.
        group: a process group for CPU tensors that nothing else uses, where there are several workers.
        keep: latest checkpoints that are kept.
    """

    def __init__(self, store: CheckpointStore, *, rank: int, size: int, group: ProcessGroup | None, keep: int) -> None:
        self._store, self._rank, self._size, self._group, self._keep = store, rank, size, group, keep
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self.stalls: list[float] = []

    def save(self, step: int, state: Callable[[], dict[str, Any]], info: dict[str, Any]) -> None:
        """Begin a checkpoint, once the one before is written; called on all workers at once.

        Args:
            state: gives what `torch.distributed.checkpoint` is to save.
            info: JSON values that stand beside it.

        Raises:
            StorageError: the checkpoint before this one could not be written.
        """
        from torch.distributed.checkpoint.filesystem import FileSystemWriter
        from torch.distributed.checkpoint.state_dict_saver import async_save

        begin = time.monotonic()
        self.wait()
        # As things stand now: the caller may go on filling what it handed over.
        text = json.dumps(info) + "\n"
        target = self._store.folder(step)
        scratch = None if target.is_local else Path(tempfile.mkdtemp(prefix="wildreward-checkpoint-"))
        folder = Path(target.path) if scratch is None else scratch
        folder.mkdir(parents=True, exist_ok=True)
        pending = async_save(
            state(),
            storage_writer=FileSystemWriter(folder),
            process_group=self._group,
            no_dist=self._size == 1,
        )
        self._thread = threading.Thread(
            target=self._finish, args=(pending, scratch, target, text), name="checkpoint", daemon=True
        )
        self._thread.start()
        self.stalls.append(time.monotonic() - begin)

    def wait(self) -> None:
        """Return when the checkpoint at work is written.

        Raises:
            StorageError: it could not be.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise StorageError(
                f"can't write a checkpoint below {self._store.place.uri!r}: {' '.join(str(error).split())[:300]}",
                flag="--output",
            ) from error

    def _finish(self, pending: Any, scratch: Path | None, target: Location, text: str) -> None:
        """Wait for this worker's file and for all others', then put up the mark that makes the checkpoint whole."""
        from torch.distributed.checkpoint.api import CheckpointException

        try:
            pending.result()
            if scratch is not None:
                for file in sorted(scratch.iterdir()):
                    upload_file(file, target.child(file.name))
            if self._size > 1:
                import torch.distributed as dist

                dist.barrier(group=self._group)
            if self._rank == 0:
                target.child(INFO).write_bytes(text.encode())
                self._store.prune(self._keep)
        # Raised where training meets it, by `wait`. Torch's own failure is no `Exception`.
        except (Exception, CheckpointException) as e:
            self._error = e
        finally:
            if scratch is not None:
                shutil.rmtree(scratch, ignore_errors=True)


def read_info(folder: Location) -> dict[str, Any]:
    """`checkpoint.json` of a checkpoint.

    Raises:
        StorageError: there is none, or it can't be read.
    """
    try:
        found = json.loads(folder.child(INFO).read_bytes())
    except (OSError, ValueError) as e:
        raise StorageError(
            f"{folder.uri!r} is no whole checkpoint of training: it has no readable {INFO}", flag="--resume-from"
        ) from e
    if not isinstance(found, dict) or "step" not in found:
        raise StorageError(f"{folder.uri!r} has a {INFO} that names no step", flag="--resume-from")
    return found


def fetch(folder: Location, scratch: Path) -> Path:
    """A checkpoint as a local directory: itself where it is local, else a copy in `scratch`."""
    if folder.is_local:
        return Path(folder.path)
    from pyarrow.fs import FileSelector

    scratch.mkdir(parents=True, exist_ok=True)
    for item in again(lambda: folder.fs.get_file_info(FileSelector(folder.path))):
        source = folder.child(item.base_name)
        with (scratch / item.base_name).open("wb") as sink, source.open_input() as stream:
            shutil.copyfileobj(stream, sink, 1 << 22)
    return scratch
