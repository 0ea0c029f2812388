"""Near-duplicate texts: MinHash signatures and the band keys that a join groups by.

Two texts of which only a few words differ share most of their shingles (short runs of characters). Under a random order of all
shingles, the smallest of each text is the same with probability J, the Jaccard similarity of the two sets (Broder 1997, "On the
resemblance and containment of documents", https://www.cs.princeton.edu/courses/archive/spring13/cos598C/broder97resemblance.pdf).
A signature keeps that smallest shingle for `PERMUTATIONS` orders. Cut into bands, it makes texts that agree on one whole band
candidates, with no comparison of all pairs (Leskovec, Rajaraman, Ullman, "Mining of Massive Datasets", sections 3.3 and 3.4,
http://infolab.stanford.edu/~ullman/mmds/ch3.pdf).

Every number here follows from the text and the constants below: the same in each process, on each machine.
"""

from __future__ import annotations

import functools
import hashlib
import unicodedata
from typing import Final

import numpy as np
import numpy.typing as npt

Keys = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]

# A Chinese, Japanese or Korean character counts twice, so a shingle is five letters or two and a half characters.
SHINGLE: Final = 5
# A pair of similarity s shares at least one of B bands of R rows with probability 1 - (1 - s^R)^B. With 10 bands of 12 rows:
#   s            0.5    0.6    0.7    0.75   0.8    0.85   0.9    0.95
#   probability  0.002  0.022  0.130  0.275  0.509  0.784  0.964  1.000
# One half lies at 0.798.
BANDS: Final = 10
ROWS: Final = 12
PERMUTATIONS: Final = BANDS * ROWS
SEED: Final = 0x5EED_0F_B0DE
MAX_SHINGLES: Final = 2048
# Signatures read this many normalised characters from each end of a text; `exact_key` reads all of it.
END_CHARACTERS: Final = 20_000

_MASK = (1 << 64) - 1
_SPACE = 32
_FIRST_WIDE = 0x2E80


def _mix(x: Hashes) -> Hashes:
    """Spreads every bit of each value over the whole word.

    Source: the finaliser of splitmix64, https://prng.di.unimi.it/splitmix64.c
    """
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _random_words(seed: int, count: int) -> Hashes:
    """`count` words that depend on the seed alone, unlike numpy's generators, which may change between versions."""
    steps = [(seed + (i + 1) * 0x9E3779B97F4A7C15) & _MASK for i in range(count)]
    return _mix(np.array(steps, dtype=np.uint64))


_BASE = int(_random_words(SEED, 1)[0]) | 1


@functools.cache
def _kept() -> npt.NDArray[np.bool_]:
    """Which code points are letters, digits or marks on letters; without its marks a word in Hindi is another word. [0x110000]"""
    table = np.zeros(0x110000, dtype=np.bool_)
    table[[c for c in range(0x110000) if unicodedata.category(chr(c))[0] in "LNM"]] = True
    return table


@functools.cache
def _wide() -> npt.NDArray[np.bool_]:
    """Which code points are characters of scripts that write a word in one or two of them. [0x40000]"""
    table = np.zeros(0x40000, dtype=np.bool_)
    for first, last in ((0x2E80, 0x2FDF), (0x3040, 0x31FF), (0x3400, 0x9FFF), (0xAC00, 0xD7AF), (0xF900, 0xFAFF)):
        table[first : last + 1] = True
    table[0x20000:0x40000] = True
    return table


def normalised(text: str) -> npt.NDArray[np.uint32]:
    """Code points [N] after NFKC and case folding, every run of anything but letters and digits being one space.

    Punctuation doesn't tell texts apart, so `C++` and `C#` are the same here.
    """
    if text.isascii():
        folded = text.lower()
    else:
        folded = unicodedata.normalize("NFKC", text).casefold()
        # Case folding can undo composition (the Turkish capital I with a dot).
        folded = unicodedata.normalize("NFKC", folded)
    codes = np.frombuffer(folded.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    solid = _kept()[codes]
    codes = np.where(solid, codes, np.uint32(_SPACE))
    follows_solid = np.empty_like(solid)
    follows_solid[:1] = False
    follows_solid[1:] = solid[:-1]
    codes = codes[solid | follows_solid]
    return codes[:-1] if codes.size and codes[-1] == _SPACE else codes


def shingles(codes: npt.NDArray[np.uint32]) -> Hashes:
    """Hashes of a normalised text's shingles: all of them, with repeats, or the `MAX_SHINGLES` smallest different ones.

    The smallest hashes are the same choice in every text, so a long text keeps its similarity to another of about its length.
    """
    if codes.size > 2 * END_CHARACTERS:
        codes = np.concatenate([codes[:END_CHARACTERS], [np.uint32(_SPACE)], codes[-END_CHARACTERS:]])
    if codes.size and int(codes.max()) >= _FIRST_WIDE:
        wide = _wide()[np.minimum(codes, len(_wide()) - 1)]
        codes = np.repeat(codes, 1 + wide)
    # A text shorter than a shingle is one itself.
    length = min(SHINGLE, codes.size)
    count = max(codes.size - SHINGLE + 1, 1)
    wide_codes = codes.astype(np.uint64)
    rolled = np.full(count, length, dtype=np.uint64)
    for i in range(length):
        rolled = rolled * np.uint64(_BASE) + wide_codes[i : i + count]
    hashes = _mix(rolled)
    if hashes.size > MAX_SHINGLES:
        hashes = np.unique(hashes)[:MAX_SHINGLES]
    return hashes


class MinHasher:
    """Signatures and band keys of texts. Holds constants only; safe to share between threads."""

    def __init__(self) -> None:
        words = _random_words(SEED + 1, 2 * PERMUTATIONS + ROWS + BANDS)
        # x -> a x + b modulo 2^64 with an odd `a` is one-to-one: an order of all shingles.
        self._factors = (words[:PERMUTATIONS] | np.uint64(1))[:, None]
        self._offsets = words[PERMUTATIONS : 2 * PERMUTATIONS]
        self._row_factors = words[2 * PERMUTATIONS : 2 * PERMUTATIONS + ROWS] | np.uint64(1)
        self._band_offsets = words[-BANDS:]

    def signature(self, text: str) -> Hashes:
        """The smallest hash under each order [`PERMUTATIONS`]. An empty text has one as well."""
        return self.signature_of_set(shingles(normalised(text)))

    def signature_of_set(self, hashes: Hashes) -> Hashes:
        """The signature [`PERMUTATIONS`] of a set given by well-mixed hashes [N], N > 0."""
        ordered = self._factors * hashes
        ordered += self._offsets[:, None]
        return np.asarray(ordered.min(axis=1))

    def bands(self, text: str) -> Keys:
        """Keys [`BANDS`] of which two texts share at least one where they are likely near-duplicates.

        The band's number is part of its key, so one column can hold the keys of all bands. Texts that are equal after
        normalisation share all keys.
        """
        return self.bands_of_signature(self.signature(text))

    def bands_of_signature(self, signature: Hashes) -> Keys:
        """The keys [`BANDS`] of a signature [`PERMUTATIONS`]."""
        rows = _mix(signature).reshape(BANDS, ROWS)
        return _mix((rows * self._row_factors).sum(axis=1) + self._band_offsets).view(np.int64)


def exact_key(text: str) -> int:
    """A signed 64-bit number that texts share, chance aside, only where they are equal after normalisation."""
    digest = hashlib.blake2b(normalised(text).astype("<u4").tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def estimated_similarity(a: Hashes, b: Hashes) -> float:
    """The Jaccard similarity of two texts as their signatures show it, in [0, 1]; standard error at most 0.046."""
    return float(np.mean(a == b))
