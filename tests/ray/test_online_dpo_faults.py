"""Online DPO that is killed, told to stop, or loses an actor or the service: nothing is learnt twice, nothing made up."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.ray.helpers import RewardServer, json_lines_of, kill_when, looks_whole, processes, reward_server, score_reply
from tests.ray.test_online_dpo import PER_STEP, config_of, shorter_is_better, weights_of
from wildreward_ray.core.config.online_dpo import OnlineDpoConfig
from wildreward_ray.core.errors import RewardUnavailableError, RunStoppedError
from wildreward_ray.stages import online_dpo

pytestmark = pytest.mark.engine

STEPS = 5
AHEAD: dict[str, Any] = {
    "steps": STEPS,
    "staleness": 1,
    "checkpoint.every": 2,
    # What is sampled must not depend on rounding.
    "rollout.engine.dtype": "float32",
    "tracking.kinds": ("tensorboard",),
}
MEASURED = ("policy_version", "staleness", "reward_mean", "response_length", "pairs", "skipped")


@pytest.fixture(scope="module")
def server() -> Iterator[RewardServer]:
    with reward_server(shorter_is_better) as running:
        yield running


@pytest.fixture(scope="module")
def undisturbed(
    ray_session: None, tiny_policy: str, server: RewardServer, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The output of a run with staleness 1 that nothing happened to."""
    folder = tmp_path_factory.mktemp("undisturbed")
    online_dpo.run(config_of(tiny_policy, server.url, folder, **AHEAD))
    return folder / "out"


def command(config: OnlineDpoConfig, folder: Path) -> list[str]:
    """The command line of a configuration."""
    file = folder / "config.json"
    file.write_text(json.dumps(config.model_dump(mode="json")), encoding="utf-8")
    return ["online-dpo", "--config", str(file)]


def checkpoints(output: Path) -> list[int]:
    """Steps of the whole checkpoints of an unfinished run."""
    marks = (output / "_unfinished" / "checkpoints").glob("step-*/checkpoint.json")
    return sorted(int(mark.parent.name.removeprefix("step-")) for mark in marks)


def test_sampling_ahead_lags_by_one_step_but_after_checkpoints(undisturbed: Path) -> None:
    rows = json_lines_of(undisturbed / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    assert all(row["pairs"] for row in rows)
    # Steps 1 and 2 are sampled before anything is learnt; nothing is in flight at the checkpoints after 2 and 4.
    assert [row["policy_version"] for row in rows] == [0, 0, 2, 2, 4]
    assert [row["staleness"] for row in rows] == [0, 1, 0, 1, 0]
    assert [row["step"] for row in json_lines_of(undisturbed / "evals.jsonl")] == [0, STEPS]
    assert "<html" in (undisturbed / "report.html").read_text(encoding="utf-8")
    assert list((undisturbed / "tracking" / "tensorboard").iterdir())


def test_a_killed_run_goes_on_and_ends_like_one_that_was_not(
    undisturbed: Path, tiny_policy: str, server: RewardServer, tmp_path: Path
) -> None:
    config = config_of(tiny_policy, server.url, tmp_path, **AHEAD)
    output = tmp_path / "out"
    kill_when(command(config, tmp_path), lambda: bool(checkpoints(output)))
    assert looks_whole(output) == []
    began = len(server.given)
    result = online_dpo.run(config)
    assert result.fresh
    # What was learnt before the checkpoint is not sampled again; what was compared with at the start isn't either.
    asked = len(server.given) - began
    assert asked < STEPS * PER_STEP
    rows, wanted = json_lines_of(output / "metrics.jsonl"), json_lines_of(undisturbed / "metrics.jsonl")
    for row, want in zip(rows, wanted, strict=True):
        assert {name: row[name] for name in MEASURED} == {name: want[name] for name in MEASURED}
        assert row["dpo_loss"] == pytest.approx(want["dpo_loss"], abs=1e-5)
    found, expected = weights_of(output / "policy"), weights_of(undisturbed / "policy")
    for name, weight in expected.items():
        assert torch.allclose(found[name].float(), weight.float(), atol=1e-4, rtol=0), name
    # Given once more, the command has nothing to do.
    asked = len(server.given)
    assert not online_dpo.run(config).fresh
    assert len(server.given) == asked


def test_a_colocated_run_that_is_stopped_and_then_loses_its_service_goes_on_each_time(
    ray_session: None, tiny_policy: str, tmp_path: Path
) -> None:
    output = tmp_path / "out"

    def stopping(reply: str) -> float:
        if len(stopped_server.given) == 1 + PER_STEP:
            os.kill(os.getpid(), signal.SIGTERM)
        return shorter_is_better(reply)

    with reward_server(stopping) as stopped_server:
        # Colocated: engines and learner take turns, and engines have no weights but those they are given after each turn.
        config = config_of(tiny_policy, stopped_server.url, tmp_path, steps=3, **{"placement.mode": "colocated"})
        with pytest.raises(RunStoppedError, match="stopped after step 2 of 3"):
            online_dpo.run(config)
    assert looks_whole(output) == []
    assert checkpoints(output) == [2]
    with reward_server(shorter_is_better, answers=0) as dying_server:
        config = config.model_copy(update={"reward_url": dying_server.url})
        with pytest.raises(RewardUnavailableError, match=dying_server.url):
            online_dpo.run(config)
    assert looks_whole(output) == []
    assert checkpoints(output) == [2]
    with reward_server(shorter_is_better) as server:
        result = online_dpo.run(config.model_copy(update={"reward_url": server.url}))
    assert [row["step"] for row in result.steps] == [1, 2, 3]
    assert result.summary["eval"]["replies"] > 0
    assert (output / "policy" / "model.safetensors").is_file()


def test_a_lost_rollout_actor_is_replaced_and_a_service_that_is_away_for_a_while_is_waited_for(
    ray_session: None, tiny_policy: str, tmp_path: Path
) -> None:
    killed: list[int] = []
    away = iter(range(2))

    def killing(reply: str) -> float:
        if len(asked.given) == 1 + PER_STEP and not killed:
            killed.extend(processes("ray::RolloutActor"))
            for process in killed:
                os.kill(process, signal.SIGKILL)
        return shorter_is_better(reply)

    def back_soon(items: list[dict[str, Any]]) -> bytes | None:
        if next(away, None) is not None:
            return None
        return score_reply([shorter_is_better(item["response"]) for item in items])

    with reward_server(killing, answers=1 + 2 * PER_STEP, after=back_soon) as asked:
        settings = {"steps": 4, "staleness": 1, "reward.retries": 4}
        result = online_dpo.run(config_of(tiny_policy, asked.url, tmp_path, **settings))
    assert killed
    assert next(away, None) is None
    assert [row["step"] for row in result.steps] == [1, 2, 3, 4]
    for row in result.steps:
        assert row["pairs"] + sum(row["skipped"].values()) == PER_STEP
        assert not {"refused", "unavailable"} & row["skipped"].keys()
