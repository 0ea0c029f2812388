"""Engines behind the reward service: vLLM gives what transformers gives, and weights that give NaN never give a reward."""

from __future__ import annotations

from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.ray.helpers import free_port, rows_of, save_tiny_reward_model, write_json_lines
from wildreward_ray.core.config.serve import ScoreConfig, ServeConfig
from wildreward_ray.stages import score
from wildreward_ray.stages.scoring import load_scorer
from wildreward_ray.stages.serve import service

ITEMS = [
    {
        "history": [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hi."}] * (i % 3),
        "prompt": f"Tell me about the number {i}." + " Please." * i,
        "response": f"The number {i} comes after {i - 1}." * (1 + i % 4),
    }
    for i in range(24)
]


@pytest.mark.engine
def test_vllm_gives_the_rewards_that_transformers_gives(ray_session: None, tiny_reward_model: str) -> None:
    scorer = load_scorer(ServeConfig(model=tiny_reward_model, engine="transformers"))
    inputs = scorer.encoder.encode_batch([(i["history"], i["prompt"], i["response"]) for i in ITEMS])  # type: ignore[misc]
    expected = scorer.score(inputs)
    assert np.ptp(expected.score) > 0.1
    settings = {"model": tiny_reward_model, "engine": "vllm", "dtype": "float32", "port": free_port()}
    with service(ServeConfig.load(None, settings)) as url:
        assert httpx.get(f"{url}/healthz").json()["engine"] == "vllm"
        reply = httpx.post(f"{url}/v1/score", json={"items": ITEMS}, timeout=60)
    assert reply.status_code == 200, reply.text
    scores = reply.json()["scores"]
    assert [s["score"] for s in scores] == pytest.approx(expected.score, abs=1e-3)
    assert np.array([s["p_gt"] for s in scores]) == pytest.approx(expected.p_gt, abs=1e-3)


def test_weights_that_give_nan_give_errors_and_never_a_reward(ray_session: None, tmp_path: Path) -> None:
    model = save_tiny_reward_model(tmp_path / "nan", head_value=float("nan"))
    settings = {"model": model, "engine": "transformers", "port": free_port()}
    with service(ServeConfig.load(None, settings)) as url:
        for path, body in (("/v1/score", {"items": ITEMS[:2]}), ("/get_reward", {"query": ["a", "b"]})):
            reply = httpx.post(f"{url}{path}", json=body, timeout=60)
            assert reply.status_code == 500, reply.text
            assert "nan" in reply.json()["detail"].lower() or "finite" in reply.json()["detail"]
    rows = [{"id": f"i{number}", **item} for number, item in enumerate(ITEMS[:3])]
    given = {"model": model, "engine": "transformers", "output": str(tmp_path / "scores")}
    manifest = score.run(ScoreConfig.load(None, {**given, "input": [write_json_lines(tmp_path / "rows.jsonl", rows)]}))
    assert manifest["funnel"][0]["dropped"] == {"quarantined": 3}
    assert rows_of(tmp_path / "scores" / "scores") == []
    refused = rows_of(tmp_path / "scores" / "quarantine")
    assert {row["id"] for row in refused} == {"i0", "i1", "i2"}
    assert all(row["reason"] for row in refused)
