"""How often a judge agrees with a careful reader: for the sample, whose expected levels stand in a file of their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.dataset as pads
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, roc_auc_score

from wildreward_ray.cluster.storage import Location
from wildreward_ray.core.errors import UserError
from wildreward_ray.core.scale import JUDGE_LEVELS, NEUTRAL

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


def read_expected(file: Path) -> dict[str, dict[str, Any]]:
    """Expected levels by interaction id, from JSONL."""
    with file.open(encoding="utf-8") as lines:
        return {row["interaction_id"]: row for row in map(json.loads, lines)}


def judge_agreement(feedback: Location, expected: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Compare the judge's levels, before the refinements, with the expected ones.

    Returns:
        `exact`, `within_one`: shares of interactions; `balanced_accuracy_3`: mean recall of negative, neutral and
        positive; `auc`: of expected positive against expected negative by the judge's positive minus negative
        probability; `majority_share`: what always giving the most frequent level would get; `confusion`: counts, rows expected 1..5,
        columns judged; `by_language`.

    Raises:
        UserError: an interaction has no expected level.
    """
    columns = ["interaction_id", "language", "judge_level", "judge_logprobs", "origin", "level_probs"]
    rows = pads.dataset(feedback.path, filesystem=feedback.fs).to_table(columns=columns).to_pylist()
    missing = [r["interaction_id"] for r in rows if r["interaction_id"] not in expected]
    if missing:
        raise UserError(f"interaction {missing[0]!r} has no expected level ({len(missing)} in all)")
    want = np.array([expected[r["interaction_id"]]["level"] for r in rows])
    got = np.array([r["judge_level"] for r in rows])
    lean = np.array([_lean(r) for r in rows])
    languages = np.array([str(r["language"]) for r in rows])
    parts = {name: languages == name for name in sorted(set(languages))}
    return {
        **_measures(want, got, lean),
        "within_one": float((np.abs(want - got) <= 1).mean()),
        "majority_share": float(np.bincount(want).max() / len(want)),
        "confusion": confusion_matrix(want, got, labels=JUDGE_LEVELS).tolist(),
        "by_language": {name: _measures(want[m], got[m], lean[m]) for name, m in parts.items()},
    }


def _measures(want: Ints, got: Ints, lean: Floats) -> dict[str, Any]:
    sided = want != NEUTRAL
    positive = want[sided] > NEUTRAL
    both = bool(positive.any() and not positive.all())
    return {
        "n": len(want),
        "exact": float((want == got).mean()),
        "balanced_accuracy_3": float(balanced_accuracy_score(np.sign(want - NEUTRAL), np.sign(got - NEUTRAL))),
        "auc": float(roc_auc_score(positive, lean[sided])) if both else None,
    }


def _lean(row: dict[str, Any]) -> float:
    """P(positive) - P(negative) of the judge itself; where a refinement replaced its probabilities, its level's side."""
    if row["origin"] == "explicit":
        probs = row["level_probs"]
        return float(sum(probs[NEUTRAL:]) - sum(probs[: NEUTRAL - 1]))
    return float(np.sign(row["judge_level"] - NEUTRAL))
