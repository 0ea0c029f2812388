"""Counting an extraction in one pass: everything the page says about all rows, from batches, in constant memory.

Only rows per user take memory that grows, by about 200 bytes a user: who wrote how much is known only at the end.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from wildreward_ray.core.errors import UserError
from wildreward_ray.core.scale import JUDGE_LEVELS, NEUTRAL
from wildreward_ray.report.inspect_groups import LEVELS, NOT_RECORDED, LengthTable, Mix, Users, bucket_mix, tally

# What is read of every row. The history and the feedback text are needed only for the rows that are shown.
COLUMNS = (
    "interaction_id", "turn", "user_id", "language", "model", "toxic", "redacted", "prompt", "response", "judge_level",
    "judge_probs", "level", "level_probs", "entropy", "origin", "evidence_id", "refusal_verdict", "topic_switch", "label",
    "drop_reason", "split", "judged_by", "masked", "pii",
)  # fmt: skip
REQUIRED = ("interaction_id", "level")
MAX_ENTROPY = math.log(len(JUDGE_LEVELS))
BINS = 24
CONFIDENCE_STEPS = (0.6, 0.7, 0.8, 0.9)
# Characters from which the next length class begins.
LENGTH_EDGES = (50, 200, 500, 2_000, 8_000)
_TURNS = 5
_COUNTED = ("origin", "refusal_verdict", "drop_reason", "split", "judged_by")
_FLAGS = ("toxic", "redacted", "masked", "topic_switch")


class Statistics:
    """Counters over all rows.

    Attributes:
        rows, kept: interactions, and those that go to the dataset (`kept` is None where that isn't recorded).
        columns: names of the columns that are there.
        levels: rows by final level; index 0 is for rows without one.
        matrix: rows by judge level (first axis) and final level, index 0 for level 1.
        mixes: final levels by language, model, turn, prompt length, response length and origin.
        labels: kept rows by training label.
        counts: rows by value, of the columns of few values; None is where a row has none.
        flags: rows that carry a flag, by its name.
        pii: kinds of personal data, by the number of rows they were found in.
        entropy_bins, entropy_n: rows by the judge's entropy, BINS of equal width over 0..ln 5 nats, and how many have one.
        confidence_bins: kept rows that aren't neutral by their side's share, BINS of equal width over 0..1.
        unsure: of those, how many lie below each of CONFIDENCE_STEPS.
        lengths: response lengths against levels.
        users: rows by user.
    """

    def __init__(self) -> None:
        self.rows = 0
        self.kept: int | None = None
        self.columns: frozenset[str] = frozenset()
        self.levels = np.zeros(LEVELS, np.int64)
        self.matrix = np.zeros((5, 5), np.int64)
        self.mixes = {
            name: Mix() for name in ("language", "model", "turn", "prompt length", "response length", "origin")
        }
        self.labels: Counter[int] = Counter()
        self.counts: dict[str, Counter[str | None]] = {name: Counter() for name in _COUNTED}
        self.flags: Counter[str] = Counter()
        self.pii: Counter[str] = Counter()
        self.entropy_bins = np.zeros(BINS, np.int64)
        self.entropy_n = 0
        self._entropy_sums = np.zeros(2)
        self.confidence_bins = np.zeros(BINS, np.int64)
        self.unsure = dict.fromkeys(CONFIDENCE_STEPS, 0)
        self.lengths = LengthTable()
        self.users = Users()

    def add(self, batch: pa.RecordBatch) -> None:
        """Count a batch with the `COLUMNS` that there are.

        Raises:
            UserError: a level outside 1..5, or a list of probabilities that isn't five long.
        """
        self.columns = frozenset(batch.schema.names)
        self.rows += batch.num_rows
        level = levels(batch, "level")
        kept = _kept(batch)
        self.levels += np.bincount(level, minlength=LEVELS)
        if kept is not None:
            self.kept = (self.kept or 0) + int(kept.sum())
        self._add_groups(batch, level, kept)
        self._add_counts(batch, kept)
        self._add_certainty(batch, level, kept)

    def has(self, column: str) -> bool:
        """Whether the extraction has a column."""
        return column in self.columns

    @property
    def judge_levels(self) -> npt.NDArray[np.int64]:
        """Rows by judge level, index 0 for level 1."""
        return np.asarray(self.matrix.sum(axis=1))

    @property
    def entropy_mean(self) -> float | None:
        """Mean of the judge's entropy in nats, or None without any."""
        return float(self._entropy_sums[0]) / self.entropy_n if self.entropy_n else None

    @property
    def entropy_spread(self) -> float | None:
        """Standard deviation of the judge's entropy in nats, or None without any."""
        mean = self.entropy_mean
        if mean is None:
            return None
        return math.sqrt(max(0.0, float(self._entropy_sums[1]) / self.entropy_n - mean * mean))

    def _add_groups(
        self, batch: pa.RecordBatch, level: npt.NDArray[np.int64], kept: npt.NDArray[np.bool_] | None
    ) -> None:
        if self.has("judge_level"):
            judge = levels(batch, "judge_level")
            both = (judge > 0) & (level > 0)
            np.add.at(self.matrix, (judge[both] - 1, level[both] - 1), 1)
        for name in ("language", "model", "origin"):
            if self.has(name):
                self.mixes[name].add(*tally(batch[name], level))
        if self.has("turn"):
            turn = pc.fill_null(batch["turn"], -1).to_numpy(zero_copy_only=False).astype(np.int64)
            names = [NOT_RECORDED, *(str(i) for i in range(1, _TURNS)), f"{_TURNS} and later"]
            self.mixes["turn"].add(names, bucket_mix(np.minimum(turn + 1, _TURNS), level, len(names)))
        for name in ("prompt", "response"):
            if self.has(name):
                size = lengths(batch[name])
                table = bucket_mix(np.digitize(size, LENGTH_EDGES), level, len(LENGTH_EDGES) + 1)
                self.mixes[f"{name} length"].add(length_names(), table)
                if name == "response":
                    self.lengths.add(size, level)
        if self.has("user_id"):
            self.users.add(batch["user_id"], level, kept)

    def _add_counts(self, batch: pa.RecordBatch, kept: npt.NDArray[np.bool_] | None) -> None:
        for name in _COUNTED:
            if self.has(name):
                self.counts[name].update(_value_counts(batch[name]))
        if self.has("label"):
            label = batch["label"] if kept is None else batch["label"].filter(pa.array(kept))
            self.labels.update({k: n for k, n in _value_counts(label).items() if k is not None})
        for name in _FLAGS:
            if self.has(name):
                self.flags[name] += pc.sum(batch[name]).as_py() or 0
        if self.has("pii"):
            found = [set(kinds) for kinds in batch["pii"].to_pylist() if kinds]
            self.flags["pii"] += len(found)
            self.pii.update(kind for kinds in found for kind in kinds)

    def _add_certainty(
        self, batch: pa.RecordBatch, level: npt.NDArray[np.int64], kept: npt.NDArray[np.bool_] | None
    ) -> None:
        entropy = _entropies(batch)
        entropy = entropy[np.isfinite(entropy)]
        self.entropy_n += len(entropy)
        self._entropy_sums += (entropy.sum(), (entropy * entropy).sum())
        self.entropy_bins += _histogram(entropy / MAX_ENTROPY)
        if not self.has("level_probs"):
            return
        share = side_shares(level, probabilities(batch, "level_probs"))
        share = share[np.isfinite(share) & (True if kept is None else kept)]
        self.confidence_bins += _histogram(share)
        for step in CONFIDENCE_STEPS:
            # The stored probabilities are 32-bit; without the margin 0.7 itself would count as below 0.7.
            self.unsure[step] += int((share < step - 1e-6).sum())


def levels(batch: pa.RecordBatch, name: str) -> npt.NDArray[np.int64]:
    """A column of levels, int64 `[n]`; 0 where a row has none."""
    found = pc.fill_null(batch[name], 0).to_numpy(zero_copy_only=False).astype(np.int64)
    wrong = found[(found < 0) | (found > len(JUDGE_LEVELS))]
    if len(wrong):
        raise UserError(f"{name} {wrong[0]} in feedback/: levels lie in 1..{len(JUDGE_LEVELS)}", flag="URI")
    return np.asarray(found)


def lengths(texts: pa.Array) -> npt.NDArray[np.int64]:
    """Characters of every text, int64 `[n]`; a text that is missing has none."""
    return np.asarray(pc.fill_null(pc.utf8_length(texts), 0).to_numpy(zero_copy_only=False).astype(np.int64))


def length_names() -> list[str]:
    """Names of the length classes that LENGTH_EDGES cut."""
    starts, ends = (0, *LENGTH_EDGES), LENGTH_EDGES
    return [*(f"{a:,} to {b - 1:,}" for a, b in zip(starts, ends, strict=False)), f"{LENGTH_EDGES[-1]:,} and more"]


def probabilities(batch: pa.RecordBatch, name: str) -> npt.NDArray[np.float64]:
    """A column of probabilities, float64 `[n, 5]`; rows without them hold NaN.

    Raises:
        UserError: a list that is neither empty nor five long.
    """
    column = batch[name]
    sizes = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
    wrong = sizes[(sizes != 0) & (sizes != len(JUDGE_LEVELS))]
    if len(wrong):
        raise UserError(f"{name} of {wrong[0]} values in feedback/: there are {len(JUDGE_LEVELS)} levels", flag="URI")
    out = np.full((len(column), len(JUDGE_LEVELS)), np.nan)
    flat = pc.list_flatten(column).to_numpy(zero_copy_only=False).astype(np.float64)
    out[sizes > 0] = flat.reshape(-1, len(JUDGE_LEVELS))
    return out


def side_shares(level: npt.NDArray[np.int64], probs: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """P(the level's side) / P(either side), as `--quality.min-confidence` takes it; NaN for neutral rows and without probs.

    Args:
        level: int64 `[n]`, 0 for none.
        probs: float64 `[n, 5]`.
    """
    negative, positive = probs[:, : NEUTRAL - 1].sum(axis=1), probs[:, NEUTRAL:].sum(axis=1)
    both = negative + positive
    side = np.where(level > NEUTRAL, positive, negative)
    sided = (level > 0) & (level != NEUTRAL) & (both > 0)
    return np.asarray(np.divide(side, both, out=np.full(len(level), np.nan), where=sided))


def _entropies(batch: pa.RecordBatch) -> npt.NDArray[np.float64]:
    """The judge's entropy on every row's own turn, nats, float64 `[n]`; NaN where it isn't known."""
    if "judge_probs" in batch.schema.names:
        probs = probabilities(batch, "judge_probs")
        logs = np.log(probs, out=np.zeros_like(probs), where=probs > 0)
        # NaN times 0 stays NaN, so rows without probabilities have no entropy.
        return np.asarray(-(probs * logs).sum(axis=1))
    if "entropy" in batch.schema.names:
        return np.asarray(batch["entropy"].to_numpy(zero_copy_only=False).astype(np.float64))
    return np.zeros(0)


def _kept(batch: pa.RecordBatch) -> npt.NDArray[np.bool_] | None:
    names = batch.schema.names
    if "drop_reason" in names:
        return np.asarray(batch["drop_reason"].is_null().to_numpy(zero_copy_only=False))
    if "split" in names:
        return np.asarray(batch["split"].is_valid().to_numpy(zero_copy_only=False))
    return None


def _value_counts(column: pa.Array) -> dict[Any, int]:
    return {item["values"]: item["counts"] for item in pc.value_counts(column).to_pylist()}


def _histogram(shares: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """How many of the numbers in 0..1 fall into each of BINS of equal width."""
    return np.bincount(np.clip((shares * BINS).astype(np.int64), 0, BINS - 1), minlength=BINS)
