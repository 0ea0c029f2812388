"""Languages, scripts and lengths: what the filters need to know of a text's language."""

from __future__ import annotations

import re
from itertools import islice
from typing import Final

_CJK = re.compile(r"[\u3400-\u9fff\uf900-\ufaff\u3040-\u30ff\uac00-\ud7af]+")
_SOLID = re.compile(r"\S")

_CJK_LANGUAGES = frozenset({"Chinese", "Japanese", "Korean"})

# The script of a longer text is read from this many characters at either end.
_SAMPLE: Final = 500


def is_cjk(text: str) -> bool:
    """Whether at least a fifth of the text's non-space characters are Chinese, Japanese or Korean.

    Of a text longer than 1,000 characters, the first and the last 500 decide.
    """
    if text.isascii():
        return False
    if len(text) > 2 * _SAMPLE:
        text = text[:_SAMPLE] + text[-_SAMPLE:]
    solid = sum(map(len, text.split()))
    return solid > 0 and sum(map(len, _CJK.findall(text))) * 5 >= solid


def language_group(language: str | None, text: str) -> str:
    """The group whose prior a text belongs to: `cjk` or `spaced`, by the log's language or else by the script."""
    if language:
        return "cjk" if language in _CJK_LANGUAGES else "spaced"
    return "cjk" if is_cjk(text) else "spaced"


def length_units(text: str) -> int:
    """Length in words, or in characters where the script doesn't put spaces between words."""
    words = text.split()
    return sum(map(len, words)) if is_cjk(text) else len(words)


def has_units(text: str, count: int) -> bool:
    """Whether `length_units(text) >= count`, reading no further than it takes to know."""
    if count <= 0:
        return True
    if is_cjk(text):
        return sum(1 for _ in islice(_SOLID.finditer(text), count)) >= count
    # The last piece of a bounded split is the unread rest.
    return len(text.split(None, count - 1)) >= count


# Lingua's trigrams settle a text's language by its beginning; more of it only takes time.
_READ: Final = 250
# Code and markup before the first sentence can be long; a text is looked at this far for its words.
_LOOKED_AT: Final = 4_000
_MIN_CONFIDENCE: Final = 0.4
# Most chat logs are mostly English, which a detector of few languages confirms faster than one of all. Its other languages are
# there for texts in any Latin script to resemble more than they resemble English.
_ENGLISH_RIVALS: Final = ("FRENCH", "SPANISH", "GERMAN", "DUTCH", "TAGALOG")
_MIN_ENGLISH: Final = 0.9
_FOREIGN = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`|https?://\S+|www\.\S+|\S+@\S+", re.DOTALL)
_NO_WORDS = re.compile(r"[\s\d!-/:-@\[-`{-~]+")


class LanguageIdentifier:
    """Names the language of texts with lingua (https://github.com/pemistahl/lingua-py), which labelled WildChat as well.

    Knows all of lingua's living languages, in its low-accuracy mode: 75 MB, where the other mode takes 900 MB in each process.
    It errs on short texts: of 7,100 ShareGPT interactions, compared with the other mode, it was wrong or unsure on one in eight
    when it saw the prompt alone, and on one in a hundred with the reply. So ask it about several messages at once.
    """

    def __init__(self) -> None:
        from lingua import Language, LanguageDetectorBuilder

        few = [Language.from_str(name) for name in ("ENGLISH", *_ENGLISH_RIVALS)]
        self._english = Language.ENGLISH
        self._few = LanguageDetectorBuilder.from_languages(*few).with_low_accuracy_mode().build()
        # Latin is the one dead language it has, and much technical English resembles it.
        self._all = LanguageDetectorBuilder.from_all_spoken_languages().with_low_accuracy_mode().build()

    def identify(self, text: str) -> str | None:
        """The language's name as in WildChat (`English`, `Chinese`, …), or None where there are no words or it stays unclear.

        Fenced and inline code, URLs and addresses are not read, and no more than the first 250 characters of the rest are.
        """
        words = _NO_WORDS.sub(" ", _FOREIGN.sub(" ", text[:_LOOKED_AT])).strip()[:_READ]
        if not words:
            return None
        # A detector of languages in Latin script passes over Chinese characters and would see the English words among them only.
        if not is_cjk(words):
            likeliest = self._few.compute_language_confidence_values(words)[0]
            if likeliest.language == self._english and likeliest.value >= _MIN_ENGLISH:
                return "English"
        likeliest = self._all.compute_language_confidence_values(words)[0]
        return likeliest.language.name.capitalize() if likeliest.value >= _MIN_CONFIDENCE else None
