"""Memory of the reward service's processes, read from /proc, and how it grows with the requests."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

# What Ray and vLLM call their processes, and what that is to the service.
_ROLES = (
    ("api", re.compile(r"ServeReplica:[^:]*:\w*Api")),
    ("engine", re.compile(r"ServeReplica:")),
    ("engine_core", re.compile(r"EngineCore")),
    ("proxy", re.compile(r"ProxyActor|HAProxy|haproxy")),
    ("controller", re.compile(r"ServeController")),
)


@dataclass(frozen=True)
class Process:
    """A process of the service.

    Attributes:
        role: `api`, `engine`, `engine_core` (the part of a vLLM engine that runs the model), `proxy` or `controller`.
        mib: resident memory.
    """

    pid: int
    role: str
    mib: float


def service_processes(root: int) -> list[Process]:
    """The service's processes among the descendants of process `root`: other clusters of the machine don't count."""
    found = []
    for pid in _descendants(root):
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue  # it has ended since
        role = role_of(command)
        resident = re.search(r"^VmRSS:\s+(\d+) kB$", status, re.MULTILINE)
        # One that has ended and is waited for has no memory.
        if role is not None and resident is not None:
            found.append(Process(pid, role, int(resident[1]) / 1024))
    return found


def role_of(command: str) -> str | None:
    """What a process with this command line is to the service, or None."""
    return next((role for role, pattern in _ROLES if pattern.search(command)), None)


def memory(root: int) -> dict[str, float]:
    """Resident MiB by role; those of several processes are added up, pages they share counted in each."""
    total: dict[str, float] = {}
    for process in service_processes(root):
        total[process.role] = total.get(process.role, 0.0) + process.mib
    return total


def _descendants(root: int) -> Iterator[int]:
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            # The name may hold blanks and brackets; what follows its last bracket are state and parent.
            parent = int((folder / "stat").read_text(errors="replace").rpartition(")")[2].split()[1])
        except OSError:
            continue
        children.setdefault(parent, []).append(int(folder.name))
    waiting = list(children.get(root, []))
    while waiting:
        pid = waiting.pop()
        yield pid
        waiting += children.get(pid, [])


def growth(samples: Sequence[tuple[int, Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    """How memory grew, by role.

    Args:
        samples: (requests so far, MiB by role), in order.

    Returns:
        by role, MiB: `at_10_percent` of the requests, `at_end`, and `per_10k` requests: the slope of a least-squares line
        through the samples from 10 percent on. What is taken before that is warming up, not a leak.
    """
    last = samples[-1][0]
    late = [(requests, sample) for requests, sample in samples if requests * 10 >= last]
    found = {}
    for role in samples[-1][1]:
        points = [(requests, sample[role]) for requests, sample in late if role in sample]
        if len(points) > 1:
            slope = float(np.polyfit([requests for requests, _ in points], [mib for _, mib in points], 1)[0])
            found[role] = {"at_10_percent": points[0][1], "at_end": points[-1][1], "per_10k": slope * 10_000}
    return found
