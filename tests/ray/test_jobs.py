"""`ray job submit` to a cluster of its own: the entrypoints need nothing but the repository and their flags."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.ray.helpers import ROOT, assert_connected, environment, free_port, json_of, rows_of

RAY = str(Path(sys.executable).parent / "ray")
# The jobs' `python` is the one that runs these tests.
PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """Address of the dashboard of a cluster that is started, and stopped, apart from any other on this machine."""
    port, folder = free_port(), tempfile.mkdtemp(prefix="wr")  # Ray's socket paths must stay short
    ports = ("--port", "ray-client-server-port", "dashboard-agent-listen-port", "metrics-export-port")
    chosen = [word for name in ports for word in (f"--{name.lstrip('-')}", str(free_port()))]
    process = subprocess.Popen(
        [RAY, "start", "--head", "--block", "--temp-dir", folder, "--dashboard-port", str(port), *chosen],
        env=environment(PATH=PATH),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        _wait_for(f"{address}/api/jobs/", process)
        yield address
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)
        shutil.rmtree(folder, ignore_errors=True)


def _wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    with httpx.Client(transport=httpx.HTTPTransport(retries=0), timeout=5) as http:
        for _ in range(120):
            assert process.poll() is None, "the cluster did not start"
            try:
                if http.get(url).status_code == 200:
                    return
            except httpx.HTTPError:
                pass
            _pause()
    raise AssertionError(f"{url} did not answer")


def _pause() -> None:
    signal.sigtimedwait([], 0.5)


def submit(cluster: str, *entrypoint: str) -> subprocess.CompletedProcess[str]:
    """`ray job submit` of this repository, followed to the job's end."""
    command = [RAY, "job", "submit", "--address", cluster, "--working-dir", str(ROOT), "--", *entrypoint]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment(PATH=PATH), cwd=ROOT)


def states(cluster: str) -> list[str]:
    """States of all jobs that were submitted, the newest last."""
    jobs = [job for job in httpx.get(f"{cluster}/api/jobs/", timeout=30).json() if job["type"] == "SUBMISSION"]
    return [job["status"] for job in sorted(jobs, key=lambda job: job["start_time"])]


@pytest.mark.engine
def test_a_job_extracts_a_whole_dataset(cluster: str, sample: str, tiny_policy: str, tmp_path: Path) -> None:
    output = tmp_path / "out"
    settings = ("--limit", "40", "--judge.model", tiny_policy, "--output", str(output))
    done = submit(cluster, "python", "jobs/extract.py", "--input", sample, *settings)
    assert done.returncode == 0, done.stdout + done.stderr
    assert states(cluster)[-1] == "SUCCEEDED"
    manifest = json_of(output / "manifest.json")
    assert_connected(manifest["funnel"])
    assert len(rows_of(output / "feedback")) == 40


def test_a_job_whose_input_is_missing_fails_and_says_which(cluster: str, tmp_path: Path) -> None:
    missing = str(tmp_path / "missing.parquet")
    done = submit(cluster, "python", "jobs/extract.py", "--input", missing, "--output", str(tmp_path / "out"))
    assert done.returncode != 0
    assert states(cluster)[-1] == "FAILED"
    assert f"{missing!r} does not exist (--input)" in done.stdout + done.stderr
    assert not (tmp_path / "out" / "manifest.json").exists()
