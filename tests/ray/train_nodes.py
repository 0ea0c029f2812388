"""Train on a cluster that loses a node after a notice and gets another one later; a process of its own.

Usage: python -m tests.ray.train_nodes OUTPUT, with the flags of `wildreward train` as JSON in WILDREWARD_TEST_COMMAND.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

from tests.ray.helpers import processes
from wildreward_ray.cli import run_stage

_NOTICE_S = 4


def main() -> None:
    store = Path(sys.argv[1]) / "_unfinished" / "checkpoints"
    command = json.loads(os.environ["WILDREWARD_TEST_COMMAND"])
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    doomed = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    os.environ["RAY_ADDRESS"] = cluster.address
    codes: list[int] = []
    run = threading.Thread(target=lambda: codes.append(run_stage("train", command)), daemon=True)
    run.start()

    def wait(found: Callable[[list[dict[str, Any]]], bool], what: str) -> None:
        while run.is_alive() and not found(checkpoints(store)):
            time.sleep(0.05)
        if not run.is_alive():
            print(f"training ended before {what}", flush=True)
            os._exit(90)
        print(f"{what}: step {checkpoints(store)[-1]['step']}", flush=True)

    wait(lambda c: bool(c) and c[-1]["workers"] == 2, "two workers at work")
    notice(cluster.address, doomed.node_id)
    wait(lambda c: c[-1]["step"] % c[-1]["every"] != 0, "checkpoint on notice")
    time.sleep(_NOTICE_S)
    cluster.remove_node(doomed, allow_graceful=False)
    wait(lambda c: c[-1]["workers"] == 1, "one worker at work")
    for lone in processes("RayTrainWorker"):
        threading.Thread(target=slow_down, args=(lone,), daemon=True).start()
    cluster.add_node(num_cpus=1)
    wait(lambda c: c[-1]["workers"] == 2, "two workers again")
    run.join()
    print(f"training ended with {codes}", flush=True)
    # A driver that is still joined dies with its cluster.
    ray.shutdown()
    cluster.shutdown()
    os._exit(codes[0] if codes else 1)


def slow_down(process: int) -> None:
    """Let a process run for a tenth of its time: however fast the machine, it isn't done when the new node has come."""
    with suppress(ProcessLookupError):
        while True:
            os.kill(process, signal.SIGSTOP)
            time.sleep(0.9)
            os.kill(process, signal.SIGCONT)
            time.sleep(0.1)


def checkpoints(store: Path) -> list[dict[str, Any]]:
    """What stands beside the weights of the whole checkpoints, in order; with the interval that was asked for."""
    found = []
    for file in sorted(store.glob("step-*/checkpoint.json")):
        try:
            found.append(
                {**json.loads(file.read_text(encoding="utf-8")), "every": int(os.environ["WILDREWARD_TEST_EVERY"])}
            )
        except (OSError, ValueError):
            continue  # just removed, or just being written
    return found


def notice(address: str, node_id: str) -> None:
    """Tell the cluster that a node will be taken away, as a spot machine's watcher does."""
    drain = ["drain-node", "--address", address, "--node-id", node_id, "--reason", "DRAIN_NODE_REASON_PREEMPTION"]
    told = ["--reason-message", "spot", "--deadline-remaining-seconds", str(_NOTICE_S)]
    ray_command = str(Path(sys.executable).with_name("ray"))
    subprocess.run([ray_command, *drain, *told], check=True, timeout=60)


if __name__ == "__main__":
    main()
