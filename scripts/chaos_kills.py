"""What happens to the loop while it runs: nothing; something killed now and then; or every stage disturbed once."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

from scripts.chaos_loop import ROOT, STAGES, stage_at_work

NODE_CPUS = 2
# What may be killed, and how often in comparison.
KINDS = {"worker": 6, "node": 3, "driver": 1, "stop": 1}
# The controller of Serve and the counters live beside the driver, on the node that stays; an agent takes its node along.
_SPARED = ("IDLE", "JobSupervisor", "Controller", "_Counter", "Stats", "Agent")


class Watcher:
    """Looks on, and notes when which stage was at work.

    Attributes:
        seconds: that each stage took, as far as it was seen.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def run_beside(self, process: subprocess.Popen[str], output: str, job: str) -> None:
        """See `chaos_loop.Beside`."""
        before = time.monotonic()
        while process.poll() is None:
            time.sleep(0.5)
            stage, now = stage_at_work(output), time.monotonic()
            if stage is not None:
                self.seconds[stage] = self.seconds.get(stage, 0.0) + now - before
            before = now
            self.look(stage, job)

    def look(self, stage: str | None, job: str) -> None:
        """Called every half second while the job runs."""


class Disturber(Watcher):
    """Can kill and stop things.

    Args:
        address: of the job server.

    Attributes:
        events: (seconds since the start, stage, kind, what) of all that was killed or stopped.
    """

    def __init__(self, cluster: Any, address: str, seed: int) -> None:
        super().__init__()
        self._cluster, self._address, self.draw = cluster, address, random.Random(seed)
        self._began = time.monotonic()
        self.events: list[tuple[float, str | None, str, str]] = []

    def disturb(self, kind: str, stage: str | None, job: str) -> bool:
        """Kill or stop something of a kind. Returns False where there is none."""
        act = {"worker": self._worker, "node": self._node, "driver": self._driver}.get(kind)
        what = act() if act is not None else self._stop(job)
        if what is None:
            return False
        self.events.append((round(time.monotonic() - self._began, 1), stage, kind, what))
        print(f"[chaos] {self.events[-1][0]:.0f} s, {stage}: {what}", flush=True)
        return True

    def _worker(self) -> str | None:
        """Kill a process that is at work: an actor, a task, a Serve replica."""
        found = at_work([raylet_of(node) for node in self._cluster.list_all_nodes()])
        if not found:
            return None
        # First a name: there are many more helpers of Ray Data than actors of ours.
        name = self.draw.choice(sorted({name for _, name in found}))
        pid = self.draw.choice([pid for pid, other in found if other == name])
        os.kill(pid, signal.SIGKILL)
        return f"killed {name}"

    def _node(self) -> str:
        """Kill a whole node, one that is at work where one is, and start another one after a while."""
        nodes = {raylet_of(node): node for node in self._cluster.worker_nodes}
        busy: dict[int, list[str]] = {}
        for pid, name in at_work(nodes):
            busy.setdefault(parent_of(pid), []).append(name)
        doomed = self.draw.choice(sorted(busy) or sorted(nodes))
        self._cluster.remove_node(nodes[doomed], allow_graceful=False)
        time.sleep(self.draw.uniform(1, 8))
        self._cluster.add_node(num_cpus=NODE_CPUS)
        return f"killed a node with {', '.join(sorted(busy.get(doomed, []))) or 'nothing at work'}"

    def _driver(self) -> str | None:
        """Kill the entrypoint of the job."""
        found = [pid for pid, command in commands() if "jobs/run_all.py" in command and "ray job submit" not in command]
        for pid in found:
            os.kill(pid, signal.SIGKILL)
        return "killed the driver" if found else None

    def _stop(self, job: str) -> str | None:
        """`ray job stop`, as a user does it."""
        command = [str(Path(sys.executable).with_name("ray")), "job", "stop", "--address", self._address, job]
        stopped = subprocess.run(command, capture_output=True, text=True, timeout=360, cwd=ROOT)
        return f"stopped {job}" if stopped.returncode == 0 else None


class Monkey(Disturber):
    """Kills something every now and then.

    Args:
        pause_s: least and most seconds between two kills.
    """

    def __init__(self, cluster: Any, address: str, seed: int, pause_s: tuple[float, float]) -> None:
        super().__init__(cluster, address, seed)
        self._pause_s = pause_s
        self._due = time.monotonic() + self.draw.uniform(*pause_s)

    def look(self, stage: str | None, job: str) -> None:
        if time.monotonic() >= self._due:
            self.disturb(self.draw.choices(list(KINDS), weights=list(KINDS.values()))[0], stage, job)
            self._due = time.monotonic() + self.draw.uniform(*self._pause_s)


class InEachStage(Disturber):
    """Disturbs every stage once, at a random moment of it.

    Args:
        kind: of `KINDS`.
        seconds: that the stages take undisturbed.
    """

    def __init__(self, cluster: Any, address: str, seed: int, kind: str, seconds: dict[str, float]) -> None:
        super().__init__(cluster, address, seed)
        self._kind, self._share = kind, {stage: self.draw.uniform(0.15, 0.85) for stage in STAGES}
        self._usual, self.left = seconds, set(STAGES)

    def look(self, stage: str | None, job: str) -> None:
        if stage not in self.left or self.seconds[stage] < self._share[stage] * self._usual[stage]:
            return
        if self.disturb(self._kind, stage, job):
            self.left.remove(stage)


def at_work(raylets: Collection[int]) -> list[tuple[int, str]]:
    """(process, name) of Ray's workers that are at work and may be killed, of the nodes with these raylets."""
    found = [(pid, command.split()[0]) for pid, command in commands() if command.startswith("ray::")]
    named = [(pid, name) for pid, name in found if not any(word in name for word in _SPARED)]
    return sorted((pid, name) for pid, name in named if parent_of(pid) in raylets)


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


def raylet_of(node: Any) -> int:
    """The process that starts a node's workers."""
    return int(node.all_processes["raylet"][0].process.pid)


def parent_of(pid: int) -> int:
    """The parent of a process, 0 where it is gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1])
    except OSError:
        return 0
