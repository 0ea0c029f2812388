"""The whole loop as cluster jobs, while processes and machines are killed at random; then its results against an undisturbed run's.

    python -m scripts.chaos --minutes 20 --output chaos.json

A cluster of several nodes runs on this machine (`ray.cluster_utils`), with an S3 endpoint beside it. `jobs/run_all.py` is submitted to it
again and again, each time to an output of its own, until the time is up; a job that dies is submitted again as it was, which is how a
run is resumed. The monkey kills with -9: any worker process of a node, a whole node (another one comes a little later), or the driver.
The head node and the store stay: they hold what a cluster keeps.

Nothing may be lost and nothing be there twice: interactions and dataset rows of every round are those of the first, undisturbed one;
every optimizer step is in the curves once; and every artefact has a manifest whose funnel adds up.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.dataset as pads
import yaml

ROOT = Path(__file__).parents[1]
SAMPLE = ROOT / "wildreward_ray" / "sample" / "conversations.parquet"
BUCKET = "chaos"
NODE_CPUS = 2
# What may be killed, and how often in comparison.
KINDS = {"worker": 6, "node": 3, "driver": 1}


@dataclass
class Monkey:
    """Kills something every now and then while it is let loose.

    Attributes:
        killed: how often what was killed.
        events: (seconds since the start, what) of every kill.
    """

    cluster: Any
    pause_s: tuple[float, float]
    seed: int
    killed: Counter[str] = field(default_factory=Counter)
    events: list[tuple[float, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._draw = random.Random(self.seed)
        self._began = time.monotonic()
        self.nodes = list(self.cluster.worker_nodes)

    def run_beside(self, process: subprocess.Popen[str]) -> None:
        """Kill until a process, the follower of a job, has ended. Ray starts nodes from the main thread only: call it there."""
        due = time.monotonic() + self._draw.uniform(*self.pause_s)
        while process.poll() is None:
            time.sleep(0.5)
            if time.monotonic() >= due:
                self._kill()
                due = time.monotonic() + self._draw.uniform(*self.pause_s)

    def _kill(self) -> None:
        kind = self._draw.choices(list(KINDS), weights=list(KINDS.values()))[0]
        what = {"worker": self._worker, "node": self._node, "driver": self._driver}[kind]()
        if what is not None:
            self.killed[kind] += 1
            self.events.append((round(time.monotonic() - self._began, 1), what))
            print(f"[chaos] {self.events[-1][0]:.0f} s: killed {what}", flush=True)

    def _worker(self) -> str | None:
        """A worker process that is at work: an actor, a task, a Serve replica."""
        found = [(pid, name) for pid, name in ray_processes() if "IDLE" not in name and "JobSupervisor" not in name]
        # The controller of Serve and the counters live beside the driver, on the node that stays.
        found = [(pid, name) for pid, name in found if not any(w in name for w in ("Controller", "_Counter", "Stats"))]
        if not found:
            return None
        pid, name = self._draw.choice(sorted(found))
        os.kill(pid, signal.SIGKILL)
        return name

    def _node(self) -> str:
        """A whole node, and another one after a while."""
        doomed = self._draw.choice(self.nodes)
        self.cluster.remove_node(doomed, allow_graceful=False)
        self.nodes.remove(doomed)
        time.sleep(self._draw.uniform(1, 8))
        self.nodes.append(self.cluster.add_node(num_cpus=NODE_CPUS))
        return "a node"

    def _driver(self) -> str | None:
        """The entrypoint of the job."""
        found = [pid for pid, command in commands() if "jobs/run_all.py" in command and "ray job" not in command]
        if not found:
            return None
        for pid in found:
            os.kill(pid, signal.SIGKILL)
        return "the driver"


def commands() -> list[tuple[int, str]]:
    """(process, command line) of every process that can be seen."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                found.append((int(entry.name), (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()))
            except OSError:
                continue
    return found


def ray_processes() -> list[tuple[int, str]]:
    """Workers of Ray, by the name they go by while they work."""
    return [(pid, command.split()[0]) for pid, command in commands() if command.startswith("ray::")]


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


@dataclass
class Round:
    """One run of the loop.

    Attributes:
        seconds: from its first submission to its end.
        submissions: how often it was submitted.
        problems: what is lost, twice or wrong at its end.
    """

    output: str
    seconds: float = 0.0
    submissions: int = 0
    killed: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def run_round(name: str, models: Path, address: str, monkey: Monkey | None, patience: int) -> Round:
    """Submit the loop until it has come to its end."""
    from wildreward_ray.cluster.storage import locate

    found = Round(f"s3://{BUCKET}/{name}")
    config = f"s3://{BUCKET}/configs/{name}.yaml"
    locate(config).write_bytes(yaml.safe_dump(settings(models, found.output)).encode())
    began, before = time.monotonic(), Counter(monkey.killed) if monkey else Counter[str]()
    while True:
        found.submissions += 1
        code = _submit(f"{name}-{found.submissions}", config, address, monkey)
        if code == 0:
            break
        if found.submissions >= patience:
            found.problems.append(f"not done after {patience} submissions")
            break
    found.seconds = round(time.monotonic() - began, 1)
    if monkey:
        found.killed = dict(monkey.killed - before)
    return found


def _submit(submission: str, config: str, address: str, monkey: Monkey | None) -> int:
    command = [str(Path(sys.executable).with_name("ray")), "job", "submit", "--address", address]
    # As it stands, and not as an upload: nodes of one machine share the place that uploads are unpacked to, and each unpacks it anew.
    command += ["--submission-id", submission, "--working-dir", f"local://{ROOT}", "--"]
    command += [sys.executable, "jobs/run_all.py", "--config", config]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, text=True)
        if monkey is not None:
            monkey.run_beside(process)
        code = process.wait()
        log.seek(0)
        tail = log.read().splitlines()[-40:]
    print(f"[chaos] {submission} ended with {code}" + ("" if code == 0 else ": " + "\n".join(tail)), flush=True)
    return code


def contents(output: str) -> dict[str, Any]:
    """What a round has made, in a form that must not depend on what was killed."""
    from wildreward_ray.cluster.storage import locate

    place = locate(output)
    found: dict[str, Any] = {}
    for name in ("dataset/feedback", "dataset/dataset/train", "dataset/dataset/test"):
        part = place.child(name)
        table = pads.dataset(part.path, filesystem=part.fs).to_table()
        columns = sorted(set(table.column_names) & {"interaction_id", "label", "level", "prompt", "response"})
        found[name] = sorted(json.dumps(row, sort_keys=True) for row in table.select(columns).to_pylist())
    for stage in ("dataset", "reward_model", "online_dpo"):
        manifest = json.loads(place.child(stage).child("manifest.json").read_bytes())
        for step in manifest["funnel"]:
            if step["rows_in"] != step["rows_out"] + sum(step["dropped"].values()):
                raise AssertionError(f"{stage}: funnel step {step} doesn't add up")
        found[f"{stage} funnel"] = manifest["funnel"]
    for name in ("reward_model/curve.jsonl", "online_dpo/metrics.jsonl"):
        found[name] = [json.loads(line)["step"] for line in place.child(name).read_bytes().splitlines()]
    return found


def compare(found: Round, expected: dict[str, Any]) -> None:
    """Note what a round has lost, has twice, or has otherwise than the undisturbed one."""
    try:
        mine = contents(found.output)
    except (OSError, AssertionError, ValueError, KeyError) as e:
        found.problems.append(f"{type(e).__name__}: {e}"[:300])
        return
    for name, rows in expected.items():
        if mine[name] == rows:
            continue
        if isinstance(rows, list) and all(isinstance(row, str) for row in rows):
            lost, more = Counter(rows) - Counter(mine[name]), Counter(mine[name]) - Counter(rows)
            found.problems.append(f"{name}: {lost.total()} rows lost, {more.total()} too many")
        else:
            found.problems.append(f"{name}: {str(mine[name])[:200]} instead of {str(rows)[:200]}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run. Returns 0 if nothing was lost and nothing is there twice."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--minutes", type=float, default=20.0, help="how long rounds are begun")
    parser.add_argument("--nodes", type=int, default=3, help="nodes beside the head")
    parser.add_argument("--pause", type=float, nargs=2, default=(15.0, 45.0), help="seconds between kills, from and to")
    parser.add_argument("--patience", type=int, default=12, help="submissions of a round")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", required=True, help="JSON file of what happened")
    given = parser.parse_args(arguments)
    from tests.ray.helpers import save_tiny_policy
    from tests.ray.s3 import ACCESS_KEY, REGION, SECRET_KEY, S3Server

    with tempfile.TemporaryDirectory(prefix="wr") as folder, S3Server() as store:
        models = Path(folder)
        save_tiny_policy(models / "policy")
        os.environ |= {
            "AWS_ENDPOINT_URL": store.endpoint,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,
        }
        _make_bucket(store.endpoint)
        result = _rounds(given, models)
    Path(given.output).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({k: v for k, v in result.items() if k != "events"}, indent=1))
    return 1 if result["problems"] else 0


def _rounds(given: argparse.Namespace, models: Path) -> dict[str, Any]:
    from ray.cluster_utils import Cluster

    from tests.ray.helpers import free_port

    head = {"num_cpus": NODE_CPUS, "include_dashboard": True, "dashboard_port": free_port()}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(given.nodes):
            cluster.add_node(num_cpus=NODE_CPUS)
        cluster.wait_for_nodes()
        address = f"http://127.0.0.1:{head['dashboard_port']}"
        _wait_for_jobs(address)
        calm = run_round("calm", models, address, None, 1)
        if calm.problems:
            raise SystemExit(f"the undisturbed round failed: {calm.problems}")
        expected = contents(calm.output)
        monkey = Monkey(cluster, tuple(given.pause), given.seed)
        rounds: list[Round] = []
        until = time.monotonic() + 60 * given.minutes
        while time.monotonic() < until:
            rounds.append(run_round(f"round-{len(rounds)}", models, address, monkey, given.patience))
            compare(rounds[-1], expected)
            print(f"[chaos] {rounds[-1]}", flush=True)
    finally:
        cluster.shutdown()
    return {
        "undisturbed_s": calm.seconds,
        "rounds": [vars(one) for one in rounds],
        "killed": dict(monkey.killed),
        "submissions": sum(one.submissions for one in rounds),
        "problems": [f"{one.output}: {problem}" for one in rounds for problem in one.problems],
        "events": monkey.events,
    }


def _make_bucket(endpoint: str) -> None:
    import boto3

    boto3.client("s3", endpoint_url=endpoint).create_bucket(Bucket=BUCKET)


def _wait_for_jobs(address: str) -> None:
    import urllib.request

    for _ in range(60):
        try:
            with urllib.request.urlopen(f"{address}/api/version", timeout=2):
                return
        except OSError:
            time.sleep(0.5)
    raise SystemExit(f"{address} does not answer")


if __name__ == "__main__":
    sys.exit(main())
