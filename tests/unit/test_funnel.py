"""Counting what was written: the funnel, the labels, the quarantine and the dataset card."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from wildreward_ray.cluster.schema import FEEDBACK, JUDGED, QUARANTINE
from wildreward_ray.cluster.storage import UNFINISHED, locate
from wildreward_ray.core.manifest import FunnelStep, Manifest
from wildreward_ray.stages import dataset

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
JUDGE = Counter({"judged": 80})
FOUND: dict[str, Counter[Any]] = {
    "rows": Counter({"rows": 80}),
    "judge_level": Counter({1: 10, 2: 20, 3: 30, 4: 15, 5: 5}),
    "level": Counter({1: 12, 2: 18, 3: 20, 4: 20, 5: 10}),
    "origin": Counter({"explicit": 68, "hindsight": 8, "refusal": 4}),
    "refusal_verdict": Counter({None: 75, "justified": 2, "unjustified": 2, "uncertain": 1}),
    "topic_switch": Counter({False: 77, True: 3}),
    "drop_reason": Counter({None: 50, "neutral": 18, "email": 5, "prompt_too_short": 7}),
    "split": Counter({None: 30, "train": 41, "test": 9}),
    "label": Counter({None: 30, 1: 20, 2: 30}),
    "language": Counter({"English": 60, None: 20}),
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
    steps = dataset.funnel(SUMMARY, JUDGE, FOUND)
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
    assert by_name["quality"].dropped == {"email": 5, "prompt_too_short": 7}
    assert by_name["neutral"].dropped == {"neutral": 18}
    assert by_name["split"].rows_out == 50
    assert by_name["split"].notes == {"train": 41, "test": 9}


@pytest.mark.parametrize(
    ("where", "change"),
    [
        ("judge", {"judged": -1}),
        ("judge", {"judged": 1}),
        ("rows", {"rows": -1}),
        ("drop_reason", {"neutral": -1}),
        ("drop_reason", {"email": 2}),
        ("split", {"train": -1}),
        ("split", {"validation": 1}),
    ],
)
def test_row_that_goes_missing_between_two_counts_stops_the_manifest(where: str, change: dict[str, int]) -> None:
    judge = JUDGE + Counter()
    found = {name: counter.copy() for name, counter in FOUND.items()}
    (judge if where == "judge" else found[where]).update(change)
    steps = dataset.funnel(SUMMARY, judge, found)
    written = Manifest(kind="feedback", inputs=[], config={}, funnel=steps, seconds=0.0)
    with pytest.raises(AssertionError, match="loses rows"):
        written.checked_json()


def test_row_that_the_judge_loses_and_nobody_after_it_ever_sees_shows_in_the_funnel() -> None:
    found = {**FOUND, "rows": Counter({"rows": 79}), "split": FOUND["split"] - Counter({"train": 1})}
    steps = dataset.funnel(SUMMARY, Counter({"judged": 79}), found)
    assert [s.name for s in steps if s.rows_in != s.rows_out + sum(s.dropped.values())] == ["judge"]


def test_nothing_read_is_a_funnel_of_zeros_and_no_crash() -> None:
    empty: dict[str, Counter[Any]] = {name: Counter() for name in FOUND}
    steps = dataset.funnel(Counter(), Counter(), empty)
    for step in steps:
        step.check()
    assert {(s.rows_in, s.rows_out) for s in steps} == {(0, 0)}


def test_counts_are_summed_over_rows_of_one_kind_in_all_files(tmp_path: Path) -> None:
    part = place(
        tmp_path,
        judged(
            {"kind": "summary", "counts": json.dumps({"records": 3, "interactions": 2})},
            {"kind": "judge", "counts": json.dumps({"judged": 7})},
            {"kind": "conversation", "conversation_id": "c"},
        ),
        judged({"kind": "summary", "counts": json.dumps({"records": 4, "quarantined:bad_message": 1})}),
    )
    assert dataset.counts(part, "summary") == {"records": 7, "interactions": 2, "quarantined:bad_message": 1}
    assert dataset.counts(part, "judge") == {"judged": 7}


def test_feedback_is_counted_over_all_files_nulls_included(tmp_path: Path) -> None:
    kept = {"judge_level": 3, "level": 5, "origin": "hindsight", "topic_switch": False, "split": "train", "label": 4}
    dropped = {"judge_level": 3, "level": 3, "origin": "explicit", "topic_switch": True, "drop_reason": "neutral"}
    part = place(
        tmp_path,
        pa.Table.from_pylist([kept, dropped], schema=FEEDBACK),
        pa.Table.from_pylist([kept], schema=FEEDBACK),
        FEEDBACK.empty_table(),
    )
    found = dataset.feedback_counts(part)
    assert found["rows"]["rows"] == 3
    assert found["judge_level"] == {3: 3}
    assert found["level"] == {5: 2, 3: 1}
    assert found["drop_reason"] == {None: 2, "neutral": 1}
    assert found["split"] == {"train": 2, None: 1}
    assert found["topic_switch"][True] == 1
    assert found["refusal_verdict"] == {None: 3}


def test_quarantine_holds_every_unusable_record_and_nothing_else(tmp_path: Path) -> None:
    row = {"kind": "quarantine", "source": "s", "position": 4, "reason": "bad_message", "detail": "d"}
    part = place(tmp_path, judged(row, {"kind": "conversation"}), judged({**row, "position": 9}, {"kind": "summary"}))
    target = locate(str(tmp_path / "quarantine"))
    dataset.write_quarantine(part, target)
    written = pq.read_table(target.path)
    assert written.schema.equals(QUARANTINE)
    assert sorted(written["position"].to_pylist()) == [4, 9]


def test_without_unusable_records_the_quarantine_is_an_empty_table(tmp_path: Path) -> None:
    target = locate(str(tmp_path / "quarantine"))
    dataset.write_quarantine(place(tmp_path, judged({"kind": "conversation"})), target)
    assert pq.read_table(target.path).num_rows == 0


def test_label_table_names_every_level_even_where_there_is_none() -> None:
    labels = dataset.label_table({**FOUND, "level": Counter({4: 1})})
    assert labels["judge_level"] == {"1": 10, "2": 20, "3": 30, "4": 15, "5": 5}
    assert labels["level"] == {"1": 0, "2": 0, "3": 0, "4": 1, "5": 0}
    assert labels["label"] == {"1": 20, "2": 30}


def test_card_shows_every_step_with_its_numbers_and_reasons() -> None:
    steps = dataset.funnel(SUMMARY, JUDGE, FOUND)
    steps.append(FunnelStep(name="large", unit="rows", rows_in=1_234_567, rows_out=1_234_567))
    card = dataset.card(steps, dataset.label_table(FOUND), ["s3://bucket/logs", "more.json"], 4, "demo:judge")
    for step in steps:
        assert f"| {step.name} | {step.unit} | {step.rows_in:,} | {step.rows_out:,} |" in card
        for reason, n in step.dropped.items():
            assert f"{reason} {n:,}" in card
    for words in ("s3://bucket/logs", "more.json", "demo:judge", "1,234,567", "train 41, test 9", "hindsight 8"):
        assert words in card
    assert "| judge | 10 | 20 | 30 | 15 | 5 |" in card
    assert "| refined | 12 | 18 | 20 | 20 | 10 |" in card


def test_card_begins_with_the_front_matter_that_finds_the_splits() -> None:
    import yaml

    card = dataset.card(dataset.funnel(SUMMARY, JUDGE, FOUND), dataset.label_table(FOUND), ["in"], 4, "j")
    front = yaml.safe_load(card.split("---\n")[1])
    by_name = {c["config_name"]: c["data_files"] for c in front["configs"]}
    assert by_name["default"] == [
        {"split": "train", "path": "dataset/train/*.parquet"},
        {"split": "test", "path": "dataset/test/*.parquet"},
    ]
    assert by_name["feedback"] == "feedback/*.parquet"
