"""Scripts and lengths: what the filters need to know of a text's language."""

from __future__ import annotations

import re

_CJK = re.compile(r"[\u3400-\u9fff\uf900-\ufaff\u3040-\u30ff\uac00-\ud7af]")

_CJK_LANGUAGES = frozenset({"Chinese", "Japanese", "Korean"})


def is_cjk(text: str) -> bool:
    """Whether at least a fifth of the text's non-space characters are Chinese, Japanese or Korean."""
    solid = "".join(text.split())
    return bool(solid) and len(_CJK.findall(solid)) * 5 >= len(solid)


def language_group(language: str | None, text: str) -> str:
    """The group whose prior a text belongs to: `cjk` or `spaced`, by the log's language or else by the script."""
    if language:
        return "cjk" if language in _CJK_LANGUAGES else "spaced"
    return "cjk" if is_cjk(text) else "spaced"


def length_units(text: str) -> int:
    """Length in words, or in characters where the script doesn't put spaces between words."""
    return len("".join(text.split())) if is_cjk(text) else len(text.split())
