"""Conversation text as a judge may see it: without spans that imitate its prompt, its verdict, or whoever instructs it.

Quoting and tokenising a message apart from the prompt keep it from ending its field. A model still reads what it says, and a
small one follows "Opinion of the answer: perfect" wherever it stands. Such spans are replaced by `[…]`.

Patterns meet a folded text: compatibility forms are decomposed, accents and invisible characters dropped, look-alike Cyrillic
and Greek letters made Latin, so that a disguised word is found where it stands. What is kept is the original text.

Opinions are what the judge is after and must stay: first persons may rate ("I'd rate this a 5"), and a bare "perfect" or
"that's wrong" is no order. Where the two can't be told apart, the text stays.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache

from wildreward_ray.feedback.disarm_patterns import (
    BARE_LINE,
    LABELS_ZH,
    MARKUP,
    NEEDED,
    ORDERS_ZH,
    OVERRIDES,
    RATING_ORDERS,
    ROLE,
    SCAFFOLD,
    USER_ROLE,
)

MASK = "[…]"

_LOOKALIKES = str.maketrans(
    "аеорсухіјѕԁһпктмвнАВЕКМНОРСТХІЈЅУΑΒΕΖΗΙΚΜΝΟΡΤΥΧοαενικρτυ’\u2028\u2029\x85\r\t\f\v\x1c\x1d\x1e\x1f",
    "aeopcyxijsdhnktmbhABEKMHOPCTXIJSYABEZHIKMNOPTYXoaevikptu'\n\n\n\n \n\n\n\n\n ",
)
# Unicode tag characters spell ASCII invisibly.
_TAGS = range(0xE0020, 0xE007F)
_SENTENCE_END = re.compile(r"[.!?。\n](?!\w)|\Z")
_LONGEST_SENTENCE = 200
_LEFT = r"[\s\"'`.,;:!?()\[\]{}<>#*_|=~—–\-。，；：！？（）【】「」『』“”‘’]"
_MASKS = re.compile(rf"{re.escape(MASK)}(?:{_LEFT}*{re.escape(MASK)})+")
_EDGES = re.compile(rf"\A{_LEFT}*{re.escape(MASK)}{_LEFT}*|\s*[\"'`(\[{{<#*|=（【「『“]*\s*{re.escape(MASK)}{_LEFT}*\Z")
_RUN = re.compile(r"\s\s|[\t\r\f\v\x1c-\x1f]")
_AROUND_LABEL = " \t\n>*-\"'“”"


def disarm(text: str) -> tuple[str, int]:
    """The text with imitations of prompt, verdict and instructions replaced by `[…]`, and how many were.

    A text without any is returned as it is, character for character.
    """
    folded, origin = _fold(text)
    spans = _merge(sorted(_found(folded)))
    if not spans:
        return text, 0
    parts, end = [], 0
    for start, stop in spans:
        parts += [text[end : origin[start]], MASK]
        end = origin[stop]
    return "".join([*parts, text[end:]]), len(spans)


def without_edges(masked: str) -> str:
    """A text of `disarm` with masks that follow each other made one, and without those at its ends and what is left around them.

    A small judge takes any addition, a mask too, as something the user said.
    """
    joined = _MASKS.sub(MASK, masked)
    return _EDGES.sub("", joined).strip() or MASK


def _found(folded: str) -> Iterator[tuple[int, int]]:
    lower = folded.lower()
    chinese = not lower.isascii()
    for pattern, possible in (
        (MARKUP, _may_match("MARKUP", lower)),
        (SCAFFOLD, _may_match("SCAFFOLD", lower)),
        (LABELS_ZH, chinese),
    ):
        if possible:
            yield from (_trimmed(folded, *m.span()) for m in pattern.finditer(folded))
    for pattern, possible in (
        (RATING_ORDERS, _may_match("RATING_ORDERS", lower)),
        (OVERRIDES, _may_match("OVERRIDES", lower)),
        (ORDERS_ZH, chinese),
    ):
        if possible:
            yield from _orders(pattern, folded)
    roles = list(ROLE.finditer(folded))
    # A label in front of the whole message is how some people write; one behind other text forges a turn.
    framed = bool(roles) and not folded[: roles[0].start()].strip(_AROUND_LABEL)
    for i, m in enumerate(roles):
        forged = i > 0 or not framed
        if framed and i == len(roles) - 1 and USER_ROLE.search(m.group()):
            # A forged talk in front of the message: its last turn, the user's, is what the user did say.
            forged = False
        line = folded.find("\n", m.end())
        yield _trimmed(folded, m.start(), m.end() if not forged else len(folded) if line < 0 else line)
    last = BARE_LINE.search(folded)
    if last and folded[: last.start()].strip():
        yield _trimmed(folded, *last.span())


def _may_match(family: str, lower: str) -> bool:
    return any(word in lower for word in NEEDED[family])


def _orders(pattern: re.Pattern[str], folded: str) -> Iterator[tuple[int, int]]:
    for m in pattern.finditer(folded):
        # An order goes on to the end of its sentence.
        end = _SENTENCE_END.search(folded, m.end(), min(len(folded), m.end() + _LONGEST_SENTENCE))
        yield _trimmed(folded, m.start(), end.start() if end else m.end())


def _trimmed(folded: str, start: int, stop: int) -> tuple[int, int]:
    """A span without the white space and the punctuation that a pattern needed in front of it."""
    while start < stop and folded[start] in " \t\n.!?;:,。":
        start += 1
    while stop > start and folded[stop - 1].isspace():
        stop -= 1
    return start, stop


def _merge(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Sorted spans with those that touch made one; empty ones are left out."""
    merged: list[tuple[int, int]] = []
    for start, stop in spans:
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(stop, merged[-1][1]))
        elif start < stop:
            merged.append((start, stop))
    return merged


def _fold(text: str) -> tuple[str, Sequence[int]]:
    """The text that patterns meet, and for each of its positions, the end included, the position in the original.

    White space is one character: patterns stay simple, and linear.
    """
    if text.isascii() and not _RUN.search(text):
        return text, range(len(text) + 1)
    folded: list[str] = []
    origin: list[int] = []
    for i, character in enumerate(text):
        for c in _fold_character(character):
            if c.isspace() and folded and folded[-1].isspace():
                folded[-1] = "\n" if "\n" in (c, folded[-1]) else " "
                continue
            folded.append(c)
            origin.append(i)
    return "".join(folded), [*origin, len(text)]


@lru_cache(maxsize=8192)
def _fold_character(character: str) -> str:
    if ord(character) in _TAGS:
        return chr(ord(character) - 0xE0000)
    plain = unicodedata.normalize("NFKD", character)
    kept = "".join(c for c in plain if unicodedata.category(c) not in ("Mn", "Me", "Cf"))
    return kept.translate(_LOOKALIKES)
