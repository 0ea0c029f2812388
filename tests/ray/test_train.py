"""`wildreward train` with real Ray Train workers: what a run leaves can be read by anyone, and bad data never trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tests.ray.helpers import json_lines_of, json_of, looks_whole, rows_of, write_json_lines
from wildreward_ray.core.config.train import TrainConfig
from wildreward_ray.core.errors import UserError
from wildreward_ray.core.template import DEFAULT_TEMPLATE
from wildreward_ray.reward.engine import TransformersScorer
from wildreward_ray.reward.model import load_checkpoint
from wildreward_ray.stages import train


def config_of(dataset: Path | str, base: str, output: Path, **settings: Any) -> TrainConfig:
    small = {"max_length": 96, "optim.learning_rate": 1e-4, "optim.global_batch": 8, "optim.token_budget": 512}
    given = {"dataset": str(dataset), "base": base, "output": str(output), **small, **settings}
    return TrainConfig.load(None, given)


def wildfb_record(number: int, label: Any) -> dict[str, Any]:
    messages = [
        {"role": "user", "content": f"Question {number}: what comes after {number}?"},
        {"role": "assistant", "content": f"After {number} comes {number + 1}, as counting goes."},
    ]
    return {"id": f"r{number}", "history": [], "text": "", "messages": messages, "user_feedback": "", "label": label}


def test_a_checkpoint_loads_in_plain_transformers_and_says_how_to_read_it(reward_model: Path, extracted: Path) -> None:
    model, info = AutoModelForSequenceClassification.from_pretrained(reward_model, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert (model.config.num_labels, model.config.problem_type) == (3, "multi_label_classification")
    assert AutoTokenizer.from_pretrained(reward_model).pad_token_id == model.config.pad_token_id
    reward = json_of(reward_model / "reward_config.json")
    assert (reward["levels"], reward["score_range"], reward["max_length"]) == (4, [1.0, 4.0], 160)
    assert reward["template"] == DEFAULT_TEMPLATE
    assert reward["lineage"]["dataset"] == str(extracted)


def test_metrics_are_those_of_all_held_out_rows_and_the_curve_has_every_step(
    reward_model: Path, extracted: Path
) -> None:
    rows = json_of(extracted / "manifest.json")["funnel"][-1]["notes"]
    found = json_of(reward_model / "metrics.json")
    assert found["rows"] == rows
    assert found["metrics"]["n"] == rows["test"]
    assert 0 <= found["metrics"]["mae"] <= 3
    assert {"quadratic_kappa", "spearman", "auc", "ece"} <= found["metrics"].keys()
    assert found["held_out"]["calibration"]["ece"] >= 0
    assert set(found["held_out"]["groups"]) == {"language", "origin"}
    low, high = found["held_out"]["intervals"]["mae"]
    assert low <= found["metrics"]["mae"] <= high
    assert {file.stem for file in (reward_model / "plots").iterdir()} == {
        "curves",
        "reliability",
        "confusion",
        "scores",
    }
    assert list((reward_model / "tracking" / "tensorboard").iterdir())
    curve = json_lines_of(reward_model / "curve.jsonl")
    assert [record["step"] for record in curve] == list(range(1, found["steps"] + 1))
    assert found["steps"] == -(-rows["train"] // 16)
    manifest = json_of(reward_model / "manifest.json")
    assert {step["name"]: step["rows_out"] for step in manifest["funnel"]} == rows


def test_adapters_are_merged_into_a_plain_checkpoint_and_leave_the_rest_alone(
    ray_session: None, tiny_policy: str, tmp_path: Path
) -> None:
    records: list[Any] = [wildfb_record(i, 1 + i % 4) for i in range(40)]
    records[3]["messages"] = "gone"
    file = write_json_lines(tmp_path / "rows.jsonl", records)
    output = tmp_path / "out"
    lora = {"lora.rank": 4, "lora.targets": ["q_proj", "v_proj"], "objective.loss": "corn", "eval.calibration": "platt"}
    saved = {"checkpoint.every": 4, "checkpoint.keep_at_end": True, "checkpoint.best": "mae", "eval.every": 3}
    result = train.run(config_of(file, tiny_policy, output, epochs=2, **lora, **saved))
    assert not list(output.glob("adapter*"))
    _, info = AutoModelForSequenceClassification.from_pretrained(output, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    base, trained = load_file(Path(tiny_policy) / "model.safetensors"), load_file(output / "model.safetensors")
    moved = {name for name, weight in base.items() if (trained[name] - weight.float()).abs().max() > 1e-6}
    assert moved
    assert all(name.endswith(("q_proj.weight", "v_proj.weight")) for name in moved)
    assert result.metrics["trained_parameters"] < 0.01 * result.metrics["parameters"]
    assert json_of(output / "reward_config.json")["decoder"] == "corn"
    # The damaged record is counted on one side, and its reason is kept.
    dropped = [step["dropped"] for step in json_of(output / "manifest.json")["funnel"]]
    assert [d for d in dropped if d] == [{"no_messages": 1}]
    assert [row["interaction_id"] for row in rows_of(output / "quarantine")] == ["r3"]
    by_mae = min(result.metrics["evals"], key=lambda e: (e["mae"], e["step"]))
    assert result.metrics["chosen_step"] == by_mae["step"]
    assert result.metrics["metrics"]["mae"] == pytest.approx(by_mae["mae"], abs=1e-6)
    # Another run goes on from where this one had been, with what changes neither data nor model.
    good = str(output / "checkpoints" / f"step-{by_mae['step']:08d}")
    other = {"resume_from": good, "optim.learning_rate": 1e-5, "epochs": 3, **lora}
    longer = train.run(config_of(file, tiny_policy, tmp_path / "longer", **other)).metrics
    curve = json_lines_of(tmp_path / "longer" / "curve.jsonl")
    assert [record["step"] for record in curve] == list(range(1, longer["steps"] + 1))
    assert curve[: by_mae["step"]] == json_lines_of(output / "curve.jsonl")[: by_mae["step"]]
    scored = load_checkpoint(str(output))
    held_out = rows_of(output / "held_out.parquet")
    ids = scored.encoder.encode([], *(m["content"] for m in records[int(held_out[0]["row_id"][1:])]["messages"]))
    assert TransformersScorer(scored).logits([ids])[0] == pytest.approx(held_out[0]["logits"], abs=1e-4)


def test_wildfb_records_of_five_levels_train_a_model_of_four_logits(
    ray_session: None, tiny_policy: str, tmp_path: Path
) -> None:
    records = [wildfb_record(i, 1 + i % 5) for i in range(60)]
    file = write_json_lines(tmp_path / "five.jsonl", records)
    output = tmp_path / "out"
    train.run(config_of(file, tiny_policy, output, levels=5))
    assert AutoModelForSequenceClassification.from_pretrained(output).config.num_labels == 4
    assert json_of(output / "reward_config.json")["score_range"] == [1.0, 5.0]
    rows = json_of(output / "metrics.json")["rows"]
    assert rows["train"] + rows["test"] == 60
    assert rows["test"] > 0


@pytest.mark.parametrize("label", [0, 6])
def test_a_label_outside_the_levels_stops_the_run_naming_row_and_flag(
    label: int, ray_session: None, tiny_policy: str, tmp_path: Path
) -> None:
    records = [wildfb_record(i, label if i == 17 else 1 + i % 5) for i in range(30)]
    file = write_json_lines(tmp_path / "out_of_range.jsonl", records)
    with pytest.raises(UserError, match=rf"'r17' has label {label}.*1\.\.5") as caught:
        train.run(config_of(file, tiny_policy, tmp_path / "out", levels=5))
    assert caught.value.flag == "--levels"
    assert looks_whole(tmp_path / "out") == []


def test_labels_that_are_no_whole_numbers_are_refused_not_rounded(
    ray_session: None, tiny_policy: str, tmp_path: Path
) -> None:
    records = [wildfb_record(i, 2.5 if i == 3 else 1 + i % 4) for i in range(8)]
    file = write_json_lines(tmp_path / "fractions.jsonl", records)
    with pytest.raises(UserError, match=r"'r3'.* has label 2\.5"):
        train.run(config_of(file, tiny_policy, tmp_path / "out"))
    assert looks_whole(tmp_path / "out") == []


def test_a_dataset_of_one_level_does_not_train(ray_session: None, tiny_policy: str, tmp_path: Path) -> None:
    file = write_json_lines(tmp_path / "one_level.jsonl", [wildfb_record(i, 3) for i in range(20)])
    with pytest.raises(UserError, match="level"):
        train.run(config_of(file, tiny_policy, tmp_path / "out"))
    assert looks_whole(tmp_path / "out") == []


def test_levels_that_contradict_the_dataset_are_refused(
    ray_session: None, extracted: Path, tiny_policy: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"labels 1\.\.4, not 1\.\.3") as caught:
        train.run(config_of(extracted, tiny_policy, tmp_path / "out", levels=3))
    assert caught.value.flag == "--levels"
    assert looks_whole(tmp_path / "out") == []
