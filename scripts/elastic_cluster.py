"""A Ray cluster on this machine whose worker nodes an autoscaler starts and ends: Ray's own autoscaler with its fake node provider.

`ray.cluster_utils.AutoscalingCluster` does the same for Ray's tests, but it begins and ends with `ray stop --force`, which ends every
Ray on the machine, and its template of a configuration isn't in Ray's wheel.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.ray.helpers import free_port

WORKER = "worker"
_HEAD = "ray.head.default"
# What the configuration of a machine that needs no setting up must name all the same.
_EMPTY = (
    *("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands"),
    *("head_start_ray_commands", "worker_start_ray_commands", "cluster_synced_files"),
)
# The head gives its nodes 30 s to leave.
_START_S, _END_S = 120, 45


def configuration(
    address: str, resources: Mapping[str, float], *, most: int, idle_s: float, head_id: str
) -> dict[str, Any]:
    """An autoscaler's configuration: a head that takes no work, and one type of worker.

    Args:
        address: of the cluster's head process, host:port.
        resources: what a worker node has, by Ray's names; memory in bytes.
        most: worker nodes.
        idle_s: how long a node has nothing to do before it is ended, in seconds.
        head_id: what the provider calls the head node.
    """
    return {
        "cluster_name": "elastic",
        "max_workers": most,
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": idle_s / 60,
        "provider": {
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "gcs_address": address,
            "launch_multiple": True,
            "head_node_id": head_id,
            # All nodes have this machine's address, and Ray runs on them from their first moment.
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "auth": {},
        "file_mounts": {},
        **{name: [] for name in _EMPTY},
        "head_node_type": _HEAD,
        "available_node_types": {
            _HEAD: {"resources": {"CPU": 0}, "node_config": {}, "min_workers": 0, "max_workers": 0},
            WORKER: {"resources": dict(resources), "node_config": {}, "min_workers": 0, "max_workers": most},
        },
    }


@contextmanager
def autoscaling_cluster(folder: Path, resources: Mapping[str, float], *, most: int, idle_s: float) -> Iterator[str]:
    """Run a cluster that has no worker node until something asks for one. Gives its address.

    Args:
        folder: for its files; a short path, as Ray's sockets lie below it.
        resources, most, idle_s: see `configuration`.

    Raises:
        RuntimeError: it did not start.
    """
    import ray
    from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID

    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    address = f"{ray.util.get_node_ip_address()}:{port}"
    file = folder / "autoscaler.json"
    config = configuration(address, resources, most=most, idle_s=idle_s, head_id=FAKE_HEAD_NODE_ID)
    file.write_text(json.dumps(config), encoding="utf-8")
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--port", str(port)]
    command += ["--num-cpus", "0", "--include-dashboard", "false", "--disable-usage-stats"]
    command += ["--temp-dir", str(folder / "ray"), "--autoscaling-config", str(file)]
    env = os.environ | {
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        # As `ray up` tells the head.
        "RAY_NODE_TYPE_NAME": _HEAD,
        "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        # Where a token lies on the machine, `ray start` would ask everybody for it, which `ray.init` and `Cluster` don't.
        "RAY_AUTH_MODE": "disabled",
    }
    with (folder / "ray_start.log").open("w") as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        _wait(process, folder / "ray_start.log")
        yield address
    finally:
        _end(process, str(folder))


def _wait(process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_S
    while "Ray runtime started" not in log.read_text(encoding="utf-8"):
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the cluster did not start:\n{log.read_text(encoding='utf-8')[-2000:]}")
        time.sleep(0.2)


def _end(process: subprocess.Popen[bytes], folder: str) -> None:
    """End the head, and what is left of the nodes that its autoscaler has started: processes that name the cluster's folder."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(_END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and folder.encode() in (entry / "cmdline").read_bytes():
                os.kill(int(entry.name), signal.SIGKILL)
        except OSError:
            continue  # it ended by itself
