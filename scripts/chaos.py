"""The whole loop as cluster jobs, while processes and machines are killed; then its results against an undisturbed run's.

    python -m scripts.chaos --output chaos.json                  # 20 minutes of random kills
    python -m scripts.chaos --each-stage --output stages.json    # a node killed in each stage; then a job stopped in each stage

A cluster of several nodes runs on this machine (`ray.cluster_utils`), with an S3 endpoint beside it. `jobs/run_all.py` is submitted to it
again and again, each time to an output of its own; a job that dies is submitted again as it was, which is how a run is resumed. What can
happen: a worker process of a node is killed with -9, or a whole node (another one comes a little later), or the driver; or the job is
stopped by `ray job stop`. The head node and the store stay: they hold what a cluster keeps.

Nothing may be lost and nothing be there twice: interactions and dataset rows of every round are those of the first, undisturbed one;
every optimizer step is in the curves once, with its loss and its mean reward; and every artefact has a manifest whose funnel adds up.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from scripts.chaos_kills import NODE_CPUS, Disturber, InEachStage, Monkey, Watcher
from scripts.chaos_loop import BUCKET, Round, compare, contents, run_round


def main(arguments: Sequence[str] | None = None) -> int:
    """Run. Returns 0 if nothing was lost and nothing is there twice."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--minutes", type=float, default=20.0, help="how long rounds with random kills are begun")
    parser.add_argument("--each-stage", action="store_true", help="one node, then one stop, in each stage instead")
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
            # A job joins the cluster that was last started below the same folder; another one on this machine must not take it.
            "RAY_TMPDIR": folder,
            # Jobs run with the `python` that they find.
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }
        _make_bucket(store.endpoint)
        result = _on_a_cluster(given, models)
    Path(given.output).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({k: v for k, v in result.items() if k != "events"}, indent=1))
    return 1 if result["problems"] else 0


def _on_a_cluster(given: argparse.Namespace, models: Path) -> dict[str, Any]:
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
        return _rounds(given, models, cluster, address)
    finally:
        cluster.shutdown()


def _rounds(given: argparse.Namespace, models: Path, cluster: Any, address: str) -> dict[str, Any]:
    watcher = Watcher()
    calm = run_round("calm", models, address, watcher, 1)
    if calm.problems:
        raise SystemExit(f"the undisturbed round failed: {calm.problems}")
    print(f"[chaos] {calm}, by stage: {watcher.seconds}", flush=True)
    expected = contents(calm.output)
    rounds: list[Round] = []
    events: list[tuple[Any, ...]] = []
    for disturber in _disturbers(given, cluster, address, watcher.seconds):
        known = len(disturber.events)
        rounds.append(run_round(f"round-{len(rounds)}", models, address, disturber, given.patience))
        compare(rounds[-1], expected)
        if isinstance(disturber, InEachStage) and disturber.left:
            rounds[-1].problems.append(f"never disturbed: {sorted(disturber.left)}")
        events += [(rounds[-1].output, *event) for event in disturber.events[known:]]
        print(f"[chaos] {rounds[-1]}", flush=True)
    return {
        "undisturbed_s": calm.seconds,
        "by_stage_s": {stage: round(seconds, 1) for stage, seconds in watcher.seconds.items()},
        "rounds": [vars(one) for one in rounds],
        "killed": dict(Counter(kind for *_, kind, _ in events)),
        "submissions": sum(one.submissions for one in rounds),
        "problems": [f"{one.output}: {problem}" for one in rounds for problem in one.problems],
        "events": events,
    }


def _disturbers(
    given: argparse.Namespace, cluster: Any, address: str, seconds: dict[str, float]
) -> Iterator[Disturber]:
    """One for each round that is to be run."""
    if given.each_stage:
        for kind in ("node", "stop"):
            yield InEachStage(cluster, address, given.seed, kind, seconds)
        return
    monkey = Monkey(cluster, address, given.seed, tuple(given.pause))
    until = time.monotonic() + 60 * given.minutes
    while time.monotonic() < until:
        yield monkey


def _make_bucket(endpoint: str) -> None:
    import boto3

    boto3.client("s3", endpoint_url=endpoint).create_bucket(Bucket=BUCKET)


def _wait_for_jobs(address: str) -> None:
    """Return when the cluster runs jobs: its server answers some time before a node has the agent that starts them."""
    from ray.job_submission import JobSubmissionClient

    error: Exception | None = None
    for _ in range(120):
        try:
            JobSubmissionClient(address).submit_job(entrypoint="true")
            return
        except (ConnectionError, RuntimeError) as e:
            error = e
            time.sleep(0.5)
    raise SystemExit(f"{address} takes no job: {error}")


if __name__ == "__main__":
    sys.exit(main())
