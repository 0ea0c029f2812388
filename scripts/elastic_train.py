"""Training on a cluster that gets a node and loses it again after a notice, watched from outside; then the same undisturbed."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from safetensors.torch import load_file

from scripts.elastic_extract import SAMPLE
from scripts.elastic_figures import train_figures
from tests.ray.helpers import COMMAND, ROOT, environment, json_lines_of, json_of, write_json_lines
from tests.ray.test_train_resume import TOLERANCE

EVERY = 20
NOTICE_S = 15
# Of a node and of a worker, so that each node holds one; tokenising, before training, needs more than one.
CPUS = 2
_POLL_S, _LONGEST_S = 0.1, 900.0
# Whole checkpoints that are waited for with one worker before a node is added, and with two before one is taken away.
_ALONE, _TOGETHER = 2, 3


@dataclass
class Watched:
    """What was seen of a training run.

    Attributes:
        began: when the command was started, by the clock of files and logs (seconds since 1970).
        checkpoints: (seconds since then, step, workers) of each whole checkpoint.
        events: (seconds, what) that was done to the cluster.
    """

    began: float
    checkpoints: list[tuple[float, int, int]] = field(default_factory=list)
    events: list[tuple[float, str]] = field(default_factory=list)

    def look(self, store: Path) -> None:
        """Note checkpoints that are new."""
        known = {step for _, step, _ in self.checkpoints}
        for file in sorted(store.glob("step-*/checkpoint.json")):
            if int(file.parent.name.removeprefix("step-")) not in known:
                try:
                    info, written = json_of(file), file.stat().st_mtime
                except (OSError, ValueError):
                    continue  # just being written, or just removed
                self.checkpoints.append((round(written - self.began, 2), info["step"], info["workers"]))

    def done(self, what: str) -> None:
        """Note something that was done to the cluster."""
        self.events.append((round(time.time() - self.began, 2), what))
        print(f"[elastic] {self.events[-1][0]:.0f} s: {what}", flush=True)

    def whole(self, workers: int) -> int:
        """Regular checkpoints that so many workers have made since their latest start."""
        found = 0
        for _, step, size in self.checkpoints:
            found = (found + (step % EVERY == 0)) if size == workers else 0
        return found


def write_rows(file: Path, rows: int) -> str:
    """Labelled rows in WildFB's format from the sample's first exchanges, again and again, with labels by number."""
    first = []
    for conversation in pq.read_table(SAMPLE, columns=["conversation"])["conversation"].to_pylist():
        messages = [{"role": m["role"], "content": m["content"]} for m in conversation[:2]]
        if [m["role"] for m in messages] == ["user", "assistant"] and all(m["content"] for m in messages):
            first.append(messages)
    records = [
        {
            "id": f"r{i}",
            "history": [],
            "text": "",
            "messages": first[i % len(first)],
            "user_feedback": "",
            "label": 1 + i % 4,
        }
        for i in range(rows)
    ]
    return write_json_lines(file, records)


def command(rows: str, base: str, output: Path, workers: str) -> list[str]:
    """`wildreward train` with steps that take long enough to be watched."""
    return [
        *("train", "--dataset", rows, "--base", base, "--output", str(output), "--workers", workers),
        *("--num-cpus", str(CPUS), "--cpu-threads", "1", "--resize-interval-s", "5"),
        *("--epochs", "2", "--max-length", "256", "--optim.global-batch", "64", "--optim.token-budget", "1024"),
        *("--optim.learning-rate", "2e-5", "--checkpoint.every", str(EVERY)),
        *("--eval.bootstrap", "0", "--test-share", "0.02"),
    ]


def run_elastic(folder: Path, flags: list[str], output: Path) -> Watched:
    """Train with one worker, with two once a node was added, and with one after that node was taken away on notice.

    Raises:
        RuntimeError: the command failed, or was done before the cluster had changed.
    """
    from ray.cluster_utils import Cluster

    head = {"num_cpus": CPUS, "temp_dir": str(folder / "ray"), "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    log = folder / "train.log"
    try:
        with log.open("wb") as sink:
            process = subprocess.Popen(
                [*COMMAND, *flags],
                cwd=ROOT,
                env=environment(RAY_ADDRESS=cluster.address, WILDREWARD_LOG="json"),
                stdout=sink,
                stderr=subprocess.STDOUT,
            )
        try:
            return _disturb(cluster, process, log, output)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    finally:
        cluster.shutdown()


def _disturb(cluster: Any, process: subprocess.Popen[bytes], log: Path, output: Path) -> Watched:
    seen = Watched(time.time())
    store = output / "_unfinished" / "checkpoints"

    def wait(found: Callable[[], bool], what: str) -> None:
        for _ in _looks(seen, store, process, log):
            if found():
                return
        raise RuntimeError(f"training ended before {what}: give it more steps")

    wait(lambda: seen.whole(1) >= _ALONE, "it was at work with one worker")
    added = cluster.add_node(num_cpus=CPUS)
    seen.done("node added")
    wait(lambda: seen.whole(2) >= _TOGETHER, "it was at work with two workers")
    _notice(cluster.address, added.node_id)
    seen.done("notice")
    deadline = time.monotonic() + NOTICE_S
    wait(lambda: time.monotonic() >= deadline, "the node was gone")
    cluster.remove_node(added, allow_graceful=False)
    seen.done("node gone")
    for _ in _looks(seen, store, process, log):
        pass
    seen.done("end")
    return seen


def _notice(address: str, node_id: str) -> None:
    """Tell the cluster that a node will be taken away, as a spot machine's watcher does."""
    drain = ["drain-node", "--address", address, "--node-id", node_id, "--reason", "DRAIN_NODE_REASON_PREEMPTION"]
    told = ["--reason-message", "spot", "--deadline-remaining-seconds", str(NOTICE_S)]
    subprocess.run([str(Path(sys.executable).with_name("ray")), *drain, *told], check=True, timeout=60)


def _looks(seen: Watched, store: Path, process: subprocess.Popen[bytes], log: Path) -> Iterator[None]:
    """Look at a run again and again while it runs.

    Raises:
        RuntimeError: it failed, or takes too long.
    """
    while process.poll() is None:
        seen.look(store)
        yield
        time.sleep(_POLL_S)
        if time.time() - seen.began > _LONGEST_S:
            raise RuntimeError(f"training takes longer than {_LONGEST_S:.0f} s:\n{_tail(log)}")
    if process.returncode:
        raise RuntimeError(f"training ended with {process.returncode}:\n{_tail(log)}")


def run_undisturbed(folder: Path, flags: list[str]) -> None:
    """Train on a Ray of its own.

    Raises:
        RuntimeError: the command failed.
    """
    log = folder / "undisturbed.log"
    with log.open("wb") as sink:
        code = subprocess.run([*COMMAND, *flags], cwd=ROOT, env=environment(), stdout=sink, stderr=subprocess.STDOUT)
    if code.returncode:
        raise RuntimeError(f"training ended with {code.returncode}:\n{_tail(log)}")


def _tail(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace")[-3000:]


def starts_of(log: Path, began: float) -> list[tuple[float, int, int]]:
    """(seconds, workers, steps behind them) of every start of the workers, from the command's JSON log lines."""
    found = []
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith("{") and '"workers_started"' in line:
            row = json.loads(line)
            at = datetime.fromisoformat(row["time"]).timestamp() - began
            found.append((round(at, 3), int(row["workers"]), int(row["done"])))
    return found


def steps_of(output: Path, began: float) -> list[tuple[float, int]]:
    """(seconds, step) when the command first heard of each step, which it does once a second, from TensorBoard's file."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(output / "tracking" / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return [(round(e.wall_time - began, 3), int(e.step)) for e in events.Scalars("train/loss")]


def assert_same_run(output: Path, undisturbed: Path) -> float:
    """Largest difference between the weights of two runs.

    Raises:
        RuntimeError: it is above the tests' tolerance, a step is missing or twice, or steps saw other tokens.
    """
    curve, wanted = json_lines_of(output / "curve.jsonl"), json_lines_of(undisturbed / "curve.jsonl")
    if [row["step"] for row in curve] != list(range(1, len(wanted) + 1)):
        raise RuntimeError(f"steps are missing or twice: {[row['step'] for row in curve]}")
    if [row["tokens"] for row in curve] != [row["tokens"] for row in wanted]:
        raise RuntimeError("steps of the two runs saw other tokens")
    weights, right = load_file(output / "model.safetensors"), load_file(undisturbed / "model.safetensors")
    worst = max(float((weights[name] - weight).abs().max()) for name, weight in right.items())
    if not worst <= TOLERANCE:
        raise RuntimeError(f"weights differ by {worst:g}, which is more than {TOLERANCE:g}")
    return worst


def learned(output: Path, base: Path) -> float:
    """Largest change of a weight of the base by training."""
    trained, before = load_file(output / "model.safetensors"), load_file(base / "model.safetensors")
    return max(float((trained[n] - w.float()).abs().max()) for n, w in before.items() if n in trained)


def measure(folder: Path, base: str, rows: int) -> dict[str, Any]:
    """Train on a cluster that grows and shrinks, and on one that doesn't.

    Raises:
        RuntimeError: a run failed, or the two have not come to the same.
    """
    folder.mkdir(parents=True, exist_ok=True)
    data = write_rows(folder / "rows.jsonl", rows)
    elastic, alone = folder / "elastic_model", folder / "alone_model"
    seen = run_elastic(folder, command(data, base, elastic, "1..2"), elastic)
    run_undisturbed(folder, command(data, base, alone, "1"))
    worst, moved = assert_same_run(elastic, alone), learned(alone, Path(base))
    if moved < 10 * TOLERANCE:
        raise RuntimeError(f"training moved no weight by more than {moved:g}: that its end is the same says nothing")
    curve = json_lines_of(elastic / "curve.jsonl")
    steps, starts = steps_of(elastic, seen.began), starts_of(folder / "train.log", seen.began)
    workers = [n for _, n, _ in starts]
    if workers != [1, 2, 1]:
        raise RuntimeError(f"the workers were {workers}, and not 1, 2, 1")
    figures = train_figures(steps, starts, curve)
    figures["undisturbed_steps_per_s"] = train_figures([], [], json_lines_of(alone / "curve.jsonl"))["steps_per_s"]["1"]
    return {
        "figures": figures,
        "checkpoint_every": EVERY,
        "notice_s": NOTICE_S,
        "steps_total": len(curve),
        "largest_difference": worst,
        "largest_change": moved,
        "seconds": {
            name: json_of(folder / f"{name}_model" / "manifest.json")["seconds"] for name in ("elastic", "alone")
        },
        "starts": starts,
        "events": seen.events,
        "checkpoints": seen.checkpoints,
        "steps": steps,
        "loss": [(row["step"], round(row["loss"], 4)) for row in curve],
    }
