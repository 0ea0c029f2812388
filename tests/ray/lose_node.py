"""Run an extraction on a cluster of two nodes, and kill the node that judges in the middle; a process of its own.

Usage: python -m tests.ray.lose_node OUTPUT, with the flags of `wildreward extract` as JSON in WILDREWARD_TEST_COMMAND.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from wildreward_ray.cli import run_stage

# Enough parts are written to know that the node is at work, and many are left.
_PARTS = 4


def main() -> None:
    output = Path(sys.argv[1])
    command = json.loads(os.environ["WILDREWARD_TEST_COMMAND"])
    # The judge asks for two CPUs, so it can only be on the second node.
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    doomed = cluster.add_node(num_cpus=3)
    cluster.wait_for_nodes()
    os.environ["RAY_ADDRESS"] = cluster.address
    judged = output / "_unfinished" / "judged"
    codes: list[int] = []
    run = threading.Thread(target=lambda: codes.append(run_stage("extract", command)), daemon=True)
    run.start()
    # Ray starts nodes from the main thread only, so the extraction runs in another.
    while run.is_alive() and len(list(judged.glob("*.parquet"))) < _PARTS:
        time.sleep(0.05)
    cluster.remove_node(doomed, allow_graceful=False)
    print("the node with the judge is gone", flush=True)
    cluster.add_node(num_cpus=3)
    run.join()
    print(f"the extraction ended with {codes}", flush=True)
    # A driver that is still joined dies with its cluster.
    ray.shutdown()
    cluster.shutdown()
    os._exit(codes[0] if codes else 1)


if __name__ == "__main__":
    main()
