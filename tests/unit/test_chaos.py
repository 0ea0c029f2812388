"""The chaos script finds what is lost, twice, or another number: a comparison that finds nothing would always pass."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scripts.chaos_loop import STAGES, Round, compare, contents, stage_at_work


def write_round(place: Path, *, rows: list[str], losses: list[float], dropped: int = 1) -> str:
    """What a round leaves, as far as it is compared."""
    for name in ("dataset/feedback", "dataset/dataset/train", "dataset/dataset/test"):
        (place / name).mkdir(parents=True)
        pq.write_table(pa.table({"interaction_id": rows, "label": [1] * len(rows)}), place / name / "part.parquet")
    for stage in STAGES:
        (place / stage).mkdir(exist_ok=True)
        funnel = [{"rows_in": len(rows) + 1, "rows_out": len(rows), "dropped": {"empty": dropped}}]
        (place / stage / "manifest.json").write_text(json.dumps({"funnel": funnel}))
    for name, value in (("reward_model/curve.jsonl", "loss"), ("online_dpo/metrics.jsonl", "reward_mean")):
        lines = [json.dumps({"step": i + 1, value: loss}) for i, loss in enumerate(losses)]
        (place / name).write_text("\n".join(lines) + "\n")
    return str(place)


GOOD: dict[str, Any] = {"rows": ["a", "b", "c"], "losses": [0.5, 0.25]}


def problems(tmp_path: Path, **changes: Any) -> list[str]:
    expected = contents(write_round(tmp_path / "calm", **GOOD))
    found = Round(write_round(tmp_path / "disturbed", **{**GOOD, **changes}))
    compare(found, expected)
    return found.problems


def test_a_round_that_is_the_same_has_no_problem(tmp_path: Path) -> None:
    assert problems(tmp_path) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rows": ["a", "b"]}, "1 rows lost, 0 too many"),
        ({"rows": ["a", "b", "c", "c"]}, "0 rows lost, 1 too many"),
        ({"losses": [0.5, 0.26]}, "differs by 0.01"),
        ({"losses": [0.5]}, "[1] instead of [1, 2]"),
        ({"dropped": 2}, "doesn't add up"),
    ],
)
def test_what_is_lost_twice_or_another_number_is_told(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    assert any(said in problem for problem in problems(tmp_path, **changes))


@pytest.mark.parametrize(
    "missing", [lambda p: p / "online_dpo" / "manifest.json", lambda p: p / "dataset" / "feedback"]
)
def test_a_round_that_lacks_something_is_told(missing: Callable[[Path], Path], tmp_path: Path) -> None:
    expected = contents(write_round(tmp_path / "calm", **GOOD))
    found = Round(write_round(tmp_path / "disturbed", **GOOD))
    gone = missing(tmp_path / "disturbed")
    gone.rename(tmp_path / "gone")
    compare(found, expected)
    assert found.problems


def test_the_stage_at_work_is_the_one_that_is_unfinished(tmp_path: Path) -> None:
    assert stage_at_work(str(tmp_path)) is None
    for stage in STAGES:
        (tmp_path / stage / "_unfinished").mkdir(parents=True)
        assert stage_at_work(str(tmp_path)) == stage
        (tmp_path / stage / "manifest.json").touch()
    assert stage_at_work(str(tmp_path)) is None
