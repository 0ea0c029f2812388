"""Which files of this machine a job's nodes have: those of its working directory that Ray uploads."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from wildreward_ray.core.errors import UserError

CONFIG = "--config"


def for_the_job(arguments: Sequence[str], working_dir: str) -> tuple[str, ...]:
    """A stage's flags with paths of existing files as the job finds them: relative to its working directory.

    Looked at are the file of `--config` and relative paths of more than one part. Other absolute paths are left alone: all nodes
    may share them.

    Args:
        arguments: flags and values as typed here.
        working_dir: a directory, or a URI or zip, of which nothing is known.

    Raises:
        UserError: a file that stays on this machine.
    """
    found = []
    before = ""
    for word in arguments:
        flag, mark, value = word.partition("=") if word.startswith("--") else (before, "", word)
        path = _there(value, flag, working_dir) if value and _is_file_of_here(value, flag) else value
        found.append(f"{flag}={path}" if mark else path if value else word)
        before = word if word.startswith("--") and not mark else before
    return tuple(found)


def _is_file_of_here(value: str, flag: str) -> bool:
    if "://" in value or not os.path.exists(value):
        return False
    return flag == CONFIG or (len(Path(value).parts) > 1 and not Path(value).is_absolute())


def _there(value: str, flag: str, working_dir: str) -> str:
    """A path as it is seen from a job's working directory."""
    if "://" in working_dir or working_dir.endswith(".zip"):
        raise UserError(
            f"{value!r} is a file of this machine, and the job gets those of {working_dir!r}",
            flag=flag or None,
            hint="give a URI",
        )
    root, path = Path(working_dir).resolve(), Path(value).resolve()
    if not path.is_relative_to(root):
        raise UserError(
            f"{value!r} is on this machine and outside the working directory {str(root)!r}: the job's nodes don't have it",
            flag=flag or None,
            hint="give a URI, or a file below the working directory",
        )
    rule = left_behind(path, root)
    if rule is not None:
        raise UserError(
            f"{value!r} stays on this machine: {rule} keeps it out of what the job's nodes get",
            flag=flag or None,
            hint="give a URI, or a file that is uploaded",
        )
    return path.relative_to(root).as_posix()


def left_behind(path: Path, root: Path) -> str | None:
    """What keeps a path below `root` out of Ray's upload: an ignore file, or Ray's own list. None where nothing does."""
    # Ray's own readers: the rules must be those of the upload that follows.
    from ray._private import ray_constants
    from ray._private.runtime_env.packaging import _get_excludes, _get_ignore_file

    names = [".rayignore"]
    if os.environ.get(ray_constants.RAY_RUNTIME_ENV_IGNORE_GITIGNORE, "0") != "1":
        names.append(".gitignore")
    rules = [("Ray", _get_excludes(root, ray_constants.get_runtime_env_default_excludes()))]
    for step in [*reversed(path.relative_to(root).parents), path.relative_to(root)]:
        here = root / step
        if here.is_dir():
            rules += [
                (str(here / name), match) for name in names if (match := _get_ignore_file(here, name)) is not None
            ]
        for rule, match in rules:
            # A rule that ends in a slash names what is in a directory, and not the directory.
            if here != root and (match(here) or (here.is_dir() and match(here / "any"))):
                return rule
    return None
