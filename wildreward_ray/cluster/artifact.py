"""Writing an artefact so that it is either whole or visibly unfinished.

A stage writes below `OUTPUT/_unfinished/`. When everything is there, the parts move to their place and `manifest.json` is
written last. Readers take a directory only with its manifest, so a killed run leaves nothing that looks like a dataset.
A stage that can be resumed leaves a `state.json` there as well: what it was asked to do, so that a run with other settings
never mixes its rows into those of an earlier one.
"""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pyarrow import fs as pafs

from wildreward_ray.cluster.run_log import run_id, running
from wildreward_ray.cluster.storage import Location, first_line, locate, move, remove
from wildreward_ray.core.errors import StorageError
from wildreward_ray.core.manifest import MANIFEST, Manifest

UNFINISHED = "_unfinished"
STATE = "state.json"
# Less free space than this and no stage can finish; it is checked before an engine starts.
MIN_FREE_BYTES = 64 * 1024 * 1024


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
        manifest.run = run_id()
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
        with running(place.uri, resumed=artifact.resumed):
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


def without(tree: dict[str, Any], dropped: Collection[str], prefix: str = "") -> dict[str, Any]:
    """A tree of settings without those of the given dotted names."""
    return {
        name: without(value, dropped, f"{prefix}{name}.") if isinstance(value, dict) else value
        for name, value in tree.items()
        if prefix + name not in dropped
    }


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
