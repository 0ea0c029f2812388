"""`ray job submit` to a cluster of its own: the entrypoints need nothing but the repository and their flags."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.ray.helpers import ROOT, assert_connected, environment, free_port, json_of, rows_of

RAY = str(Path(sys.executable).parent / "ray")


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster that is started, and stopped, apart from any other on this machine.

    Attributes:
        address: of its dashboard.
        env: what its processes and its clients need: a token of its own, and this interpreter as `python`.
    """

    address: str
    env: dict[str, str]

    def job(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`ray job …`."""
        command = [RAY, "job", arguments[0], "--address", self.address, *arguments[1:]]
        return subprocess.run(command, capture_output=True, text=True, timeout=240, env=self.env, cwd=ROOT)

    def submit(self, name: str, *entrypoint: str) -> subprocess.CompletedProcess[str]:
        """`ray job submit` of this repository, followed to the job's end."""
        return self.job("submit", "--submission-id", name, "--working-dir", str(ROOT), "--", *entrypoint)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    port, folder = free_port(), tempfile.mkdtemp(prefix="wr")  # Ray's socket paths must stay short
    names = ("port", "ray-client-server-port", "dashboard-agent-listen-port", "metrics-export-port")
    ports = [word for name in names for word in (f"--{name}", str(free_port()))]
    env = environment(
        PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        RAY_AUTH_MODE="token",
        RAY_AUTH_TOKEN=secrets.token_hex(32),
    )
    process = subprocess.Popen(
        [RAY, "start", "--head", "--block", "--temp-dir", folder, "--dashboard-port", str(port), *ports],
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    started = Cluster(f"http://127.0.0.1:{port}", env)
    try:
        _wait_for(started, process)
        yield started
    finally:
        _stop(process)
        shutil.rmtree(folder, ignore_errors=True)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the cluster's own processes; `ray stop` would end those of every cluster on this machine."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(10)


def _wait_for(cluster: Cluster, process: subprocess.Popen[bytes]) -> None:
    answer = "no answer"
    for _ in range(40):
        assert process.poll() is None, "the cluster did not start"
        asked = cluster.job("list")
        if asked.returncode == 0:
            return
        answer = asked.stderr
        time.sleep(0.5)
    raise AssertionError(f"{cluster.address} did not answer: {answer}")


@pytest.mark.engine
def test_a_job_extracts_a_whole_dataset(cluster: Cluster, sample: str, tiny_policy: str, tmp_path: Path) -> None:
    output = tmp_path / "out"
    settings = ("--limit", "40", "--judge.model", tiny_policy, "--hindsight.enabled", "false", "--output", str(output))
    done = cluster.submit("whole", "python", "jobs/extract.py", "--input", sample, *settings)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Job 'whole' succeeded" in cluster.job("status", "whole").stdout
    manifest = json_of(output / "manifest.json")
    assert_connected(manifest["funnel"])
    assert len(rows_of(output / "feedback")) == 40


def test_a_job_whose_input_is_missing_fails_and_says_which(cluster: Cluster, tmp_path: Path) -> None:
    missing = str(tmp_path / "missing.parquet")
    done = cluster.submit("missing", "python", "jobs/extract.py", "--input", missing, "--output", str(tmp_path / "out"))
    assert done.returncode != 0
    assert "Job 'missing' failed" in cluster.job("status", "missing").stdout
    assert f"{missing!r} does not exist (--input)" in done.stdout + done.stderr
    assert not (tmp_path / "out" / "manifest.json").exists()
