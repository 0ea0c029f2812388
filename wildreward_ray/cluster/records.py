"""What reading a chat log is made of: its parts, the records in them, and places and files that can't be read."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Literal

from wildreward_ray.cluster.storage import Location
from wildreward_ray.core.errors import UserError

FORMATS = ("wildchat", "lmsys", "sharegpt", "openai", "openai-logs")
# Endings, in lower case, of what is picked up from a directory. What a file is, its content tells.
SUFFIXES = (
    ".parquet",
    *(f"{kind}{packed}" for kind in (".json", ".jsonl", ".ndjson") for packed in ("", ".gz", ".zst")),
)

Layout = Literal["parquet", "lines", "array"]


class UnreadableFileError(UserError):
    """A file that can't be used at all. `reason` is a short stable word for counting, the message tells the rest."""

    def __init__(self, problem: str, *, reason: str, flag: str | None = None, hint: str | None = None) -> None:
        super().__init__(problem, flag=flag, hint=hint)
        self.reason = reason

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild_unreadable, (self.problem, self.reason, self.flag, self.hint))


def _rebuild_unreadable(problem: str, reason: str, flag: str | None, hint: str | None) -> UnreadableFileError:
    return UnreadableFileError(problem, reason=reason, flag=flag, hint=hint)


@dataclass(frozen=True)
class Record:
    """A raw record and its position in the file: row of a Parquet file, byte offset of a line, index in an array."""

    position: int
    value: Any


@dataclass(frozen=True)
class Broken:
    """A place that can't be read.

    Attributes:
        position: as of a `Record`.
        reason: a short stable word for counting.
        detail: one line.
        count: how many records are known to be lost here; 1 where their number can't be known.
    """

    position: int
    reason: str
    detail: str
    count: int = 1


@dataclass(frozen=True)
class Shard:
    """A part of a file that one task reads: the whole file where neither row groups nor a byte range are given.

    Attributes:
        format: one of `FORMATS`.
        layout: how records stand in the file.
        first: position of the shard's first record, or where the search for it begins.
        row_groups: indices in a Parquet file.
        byte_range: (begin, end) of uncompressed lines; those that begin in it belong to the shard.
    """

    file: Location
    format: str
    layout: Layout
    first: int = 0
    row_groups: tuple[int, ...] | None = None
    byte_range: tuple[int, int] | None = None

    @property
    def key(self) -> str:
        """16 hex digits that depend on nothing but the file's URI and the part of it."""
        text = f"{self.file.uri}\x00{self.row_groups}\x00{self.byte_range}"
        return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()
