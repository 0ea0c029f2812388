"""`ray job submit` to a cluster of its own: the entrypoints need nothing but the repository and their flags.

And what the jobs did stands in the metrics of the cluster's nodes, under the names that dashboards ask for.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.ray.every_metric import VALUE
from tests.ray.helpers import ROOT, assert_connected, environment, free_port, json_of, rows_of
from wildreward_ray.cluster.metric_channel import COMMON_LABELS
from wildreward_ray.cluster.telemetry import METRICS

RAY = str(Path(sys.executable).parent / "ray")
Labels = dict[str, str]


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster that is started, and stopped, apart from any other on this machine.

    Attributes:
        address: of its dashboard.
        metrics: where its one node shows its metrics.
        env: what its processes and its clients need: a token of its own, and this interpreter as `python`.
    """

    address: str
    metrics: str
    env: dict[str, str]

    def job(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`ray job …`."""
        command = [RAY, "job", arguments[0], "--address", self.address, *arguments[1:]]
        return subprocess.run(command, capture_output=True, text=True, timeout=240, env=self.env, cwd=ROOT)

    def submit(self, name: str, *entrypoint: str) -> subprocess.CompletedProcess[str]:
        """`ray job submit` of this repository, followed to the job's end."""
        return self.job("submit", "--submission-id", name, "--working-dir", str(ROOT), "--", *entrypoint)

    def start(self, name: str, *entrypoint: str) -> None:
        """`ray job submit` of this repository, not followed."""
        done = self.job("submit", "--submission-id", name, "--no-wait", "--working-dir", str(ROOT), "--", *entrypoint)
        assert done.returncode == 0, done.stdout + done.stderr

    def samples(self) -> list[tuple[str, Labels, float]]:
        """Name, labels and value of all that the node shows of this project, in Prometheus' format."""
        with urllib.request.urlopen(self.metrics, timeout=30) as reply:
            text = reply.read().decode()
        found = re.findall(r"^(ray_wildreward_\w+)\{(.*)\} (\S+)$", text, re.MULTILINE)
        return [(name, dict(re.findall(r'(\w+)="([^"]*)"', labels)), float(value)) for name, labels, value in found]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    port, folder = free_port(), tempfile.mkdtemp(prefix="wr")  # Ray's socket paths must stay short
    metrics_port = free_port()
    names = ("port", "ray-client-server-port", "dashboard-agent-listen-port")
    ports = [word for name in names for word in (f"--{name}", str(free_port()))]
    ports += ["--metrics-export-port", str(metrics_port)]
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
    started = Cluster(f"http://127.0.0.1:{port}", f"http://127.0.0.1:{metrics_port}/metrics", env)
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


@pytest.fixture(scope="module")
def every_metric(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A job beside the others that has told of every metric once and goes on until the last test of this file is through."""
    over = tmp_path_factory.mktemp("every_metric") / "over"
    cluster.start("every-metric", "python", "-m", "tests.ray.every_metric", str(over))
    yield
    over.touch()


def _soon(holds: Callable[[], bool], what: Callable[[], object]) -> None:
    """Wait for what processes hand over every ten seconds."""
    deadline = time.monotonic() + 90
    while not holds():
        assert time.monotonic() < deadline, what()
        time.sleep(0.5)


@pytest.mark.engine
def test_a_job_extracts_a_whole_dataset_and_its_counters_say_what_its_manifest_says(
    cluster: Cluster, every_metric: None, sample: str, tiny_policy: str, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    settings = ("--limit", "40", "--judge.model", tiny_policy, "--hindsight.enabled", "false", "--output", str(output))
    done = cluster.submit("whole", "python", "jobs/extract.py", "--input", sample, *settings)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Job 'whole' succeeded" in cluster.job("status", "whole").stdout
    manifest = json_of(output / "manifest.json")
    assert_connected(manifest["funnel"])
    rows = rows_of(output / "feedback")
    assert len(rows) == 40
    expected = Counter({("ray_wildreward_judged_total", "extract", "first"): len(rows)})
    for step in manifest["funnel"]:
        for reason, n in {"kept": step["rows_out"], **step["dropped"]}.items():
            expected["ray_wildreward_funnel_rows_total", step["name"], reason] += n

    def counted() -> Counter[tuple[str, str, str]]:
        found = Counter[tuple[str, str, str]]()
        for name, labels, value in cluster.samples():
            if labels.get("run") == manifest["run"] and name == "ray_wildreward_judged_total":
                found[name, labels["stage"], labels["judge"]] += int(value)
            elif labels.get("run") == manifest["run"] and name == "ray_wildreward_funnel_rows_total":
                found[name, labels["step"], labels["reason"]] += int(value)
        return found

    # `+` leaves out zeros, which no counter shows.
    _soon(lambda: counted() == +expected, lambda: (counted(), +expected))


def test_a_job_whose_input_is_missing_fails_and_says_which(cluster: Cluster, tmp_path: Path) -> None:
    missing = str(tmp_path / "missing.parquet")
    done = cluster.submit("missing", "python", "jobs/extract.py", "--input", missing, "--output", str(tmp_path / "out"))
    assert done.returncode != 0
    assert "Job 'missing' failed" in cluster.job("status", "missing").stdout
    assert f"{missing!r} does not exist (--input)" in done.stdout + done.stderr
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_node_shows_every_metric_of_the_pipeline_under_its_name_with_its_labels(
    cluster: Cluster, every_metric: None
) -> None:
    expected = {f"ray_{metric.name}": {*COMMON_LABELS, *metric.labels} for metric in METRICS}

    def shown() -> dict[str, tuple[set[str], float]]:
        found = {}
        for name, labels, value in cluster.samples():
            if labels.get("stage") == "every_metric":
                own = {label for label, text in labels.items() if text == f"some {label}"}
                found[name] = {*own, *(labels.keys() & set(COMMON_LABELS))}, value
        return found

    _soon(lambda: shown() == {name: (labels, VALUE) for name, labels in expected.items()}, shown)
