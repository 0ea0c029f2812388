"""Counting what was written: the funnel, the labels, the quarantine and the dataset card."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from wildreward_ray.cluster.artifact import UNFINISHED
from wildreward_ray.cluster.schema import FEEDBACK, JUDGED
from wildreward_ray.cluster.storage import locate
from wildreward_ray.core.manifest import FunnelStep, Manifest
from wildreward_ray.stages import funnel

SUMMARY = Counter(
    {
        "records": 100,
        "quarantined:unknown_role": 4,
        "quarantined:truncated_json": 1,
        "no_feedback_turn": 30,
        "records_over_limit": 5,
        "interactions": 90,
        "interactions_over_limit": 10,
        "oddity:assistant_first": 7,
    }
)
FILES = Counter({"read": 3, "empty_file": 1})
JUDGE = Counter({"judged": 78, "failed:unparseable_verdict": 2})
DROPS = Counter({"repeated": 3, "near_duplicate_prompt": 4, "over_user_cap": 1})
FOUND: dict[str, Counter[Any]] = {
    "rows": Counter({"rows": 75}),
    "judge_level": Counter({1: 10, 2: 20, 3: 25, 4: 15, 5: 5}),
    "level": Counter({1: 12, 2: 18, 3: 15, 4: 20, 5: 10}),
    "origin": Counter({"explicit": 63, "hindsight": 8, "refusal": 4}),
    "refusal_verdict": Counter({None: 70, "justified": 2, "unjustified": 2, "uncertain": 1}),
    "topic_switch": Counter({False: 72, True: 3}),
    "drop_reason": Counter(
        {None: 45, "neutral": 13, "pii": 5, "prompt_too_short": 7, "near_duplicate_prompt": 4, "over_user_cap": 1}
    ),
    "split": Counter({None: 30, "train": 37, "test": 8}),
    "label": Counter({None: 30, 1: 20, 2: 25}),
    "language": Counter({"English": 55, None: 20}),
    "judged_by": Counter({"judge": 75}),
    "masked": Counter({False: 73, True: 2}),
}


def place(folder: Path, *tables: pa.Table) -> Any:
    """Tables as files of a part that is still below `_unfinished`, as they are when they are counted."""
    part = folder / UNFINISHED / "part"
    part.mkdir(parents=True)
    for i, table in enumerate(tables):
        pq.write_table(table, part / f"{i}.parquet")
    return locate(str(part))


def judged(*rows: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=JUDGED)


def test_every_step_adds_up_and_takes_what_the_step_before_left() -> None:
    steps = funnel.funnel(FILES, SUMMARY, JUDGE, DROPS, FOUND)
    for step in steps:
        step.check()
    for before, after in pairwise(steps):
        if before.unit == after.unit:
            assert after.rows_in == before.rows_out, (before.name, after.name)
    by_name = {s.name: s for s in steps}
    assert by_name["read"].rows_in == 100
    assert by_name["read"].dropped == {"unknown_role": 4, "truncated_json": 1}
    assert by_name["feedback_turns"].rows_in == by_name["read"].rows_out == 95
    assert by_name["feedback_turns"].rows_out == 60
    assert by_name["select"].dropped == {"over_limit": 10}
    assert by_name["files"].dropped == {"empty_file": 1}
    assert by_name["judge"].dropped == {"unparseable_verdict": 2}
    assert by_name["judge"].notes["masked"] == 2
    assert by_name["repeats"].dropped == {"repeated_interaction": 3}
    assert by_name["quality"].dropped == {"pii": 5, "prompt_too_short": 7}
    assert by_name["neutral"].dropped == {"neutral": 13}
    assert by_name["duplicates"].dropped == {"near_duplicate_prompt": 4}
    assert by_name["users"].dropped == {"over_user_cap": 1}
    assert by_name["split"].rows_out == 45
    assert by_name["split"].notes == {"train": 37, "test": 8}


@pytest.mark.parametrize(
    ("where", "change"),
    [
        ("judge", {"judged": -1}),
        ("judge", {"judged": 1}),
        ("rows", {"rows": -1}),
        ("drop_reason", {"neutral": -1}),
        ("drop_reason", {"pii": 2}),
        ("split", {"train": -1}),
        ("split", {"validation": 1}),
    ],
)
def test_row_that_goes_missing_between_two_counts_stops_the_manifest(where: str, change: dict[str, int]) -> None:
    judge = JUDGE + Counter()
    found = {name: counter.copy() for name, counter in FOUND.items()}
    (judge if where == "judge" else found[where]).update(change)
    steps = funnel.funnel(FILES, SUMMARY, judge, DROPS, found)
    written = Manifest(kind="feedback", inputs=[], config={}, funnel=steps, seconds=0.0)
    with pytest.raises(AssertionError, match="loses rows"):
        written.checked_json()


def test_row_that_the_judge_loses_and_nobody_after_it_ever_sees_shows_in_the_funnel() -> None:
    found = {**FOUND, "rows": Counter({"rows": 74}), "split": FOUND["split"] - Counter({"train": 1})}
    steps = funnel.funnel(FILES, SUMMARY, Counter({"judged": 77, "failed:unparseable_verdict": 2}), DROPS, found)
    assert [s.name for s in steps if s.rows_in != s.rows_out + sum(s.dropped.values())] == ["judge"]


def test_nothing_read_is_a_funnel_of_zeros_and_no_crash() -> None:
    empty: dict[str, Counter[Any]] = {name: Counter() for name in FOUND}
    steps = funnel.funnel(Counter(), Counter(), Counter(), Counter(), empty)
    for step in steps:
        step.check()
    assert {(s.rows_in, s.rows_out) for s in steps} == {(0, 0)}


def test_feedback_is_counted_over_all_files_nulls_included(tmp_path: Path) -> None:
    kept = {"judge_level": 3, "level": 5, "origin": "hindsight", "topic_switch": False, "split": "train", "label": 4}
    dropped = {"judge_level": 3, "level": 3, "origin": "explicit", "topic_switch": True, "drop_reason": "neutral"}
    part = place(
        tmp_path,
        pa.Table.from_pylist([kept, dropped], schema=FEEDBACK),
        pa.Table.from_pylist([kept], schema=FEEDBACK),
        FEEDBACK.empty_table(),
    )
    found = funnel.feedback_counts(part)
    assert found["rows"]["rows"] == 3
    assert found["judge_level"] == {3: 3}
    assert found["level"] == {5: 2, 3: 1}
    assert found["drop_reason"] == {None: 2, "neutral": 1}
    assert found["split"] == {"train": 2, None: 1}
    assert found["topic_switch"][True] == 1
    assert found["refusal_verdict"] == {None: 3}


def test_label_table_names_every_level_even_where_there_is_none() -> None:
    labels = funnel.label_table({**FOUND, "level": Counter({4: 1})})
    assert labels["judge_level"] == {"1": 10, "2": 20, "3": 25, "4": 15, "5": 5}
    assert labels["level"] == {"1": 0, "2": 0, "3": 0, "4": 1, "5": 0}
    assert labels["label"] == {"1": 20, "2": 25}


def test_card_shows_every_step_with_its_numbers_and_reasons() -> None:
    steps = funnel.funnel(FILES, SUMMARY, JUDGE, DROPS, FOUND)
    steps.append(FunnelStep(name="large", unit="rows", rows_in=1_234_567, rows_out=1_234_567))
    card = funnel.card(steps, funnel.label_table(FOUND), ["s3://bucket/logs", "more.json"], 4, "demo:judge")
    for step in steps:
        assert f"| {step.name} | {step.unit} | {step.rows_in:,} | {step.rows_out:,} |" in card
        for reason, n in step.dropped.items():
            assert f"{reason} {n:,}" in card
    for words in ("s3://bucket/logs", "more.json", "demo:judge", "1,234,567", "train 37, test 8", "hindsight 8"):
        assert words in card
    assert "| judge | 10 | 20 | 25 | 15 | 5 |" in card
    assert "| refined | 12 | 18 | 15 | 20 | 10 |" in card


def test_card_begins_with_the_front_matter_that_finds_the_splits() -> None:
    import yaml

    card = funnel.card(funnel.funnel(FILES, SUMMARY, JUDGE, DROPS, FOUND), funnel.label_table(FOUND), ["in"], 4, "j")
    front = yaml.safe_load(card.split("---\n")[1])
    by_name = {c["config_name"]: c["data_files"] for c in front["configs"]}
    assert by_name["default"] == [
        {"split": "train", "path": "dataset/train/*.parquet"},
        {"split": "test", "path": "dataset/test/*.parquet"},
    ]
    assert by_name["feedback"] == "feedback/*.parquet"
