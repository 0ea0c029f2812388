"""Bytes of a file in pieces, unpacked where they are gzip or zstd, and the lines in them."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, Protocol

from wildreward_ray.cluster.storage import Location, first_line

BOM = b"\xef\xbb\xbf"
# Nothing longer is held in memory: a record of this length is damage, or no record.
MAX_RECORD_BYTES = 256 * 1024 * 1024
_GZIP_MAGIC = b"\x1f\x8b"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
# To look at a file's beginning is cheap; after it, an object store answers each piece with a request.
_FIRST_PIECE_BYTES = 1 << 16
_PIECE_BYTES = 1 << 22
# Packed bytes that are unpacked at once, few because they can be many times as long unpacked.
_PACKED_BYTES = 1 << 14


class DamagedStreamError(Exception):
    """Packed bytes that can't be read on. `reason` is `truncated_file` or `damaged_file`."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class Line(NamedTuple):
    """A line without its end.

    Attributes:
        offset: of its first byte in the unpacked stream.
        content: None for a line longer than `MAX_RECORD_BYTES`.
        cut: whether the stream broke off in it.
    """

    offset: int
    content: bytes | None
    cut: bool = False


class _Unpacker(Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, /) -> bytes: ...


def is_packed(head: bytes) -> bool:
    """Whether a file that begins so is gzip or zstd."""
    return head.startswith((_GZIP_MAGIC, _ZSTD_MAGIC))


def pieces(file: Location) -> Iterator[bytes]:
    """The content of a file, unpacked. What stands before a damage is given out first.

    Raises:
        DamagedStreamError: packed bytes end early or make no sense.
        OSError: the file can't be read.
    """
    raw = pieces_from(file, 0)
    first = next(raw, b"")
    whole = itertools.chain([first], raw)
    if first.startswith(_GZIP_MAGIC):
        yield from _unpacked(whole, lambda: zlib.decompressobj(wbits=31), zlib.error, padding=b"\x00")
    elif first.startswith(_ZSTD_MAGIC):
        import zstandard

        yield from _unpacked(whole, zstandard.ZstdDecompressor().decompressobj, zstandard.ZstdError)
    else:
        yield from whole


def pieces_from(file: Location, offset: int) -> Iterator[bytes]:
    """The bytes of a file as they are, from `offset` on.

    Raises:
        OSError: the file can't be read.
    """
    with file.open_input() if offset == 0 else file.fs.open_input_file(file.path) as stream:
        if offset:
            stream.seek(offset)
        size = _FIRST_PIECE_BYTES
        while piece := bytes(stream.read(size)):
            yield piece
            size = _PIECE_BYTES


def _unpacked(
    source: Iterable[bytes], start: Callable[[], _Unpacker], error: type[Exception], padding: bytes = b""
) -> Iterator[bytes]:
    """Unpacks any number of members, one after the other, as parallel packers and appending write them."""
    member: _Unpacker | None = None
    for piece in source:
        for begin in range(0, len(piece), _PACKED_BYTES):
            data = piece[begin : begin + _PACKED_BYTES]
            while data:
                if member is None:
                    data = data.lstrip(padding) if padding else data
                    if not data:
                        break
                    member = start()
                try:
                    unpacked = member.decompress(data)
                except error as e:
                    raise DamagedStreamError("damaged_file", first_line(e)) from e
                data = member.unused_data if member.eof else b""
                if member.eof:
                    member = None
                if unpacked:
                    yield unpacked
    if member is not None:
        raise DamagedStreamError("truncated_file", "the packed bytes end before their end mark")


def lines(source: Iterable[bytes], offset: int = 0) -> Iterator[Line]:
    """The lines of a stream. One that is too long is reported as soon as that is known and passed over in pieces.

    Args:
        offset: of the stream's first byte.

    Raises:
        DamagedStreamError: from `source`; before it comes what there is of the line that was cut.
    """
    parts: list[bytes] = []
    length = 0
    reported = False
    try:
        for piece in source:
            begin = 0
            while (end := piece.find(b"\n", begin)) >= 0:
                length += end - begin
                parts.append(piece[begin:end])
                if not reported:
                    yield Line(offset, b"".join(parts) if length <= MAX_RECORD_BYTES else None)
                offset += length + 1
                parts, length, begin, reported = [], 0, end + 1, False
            parts.append(piece[begin:])
            length += len(piece) - begin
            if length > MAX_RECORD_BYTES:
                parts = []
                if not reported:
                    reported = True
                    yield Line(offset, None)
    except DamagedStreamError:
        if length and not reported:
            yield Line(offset, b"".join(parts), cut=True)
        raise
    if length and not reported:
        yield Line(offset, b"".join(parts))
