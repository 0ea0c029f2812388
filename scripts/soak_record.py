"""What a soak of the reward service saw, minute by minute, as JSON and as a picture."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

SAME = 1e-3
"""Largest difference between a score and the right one; engines add in another order."""
# What a request that must be refused may get instead of a 4xx: the service is busy or between two replicas.
_BUSY = frozenset({503})
_SHOWN = 20


@dataclass
class Minute:
    """One minute.

    Attributes:
        requests, items: answered.
        wrong: items whose score was not the right one.
        failed: requests that the client gave up, and refused ones that got another status than they should.
        retries: requests that the client sent again.
        statuses: replies by status, as the client's caller sees them.
        latencies: seconds, of answered requests, retries included.
        replicas: engine replicas, one number a sample.
        orphans: most engine processes alive whose replica was not.
        mib: resident memory by role, the largest of the minute.
        incidents: what was done to the service.
    """

    requests: int = 0
    items: int = 0
    wrong: int = 0
    failed: int = 0
    retries: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    latencies: list[float] = field(default_factory=list)
    replicas: list[int] = field(default_factory=list)
    orphans: int = 0
    mib: dict[str, float] = field(default_factory=dict)
    incidents: list[str] = field(default_factory=list)

    def row(self) -> dict[str, Any]:
        """This minute as JSON values."""
        p50, p99 = np.percentile(self.latencies, [50, 99]).round(4).tolist() if self.latencies else (None, None)
        return {
            "requests": self.requests,
            "items": self.items,
            "wrong": self.wrong,
            "failed": self.failed,
            "retries": self.retries,
            "statuses": dict(self.statuses),
            "p50_s": p50,
            "p99_s": p99,
            "replicas": [min(self.replicas), max(self.replicas)] if self.replicas else None,
            "orphans": self.orphans,
            "mib": {role: round(mib) for role, mib in sorted(self.mib.items())},
            "incidents": self.incidents,
        }


class Record:
    """Counts by minute.

    Args:
        clock: seconds from some beginning.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._begin = clock, clock()
        self.minutes: list[Minute] = [Minute()]
        self.problems: list[str] = []
        self.problem_count = 0
        self.worst_difference = 0.0

    def now(self) -> Minute:
        """The minute that runs."""
        while len(self.minutes) <= (self._clock() - self._begin) // 60:
            self.minutes.append(Minute())
        return self.minutes[-1]

    def answered(self, seconds: float, scores: Sequence[float], right: Sequence[float]) -> None:
        """An answered request with the scores it got and the right ones."""
        minute = self.now()
        differences = [abs(got - wanted) for got, wanted in zip(scores, right, strict=True)]
        # Written so that NaN is wrong.
        wrong = [d for d in differences if not d <= SAME]
        minute.requests += 1
        minute.items += len(differences)
        minute.wrong += len(wrong)
        minute.statuses["200"] += 1
        minute.latencies.append(seconds)
        self.worst_difference = max(self.worst_difference, *differences)
        if wrong:
            self.problem(f"{len(wrong)} of {len(differences)} scores are wrong, by {max(wrong):.4g} at the most")

    def failed(self, status: int | None, reason: str) -> None:
        """A request that the client could not get answered."""
        minute = self.now()
        minute.failed += 1
        minute.statuses[str(status or "none")] += 1
        self.problem(reason)

    def refused(self, status: int, name: str) -> None:
        """What a request that must be refused got."""
        minute = self.now()
        minute.statuses[str(status)] += 1
        if not 400 <= status < 500 and status not in _BUSY:
            minute.failed += 1
            self.problem(f"the bad request {name!r} got status {status}")

    def retried(self) -> None:
        """The client sends a request again."""
        self.now().retries += 1

    def incident(self, what: str) -> None:
        """Something was done to the service."""
        self.now().incidents.append(what)
        print(f"[soak] {self._clock() - self._begin:6.0f} s  {what}", flush=True)

    def sample(self, replicas: int, orphans: int, mib: Mapping[str, float]) -> None:
        """What the service's processes were at some moment."""
        minute = self.now()
        minute.replicas.append(replicas)
        minute.orphans = max(minute.orphans, orphans)
        minute.mib = {role: max(minute.mib.get(role, 0.0), mib.get(role, 0.0)) for role in {*minute.mib, *mib}}

    def problem(self, what: str) -> None:
        """Something that must not happen; the first ones are kept."""
        self.problem_count += 1
        if len(self.problems) < _SHOWN:
            self.problems.append(what)
            print(f"[soak] PROBLEM: {what}", flush=True)

    def summary(self) -> dict[str, Any]:
        """Everything as JSON values."""
        latencies = [s for minute in self.minutes for s in minute.latencies]
        statuses: Counter[str] = sum((minute.statuses for minute in self.minutes), Counter())
        p50, p99 = np.percentile(latencies, [50, 99]).round(4).tolist() if latencies else (None, None)
        return {
            "clean": not self.problem_count,
            **{
                name: sum(getattr(minute, name) for minute in self.minutes)
                for name in ("requests", "items", "wrong", "failed", "retries")
            },
            "worst_difference": self.worst_difference,
            "p50_s": p50,
            "p99_s": p99,
            "statuses": dict(statuses),
            "replicas_seen": sorted({n for minute in self.minutes for n in minute.replicas}),
            "problem_count": self.problem_count,
            "problems": self.problems,
            "minutes": [minute.row() for minute in self.minutes],
        }

    def write(self, folder: Path) -> None:
        """`soak.json` and `soak.png`."""
        summary = self.summary()
        (folder / "soak.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
        draw(summary["minutes"], folder / "soak.png")


def draw(minutes: Sequence[Mapping[str, Any]], file: Path) -> None:
    """The minutes as a picture: requests, latency, replicas and memory, with incidents as lines."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(4, 1, sharex=True, figsize=(10, 9))
    x = range(len(minutes))
    axes[0].bar(x, [m["requests"] for m in minutes], color="tab:blue")
    axes[0].set_ylabel("requests")
    for name in ("p50_s", "p99_s"):
        axes[1].plot(x, [np.nan if m[name] is None else m[name] for m in minutes], marker=".", label=name[:3])
    axes[1].set_ylabel("latency, s")
    axes[1].set_yscale("log")
    for side, name in enumerate(("fewest", "most")):
        axes[2].step(x, [m["replicas"][side] if m["replicas"] else np.nan for m in minutes], where="mid", label=name)
    axes[2].set_ylabel("engine replicas")
    for role in sorted({role for m in minutes for role in m["mib"]}):
        axes[3].plot(x, [m["mib"].get(role, np.nan) for m in minutes], marker=".", label=role)
    axes[3].set_ylabel("MiB")
    axes[3].set_xlabel("minute")
    for axis in axes[1:]:
        if axis.get_legend_handles_labels()[1]:
            axis.legend(fontsize=7)
    for number, minute in enumerate(minutes):
        for offset, what in enumerate(minute["incidents"]):
            axes[0].axvline(number, color="tab:red", alpha=0.4)
            axes[0].text(
                number, 0, f" {what[:24]}", rotation=90, fontsize=6, va="bottom", ha=("left", "right")[offset % 2]
            )
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    plt.close(figure)
