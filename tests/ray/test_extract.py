"""`wildreward extract` with the real judge: nothing is lost uncounted, a killed run leaves nothing that looks whole."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.ray.conftest import LIMIT, Interrupted
from tests.ray.helpers import assert_connected, json_of, rows_of
from wildreward_ray.cli import run_stage
from wildreward_ray.core.config.extract import ExtractConfig
from wildreward_ray.stages import extract

pytestmark = pytest.mark.engine


def test_a_driver_killed_while_judging_leaves_nothing_that_looks_like_a_dataset(interrupted: Interrupted) -> None:
    assert interrupted.left == []
    training = interrupted.training
    assert training.returncode == 2, training.stderr
    error = training.stderr.strip().splitlines()[-1]
    assert str(interrupted.output) in error
    assert "--dataset" in error
    assert not (interrupted.output.parent / "from_unfinished" / "manifest.json").exists()


def test_the_command_that_was_killed_runs_to_its_end_when_it_is_given_again(extracted: Path) -> None:
    assert {item.name for item in extracted.iterdir()} == {
        "README.md",
        "dataset",
        "feedback",
        "manifest.json",
        "quarantine",
    }


def test_every_row_is_accounted_for_from_the_logs_to_the_dataset(extracted: Path) -> None:
    manifest = json_of(extracted / "manifest.json")
    steps = {step["name"]: step for step in manifest["funnel"]}
    assert_connected(manifest["funnel"])
    assert steps["judge"]["rows_out"] == manifest["judge"]["judged"] == LIMIT
    feedback = rows_of(extracted / "feedback", ["interaction_id", "drop_reason", "split"])
    assert len(feedback) == len({row["interaction_id"] for row in feedback}) == LIMIT
    kept = {row["interaction_id"] for row in feedback if row["drop_reason"] is None}
    sides = {split: rows_of(extracted / "dataset" / split, ["interaction_id"]) for split in ("train", "test")}
    assert sorted(kept) == sorted(row["interaction_id"] for rows in sides.values() for row in rows)
    assert steps["split"]["rows_out"] == len(kept)
    assert steps["split"]["notes"] == {split: len(rows) for split, rows in sides.items()}
    lost = Counter(row["drop_reason"] for row in feedback if row["drop_reason"] is not None)
    assert lost == sum(
        (Counter(steps[name]["dropped"]) for name in ("quality", "neutral", "confidence", "duplicates", "users")),
        Counter(),
    )


def test_the_judge_tells_follow_ups_apart(extracted: Path) -> None:
    levels = Counter(row["judge_level"] for row in rows_of(extracted / "feedback", ["judge_level"]))
    assert len(levels) >= 3
    assert max(levels.values()) < 0.8 * LIMIT
    shown = json_of(extracted / "manifest.json")["labels"]["judge_level"]
    assert shown == {str(level): levels[level] for level in range(1, 6)}


def test_no_user_is_on_both_sides_of_the_split(extracted: Path) -> None:
    users = [{r["user_id"] for r in rows_of(extracted / "dataset" / split, ["user_id"])} for split in ("train", "test")]
    assert all(users)
    assert not users[0] & users[1]
    assert None not in users[0] | users[1]


def test_labels_and_their_probabilities_have_the_four_levels_of_the_manifest(extracted: Path) -> None:
    assert json_of(extracted / "manifest.json")["levels"] == 4
    for split in ("train", "test"):
        for row in rows_of(extracted / "dataset" / split):
            assert row["label"] == {1: 1, 2: 2, 4: 3, 5: 4}[row["level"]]
            assert len(row["label_probs"]) == 4
            assert sum(row["label_probs"]) == pytest.approx(1, abs=1e-5)


def test_other_tools_read_the_dataset_and_its_card_names_every_step(extracted: Path, tmp_path: Path) -> None:
    import datasets

    files = {
        "train": str(extracted / "dataset" / "train" / "*.parquet"),
        "test": str(extracted / "dataset" / "test" / "*.parquet"),
    }
    loaded = datasets.load_dataset("parquet", data_files=files, cache_dir=str(tmp_path))
    manifest = json_of(extracted / "manifest.json")
    assert {split: loaded[split].num_rows for split in files} == manifest["funnel"][-1]["notes"]
    feedback = datasets.load_dataset(
        "parquet", data_files=str(extracted / "feedback" / "*.parquet"), split="train", cache_dir=str(tmp_path)
    )
    assert feedback.num_rows == LIMIT
    card = (extracted / "README.md").read_text(encoding="utf-8")
    for step in manifest["funnel"]:
        assert f"| {step['name']} | {step['unit']} | {step['rows_in']:,} | {step['rows_out']:,} |" in card


def test_labels_do_not_depend_on_how_conversations_are_batched(
    extracted: Path, ray_session: None, sample: str, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    settings = {
        "input": [sample],
        "limit": LIMIT,
        "output": str(other),
        "judge.batch_size": 64,
        "judge.engine.max_model_len": 1024,
        "hindsight.enabled": False,
    }
    extract.run(ExtractConfig.load(None, settings))
    columns = ["interaction_id", "judge_level", "judge_logprobs"]
    small = {row["interaction_id"]: row for row in rows_of(extracted / "feedback", columns)}
    large = {row["interaction_id"]: row for row in rows_of(other / "feedback", columns)}
    assert small.keys() == large.keys()
    same = [small[name]["judge_level"] == large[name]["judge_level"] for name in small]
    assert sum(same) >= 0.98 * len(same)
    gaps = [np.abs(np.subtract(small[name]["judge_logprobs"], large[name]["judge_logprobs"])).max() for name in small]
    spread = np.std([row["judge_logprobs"] for row in small.values()], axis=0)
    # The arithmetic is bfloat16's: the gap is its noise, and small beside what tells interactions apart.
    assert np.max(gaps) < 0.2
    assert np.mean(gaps) < 0.05
    assert np.mean(gaps) < 0.1 * spread.min()


def test_what_can_not_be_read_is_quarantined_with_its_reason_and_the_rest_is_used(
    ray_session: None, tiny_policy: str, tmp_path: Path
) -> None:
    inputs = [_wildchat_with_bad_rows(tmp_path), _wildchat_of_parts(tmp_path), _sharegpt_cut_off(tmp_path)]
    output = tmp_path / "out"
    settings = ["--judge.model", tiny_policy, "--hindsight.enabled", "false"]
    assert run_stage("extract", ["--input", *inputs, "--format", "auto", "--output", str(output), *settings]) == 0
    found = Counter((Path(r["source"]).name, r["reason"]) for r in rows_of(output / "quarantine"))
    assert found == {
        ("bad_rows.parquet", "unknown_role"): 1,
        ("bad_rows.parquet", "no_messages"): 2,
        ("cut.json", "content_not_text"): 1,
        ("cut.json", "no_messages"): 1,
        ("cut.json", "truncated_json"): 1,
    }
    assert {r["position"] for r in rows_of(output / "quarantine") if r["reason"] == "unknown_role"} == {1}
    manifest = json_of(output / "manifest.json")
    assert_connected(manifest["funnel"])
    steps = {step["name"]: step for step in manifest["funnel"]}
    # 3 + 1 + 2 good conversations of one interaction each, and 6 records that can't be used.
    assert (steps["read"]["rows_in"], steps["read"]["rows_out"]) == (12, 6)
    assert sum(steps["read"]["dropped"].values()) == len(rows_of(output / "quarantine"))
    assert {r["interaction_id"] for r in rows_of(output / "feedback")} == {f"good{i}:1" for i in range(6)}


_TALK = (
    ("user", "How do I undo the last commit but keep the changes?"),
    ("assistant", "Run git reset --soft HEAD~1 and the changes stay staged for the next commit."),
    ("user", "That worked, thank you."),
)


def _messages(role_of_reply: str = "assistant") -> list[dict[str, Any]]:
    return [{"role": role_of_reply if r == "assistant" else r, "content": c} for r, c in _TALK]


def _wildchat_with_bad_rows(folder: Path) -> str:
    rows = [
        {"conversation_hash": "good0", "conversation": _messages()},
        {"conversation_hash": "bad0", "conversation": _messages("narrator")},
        {"conversation_hash": "good1", "conversation": _messages()},
        {"conversation_hash": "bad1", "conversation": []},
        {"conversation_hash": "bad2", "conversation": None},
        {"conversation_hash": "good2", "conversation": _messages()},
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "bad_rows.parquet")
    return str(folder / "bad_rows.parquet")


def _wildchat_of_parts(folder: Path) -> str:
    parts = [{"role": r, "content": [c]} for r, c in _TALK]
    table = pa.Table.from_pylist([{"conversation_hash": "good5", "conversation": parts}])
    pq.write_table(table, folder / "parts.parquet")
    return str(folder / "parts.parquet")


def _sharegpt_cut_off(folder: Path) -> str:
    talk = [{"from": {"user": "human", "assistant": "gpt"}[r], "value": c} for r, c in _TALK]
    records = [
        {"id": "good3", "conversations": talk},
        {"id": "bad4", "conversations": [*talk, {"from": "gpt", "value": 5}]},
        {"id": "bad5"},
        {"id": "good4", "conversations": talk},
        {"id": "bad6", "conversations": talk},
    ]
    text = json.dumps(records)
    (folder / "cut.json").write_text(text[: text.rindex("thank")], encoding="utf-8")
    return str(folder / "cut.json")
