"""Decisions over the whole corpus: repeats, near-duplicates, leaks, heavy users."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from wildreward_ray.cluster.schema import REFINED
from wildreward_ray.cluster.storage import locate
from wildreward_ray.core.config.extract import QualitySection
from wildreward_ray.stages.dataset import apply_drops
from wildreward_ray.stages.decide import decide

Row = dict[str, Any]


def row(
    name: str, *, bands: list[int], user: str | None = None, split: str | None = "train", key: int | None = None
) -> Row:
    return {
        "interaction_id": name,
        "user_id": user,
        "split": split,
        "bands": bands,
        "prompt_key": key if key is not None else bands[0] if bands else 0,
        "drop_reason": None if split else "neutral",
        "label": 1 if split else None,
    }


def parts(folder: Path, *tables: list[Row]) -> list[pa.Table]:
    made = []
    for i, rows in enumerate(tables):
        numbered = [{**r, "part": f"{i:016x}-000000-end", "row": n} for n, r in enumerate(rows)]
        made.append(pa.Table.from_pylist(numbered, schema=REFINED))
        (folder / "refined").mkdir(exist_ok=True)
        pq.write_table(made[-1], folder / "refined" / f"{i:016x}-000000-end.parquet")
    return made


def dropped(folder: Path, *tables: list[Row], **settings: Any) -> dict[str, str]:
    """Reasons by interaction id, with `#N` for copies of one id."""
    made = parts(folder, *tables)
    target = locate(str(folder / "drops.parquet"))
    decide(locate(str(folder / "refined")), target, QualitySection(**settings))
    names = {}
    seen: dict[str, int] = {}
    for table in made:
        for r in table.to_pylist():
            seen[r["interaction_id"]] = seen.get(r["interaction_id"], 0) + 1
            names[r["part"], r["row"]] = r["interaction_id"] + (f"#{n}" if (n := seen[r["interaction_id"]]) > 1 else "")
    drops = pq.read_table(folder / "drops.parquet").to_pylist()
    assert len({(d["part"], d["row"], d["reason"]) for d in drops}) == len(drops)
    return {names[d["part"], d["row"]]: d["reason"] for d in drops}


def test_interaction_that_two_files_hold_stays_once(tmp_path: Path) -> None:
    rows = [row("a", bands=[1]), row("b", bands=[2])]
    assert dropped(tmp_path, rows, rows) == {"a#2": "repeated", "b#2": "repeated"}


def test_repeated_row_leaves_no_trace_and_another_drop_keeps_its_reason(tmp_path: Path) -> None:
    made = parts(tmp_path, [row("a", bands=[1]), row("a", bands=[1]), row("b", bands=[2])])[0]
    name = made["part"][0].as_py()
    drops = pa.table(
        {
            "part": [name] * 3,
            "row": pa.array([1, 1, 2], pa.int32()),
            "reason": ["over_user_cap", "repeated", "duplicate_prompt"],
        }
    )
    left = apply_drops(made, drops).to_pylist()
    assert [(r["interaction_id"], r["drop_reason"], r["split"], r["label"]) for r in left] == [
        ("a", None, "train", 1),
        ("b", "duplicate_prompt", None, None),
    ]


def test_one_of_each_group_of_near_duplicates_stays_and_exact_ones_are_told_apart(tmp_path: Path) -> None:
    same = [row(f"s{i}", bands=[1, 2], key=7) for i in range(3)]
    near = [row("n0", bands=[10, 11], key=1), row("n1", bands=[11, 12], key=2)]
    found = dropped(tmp_path, same, near, [row("alone", bands=[99])])
    assert len(found) == 3
    assert sorted(found[n] for n in found if n[0] == "s") == ["duplicate_prompt"] * 2
    assert [found[n] for n in found if n[0] == "n"] == ["near_duplicate_prompt"]


def test_no_band_is_shared_by_two_rows_that_stay(tmp_path: Path) -> None:
    chain = [row(f"c{i}", bands=[i, i + 1], key=i) for i in range(20)]
    found = dropped(tmp_path, chain)
    left = [set(r["bands"]) for r in chain if r["interaction_id"] not in found]
    assert left
    assert sum(map(len, left)) == len(set().union(*left))


def test_of_near_duplicates_the_one_held_out_stays_so_that_nothing_leaks(tmp_path: Path) -> None:
    rows = [row(f"t{i}", bands=[5]) for i in range(30)]
    rows.insert(17, row("held", bands=[5], split="test"))
    found = dropped(tmp_path, rows)
    assert "held" not in found
    assert len(found) == 30


def test_row_that_stays_is_the_same_when_the_corpus_grows(tmp_path: Path) -> None:
    groups = [row(f"g{i}-{j}", bands=[i]) for i in range(40) for j in range(3)]
    (tmp_path / "small").mkdir()
    (tmp_path / "large").mkdir()
    small = dropped(tmp_path / "small", groups)
    large = dropped(tmp_path / "large", [row(f"new{i}", bands=[1000 + i]) for i in range(50)], groups[60:], groups[:60])
    assert small == large


def test_only_leaks_are_dropped_where_duplicates_may_stay(tmp_path: Path) -> None:
    rows = [row("a", bands=[1]), row("b", bands=[1]), row("c", bands=[2]), row("d", bands=[2], split="test")]
    assert dropped(tmp_path, rows, duplicates="leaks") == {"c": "prompt_in_test"}


def test_duplicates_stay_where_they_are_wanted(tmp_path: Path) -> None:
    assert dropped(tmp_path, [row("a", bands=[]), row("b", bands=[])], duplicates="keep") == {}


def test_row_that_is_out_already_pushes_nobody_out(tmp_path: Path) -> None:
    assert dropped(tmp_path, [row("a", bands=[], split=None), row("b", bands=[3])], max_per_user=1) == {}


@pytest.mark.parametrize("cap", [1, 3])
def test_user_has_at_most_so_many_rows_and_unknown_users_are_left_alone(tmp_path: Path, cap: int) -> None:
    heavy = [row(f"h{i}", bands=[i], user="heavy") for i in range(10)]
    rest = [row(f"x{i}", bands=[100 + i], user=None) for i in range(5)]
    found = dropped(tmp_path, heavy, rest, max_per_user=cap)
    assert set(found.values()) == {"over_user_cap"}
    assert len(found) == 10 - cap


def test_duplicates_do_not_count_towards_the_cap(tmp_path: Path) -> None:
    rows = [row("a", bands=[1], user="u"), row("b", bands=[1], user="u"), row("c", bands=[2], user="u")]
    found = dropped(tmp_path, rows, max_per_user=2)
    assert list(found.values()) == ["duplicate_prompt"]
