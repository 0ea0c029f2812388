"""What happens to a running service - lost replicas, new models, bad new models - and what its clients see of it: nothing."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
from ray import serve

from tests.ray.helpers import free_port, processes, save_tiny_reward_model
from tests.ray.test_serve_engines import ITEMS
from wildreward_ray.cluster.reward_client import RewardClient
from wildreward_ray.core.config.serve import ServeConfig, UpdateModelConfig
from wildreward_ray.core.errors import WildRewardError
from wildreward_ray.stages import serve_update
from wildreward_ray.stages.scoring import load_scorer
from wildreward_ray.stages.serve import service

SAME = 1e-3
# Replicas start more quickly beside clients that leave them some of the machine.
_PAUSE_S = 0.05


def expected_scores(model: str) -> list[float]:
    scorer = load_scorer(ServeConfig(model=model, engine="transformers"))
    inputs = scorer.encoder.encode_batch([(i["history"], i["prompt"], i["response"]) for i in ITEMS])  # type: ignore[misc]
    return [float(score) for score in scorer.score(inputs).score]


class Load:
    """Clients that ask for one reward at a time, for as long as the context lasts.

    Attributes:
        answers: (item, version, score) of every reply read over plain HTTP.
        scores: (item, score) of every reply read by the client.
        failures: what no client may see.
        statuses: statuses other than 200 that plain HTTP met.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.answers: list[tuple[int, str, float]] = []
        self.scores: list[tuple[int, float]] = []
        self.failures: list[str] = []
        self.statuses: list[int] = []
        self._stop = threading.Event()

    def plain(self, offset: int) -> None:
        with httpx.Client(base_url=self.url, timeout=60) as http:
            for turn in range(1_000_000):
                if self._stop.is_set():
                    return
                time.sleep(_PAUSE_S)
                item = (offset + turn) % len(ITEMS)
                reply = http.post("/v1/score", json={"items": [ITEMS[item]]})
                if reply.status_code == 200:
                    body = reply.json()
                    self.answers.append((item, body["version"], body["scores"][0]["score"]))
                else:
                    self.statuses.append(reply.status_code)

    def client(self, offset: int) -> None:
        with RewardClient(self.url) as client:
            for turn in range(1_000_000):
                if self._stop.is_set():
                    return
                time.sleep(_PAUSE_S)
                item = (offset + turn) % len(ITEMS)
                (score,) = client.score([ITEMS[item]])
                self.scores.append((item, score.score))

    @contextmanager
    def running(self) -> Iterator[None]:
        threads = [threading.Thread(target=self._guarded, args=(self.plain, i)) for i in range(3)]
        threads += [threading.Thread(target=self._guarded, args=(self.client, i)) for i in range(3)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in threads:
                thread.join()

    def _guarded(self, work: Callable[[int], None], offset: int) -> None:
        try:
            work(offset)
        except Exception as e:
            self.failures.append(f"{type(e).__name__}: {e}")

    def more(self, count: int = 30) -> None:
        """Wait for so many more answers."""
        wanted = len(self.answers) + count
        deadline = time.monotonic() + 60
        while len(self.answers) < wanted:
            assert not self.failures, self.failures
            assert time.monotonic() < deadline
            time.sleep(0.05)


def replicas_up() -> int:
    applications = serve.status().applications
    return sum(
        deployment.replica_states.get("RUNNING", 0)
        for name, application in applications.items()
        if name.startswith("wildreward-engine")
        for deployment in application.deployments.values()
    )


def test_under_load_a_killed_replica_a_new_model_and_a_refused_one_give_no_wrong_reward(
    ray_session: None, tiny_reward_model: str, tmp_path: Path
) -> None:
    other = save_tiny_reward_model(tmp_path / "other", seed=7)
    broken = save_tiny_reward_model(tmp_path / "broken", head_value=float("nan"))
    first, second = expected_scores(tiny_reward_model), expected_scores(other)
    assert min(abs(a - b) for a, b in zip(first, second, strict=True)) > 2 * SAME
    settings = {
        "model": tiny_reward_model,
        "engine": "transformers",
        "model_name": "rewards",
        "port": free_port(),
        "replicas": 2,
        "num_cpus": 0.25,
    }
    with service(ServeConfig.load(None, settings)) as url:
        old = httpx.get(f"{url}/healthz").json()["version"]
        load = Load(url)
        with load.running():
            load.more()
            os.kill(processes("ServeReplica:wildreward-engine")[0], signal.SIGKILL)
            load.more()
            deadline = time.monotonic() + 60
            while replicas_up() < 2 and time.monotonic() < deadline:
                time.sleep(0.2)
            assert replicas_up() == 2
            load.more()
            card = serve_update.run(UpdateModelConfig(model=other))
            assert card.version != old
            load.more()
            with pytest.raises(WildRewardError, match="old model serves on"):
                serve_update.run(UpdateModelConfig(model=broken))
            load.more()
        health = httpx.get(f"{url}/healthz").json()
        models = httpx.get(f"{url}/v1/models").json()["data"]
    assert health["version"] == card.version
    assert [(model["id"], model["source"]) for model in models] == [("rewards", other)]
    assert load.failures == []
    assert set(load.statuses) <= {503}
    versions = [version for _, version, _ in load.answers]
    assert set(versions) == {old, card.version}
    right = {old: first, card.version: second}
    for item, version, score in load.answers:
        assert score == pytest.approx(right[version][item], abs=SAME)
    for item, score in load.scores:
        assert min(abs(score - first[item]), abs(score - second[item])) < SAME
    assert np.isfinite([score for _, score in load.scores]).all()
