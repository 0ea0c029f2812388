"""Records of JSON files: an object a line, or one array of objects. A bad record costs that record and no other."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from wildreward_ray.cluster import byte_stream
from wildreward_ray.cluster.byte_stream import BOM, DamagedStreamError, Line, lines, pieces, pieces_from
from wildreward_ray.cluster.records import Broken, Record
from wildreward_ray.cluster.storage import Location, first_line

_QUOTE = ord('"')
_CLOSING = {ord("{"): ord("}"), ord("["): ord("]")}
_SPACE = re.compile(rb"[ \t\r\n]*+")
# Everything up to a bracket, or to a string that isn't whole yet; and the same for a value that isn't in brackets.
_TO_BRACKET = re.compile(rb'(?:[^"{}\[\]]++|"[^"\\]*+(?:\\.[^"\\]*+)*+")*+', re.DOTALL)
_TO_BRACKET_OR_COMMA = re.compile(rb'(?:[^"{}\[\],]++|"[^"\\]*+(?:\\.[^"\\]*+)*+")*+', re.DOTALL)
_STRING = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)


def read_lines(file: Location, byte_range: tuple[int, int] | None) -> Iterator[Record | Broken]:
    """The objects of a JSONL file, at the offsets of their lines. Blank lines are no records.

    Args:
        byte_range: (begin, end): only lines that begin in it, each to its end. For files that aren't packed.

    Raises:
        OSError: the file can't be read.
    """
    position = 0
    try:
        for line in lines(pieces(file)) if byte_range is None else _lines_within(file, *byte_range):
            position = line.offset
            if line.content is None:
                yield _too_large(position)
                continue
            content = line.content.removeprefix(BOM) if line.offset == 0 else line.content
            item = parse(content, position) if content.strip() else None
            if line.cut and not isinstance(item, Record):
                continue  # It is what the damage, reported below, cut off.
            if item is not None:
                yield item
            position += len(line.content) + 1
    except DamagedStreamError as e:
        yield Broken(position, e.reason, str(e))


def _lines_within(file: Location, begin: int, end: int) -> Iterator[Line]:
    start = max(0, begin - 1)
    found = lines(pieces_from(file, start), start)
    if begin > 0:
        next(found, None)  # The rest of a line that began before: empty if a line begins at `begin`.
    for line in found:
        if line.offset >= end:
            return
        yield line


def read_array(file: Location) -> Iterator[Record | Broken]:
    """The objects of a JSON array, at their indices.

    Values are cut out by their brackets and parsed one at a time, so that a value that isn't valid is passed over. Where the
    array's own brackets and commas are broken, nothing says where the next value begins: reading ends with a `Broken`.

    Raises:
        OSError: the file can't be read.
    """
    values = _ArrayValues(pieces(file))
    position = 0
    try:
        values.open()
        while values.has_next(position):
            value = values.take()
            yield _too_large(position) if value is None else parse(value, position)
            position += 1
    except DamagedStreamError as e:
        yield Broken(position, e.reason, str(e))


def parse(content: bytes, position: int) -> Record | Broken:
    """The object that some bytes are."""
    try:
        value: Any = json.loads(content.decode("utf-8"))
    except UnicodeDecodeError as e:
        return Broken(position, "invalid_utf8", f"byte {e.start} of the record is {content[e.start : e.start + 1]!r}")
    except RecursionError:
        return Broken(position, "invalid_json", "brackets are nested too deeply")
    except ValueError as e:
        return Broken(position, "invalid_json", first_line(e))
    if not isinstance(value, dict):
        return Broken(position, "not_an_object", f"the record is a {type(value).__name__}")
    return Record(position, value)


def _too_large(position: int) -> Broken:
    return Broken(position, "record_too_large", f"the record is longer than {byte_stream.MAX_RECORD_BYTES} bytes")


class _ArrayValues:
    """Cuts the values out of an array that comes in pieces.

    No more than a value and a piece are held. Raises `DamagedStreamError`, with reason `truncated_json` where the array
    ends early and `invalid_json` where it isn't an array.
    """

    def __init__(self, source: Iterator[bytes]) -> None:
        self._source = source
        self._held = bytearray()
        self._at = 0
        self._too_large = False

    def open(self) -> None:
        while len(self._held) < len(BOM) and self._more():
            pass
        if self._held.startswith(BOM):
            self._at = len(BOM)
        self._expect(b"[")

    def has_next(self, taken: int) -> bool:
        """Go to the next value. At the end of the array, see that nothing follows."""
        if self._next() != b"]":
            if taken:
                self._expect(b",")
            return True
        self._at += 1
        if self._next(at_end=True):
            raise DamagedStreamError("invalid_json", "something follows the end of the array")
        return False

    def take(self) -> bytes | None:
        """The value that begins here, or None if it is too large."""
        first = self._next()
        if first in (b",", b"]", b"}", b":"):
            raise DamagedStreamError("invalid_json", f"{first.decode()!r} stands where a value should")
        del self._held[: self._at]
        self._at, self._too_large = 0, False
        to_next = _TO_BRACKET if first in (b"{", b"[") else _TO_BRACKET_OR_COMMA
        closing = bytearray()
        while True:
            self._skip(to_next)
            byte = self._held[self._at]
            if byte == _QUOTE:
                self._skip_string()
                continue
            if byte in _CLOSING:
                closing.append(_CLOSING[byte])
            elif not closing:
                break
            elif closing.pop() != byte:
                raise DamagedStreamError("invalid_json", f"{chr(byte)!r} closes a bracket of the other kind")
            self._at += 1
            if not closing:
                break
        return None if self._too_large else bytes(self._held[: self._at])

    def _skip(self, what: re.Pattern[bytes]) -> None:
        """Go past `what`, to a byte that is there."""
        while True:
            self._at = _end(what, self._held, self._at)
            if self._at < len(self._held):
                return
            self._more_or_truncated()

    def _skip_string(self) -> None:
        """Go past a string that isn't in the held bytes to its end."""
        self._at += 1
        while True:
            self._at = _end(_STRING, self._held, self._at)
            if self._held[self._at : self._at + 1] == b'"':
                self._at += 1
                return
            self._more_or_truncated()

    def _next(self, *, at_end: bool = False) -> bytes:
        """The next byte that is no space; empty at the end of the stream if it may stand there."""
        while True:
            self._at = _end(_SPACE, self._held, self._at)
            if self._at < len(self._held):
                return bytes(self._held[self._at : self._at + 1])
            if not self._more():
                if at_end:
                    return b""
                raise _truncated()

    def _expect(self, wanted: bytes) -> None:
        found = self._next()
        if found != wanted:
            raise DamagedStreamError("invalid_json", f"{found!r} stands where {wanted.decode()!r} should")
        self._at += 1

    def _more(self) -> bool:
        piece = next(self._source, b"")
        if len(self._held) > byte_stream.MAX_RECORD_BYTES:
            self._too_large = True
        if self._too_large:
            del self._held[: self._at]
            self._at = 0
        self._held += piece
        return bool(piece)

    def _more_or_truncated(self) -> None:
        if not self._more():
            raise _truncated()


def _end(pattern: re.Pattern[bytes], held: bytearray, start: int) -> int:
    match = pattern.match(held, start)
    return match.end() if match else start


def _truncated() -> DamagedStreamError:
    return DamagedStreamError("truncated_json", "the file ends within the array")
