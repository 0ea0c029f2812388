"""The reward service on a trained encoder: one conversation has one reward, however it is asked for, and failures are never 200."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow.parquet as pq
import pytest
import ray
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tests.ray.helpers import free_port, json_of, rows_of
from wildreward_ray.cluster.reward_client import RewardClient
from wildreward_ray.core.config.serve import ScoreConfig, ServeConfig
from wildreward_ray.core.template import RewardTemplate
from wildreward_ray.stages import score
from wildreward_ray.stages.serve import service

MAX_ITEMS = 64
SAME = 1e-3
Row = dict[str, Any]


@dataclass(frozen=True)
class Served:
    """A running service and what it serves.

    Attributes:
        rows: labelled rows whose whole text the model reads.
        texts: what the checkpoint's template makes of them.
    """

    http: httpx.Client
    model: Path
    rows: list[Row]
    texts: list[str]

    def scores(self, items: list[Row]) -> list[float]:
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
    settings = {"model": str(reward_model), "port": free_port(), "max_items": MAX_ITEMS, "max_body_mb": 0.125}
    with (
        service(ServeConfig.load(None, settings)) as url,
        httpx.Client(base_url=url, timeout=60) as http,
    ):
        yield Served(http, reward_model, [everything[i] for i in whole], [rendered[i] for i in whole])


def triple(row: Row) -> Row:
    return {"history": row["history"], "prompt": row["prompt"], "response": row["response"]}


def chat(row: Row) -> Row:
    last = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["response"]}]
    return {"messages": [*row["history"], *last]}


def plain_scores(served: Served) -> Any:
    """Rewards by nothing but transformers, one text at a time."""
    model = AutoModelForSequenceClassification.from_pretrained(served.model).eval()
    tokenizer = AutoTokenizer.from_pretrained(served.model)
    with torch.inference_mode():
        logits = torch.cat(
            [model(**tokenizer(text, return_tensors="pt", truncation=False)).logits for text in served.texts]
        )
    return (1 + logits.sigmoid().sum(dim=1)).numpy()


# What each protocol is asked for one reply, and where its client finds the reward.
WAYS: dict[str, tuple[str, Callable[[Row, str], Any], Callable[[Any], float]]] = {
    "native, triple": ("/v1/score", lambda r, t: {"items": [triple(r)]}, lambda a: a["scores"][0]["score"]),
    "native, messages": ("/v1/score", lambda r, t: {"items": [chat(r)]}, lambda a: a["scores"][0]["score"]),
    "WildReward": ("/get_reward", lambda r, t: {"query": [t]}, lambda a: a["rewards"][0]),
    "OpenRLHF": (
        "/get_reward",
        lambda r, t: {"query": [t], "prompts": [t[:-1]], "labels": [None]},
        lambda a: 1 + 3 * a["scores"][0],
    ),
    "verl": (
        "/classify",
        lambda r, t: {"model": None, "input": t, "use_activation": False},
        lambda a: a["data"][-1]["probs"][-1],
    ),
    "slime": (
        "/v1/rm",
        lambda r, t: {"prompt": [*r["history"], {"role": "user", "content": r["prompt"]}], "response": r["response"]},
        lambda a: a["score"],
    ),
    "LLaMA-Factory": ("/v1/score/evaluation", lambda r, t: {"model": "m", "messages": [t]}, lambda a: a["scores"][0]),
    "TEI": ("/predict", lambda r, t: {"inputs": t, "raw_scores": True}, lambda a: a[0]["score"]),
}


def test_every_way_to_a_reward_gives_what_plain_transformers_gives(
    served: Served, extracted: Path, tmp_path: Path
) -> None:
    plain = plain_scores(served)
    assert np.ptp(plain) > 10 * SAME  # or any two ways would agree
    few = range(0, len(served.rows), max(1, len(served.rows) // 12))
    for way, (path, ask, read) in WAYS.items():
        for i in few:
            body = ask(served.rows[i], served.texts[i])
            if path == "/classify":
                body["model"] = str(served.model)
            reply = served.http.post(path, json=body)
            assert reply.status_code == 200, (way, reply.text)
            assert read(reply.json()) == pytest.approx(plain[i], abs=SAME), way
    items = [triple(row) for row in served.rows]
    with RewardClient(str(served.http.base_url), items_per_request=MAX_ITEMS) as client:
        assert [found.score for found in client.score(items)] == pytest.approx(plain, abs=SAME)
    settings = {"model": str(served.model), "input": [str(extracted / "dataset")], "output": str(tmp_path / "scores")}
    score.run(ScoreConfig.load(None, settings))
    batch = {row["id"]: row["score"] for row in rows_of(tmp_path / "scores" / "scores")}
    assert len(batch) == sum(json_of(extracted / "manifest.json")["funnel"][-1]["notes"].values())
    assert [batch[row["interaction_id"]] for row in served.rows] == pytest.approx(plain, abs=SAME)
    evaluated = pq.read_table(served.model / "held_out.parquet").to_pylist()
    assert len(evaluated) > 8
    for row in evaluated:
        assert batch[row["row_id"]] == pytest.approx(1 + sum(row["p_gt"]), abs=SAME)


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


GOOD = {"prompt": "a", "response": "b"}


# The whole list is in tests/unit/test_serve_http.py; these are what a server in front could change or lose.
@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/score", b'{"items": [', 400),
        ("/v1/score", b"\xff\xfe", 400),
        ("/v1/score", {"items": []}, 422),
        ("/v1/score", {"items": [GOOD, {"prompt": "a", "response": "word " * 2000}]}, 422),
        ("/v1/score", {"items": [GOOD] * (MAX_ITEMS + 1)}, 413),
        ("/v1/score", {"items": [{"prompt": "a", "response": "b" * 200_000}]}, 413),
        ("/v1/score", {"items": [GOOD], "model": "another"}, 404),
        ("/get_reward", {"query": [1, 2]}, 422),
        ("/no_such_path", {}, 404),
    ],
)
def test_a_bad_request_gets_a_4xx_with_json_that_says_why(served: Served, path: str, body: Any, status: int) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    reply = served.http.post(path, content=content, headers={"content-type": "application/json"})
    assert reply.status_code == status, reply.text
    assert reply.json()["detail"]
    assert reply.json()["code"]


def test_a_reply_that_is_too_long_is_named_and_the_other_requests_of_its_batch_are_answered(served: Served) -> None:
    long = {"items": [GOOD, {"prompt": "a", "response": "word " * 2000}]}
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda body: served.http.post("/v1/score", json=body), [long, {"items": [GOOD]}] * 8))
    assert [reply.status_code for reply in replies] == [422, 200] * 8
    assert replies[0].json()["code"] == "too_long"
    assert replies[0].json()["field"] == "items[1]"


def test_bodies_that_come_in_chunks_are_read_up_to_the_limit(served: Served) -> None:
    def chunks(size: int) -> Iterator[bytes]:
        body = json.dumps({"items": [{"prompt": "a", "response": "b"}]}).encode()
        yield body[:10]
        yield b" " * size
        yield body[10:]

    headers = {"content-type": "application/json"}
    assert served.http.post("/v1/score", content=chunks(10), headers=headers).status_code == 200
    assert served.http.post("/v1/score", content=chunks(200_000), headers=headers).status_code == 413


@pytest.mark.parametrize("header", [b"x-request-id", b"x-session-id", b"accept"])
def test_a_header_that_is_no_text_is_the_clients_mistake(served: Served, header: bytes) -> None:
    reply = served.http.post("/v1/score", json={"items": [GOOD]}, headers=[(header, b"\xd7\xf8")])
    assert reply.status_code == 400
    assert reply.json()["code"] == "unreadable_header"
    assert reply.json()["field"] == header.decode()


def test_health_and_models_name_what_is_served(served: Served) -> None:
    health = served.http.get("/healthz").json()
    assert health["model"] == str(served.model)
    assert (health["status"], health["engine"], health["levels"]) == ("ok", "transformers", 4)
    (model,) = served.http.get("/v1/models").json()["data"]
    assert (model["id"], model["version"]) == (str(served.model), health["version"])
    assert served.http.get("/readyz").status_code == 200


def test_prometheus_is_told_of_requests_scores_and_batches(served: Served) -> None:
    served.scores([triple(row) for row in served.rows[:8]])
    served.http.post("/v1/score", json={"items": []})
    wanted = {
        'ray_wildreward_requests_total{': 'status="200"',
        'ray_wildreward_request_seconds_count{': 'protocol="native"',
        'ray_wildreward_score_count{': 'version="',
        'ray_wildreward_batch_tokens_count{': 'deployment="RewardEngine"',
    }  # fmt: skip
    port = next(node["MetricsExportPort"] for node in ray.nodes() if node["Alive"])
    lines: list[str] = []
    for _ in range(40):
        lines = httpx.get(f"http://127.0.0.1:{port}/metrics").text.splitlines()
        missing = {n for n, label in wanted.items() if not any(line.startswith(n) and label in line for line in lines)}
        if not missing and any('code="invalid_field"' in line for line in lines):
            return
        time.sleep(0.5)
    raise AssertionError([line for line in lines if "wildreward" in line][:20])
