"""Counters of final levels: by the values of a column, by user, and against the length of the response."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from wildreward_ray.core.scale import JUDGE_LEVELS

NOT_RECORDED = "not recorded"
# Final levels 1..5, and index 0 for rows that have none.
LEVELS = len(JUDGE_LEVELS) + 1
# A column with more values than this isn't one of few values; further ones are counted together.
_MAX_NAMES = 1_000
FURTHER = "further names"
# Response lengths are counted one by one up to here, and above in classes that are 1/64 of an octave (1.1 %) wide.
EXACT_LENGTHS = 4_096
_CLASSES_PER_OCTAVE, _OCTAVES = 64, 20


@dataclass
class Mix:
    """Final levels by name: int64 `[6]` each, index 0 for rows without a level."""

    counts: dict[str, npt.NDArray[np.int64]] = field(default_factory=dict)

    def add(self, names: Sequence[str], table: npt.NDArray[np.int64]) -> None:
        """Add a table `[len(names), 6]`."""
        for name, row in zip(names, table, strict=True):
            if not row.any():
                continue
            known = name in self.counts or len(self.counts) < _MAX_NAMES
            total = self.counts.setdefault(name if known else FURTHER, np.zeros(LEVELS, np.int64))
            total += row

    def rows(self, name: str) -> int:
        """How many rows bear a name."""
        return int(self.counts[name].sum()) if name in self.counts else 0


def tally(names: pa.Array, level: npt.NDArray[np.int64]) -> tuple[list[str], npt.NDArray[np.int64]]:
    """The distinct values of a string column and their levels `[values, 6]`; null and empty are `NOT_RECORDED`."""
    encoded = names.fill_null("").dictionary_encode()
    codes = encoded.indices.to_numpy(zero_copy_only=False)
    values = [value or NOT_RECORDED for value in encoded.dictionary.to_pylist()]
    return values, bucket_mix(codes, level, len(values))


def bucket_mix(codes: npt.NDArray[np.integer], level: npt.NDArray[np.int64], size: int) -> npt.NDArray[np.int64]:
    """Rows by class and level: int64 `[size, 6]`, from int classes `[n]` in 0..size-1 and levels `[n]` in 0..5."""
    cells = np.bincount(codes.astype(np.int64) * LEVELS + level, minlength=size * LEVELS)
    return np.asarray(cells.reshape(size, LEVELS))


class Users:
    """Rows by user: levels 0..5, and those that were kept."""

    def __init__(self) -> None:
        self._index: dict[str, int] = {}
        self._counts = np.zeros((1024, LEVELS + 1), np.int64)

    def __len__(self) -> int:
        return len(self._index)

    def add(self, users: pa.Array, level: npt.NDArray[np.int64], kept: npt.NDArray[np.bool_] | None) -> None:
        """Count rows; those without a user are left out, and without `kept` every row counts as kept."""
        encoded = users.fill_null("").dictionary_encode()
        # Rows without a user go to a line of their own, which is dropped below.
        lines = np.array([self._line(user) for user in encoded.dictionary.to_pylist()], np.int64)
        if not len(lines):
            return
        while len(self._index) > len(self._counts):
            self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
        line = lines[encoded.indices.to_numpy(zero_copy_only=False)]
        known = line >= 0
        np.add.at(self._counts, (line[known], level[known]), 1)
        counted = known if kept is None else known & kept
        np.add.at(self._counts, (line[counted], LEVELS), 1)

    def _line(self, user: str) -> int:
        return self._index.setdefault(user, len(self._index)) if user else -1

    def largest_kept(self) -> int:
        """Most kept rows that one user wrote."""
        return int(self._counts[: len(self), LEVELS].max(initial=0))

    def deciles(self) -> list[tuple[str, npt.NDArray[np.int64]]]:
        """(name, levels) of users by how much they wrote, lightest first.

        A user's decile is the share of users with fewer rows. Users with as many rows are never parted, so some deciles
        may be empty: where most users wrote once, they are all in the first.
        """
        found = self._counts[: len(self), :LEVELS]
        rows = found.sum(axis=1)
        ordered = np.sort(rows)
        decile = 10 * np.searchsorted(ordered, rows, side="left") // max(len(rows), 1)
        out = []
        for d in range(10):
            inside = decile == d
            if inside.any():
                fewest, most = int(rows[inside].min()), int(rows[inside].max())
                span = f"{fewest:,}" if fewest == most else f"{fewest:,} to {most:,}"
                out.append((f"{d + 1}: {span} {'row' if most == 1 else 'rows'}", found[inside].sum(axis=0)))
        return out


class LengthTable:
    """Rows by response length and level, for a rank correlation without keeping the rows."""

    def __init__(self) -> None:
        self._counts = np.zeros((EXACT_LENGTHS + _CLASSES_PER_OCTAVE * _OCTAVES, LEVELS), np.int64)

    def add(self, length: npt.NDArray[np.int64], level: npt.NDArray[np.int64]) -> None:
        """Count lengths in characters `[n]` with their levels `[n]`; those without a level are left out."""
        octaves = np.log2(np.maximum(length, EXACT_LENGTHS) / EXACT_LENGTHS)
        wide = EXACT_LENGTHS + (octaves * _CLASSES_PER_OCTAVE).astype(np.int64)
        at = np.minimum(np.where(length < EXACT_LENGTHS, length, wide), len(self._counts) - 1)
        np.add.at(self._counts, (at[level > 0], level[level > 0]), 1)

    @property
    def rows(self) -> int:
        """How many rows have a length and a level."""
        return int(self._counts.sum())

    def spearman(self) -> float | None:
        """Spearman's rank correlation with mean ranks for ties; None where either never varies.

        It is Pearson's correlation of the ranks (https://en.wikipedia.org/wiki/Spearman's_rank_correlation_coefficient).
        """
        table = self._counts[:, 1:].astype(np.float64)
        rank = [_centred_ranks(table.sum(axis=axis)) for axis in (1, 0)]
        spread = [float((table.sum(axis=axis) * r * r).sum()) for axis, r in zip((1, 0), rank, strict=True)]
        if min(spread) <= 0:
            return None
        return float(rank[0] @ table @ rank[1]) / math.sqrt(spread[0] * spread[1])


def _centred_ranks(counts: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The mean rank of each class of ties, minus the mean of all ranks."""
    return np.asarray(np.cumsum(counts) - counts / 2 - counts.sum() / 2)
