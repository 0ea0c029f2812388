"""What a chat-log file is, told from its content: names lie."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from wildreward_ray.cluster.byte_stream import BOM, DamagedStreamError, is_packed, pieces
from wildreward_ray.cluster.json_readers import read_array, read_lines
from wildreward_ray.cluster.parquet_reader import column_names, formats_of_columns
from wildreward_ray.cluster.records import FORMATS, Broken, Layout, Record, UnreadableFileError
from wildreward_ray.cluster.storage import Location

_PARQUET_MAGIC = b"PAR1"
# A log may begin with lines of another kind, or damaged ones; the first record of a known shape decides.
_LOOK_RECORDS = 1000
_SHOWN_NAMES = 8
_KNOWN = f"known are {', '.join(FORMATS)}"


@dataclass(frozen=True)
class Content:
    """What a file holds.

    Attributes:
        packed: whether it is gzip or zstd.
        formats: those it can have, the likeliest first; at least one.
    """

    layout: Layout
    packed: bool
    formats: tuple[str, ...]


def content_of(file: Location) -> Content:
    """Look at the beginning of a file.

    Raises:
        UnreadableFileError: it is empty (`empty_file`), broken before its first record (`unreadable`, `not_parquet`), or of no
            known format (`unknown_format`, `missing_column`).
        OSError: it can't be reached.
    """
    with file.open_input() as stream:
        head = bytes(stream.read(len(_PARQUET_MAGIC)))
    if head == _PARQUET_MAGIC:
        names = column_names(file)
        formats = formats_of_columns(names)
        if not formats:
            shown = ", ".join(names[:_SHOWN_NAMES])
            raise UnreadableFileError(
                f"{file.uri!r} has no column 'conversation' or 'messages' (it has {shown})",
                reason="missing_column",
                flag="--format",
            )
        return Content("parquet", False, formats)
    layout: Layout = "array" if _first_text(file).startswith(b"[") else "lines"
    items = read_array(file) if layout == "array" else read_lines(file, None)
    return Content(layout, is_packed(head), _formats_of_records(islice(items, _LOOK_RECORDS), file))


def formats_of_object(value: Mapping[str, Any]) -> tuple[str, ...]:
    """The formats that a JSON object can have, the likeliest first."""
    if isinstance(value.get("conversations"), list) or isinstance(value.get("items"), list):
        return ("sharegpt",)
    if isinstance(value.get("messages"), list):
        return ("openai",)
    request = value.get("request")
    if isinstance(request, Mapping) and ("messages" in request or isinstance(request.get("body"), Mapping)):
        return ("openai-logs",)
    return ()


def _first_text(file: Location) -> bytes:
    """A file's first bytes, unpacked, that are no space.

    Raises:
        UnreadableFileError: there are none.
    """
    try:
        for i, piece in enumerate(pieces(file)):
            text = (piece.removeprefix(BOM) if i == 0 else piece).lstrip()
            if text:
                return text
    except DamagedStreamError as e:
        raise UnreadableFileError(f"{file.uri!r} can't be unpacked: {e}", reason="unreadable", flag="--input") from e
    raise UnreadableFileError(f"{file.uri!r} is empty", reason="empty_file", flag="--input")


def _formats_of_records(items: Iterator[Record | Broken], file: Location) -> tuple[str, ...]:
    """The formats that the first record of a known shape can have; any for an array that is whole and empty."""
    keys: list[str] | None = None
    broken: Broken | None = None
    for item in items:
        if isinstance(item, Broken):
            broken = broken or item
            if item.reason == "record_too_large":
                break  # What follows may be far away.
            continue
        if formats := formats_of_object(item.value):
            return formats
        keys = keys or list(item.value)
    if keys is not None:
        what = f"its first record has the keys {', '.join(map(repr, keys[:_SHOWN_NAMES]))}"
    elif broken is not None:
        what = f"at its beginning: {broken.reason}, {broken.detail}"
    else:
        return ("sharegpt", "openai", "openai-logs")
    raise UnreadableFileError(
        f"the format of {file.uri!r} is not recognised ({what})", reason="unknown_format", flag="--format", hint=_KNOWN
    )
