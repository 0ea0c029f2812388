"""Evaluation with real engines: a model and its service give one set of scores, and a killed run goes on where it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest

from tests.ray.helpers import free_port, json_of, kill_when, rows_of, save_tiny_reward_model, wildreward
from wildreward_ray.cli import parse
from wildreward_ray.core.config.evaluate import EvaluateConfig
from wildreward_ray.core.config.serve import ServeConfig
from wildreward_ray.core.errors import WildRewardError
from wildreward_ray.stages import evaluate
from wildreward_ray.stages.serve import service

PROMPTS = 10


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Files as RM-Bench has them, of two domains."""
    folder = tmp_path_factory.mktemp("rm_bench")
    for domain in ("chat", "safety-response"):
        rows = [
            {
                "id": number,
                "prompt": f"Tell me about the number {number} in {domain}." + " Please." * (number % 3),
                "chosen": [f"It follows {number - 1}." * (style + 1) for style in range(3)],
                "rejected": [f"It follows {number + 1}, I think." * (style + 1) for style in range(3)],
            }
            for number in range(PROMPTS)
        ]
        (folder / f"{domain}_filtered.json").write_text(json.dumps(rows), encoding="utf-8")
    return str(folder)


def settings(data: str, output: Path, **more: Any) -> EvaluateConfig:
    given = {"benchmark": "rm_bench", "data": [data], "output": str(output), "bootstrap": 200}
    return EvaluateConfig.load(None, {**given, "probes.items": 4, "batch_size": 16, **more})


def scores(folder: Path) -> dict[str, list[float]]:
    return {row["id"]: row["scores"] for row in rows_of(folder / "scores.parquet")}


@pytest.mark.engine
def test_a_model_and_its_service_give_one_set_of_scores_and_metrics_with_either_engine(
    ray_session: None, tiny_reward_model: str, data: str, tmp_path: Path
) -> None:
    model = {"model": tiny_reward_model, "engine": "transformers"}
    local = evaluate.run(settings(data, tmp_path / "local", **model)).results
    assert (local["items"], local["responses"]) == (2 * PROMPTS, 12 * PROMPTS)
    assert local["source"]["engine"] == "transformers"
    assert not local["complete"]
    assert {probe["name"] for probe in local["bias"]["probes"] if probe["n"]} >= {"padding", "history near"}
    evaluate.run(settings(data, tmp_path / "vllm", **model | {"engine": "vllm", "vllm.cpu_threads": 1}))
    with service(ServeConfig.load(None, {**model, "port": free_port()})) as url:
        served = evaluate.run(settings(data, tmp_path / "served", reward_url=url)).results
        rendered = settings(data, tmp_path / "rendered", **{"reward_url": url, "reward.protocol": "get_reward"})
        evaluate.run(rendered)
    expected = scores(tmp_path / "local")
    for way in ("vllm", "served", "rendered"):
        found = scores(tmp_path / way)
        assert found.keys() == expected.keys()
        for item, values in expected.items():
            assert found[item] == pytest.approx(values, abs=1e-3), (way, item)
    assert served["metrics"] == local["metrics"]
    assert served["source"]["version"] == local["source"]["version"]
    assert [row["effect"] for row in served["bias"]["probes"]] == pytest.approx(
        [row["effect"] for row in local["bias"]["probes"]], abs=1e-3
    )


def test_a_killed_evaluation_goes_on_without_scoring_again(
    ray_session: None, tiny_reward_model: str, data: str, tmp_path: Path
) -> None:
    def command(output: Path) -> list[str]:
        return [
            *("evaluate", "--model", tiny_reward_model, "--engine", "transformers", "--benchmark", "rm_bench"),
            *("--data", data, "--output", str(output), "--batch-size", "12", "--bootstrap", "200"),
            *("--probes.items", "2", "--token-budget", "32", "--dtype", "float32"),
        ]

    parts = tmp_path / "out" / "_unfinished" / "parts"
    kill_when(command(tmp_path / "out"), lambda: len(list(parts.glob("*.parquet"))) >= 2)
    kept = len(list(parts.glob("*.parquet")))
    assert not (tmp_path / "out" / "manifest.json").exists()
    resumed = wildreward(*command(tmp_path / "out"))
    assert resumed.returncode == 0, resumed.stderr
    results = json_of(tmp_path / "out" / "results.json")
    config = parse("evaluate", EvaluateConfig, command(tmp_path / "whole")[1:])
    whole = evaluate.run(cast(EvaluateConfig, config)).results
    assert results["speed"]["reused"] >= 12 * kept
    assert results["metrics"] == whole["metrics"]
    assert results["bias"] == whole["bias"]


def test_a_model_that_gives_nan_is_not_measured(ray_session: None, data: str, tmp_path: Path) -> None:
    model = save_tiny_reward_model(tmp_path / "nan", head_value=float("nan"))
    with pytest.raises(WildRewardError, match=r"20 of .* prompts have no scores"):
        evaluate.run(settings(data, tmp_path / "out", model=model, engine="transformers", **{"probes.items": 0}))
    assert not (tmp_path / "out" / "results.json").exists()
