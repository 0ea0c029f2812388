"""Real engines are slow to start, so what they make is made once a session and shared."""

from __future__ import annotations

import os
import pickle
import re
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest
import ray
from filelock import FileLock

from tests.ray.helpers import (
    COMMAND,
    ROOT,
    environment,
    looks_whole,
    save_tiny_policy,
    save_tiny_reward_model,
    wildreward,
)
from tests.ray.s3 import S3Server
from wildreward_ray.cluster.session import start_ray
from wildreward_ray.core.config.train import TrainConfig
from wildreward_ray.stages import train

T = TypeVar("T")

SAMPLE = ROOT / "wildreward_ray" / "sample" / "conversations.parquet"
LIMIT = 150


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[], T]) -> T:
    """What `make` gives, made by whichever test worker needs it first and read by the others (`-n 2`)."""
    base = factory.getbasetemp()
    folder = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    file = folder / f"{name}.pickle"
    with FileLock(f"{file}.lock"):
        if not file.exists():
            file.write_bytes(pickle.dumps(make()))
        made: T = pickle.loads(file.read_bytes())  # written above
        return made


@dataclass(frozen=True)
class Interrupted:
    """An extraction whose driver was killed while it judged.

    Attributes:
        command: its arguments.
        output: where it was writing.
        left: what stood there after the kill, apart from the work directory.
        training: what `wildreward train` said to it.
    """

    command: tuple[str, ...]
    output: Path
    left: list[str]
    training: subprocess.CompletedProcess[str]


@pytest.fixture(scope="session")
def sample() -> str:
    """The conversations that come with the package."""
    return str(SAMPLE)


@pytest.fixture(scope="session")
def interrupted(tmp_path_factory: pytest.TempPathFactory, sample: str) -> Interrupted:
    """An extraction that was killed after the judge's first batch and before its last."""
    output = tmp_path_factory.mktemp("extract") / "mine"
    return once(tmp_path_factory, "interrupted", lambda: _interrupt(sample, output))


def _interrupt(sample: str, output: Path) -> Interrupted:
    # Small batches, so that a progress line shows some of them done and others not.
    settings = ("--limit", str(LIMIT), "--judge.batch-size", "4", "--judge.engine.max-model-len", "1024")
    command = ("extract", "--input", sample, *settings, "--output", str(output))
    process = subprocess.Popen(
        [*COMMAND, *command],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env=environment(),
        cwd=ROOT,
        start_new_session=True,
    )
    seen: list[str] = []
    judging = threading.Event()

    def watch() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            seen.append(line)
            if re.search(r"\[judge\] [1-9]", line):
                judging.set()
        judging.set()

    threading.Thread(target=watch, daemon=True).start()
    judging.wait(180)
    assert process.poll() is None, f"the extraction ended before it could be killed: {''.join(seen)}"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(30)
    training = wildreward("train", "--dataset", str(output), "--output", str(output.parent / "from_unfinished"))
    return Interrupted(command, output, looks_whole(output), training)


@pytest.fixture(scope="session")
def extracted(tmp_path_factory: pytest.TempPathFactory, interrupted: Interrupted) -> Path:
    """The dataset that the interrupted command makes when it is run again."""

    def finish() -> Path:
        finished = wildreward(*interrupted.command)
        assert finished.returncode == 0, finished.stderr
        return interrupted.output

    return once(tmp_path_factory, "extracted", finish)


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One Ray for all stages that run in this process."""
    start_ray()
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def reward_model(ray_session: None, extracted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model trained on the extracted dataset."""
    output = tmp_path_factory.mktemp("train") / "reward_model"
    settings = {
        "dataset": str(extracted),
        "output": str(output),
        "max_length": 160,
        "optim.learning_rate": 2e-4,
        "optim.head_learning_rate": 1e-3,
        "optim.global_batch": 16,
    }

    def fit() -> Path:
        train.run(TrainConfig.load(None, settings))
        return output

    return once(tmp_path_factory, "reward_model", fit)


@pytest.fixture(scope="session")
def tiny_policy(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random language model that a chat template goes with."""
    return save_tiny_policy(tmp_path_factory.mktemp("tiny_policy"))


@pytest.fixture(scope="session")
def tiny_reward_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random decoder reward model of four levels."""
    return save_tiny_reward_model(tmp_path_factory.mktemp("tiny_reward_model"))


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    """An S3 endpoint that fails on demand; a test that sets faults takes them away again."""
    with S3Server() as server:
        yield server
