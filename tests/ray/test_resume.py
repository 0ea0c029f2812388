"""A killed extraction goes on where it was, and ends with the very rows of one that nobody disturbed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.ray.helpers import COMMAND, ROOT, assert_connected, environment, json_of, kill_when, rows_of, wildreward
from tests.ray.judge_server import JudgeServer, judge_flags, judge_server

CHUNK = 8


@pytest.fixture(scope="module")
def server() -> Iterator[JudgeServer]:
    """A judge that takes long enough to be caught at work."""
    with judge_server(pause_s=0.01) as running:
        yield running


def flags(server: JudgeServer, sample: str, output: str) -> list[str]:
    small = ["--judge.batch-size", str(CHUNK), "--hindsight.enabled", "false"]
    return ["extract", "--input", sample, "--output", output, *small, *judge_flags(server)]


@pytest.fixture(scope="module")
def undisturbed(server: JudgeServer, sample: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command makes when nobody kills it."""
    output = tmp_path_factory.mktemp("undisturbed") / "out"
    finished = wildreward(*flags(server, sample, str(output)))
    assert finished.returncode == 0, finished.stderr
    return output


def assert_same_rows(output: str | Path, expected: Path, read: Callable[..., list[dict[str, Any]]] = rows_of) -> None:
    """Every table has the same rows, in whatever order, and no interaction twice."""
    for table in ("feedback", "dataset/train", "dataset/test", "quarantine"):
        found, want = read(f"{output}/{table}"), rows_of(expected / table)
        assert sorted(map(repr, found)) == sorted(map(repr, want)), table
    names = [row["interaction_id"] for row in read(f"{output}/feedback")]
    assert len(names) == len(set(names)) > 500


def test_a_driver_killed_twice_loses_nothing_judges_little_twice_and_goes_on_with_its_own_settings_only(
    server: JudgeServer, sample: str, undisturbed: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    command = flags(server, sample, str(output))
    work = output / "_unfinished"
    server.asked.clear()
    kill_when(command, lambda: sum(server.asked.values()) >= 100)
    refused = wildreward(*command, "--quality.min-prompt", "7", "--split.salt", "other")
    assert refused.returncode == 2
    error = refused.stderr.strip().splitlines()[-1]
    assert "config.quality.min_prompt, config.split.salt" in error
    assert "--overwrite" in error
    kill_when(command, lambda: any((work / "refined").glob("*.parquet")))
    assert not (output / "manifest.json").exists()
    prompts = len(server.asked)
    # How many requests are in flight changes no row.
    finished = wildreward(*command, "--judge.endpoint.concurrency", "7")
    assert finished.returncode == 0, finished.stderr
    assert_same_rows(output, undisturbed)
    assert_connected(json_of(output / "manifest.json")["funnel"])
    assert json_of(output / "manifest.json")["resumed"] is True
    assert {item.name for item in output.iterdir()} == {
        "README.md",
        "dataset",
        "feedback",
        "manifest.json",
        "quarantine",
    }
    # After the judging was over nothing is asked; before, a kill costs at most the chunks that were at work.
    assert len(server.asked) == prompts
    twice = sum(n - 1 for n in server.asked.values())
    assert twice <= 0.25 * prompts, f"{twice} of {prompts} prompts were asked again"


def test_the_same_command_after_the_end_has_nothing_to_do(server: JudgeServer, sample: str, undisturbed: Path) -> None:
    before = {f: f.stat().st_mtime_ns for f in undisturbed.rglob("*") if f.is_file()}
    server.asked.clear()
    again = wildreward(*flags(server, sample, str(undisturbed)))
    assert again.returncode == 0, again.stderr
    assert "nothing to do" in again.stdout
    assert not server.asked
    assert {f: f.stat().st_mtime_ns for f in undisturbed.rglob("*") if f.is_file()} == before


def judge_processes(session: int) -> list[int]:
    """Processes of judge actors that a command of this session started."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            name = (folder / "cmdline").read_bytes()
            if b"JudgeActor" in name and os.getsid(int(folder.name)) == session:
                found.append(int(folder.name))
        except (OSError, ValueError):
            continue
    return found


@pytest.mark.engine
@pytest.mark.slow
def test_a_judge_that_dies_with_its_engine_is_started_again_and_no_row_differs(
    sample: str, tiny_policy: str, tmp_path: Path
) -> None:
    command = ["extract", "--input", sample, "--judge.batch-size", str(CHUNK), "--judge.model", tiny_policy]
    command += ["--judge.engine.dtype", "float32", "--hindsight.enabled", "false"]
    undisturbed, output = tmp_path / "undisturbed", tmp_path / "out"
    finished = wildreward(*command, "--output", str(undisturbed))
    assert finished.returncode == 0, finished.stderr
    process = subprocess.Popen(
        [*COMMAND, *command, "--output", str(output)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        cwd=ROOT,
        start_new_session=True,
    )
    judged = output / "_unfinished" / "judged"
    deadline = time.monotonic() + 120
    while len(list(judged.glob("*.parquet"))) < 3 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    victims = judge_processes(os.getsid(process.pid))
    assert victims
    os.kill(victims[0], signal.SIGKILL)
    _, errors = process.communicate(timeout=180)
    assert process.returncode == 0, errors
    want = {row["interaction_id"]: row for row in rows_of(undisturbed / "feedback")}
    found = {row["interaction_id"]: row for row in rows_of(output / "feedback")}
    assert found.keys() == want.keys()
    assert len(found) == len(rows_of(output / "feedback"))
    for name, row in found.items():
        # The order in which an engine meets prompts leaves its traces in the last bits.
        gap = max(abs(a - b) for a, b in zip(row["judge_logprobs"], want[name]["judge_logprobs"], strict=True))
        assert gap < 1e-3, name
    same = [name for name in found if found[name]["level"] == want[name]["level"]]
    assert len(same) >= len(found) - 2


def test_a_lost_node_takes_no_row_with_it(server: JudgeServer, sample: str, undisturbed: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    server.asked.clear()
    script = [sys.executable, "-m", "tests.ray.lose_node", str(output)]
    command = [*flags(server, sample, str(output))[1:], "--judge.num-cpus", "2"]
    environ = environment(WILDREWARD_TEST_COMMAND=json.dumps(command))
    finished = subprocess.run(script, capture_output=True, text=True, timeout=240, env=environ, cwd=ROOT)
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert "the node with the judge is gone" in finished.stdout
    assert_same_rows(output, undisturbed)
