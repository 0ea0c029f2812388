"""Variants of a dataset as extract would have made it without mining hindsight, without validating refusals, or without both.

Source: arXiv 2602.08829, ablation. A row whose label a refinement made gets back the judge's own level of that turn, and
leaves where extract would have dropped it with that level: as neutral (all mined rows, where training drops neutral ones), as
toxic (a right refusal is exempt from that filter), or as unsure.

What a refinement kept out of the dataset is not brought back: rows dropped as unsure for the probabilities of the second
verdict, and near duplicates, or rows over a user's cap, that gave way to a refined row.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from wildreward_ray.cluster.schema import DATASET
from wildreward_ray.core.errors import UserError
from wildreward_ray.core.scale import JUDGE_LEVELS, training_label
from wildreward_ray.stages.dataset import to_dataset
from wildreward_ray.stages.refine import side_confidence
from wildreward_ray.stages.variants import Extraction, Variant, add_held_out, new_variants, scan

# Which origins of a label each variant takes back.
ABLATIONS: dict[str, tuple[str, ...]] = {
    "full": (),
    "without_mining": ("hindsight",),
    "without_refusal_validation": ("refusal",),
    "raw": ("hindsight", "refusal"),
}
COLUMNS = [name for name in DATASET.names if name != "label_probs"] + [
    "level_probs",
    "judge_level",
    "judge_probs",
    "split",
    "toxic",
    "similarity",
]


@dataclass(frozen=True)
class Rules:
    """What extract dropped rows by that a level decides.

    Attributes:
        levels: number of training labels K.
        toxic: whether toxic rows were dropped, right refusals excepted.
        min_confidence: least share of the label's side in the probability of both sides.
    """

    levels: int
    toxic: bool
    min_confidence: float


def rules_of(extraction: Extraction) -> Rules:
    """The rules that an extraction was made with; one that its manifest doesn't name was not in force."""
    quality = extraction.manifest["config"].get("quality", {})
    return Rules(extraction.levels, "toxic" in quality.get("rules", ()), float(quality.get("min_confidence", 0.0)))


def choose(origins: Mapping[str, int]) -> tuple[dict[str, tuple[str, ...]], dict[str, str]]:
    """The variants that differ from each other, and why the others are left out.

    Args:
        origins: training rows by origin.

    Raises:
        UserError: neither refinement made a single training label.
    """
    absent = [origin for origin in ABLATIONS["raw"] if not origins.get(origin)]
    if len(absent) == len(ABLATIONS["raw"]):
        raise UserError(
            "no training row has a mined or a validated label: all variants would be the same", flag="--dataset"
        )
    left_out = {name: f"no_{absent[0]}_rows" for name, taken in ABLATIONS.items() if set(taken) & set(absent)}
    return {name: taken for name, taken in ABLATIONS.items() if name not in left_out}, left_out


def write_ablations(extraction: Extraction, uris: Mapping[str, str]) -> None:
    """Write variants, by name, in one pass over `feedback/`, whose rows carry the judge's own level beside the final one.

    Raises:
        UserError, StorageError: see `scan` and `new_variants`.
    """
    started = time.monotonic()
    rules = rules_of(extraction)
    with new_variants(uris) as variants:
        for batch in scan(extraction.place.child("feedback"), COLUMNS):
            rows = pa.Table.from_batches([batch])
            rows = rows.filter(pc.equal(rows["split"], "train"))
            for name, variant in variants.items():
                _add(variant, rows, ABLATIONS[name], rules)
        add_held_out(extraction, list(variants.values()))
        for name, variant in variants.items():
            variant.finish(extraction, {"taken_back": list(ABLATIONS[name])}, started)


def _add(variant: Variant, rows: pa.Table, origins: Collection[str], rules: Rules) -> None:
    kept, dropped, notes = take_back(rows, origins, rules)
    variant.dropped.update(dropped)
    variant.notes.update(notes)
    variant.add("train", to_dataset(kept, rules.levels))


def take_back(rows: pa.Table, origins: Collection[str], rules: Rules) -> tuple[pa.Table, Counter[str], Counter[str]]:
    """Give rows of some origins the judge's own level; rows of other origins stay as they are.

    Args:
        rows: kept rows of `feedback/` with `COLUMNS`.
        origins: origins of a label that are taken back.

    Returns:
        The rows that stay, in order; how many left, by reason (`toxic`, `neutral`, `unsure`); and notes: `relabelled` rows
        stay with another label, `same_label` rows with the one they had, and `neutral_but_minable` rows left as neutral
        although mining would have given them a label, had the refusal not been validated (its level isn't known here).
    """
    dropped, notes = Counter[str](), Counter[str]()
    taken = pc.is_in(rows["origin"], value_set=pa.array(list(origins), pa.string()))
    reasons: list[str | None] = [None] * rows.num_rows
    for i, row in zip(pc.indices_nonzero(taken).to_pylist(), _judged(rows.filter(taken)), strict=True):
        label = training_label(row["judge_level"], rules.levels)
        reasons[i] = _reason(row, label, rules)
        if reasons[i] is None:
            notes["relabelled" if label != row["label"] else "same_label"] += 1
        elif reasons[i] == "neutral" and row["origin"] == "refusal" and row["similarity"] is not None:
            notes["neutral_but_minable"] += 1
    dropped.update(reason for reason in reasons if reason is not None)
    labels = pa.array([None, *(training_label(level, rules.levels) for level in JUDGE_LEVELS)], rows["label"].type)
    own = {
        "level": rows["judge_level"],
        "level_probs": rows["judge_probs"],
        "label": labels.take(rows["judge_level"]),
        "origin": pa.repeat(pa.scalar("explicit"), rows.num_rows),
    }
    for name, values in own.items():
        at = rows.schema.get_field_index(name)
        rows = rows.set_column(at, rows.schema.field(at), pc.if_else(taken, values, rows[name]))
    return rows.filter(pa.array([reason is None for reason in reasons], pa.bool_())), dropped, notes


def _judged(rows: pa.Table) -> list[dict[str, Any]]:
    """The few columns that decide about rows, without their texts."""
    names = ["origin", "label", "judge_level", "judge_probs", "toxic", "similarity"]
    found: list[dict[str, Any]] = rows.select(names).to_pylist()
    return found


def _reason(row: dict[str, Any], label: int | None, rules: Rules) -> str | None:
    """Why extract would have dropped a row with the judge's own level; None where it would have kept it."""
    if rules.toxic and row["toxic"] and row["origin"] == "refusal":
        return "toxic"
    if label is None:
        return "neutral"
    if side_confidence(row["judge_level"], row["judge_probs"]) < rules.min_confidence:
        return "unsure"
    return None
