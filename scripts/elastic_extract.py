"""An extraction on a cluster that grows from no worker node to three and back, watched from outside; then the same on a fixed one."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from scripts.elastic_cluster import autoscaling_cluster
from scripts.elastic_figures import extract_figures
from tests.ray.helpers import COMMAND, ROOT, environment, json_of

SAMPLE = ROOT / "wildreward_ray" / "sample" / "conversations.parquet"
MOST_NODES, MOST_JUDGES = 3, 3
# Slow enough that reading is always ahead of it: a pool whose judges wait for their input doesn't grow.
JUDGE = "demo:smollm2"
# A judge holds a GPU as far as Ray counts, so that each needs a node of its own; its engine runs on the CPU. Of CPUs it holds few: Ray
# Data keeps half of them back for reading and writing, and a pool doesn't grow beyond its share of the others.
JUDGE_CPUS = 0.25
NODE = {"CPU": 2, "GPU": 1, "object_store_memory": 256 * 2**20}
IDLE_S = 15.0
_SAMPLE_S, _GONE_S = 0.5, 240.0
_WAITING = ("DEPENDENCIES_UNREADY", "PENDING_CREATION", "RESTARTING")


@dataclass
class Watched:
    """What was seen of an extraction.

    Attributes:
        cluster: (seconds since submission, worker nodes, judges at work, judges that wait or start), where it changed.
        judged: (seconds, interactions judged so far), a row for each part that was written.
        ended_s: when the command ended, in seconds since submission.
        seen_parts: names of the parts in `judged`.
    """

    cluster: list[tuple[float, int, int, int]] = field(default_factory=list)
    judged: list[tuple[float, int]] = field(default_factory=list)
    ended_s: float = 0.0
    seen_parts: set[str] = field(default_factory=set)

    def look(self, now_s: float, began: float, folder: Path) -> None:
        """Note the cluster, and parts that are new.

        Args:
            now_s: seconds since submission.
            began: when that was, as the files' clock has it.
            folder: of the judged parts.
        """
        row = (now_s, *cluster_now())
        if not self.cluster or self.cluster[-1][1:] != row[1:]:
            self.cluster.append(row)
        self.parts(began, folder)

    def parts(self, began: float, folder: Path) -> None:
        """Note parts that are new, by the time they were written."""
        found = []
        for file in folder.glob("*.parquet"):
            if file.name not in self.seen_parts:
                try:
                    found.append((round(file.stat().st_mtime - began, 2), interactions_of(file), file.name))
                except (OSError, pa.ArrowInvalid):
                    continue  # just being written, or just removed
        for written, interactions, name in sorted(found):
            self.seen_parts.add(name)
            self.judged.append((written, interactions + (self.judged[-1][1] if self.judged else 0)))


def cluster_now() -> tuple[int, int, int]:
    """Worker nodes, judges at work and judges that wait or start, of the cluster that was joined."""
    import ray
    from ray._private.state import actors

    nodes = sum(bool(node["Alive"]) for node in ray.nodes()) - 1
    states = [actor["State"] for actor in actors().values() if "JudgeActor" in actor["ActorClassName"]]
    return nodes, states.count("ALIVE"), sum(state in _WAITING for state in states)


def interactions_of(part: Path) -> int:
    """Interactions in a judged part."""
    table = pq.read_table(part, columns=["kind", "turns"])
    return sum(len(row["turns"]) for row in table.to_pylist() if row["kind"] == "conversation")


def write_input(folder: Path, copies: int) -> list[str]:
    """The sample again and again, a file for each copy, whose conversations and users have other names in each."""
    sample = pq.read_table(SAMPLE)
    folder.mkdir(parents=True)
    files = []
    for copy in range(copies):
        table = sample
        for name in ("conversation_hash", "hashed_ip"):
            values = [None if v is None else f"{copy:04d}{v}" for v in sample[name].to_pylist()]
            table = table.set_column(
                table.column_names.index(name), name, pa.array(values, sample.schema.field(name).type)
            )
        files.append(str(folder / f"{copy:04d}.parquet"))
        pq.write_table(table, files[-1])
    return files


def command(files: Sequence[str], output: Path, *, most: int, gpus: int) -> list[str]:
    """`wildreward extract` with up to `most` judges that hold `gpus` GPUs each."""
    return [
        *("extract", "--input", *files, "--output", str(output), "--levels", "4"),
        *("--judge.model", JUDGE, "--judge.replicas", "1", str(most), "--judge.batch-size", "16"),
        *("--judge.num-cpus", str(JUDGE_CPUS), "--judge.num-gpus", str(gpus)),
        *("--judge.engine.cpu-threads", "1", "--judge.engine.max-model-len", "1024"),
        # In bfloat16 a verdict that is close may come out otherwise on an engine that has other prefixes in its cache.
        *("--judge.engine.dtype", "float32"),
        *("--hindsight.enabled", "false", "--quality.duplicates", "keep"),
    ]


def run_elastic(folder: Path, flags: list[str], output: Path) -> Watched:
    """Run an extraction against an autoscaling cluster, and watch until all its worker nodes are gone again.

    Raises:
        RuntimeError: the command failed, or the nodes stay.
    """
    import ray

    seen = Watched()
    with autoscaling_cluster(folder / "ray", NODE, most=MOST_NODES, idle_s=IDLE_S) as address:
        ray.init(address, log_to_driver=False, logging_level=logging.WARNING)
        try:
            if cluster_now() != (0, 0, 0):
                raise RuntimeError(f"the cluster has {cluster_now()} nodes and judges before anything was asked of it")
            _watch(seen, folder / "extract.log", flags, output, address)
        finally:
            ray.shutdown()
    return seen


def _watch(seen: Watched, log: Path, flags: list[str], output: Path, address: str) -> None:
    parts = output / "_unfinished" / "judged"
    began, wall = time.monotonic(), time.time()
    for now in _while(_start(flags, log, RAY_ADDRESS=address), log):
        seen.look(round(now - began, 2), wall, parts)
    seen.ended_s = round(time.monotonic() - began, 2)
    print(f"[elastic] extract ended after {seen.ended_s:.0f} s", flush=True)
    while not seen.cluster or seen.cluster[-1][1]:
        if time.monotonic() - began > seen.ended_s + _GONE_S:
            raise RuntimeError(f"{seen.cluster[-1][1]} nodes are there {_GONE_S:.0f} s after the end")
        time.sleep(_SAMPLE_S)
        seen.look(round(time.monotonic() - began, 2), wall, parts)


def run_fixed(folder: Path, flags: list[str]) -> None:
    """Run an extraction on a Ray of its own.

    Raises:
        RuntimeError: the command failed.
    """
    log = folder / "fixed.log"
    for _ in _while(_start(flags, log), log):
        pass


def _start(flags: list[str], log: Path, **env: str) -> subprocess.Popen[bytes]:
    with log.open("wb") as sink:
        return subprocess.Popen(
            [*COMMAND, *flags], cwd=ROOT, env=environment(**env), stdout=sink, stderr=subprocess.STDOUT
        )


def _while(process: subprocess.Popen[bytes], log: Path) -> Iterator[float]:
    """Times at which a command still runs.

    Raises:
        RuntimeError: it failed.
    """
    try:
        while process.poll() is None:
            yield time.monotonic()
            time.sleep(_SAMPLE_S)
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
    if process.returncode:
        raise RuntimeError(f"the command ended with {process.returncode}:\n{log.read_text(errors='replace')[-3000:]}")


def dataset_of(output: Path) -> dict[str, Any]:
    """What an extraction has made, in a form that must not depend on where it ran: ids and labels of each part, and the funnel."""
    found: dict[str, Any] = {}
    for name in ("feedback", "dataset/train", "dataset/test"):
        table = pads.dataset(str(output / name)).to_table()
        columns = sorted({"interaction_id", "label", "level"} & set(table.column_names))
        found[name] = sorted(json.dumps(row, sort_keys=True) for row in table.select(columns).to_pylist())
    manifest = json_of(output / "manifest.json")
    return found | {"funnel": manifest["funnel"], "labels": manifest["labels"]}


def differences(elastic: dict[str, Any], fixed: dict[str, Any]) -> list[str]:
    """Names of what two extractions differ in."""
    return [name for name in fixed if elastic[name] != fixed[name]]


def measure(folder: Path, copies: int) -> dict[str, Any]:
    """Extract on a growing cluster and on a fixed one.

    Raises:
        RuntimeError: a run failed, the cluster did not grow to all its nodes, or the datasets differ.
    """
    files = write_input(folder / "input", copies)
    elastic, fixed = folder / "elastic", folder / "fixed"
    flags = command(files, elastic, most=MOST_JUDGES, gpus=1)
    seen = run_elastic(folder, flags, elastic)
    if max(nodes for _, nodes, _, _ in seen.cluster) < MOST_NODES:
        raise RuntimeError(f"the cluster never had {MOST_NODES} worker nodes: {seen.cluster}")
    if max(judges for _, _, judges, _ in seen.cluster) < MOST_JUDGES:
        raise RuntimeError(f"there never were {MOST_JUDGES} judges, give more copies: {seen.cluster}")
    run_fixed(folder, command(files, fixed, most=1, gpus=0))
    other = differences(dataset_of(elastic), dataset_of(fixed))
    if other:
        raise RuntimeError(f"the datasets of the growing and of the fixed cluster differ in {', '.join(other)}")
    rows = dataset_of(fixed)
    manifests = {name: json_of(folder / name / "manifest.json") for name in ("elastic", "fixed")}
    return {
        "figures": extract_figures(seen.cluster, seen.judged, seen.ended_s),
        "judge": JUDGE,
        "node": NODE,
        "idle_s": IDLE_S,
        "interactions": seen.judged[-1][1],
        "rows": {name: len(rows[name]) for name in ("feedback", "dataset/train", "dataset/test")},
        "same_dataset": True,
        "engine_s": {name: m["judge"]["engine_seconds"] for name, m in manifests.items()},
        "seconds": {name: m["seconds"] for name, m in manifests.items()},
        "ended_s": seen.ended_s,
        "cluster": seen.cluster,
        "judged": seen.judged,
    }


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))
