"""Training that is killed, moved to other workers or told to leave ends with the weights of a run that nobody disturbed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.ray.helpers import (
    COMMAND,
    ROOT,
    environment,
    json_lines_of,
    kill_when,
    processes,
    wildreward,
    write_json_lines,
)
from tests.ray.s3 import S3Server
from tests.ray.test_train import wildfb_record
from wildreward_ray.core.config.train import TrainConfig
from wildreward_ray.core.errors import UserError
from wildreward_ray.stages import train

ROWS = 400
# Weights of a step depend on the order in which floats are added, and 135 steps carry that on.
TOLERANCE = 2e-4


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    return write_json_lines(file, [wildfb_record(i, 1 + i % 4) for i in range(ROWS)])


def flags(rows: str, base: str, output: Path | str, workers: str = "1", *more: str) -> list[str]:
    return [
        *("train", "--dataset", rows, "--base", base, "--output", str(output), "--workers", workers),
        *("--epochs", "3", "--max-length", "64", "--num-cpus", "0.5", "--checkpoint.every", "20"),
        *("--optim.global-batch", "8", "--optim.learning-rate", "1e-4", "--optim.token-budget", "256"),
        # More epochs than this test has time for would be needed for evaluations to matter.
        *("--eval.every", "1000", "--eval.bootstrap", "0", "--tracking.kinds", "tensorboard", *more),
    ]


@pytest.fixture(scope="module")
def undisturbed(rows: str, tiny_policy: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("undisturbed") / "out"
    finished = wildreward(*flags(rows, tiny_policy, output))
    assert finished.returncode == 0, finished.stderr
    return output


def assert_same_run(output: Path, expected: Path) -> list[dict[str, Any]]:
    """The same weights and losses, and every step once. Returns the curve."""
    curve, wanted = json_lines_of(output / "curve.jsonl"), json_lines_of(expected / "curve.jsonl")
    assert [record["step"] for record in curve] == list(range(1, len(wanted) + 1))
    assert [r["loss"] for r in curve] == pytest.approx([r["loss"] for r in wanted], abs=TOLERANCE)
    assert [r["tokens"] for r in curve] == [r["tokens"] for r in wanted]
    weights, wanted_weights = load_file(output / "model.safetensors"), load_file(expected / "model.safetensors")
    for name, weight in wanted_weights.items():
        assert torch.allclose(weights[name], weight, atol=TOLERANCE, rtol=0), name
    return curve


def test_a_run_that_is_stopped_and_then_killed_ends_with_the_weights_of_one_that_was_not(
    rows: str, tiny_policy: str, undisturbed: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    stopped = stop_when_two_workers_began(rows, tiny_policy, output)
    # No checkpoint was due: the one that is there was made because of the signal, by both workers.
    assert whole_checkpoints(output) == [stopped]
    command = flags(rows, tiny_policy, output)
    kill_when(command, lambda: max(whole_checkpoints(output), default=0) > stopped)
    assert not (output / "manifest.json").exists()
    last = wildreward(*command)
    assert last.returncode == 0, last.stderr
    assert "going on after step" in last.stderr
    curve = assert_same_run(output, undisturbed)
    assert [record["workers"] for record in curve] == [2] * stopped + [1] * (len(curve) - stopped)
    base, trained = load_file(Path(tiny_policy) / "model.safetensors"), load_file(undisturbed / "model.safetensors")
    for name, weight in base.items():  # what is compared has learned something, by more than the tolerance
        assert (trained[name] - weight.float()).abs().max() > 10 * TOLERANCE, name


def stop_when_two_workers_began(rows: str, base: str, output: Path) -> int:
    """Train, and send SIGTERM once the workers began. Returns the step after which the run says that it stopped."""
    # Micro-batches of a row or two take their time; they change nothing else.
    slow = ("--checkpoint.every", "1000", "--optim.token-budget", "16")
    command = [*COMMAND, *flags(rows, base, output, "2", *slow)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=environment(), cwd=ROOT, text=True) as process:
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line)
            if line.startswith("[train] 2 workers, "):
                process.send_signal(signal.SIGTERM)
    assert process.returncode == 130, "".join(said)
    found = re.search(r"stopped after step (\d+) of \d+; the same command goes on", "".join(said))
    assert found, "".join(said)
    return int(found[1])


def whole_checkpoints(output: Path) -> list[int]:
    """Steps of the whole checkpoints of an unfinished run."""
    marks = (output / "_unfinished" / "checkpoints").glob("step-*/checkpoint.json")
    return [int(mark.parent.name.removeprefix("step-")) for mark in marks]


@pytest.mark.slow
def test_on_s3_two_workers_one_killed_then_the_driver_then_one_worker_to_the_end(
    s3: S3Server, rows: str, tiny_policy: str, undisturbed: Path, tmp_path: Path
) -> None:
    s3.configure()
    s3.make_bucket("training")
    client = s3.client()
    output = "s3://training/out"
    killed: list[int] = []

    def keys() -> set[str]:
        pages = client.get_paginator("list_objects_v2").paginate(Bucket="training")
        return {item["Key"] for page in pages for item in page.get("Contents", [])}

    def latest() -> int:
        """The step of the latest whole checkpoint, 0 for none."""
        marks = [key.split("/")[-2] for key in keys() if key.endswith("/checkpoint.json")]
        return max((int(mark.removeprefix("step-")) for mark in marks), default=0)

    def first_kill() -> bool:
        """Kill a worker at the first checkpoint; the driver is killed at one that its successor wrote."""
        if not killed and latest():
            killed.append(latest())
            os.kill(processes("RayTrainWorker")[0], signal.SIGKILL)
        return bool(killed) and latest() > killed[0]

    sharded = flags(rows, tiny_policy, output, "2", "--parallel.strategy", "fsdp2")
    kill_when(sharded, first_kill, env=s3.environment)
    while processes("RayTrainWorker"):
        time.sleep(0.1)  # they notice that their node is gone, and may finish a checkpoint before
    assert "out/manifest.json" not in keys()
    last = wildreward(*flags(rows, tiny_policy, output, "1"), env=s3.environment)
    assert last.returncode == 0, last.stderr
    assert "going on after step" in last.stderr
    (tmp_path / "out").mkdir()
    for name in ("curve.jsonl", "model.safetensors"):
        client.download_file("training", f"out/{name}", str(tmp_path / "out" / name))
    curve = assert_same_run(tmp_path / "out", undisturbed)
    assert {record["workers"] for record in curve} == {1, 2}
    left = keys()
    assert not any("_unfinished" in key for key in left)
    assert any(key.startswith("out/tracking/tensorboard/") for key in left)


@pytest.mark.slow
def test_a_cluster_that_loses_a_node_on_notice_and_gets_another_trains_on_with_what_it_has(
    rows: str, tiny_policy: str, undisturbed: Path, tmp_path: Path
) -> None:
    """The notice makes a checkpoint at once, the run shrinks to one worker and grows again, and no step is lost."""
    output = tmp_path / "out"
    # Micro-batches of a row or two and many evaluations take their time; they change nothing else.
    slow = ("--resize-interval-s", "1", "--num-cpus", "1", "--optim.token-budget", "16", "--eval.every", "1")
    command = flags(rows, tiny_policy, output, "1..2", *slow, "--checkpoint.every", "10")[1:]
    env = environment(WILDREWARD_TEST_COMMAND=json.dumps(command), WILDREWARD_TEST_EVERY="10")
    finished = subprocess.run(
        [sys.executable, "-m", "tests.ray.train_nodes", str(output)],
        capture_output=True,
        text=True,
        timeout=300,
        env=env,
        cwd=ROOT,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    curve = assert_same_run(output, undisturbed)
    assert {record["workers"] for record in curve} == {1, 2}


def test_a_loss_that_is_not_finite_names_the_last_good_checkpoint_and_nothing_is_mixed_into_it(
    ray_session: None, rows: str, tiny_policy: str, tmp_path: Path
) -> None:
    settings = {
        "dataset": rows,
        "base": tiny_policy,
        "max_length": 64,
        "limit": 40,
        "optim.global_batch": 8,
        "eval.bootstrap": 0,
        "checkpoint.every": 1,
    }
    broken = {**settings, "output": str(tmp_path / "broken"), "optim.learning_rate": 1e30, "optim.warmup_share": 0}
    with pytest.raises(UserError, match=r"step 2: the loss is .*last good checkpoint is .*step-00000001") as caught:
        train.run(TrainConfig.load(None, broken))
    assert caught.value.flag == "--optim.learning-rate"
    good = str(tmp_path / "broken" / "_unfinished" / "checkpoints" / "step-00000001")
    other = {**settings, "output": str(tmp_path / "other"), "max_length": 32, "resume_from": good}
    with pytest.raises(UserError, match=r"differs in max_length") as caught:
        train.run(TrainConfig.load(None, other))
    assert caught.value.flag == "--resume-from"
    with pytest.raises(UserError, match=r"unfinished run that differs in config\.optim\.learning_rate") as caught:
        train.run(TrainConfig.load(None, {**broken, "optim.learning_rate": 1e-5}))
    assert caught.value.flag == "--overwrite"
