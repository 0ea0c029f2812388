"""The loop that is disturbed: its settings, one round of it as a job that is submitted until it is done, and what it has made."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pyarrow.dataset as pads
import yaml

ROOT = Path(__file__).parents[1]
SAMPLE = ROOT / "wildreward_ray" / "sample" / "conversations.parquet"
BUCKET = "chaos"
# The directories of the stages below the output of a round, in order.
STAGES = ("dataset", "reward_model", "online_dpo")
# Of a loss or a mean reward: sums of floats in another order, carried on through the steps of a stage.
TOLERANCE = 2e-3


class Beside(Protocol):
    """What happens while a job runs."""

    def run_beside(self, process: subprocess.Popen[str], output: str, job: str) -> None:
        """Return when the process that follows the job has ended. Called in the main thread."""


@dataclass
class Round:
    """One run of the loop.

    Attributes:
        seconds: from its first submission to its end.
        submissions: how often it was submitted.
        differences: largest difference of a number from the undisturbed round's, by what it is of.
        problems: what is lost, twice or wrong at its end.
    """

    output: str
    seconds: float = 0.0
    submissions: int = 0
    differences: dict[str, float] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def settings(models: Path, output: str) -> dict[str, Any]:
    """The loop, small: a tiny judge, reward model and policy with random weights."""
    tiny = str(models / "policy")
    return {
        "output": output,
        "extract": {
            "input": [str(SAMPLE)],
            "levels": 4,
            "judge": {
                "model": tiny,
                "batch_size": 16,
                "replicas": [1, 2],
                "engine": {"max_model_len": 1024, "cpu_threads": 1},
            },
            "hindsight": {"enabled": False},
        },
        "train": {
            "base": tiny,
            "epochs": 2,
            "max_length": 128,
            "workers": 1,
            "optim": {"global_batch": 16, "token_budget": 1024, "learning_rate": 1e-4},
            "checkpoint": {"every": 4},
            "cpu_threads": 1,
        },
        "online_dpo": {
            "policy": tiny,
            "steps": 6,
            "prompts_per_step": 4,
            "max_prompt_tokens": 256,
            "rollout": {"samples": 2, "max_tokens": 16, "engine": {"max_model_len": 512, "cpu_threads": 1}},
            "learner": {"cpu_threads": 1},
            "pairs": {"max_similarity": 1.0},
            "eval": {"prompts": 2},
            "checkpoint": {"every": 2},
        },
    }


def run_round(name: str, models: Path, address: str, beside: Beside, patience: int) -> Round:
    """Submit the loop until it has come to its end, at most `patience` times."""
    from wildreward_ray.cluster.storage import locate

    found = Round(f"s3://{BUCKET}/{name}")
    config = f"s3://{BUCKET}/configs/{name}.yaml"
    locate(config).write_bytes(yaml.safe_dump(settings(models, found.output)).encode())
    began = time.monotonic()
    while True:
        found.submissions += 1
        job = f"{name}-{found.submissions}"
        code = _submit(job, config, address, beside, found.output)
        if code == 0:
            break
        if found.submissions >= patience:
            found.problems.append(f"not done after {patience} submissions")
            break
    found.seconds = round(time.monotonic() - began, 1)
    return found


def _submit(job: str, config: str, address: str, beside: Beside, output: str) -> int:
    command = [str(Path(sys.executable).with_name("wildreward")), "submit", "--address", address]
    # As it stands, and not as an upload: nodes of one machine share the place that uploads are unpacked to, and each unpacks it anew.
    command += ["--submission-id", job, "--working-dir", f"local://{ROOT}", "run-all", "--config", config]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, text=True, cwd=ROOT, env=os.environ)
        beside.run_beside(process, output, job)
        code = process.wait()
        log.seek(0)
        tail = log.read().splitlines()[-30:]
    print(f"[chaos] {job} ended with {code}" + ("" if code == 0 else ": " + "\n".join(tail)), flush=True)
    return code


def contents(output: str) -> dict[str, Any]:
    """What a round has made, in a form that must not depend on what was killed.

    Raises:
        AssertionError: a funnel doesn't add up.
    """
    from wildreward_ray.cluster.storage import locate

    place = locate(output)
    found: dict[str, Any] = {}
    for name in ("dataset/feedback", "dataset/dataset/train", "dataset/dataset/test"):
        part = place.child(name)
        table = pads.dataset(part.path, filesystem=part.fs).to_table()
        columns = sorted(set(table.column_names) & {"interaction_id", "label", "level", "prompt", "response"})
        found[name] = sorted(json.dumps(row, sort_keys=True) for row in table.select(columns).to_pylist())
    for stage in STAGES:
        manifest = json.loads(place.child(stage).child("manifest.json").read_bytes())
        for step in manifest["funnel"]:
            if step["rows_in"] != step["rows_out"] + sum(step["dropped"].values()):
                raise AssertionError(f"{stage}: funnel step {step} doesn't add up")
        found[f"{stage} funnel"] = manifest["funnel"]
    for name, value in (("reward_model/curve.jsonl", "loss"), ("online_dpo/metrics.jsonl", "reward_mean")):
        rows = [json.loads(line) for line in place.child(name).read_bytes().splitlines()]
        found[f"steps of {name}"] = [row["step"] for row in rows]
        found[f"{value} of {name}"] = [float(row[value]) for row in rows]
    return found


def compare(found: Round, expected: dict[str, Any]) -> None:
    """Note what a round has lost, has twice, or has otherwise than the undisturbed one."""
    try:
        mine = contents(found.output)
    except (OSError, AssertionError, ValueError, KeyError) as e:
        found.problems.append(f"{type(e).__name__}: {e}"[:300])
        return
    for name, wanted in expected.items():
        found.problems += _differing(name, mine[name], wanted, found.differences)


def _differing(name: str, mine: Any, wanted: Any, differences: dict[str, float]) -> list[str]:
    if isinstance(wanted[0], float) and len(mine) == len(wanted):
        differences[name] = max(abs(a - b) for a, b in zip(mine, wanted, strict=True))
        far = differences[name] > TOLERANCE
        return [f"{name}: differs by {differences[name]:.2g}, more than {TOLERANCE}"] if far else []
    if mine == wanted:
        return []
    if isinstance(wanted[0], str):
        lost, more = Counter(wanted) - Counter(mine), Counter(mine) - Counter(wanted)
        return [f"{name}: {lost.total()} rows lost, {more.total()} too many"]
    return [f"{name}: {str(mine)[:200]} instead of {str(wanted)[:200]}"]


def stage_at_work(output: str) -> str | None:
    """The stage that has begun below the output of a round and isn't done."""
    from wildreward_ray.cluster.storage import locate

    place = locate(output)
    for stage in STAGES:
        names = place.child(stage).names()
        if "_unfinished" in names and "manifest.json" not in names:
            return stage
    return None
