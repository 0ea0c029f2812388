"""What can be seen of a reply without understanding it: its length, its markdown, whether it is code, and its language.

These are the features that a reward should not follow by themselves, and what decides where a reply can be changed in them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Language = Literal["en", "zh"]

# Han, kana, Thai, Lao, Myanmar and Khmer are written without spaces between words.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_PIECE = re.compile(f"[{_UNSPACED}]|[^\\s{_UNSPACED}]+")
# ASCII characters that are neither part of a word nor a space.
_NO_WORD = dict.fromkeys(code for code in range(128) if not (chr(code).isalnum() or chr(code).isspace()))

_FENCE_LINE = re.compile(r"^[ \t]*(?:`{3,}|~{3,})", re.MULTILINE)
_FENCED = re.compile(r"^[ \t]*(`{3,}|~{3,}).*?(?:^[ \t]*\1[`~]*|\Z)", re.MULTILINE | re.DOTALL)
_HEADER = re.compile(r"^ {0,3}#{1,6}[ \t]+\S", re.MULTILINE)
# Powers, as in 2**3, open no bold span.
_BOLD = re.compile(r"(?<![0-9A-Za-z)*])\*\*(?=[^\s*])[^*\n]*[^\s*]\*\*(?!\*)")
_BULLET = re.compile(r"^[ \t]*[-*+•][ \t]+\S", re.MULTILINE)
_NUMBER = re.compile(r"^[ \t]*\d{1,3}(?:[.)][ \t]+|、[ \t]*)\S", re.MULTILINE)
# The line below a table's head: two columns or more.
_TABLE = re.compile(r"^[ \t]*(?:\|[ \t]*)?:?-+:?(?:[ \t]*\|[ \t]*:?-+:?)+[ \t]*(?:\|[ \t]*)?$", re.MULTILINE)

_CODE_LINE = re.compile(
    r"(?:async )?def \w+\s*\(|class \w+\s*[:({]|import [\w.]+(?: as \w+)?;?$|from [\w.]+ import\b|return\b[^.!?]*$"
    r"|func \w*\(|fn \w+|(?:const|let|var) \w+\s*[:=]|(?:if|elif|else|for|while|with|try|except)\b.*:$"
    r"|#include\b|#!|//|/\*|.*[;{}]$"
)
_INDENT = re.compile(r"(?: {4}|\t)[ \t]*(?![-*+•]\s|\d+[.)]\s)\S")
_CODE_SHARE = 0.5

_HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
_KANA = re.compile(r"[\u3040-\u30ff]")
_WORD = re.compile(r"[a-z]+(?:'[a-z]+)?")
# Common words that are no common words of other languages in Latin script.
_ENGLISH_WORDS = (
    "the of to and that this with you your it they their which from what who where why there would could should how when these"
    " those because about into does were been can my while"
)
_ENGLISH = frozenset(_ENGLISH_WORDS.split())
_ENGLISH_SHARE = 0.05
_ASCII_SHARE = 0.9
_HAN_SHARE = 0.2


@dataclass(frozen=True)
class Marks:
    """How often each kind of markdown stands in a text. Links, italics and inline code are not counted."""

    headers: int
    bold: int
    bullets: int
    numbered: int
    tables: int
    fences: int


def length(text: str) -> int:
    """Length in words; each character of a script without spaces counts as a word.

    Marks and punctuation that stand alone are no words, so that marking a text up doesn't make it longer.
    """
    if text.isascii():
        return len(text.translate(_NO_WORD).split())
    return sum(any(map(str.isalnum, piece)) for piece in _PIECE.findall(text))


def marks(text: str) -> Marks:
    """The text's markdown, by kind.

    What is inside a code fence is no markdown, and neither is what looks like it in plain code (`# comment`).
    """
    plain, fences = _FENCED.subn("\n", text)
    if is_code(text):
        return Marks(0, 0, 0, 0, 0, fences)
    patterns = (_HEADER, _BOLD, _BULLET, _NUMBER, _TABLE)
    headers, bold, bullets, numbered, tables = (sum(1 for _ in pattern.finditer(plain)) for pattern in patterns)
    return Marks(headers, bold, bullets, numbered, tables, fences)


def markdown(text: str) -> int:
    """How much markdown a text has: the sum of its `marks`."""
    return sum(vars(marks(text)).values())


def is_code(text: str) -> bool:
    """Whether at least half of the lines outside code fences look like code. False where there are no such lines."""
    lines = [line for line in _FENCED.sub("\n", text).splitlines() if line.strip()]
    found = sum(bool(_INDENT.match(line) or _CODE_LINE.match(line.strip())) for line in lines)
    return bool(lines) and found >= _CODE_SHARE * len(lines)


def has_open_fence(text: str) -> bool:
    """Whether the text ends inside a code fence."""
    return len(_FENCE_LINE.findall(text)) % 2 == 1


def language(text: str) -> Language | None:
    """English, Chinese, or None: another language, or too little text outside code fences to tell.

    Chinese: at least a fifth of all characters but spaces are Han, and none is Japanese kana. English: nine of ten letters are
    ASCII and one word in twenty is among the commonest that only English has. Errs towards None.
    """
    prose = _FENCED.sub("\n", text)
    solid = sum(map(len, prose.split()))
    if not prose.isascii():
        if _KANA.search(prose):
            return None
        if solid and len(_HAN.findall(prose)) >= _HAN_SHARE * solid:
            return "zh"
        letters = [character for character in prose if character.isalpha()]
        if sum(map(str.isascii, letters)) < _ASCII_SHARE * len(letters):
            return None
    words = _WORD.findall(prose.lower())
    return "en" if words and sum(word in _ENGLISH for word in words) >= _ENGLISH_SHARE * len(words) else None
