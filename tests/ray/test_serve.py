"""The reward service on a trained encoder: one conversation has one reward, however it is asked for, and failures are never 200."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tests.ray.helpers import free_port, json_of, rows_of
from wildreward_ray.core.config.serve import ScoreConfig, ServeConfig
from wildreward_ray.core.template import RewardTemplate
from wildreward_ray.stages import score
from wildreward_ray.stages.serve import service

TOKEN_VARIABLE, TOKEN = "WILDREWARD_TEST_TOKEN", "open-sesame"
MAX_ITEMS = 64
SAME = 1e-3


@dataclass(frozen=True)
class Served:
    """A running service and what it serves.

    Attributes:
        rows: labelled rows whose whole text the model reads.
        texts: what the checkpoint's template makes of them.
    """

    http: httpx.Client
    model: Path
    rows: list[dict[str, Any]]
    texts: list[str]

    def scores(self, items: list[dict[str, Any]]) -> list[float]:
        reply = self.http.post("/v1/score", json={"items": items})
        assert reply.status_code == 200, reply.text
        return [entry["score"] for entry in reply.json()["scores"]]


@pytest.fixture(scope="module")
def served(reward_model: Path, extracted: Path) -> Iterator[Served]:
    config = json_of(reward_model / "reward_config.json")
    template, tokenizer = RewardTemplate(config["template"]), AutoTokenizer.from_pretrained(reward_model)
    everything = [row for split in ("train", "test") for row in rows_of(extracted / "dataset" / split)]
    rendered = [template.render(row["history"], row["prompt"], row["response"]) for row in everything]
    lengths = [len(ids) for ids in tokenizer(rendered, truncation=False)["input_ids"]]
    whole = [i for i, length in enumerate(lengths) if length <= config["max_length"]]
    assert len(whole) >= 16
    assert any(everything[i]["history"] for i in whole)
    settings = {
        "model": str(reward_model),
        "port": free_port(),
        "max_items": MAX_ITEMS,
        "max_body_mb": 0.125,
        "auth_token_env": TOKEN_VARIABLE,
    }
    os.environ[TOKEN_VARIABLE] = TOKEN
    headers = {"authorization": f"Bearer {TOKEN}"}
    try:
        with (
            service(ServeConfig.load(None, settings)) as url,
            httpx.Client(base_url=url, headers=headers, timeout=60) as http,
        ):
            yield Served(http, reward_model, [everything[i] for i in whole], [rendered[i] for i in whole])
    finally:
        del os.environ[TOKEN_VARIABLE]


def triple(row: dict[str, Any]) -> dict[str, Any]:
    return {"history": row["history"], "prompt": row["prompt"], "response": row["response"]}


def chat(row: dict[str, Any]) -> dict[str, Any]:
    last = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["response"]}]
    return {"messages": [*row["history"], *last]}


def test_every_way_to_a_reward_gives_what_plain_transformers_gives(
    served: Served, extracted: Path, tmp_path: Path
) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(served.model).eval()
    tokenizer = AutoTokenizer.from_pretrained(served.model)
    with torch.inference_mode():
        logits = torch.cat(
            [model(**tokenizer(text, return_tensors="pt", truncation=False)).logits for text in served.texts]
        )
    plain = (1 + logits.sigmoid().sum(dim=1)).numpy()
    assert np.ptp(plain) > 10 * SAME  # or any two ways would agree
    items = served.rows[:MAX_ITEMS]
    n = len(items)
    assert served.scores([triple(row) for row in items]) == pytest.approx(plain[:n], abs=SAME)
    assert served.scores([chat(row) for row in items]) == pytest.approx(plain[:n], abs=SAME)
    reply = served.http.post("/get_reward", json={"query": served.texts[:n]})
    assert reply.status_code == 200, reply.text
    assert reply.json()["rewards"] == pytest.approx(plain[:n], abs=SAME)
    settings = {"model": str(served.model), "input": [str(extracted / "dataset")], "output": str(tmp_path / "scores")}
    score.run(ScoreConfig.load(None, settings))
    batch = {row["id"]: row["score"] for row in rows_of(tmp_path / "scores" / "scores")}
    assert len(batch) == sum(json_of(extracted / "manifest.json")["funnel"][-1]["notes"].values())
    assert [batch[row["interaction_id"]] for row in served.rows] == pytest.approx(plain, abs=SAME)


def test_many_requests_at_once_each_get_their_own_score(served: Served) -> None:
    items = [triple(served.rows[i % len(served.rows)]) for i in range(MAX_ITEMS)]
    together = served.scores(items)
    with ThreadPoolExecutor(64) as pool:
        apart = list(pool.map(lambda item: served.scores([item])[0], items))
    assert apart == pytest.approx(together, abs=SAME)


def test_a_reward_is_one_plus_the_sum_of_its_probabilities_and_lies_on_the_scale(served: Served) -> None:
    reply = served.http.post("/v1/score", json={"items": [triple(row) for row in served.rows[:8]]}).json()
    for entry in reply["scores"]:
        assert entry["score"] == pytest.approx(1 + sum(entry["p_gt"]), abs=1e-6)
        assert 1 <= entry["score"] <= 4
        assert sum(entry["level_probs"]) == pytest.approx(1, abs=1e-6)
        assert (len(entry["p_gt"]), len(entry["level_probs"])) == (3, 4)


USER, REPLY = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/score", b'{"items": [', 422),
        ("/v1/score", b"[]", 422),
        ("/v1/score", {"items": "text"}, 422),
        ("/v1/score", {"items": []}, 422),
        ("/v1/score", {"items": [{"prompt": "a"}]}, 422),
        ("/v1/score", {"items": [{"prompt": "a", "response": 3}]}, 422),
        ("/v1/score", {"items": [{"prompt": "a", "response": None}]}, 422),
        ("/v1/score", {"items": [{"messages": [USER]}]}, 422),
        ("/v1/score", {"items": [{"messages": [REPLY, USER]}]}, 422),
        ("/v1/score", {"items": [{"messages": [{"role": "narrator", "content": "a"}, REPLY]}]}, 422),
        ("/v1/score", {"items": [{"messages": [USER, REPLY], "prompt": "a", "response": "b"}]}, 422),
        ("/v1/score", {"items": [{"prompt": "a", "response": "b", "respnse": "c"}]}, 422),
        ("/v1/score", {"items": [{"messages": [USER, REPLY]}, {"messages": [USER]}]}, 422),
        ("/v1/score", {"items": [{"messages": [USER, REPLY]}] * (MAX_ITEMS + 1)}, 413),
        ("/v1/score", {"items": [{"prompt": "a", "response": "b" * 200_000}]}, 413),
        ("/get_reward", b"text", 422),
        ("/get_reward", {"query": "text"}, 422),
        ("/get_reward", {"query": []}, 422),
        ("/get_reward", {"query": [1, 2]}, 422),
        ("/get_reward", {"query": ["a"] * (MAX_ITEMS + 1)}, 413),
        ("/no_such_path", {}, 404),
    ],
)
def test_a_bad_request_gets_a_4xx_with_json_that_says_why(served: Served, path: str, body: Any, status: int) -> None:
    headers = {"content-type": "application/json"}
    sent: dict[str, Any] = {"content": body, "headers": headers} if isinstance(body, bytes) else {"json": body}
    reply = served.http.post(path, **sent)
    assert reply.status_code == status, reply.text
    assert reply.json()["detail"]


def test_bodies_of_unknown_length_are_refused_before_they_are_read(served: Served) -> None:
    def endless() -> Iterator[bytes]:
        yield b'{"items": ['
        yield b" " * 1000

    reply = served.http.post("/v1/score", content=endless(), headers={"content-type": "application/json"})
    assert reply.status_code == 411
    assert reply.json()["detail"]


@pytest.mark.parametrize("given", [None, "Bearer wrong", f"bearer{TOKEN}", TOKEN, "Bearer", "Bearer \xe9"])
def test_without_the_right_token_there_are_no_scores(served: Served, given: str | None) -> None:
    headers = [] if given is None else [(b"authorization", given.encode("latin-1"))]
    url = str(served.http.base_url)
    reply = httpx.post(f"{url}/v1/score", json={"items": [{"prompt": "a", "response": "b"}]}, headers=headers)
    assert reply.status_code == 401
    assert TOKEN not in reply.text
    assert reply.json()["detail"]
    assert httpx.get(f"{url}/healthz").status_code == 200


def test_health_names_model_engine_and_levels(served: Served) -> None:
    health = served.http.get("/healthz").json()
    assert health["model"] == str(served.model)
    assert (health["status"], health["engine"], health["levels"]) == ("ok", "transformers", 4)
