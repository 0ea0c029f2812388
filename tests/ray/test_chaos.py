"""The whole loop as jobs on a cluster of four nodes, over S3: what is lost or stopped in any stage changes nothing of the results."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.chaos_loop import STAGES
from tests.ray.helpers import ROOT, environment, json_of


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_node_lost_and_a_job_stopped_in_each_stage_change_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "scripts.chaos", "--each-stage", "--output", str(tmp_path / "chaos.json")]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=1700, env=environment(), cwd=ROOT)
    assert finished.returncode == 0, finished.stdout[-5000:] + finished.stderr[-5000:]
    found = json_of(tmp_path / "chaos.json")
    assert found["problems"] == []
    # A round in which nothing happened would be equal too.
    happened = {(stage, kind) for _, _, stage, kind, _ in found["events"]}
    assert happened == set(itertools.product(STAGES, ("node", "stop")))
