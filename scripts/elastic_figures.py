"""Figures of elastic runs, worked out from what was seen of them."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

Cluster = Sequence[tuple[float, int, int, int]]
"""(seconds, worker nodes, judges at work, judges that wait or start), a row for each change."""
Points = Sequence[tuple[float, int]]


def first_time(rows: Iterable[tuple[float, int]], least: int) -> float | None:
    """Seconds until a number first is `least` or more."""
    return next((seconds for seconds, value in rows if value >= least), None)


def extract_figures(cluster: Cluster, judged: Points, ended_s: float) -> dict[str, Any]:
    """How long growing and shrinking took, and how fast how many judges were.

    Args:
        judged: (seconds, interactions so far) of each part.
        ended_s: when the command ended.

    Returns:
        seconds from submission to the first node, all nodes, the first judge and all judges; from the end to no node;
        `rates`, see `rates_by_judges`.
    """
    nodes = [(seconds, n) for seconds, n, _, _ in cluster]
    judges = [(seconds, n) for seconds, _, n, _ in cluster]
    most_nodes, most_judges = max(n for _, n in nodes), max(n for _, n in judges)
    gone = next((seconds for seconds, n in nodes if seconds >= ended_s and n == 0), None)
    return {
        "most_nodes": most_nodes,
        "most_judges": most_judges,
        "first_node_s": first_time(nodes, 1),
        "first_judge_s": first_time(judges, 1),
        "all_nodes_s": first_time(nodes, most_nodes),
        "all_judges_s": first_time(judges, most_judges),
        "end_to_no_node_s": None if gone is None else round(gone - ended_s, 1),
        "rates": rates_by_judges(cluster, judged),
    }


def rates_by_judges(cluster: Cluster, judged: Points) -> dict[str, dict[str, float]]:
    """Interactions a second by the number of judges at work, between the first part and the last.

    A part counts where it was written. Its judging began before, so a short time after a change has the rate of both.

    Returns:
        by number of judges: `seconds`, how many of them another judge was starting in (`starting_s`), `interactions`,
        and `per_s`.
    """
    first, last = judged[0][0], judged[-1][0]
    found: dict[str, dict[str, float]] = {}
    for (begin, _, judges, starting), (end, *_) in pairwise([*cluster, (max(last, cluster[-1][0]), 0, 0, 0)]):
        begin, end = max(begin, first), min(end, last)
        if end <= begin or not judges:
            continue
        row = found.setdefault(str(judges), {"seconds": 0.0, "starting_s": 0.0, "interactions": 0})
        row["seconds"] += end - begin
        row["starting_s"] += end - begin if starting else 0.0
        row["interactions"] += done_by(judged, end) - done_by(judged, begin)
    for row in found.values():
        row["per_s"] = round(row["interactions"] / row["seconds"], 1)
        row |= {name: round(row[name], 1) for name in ("seconds", "starting_s")}
    return dict(sorted(found.items()))


def done_by(points: Points, seconds: float) -> int:
    """The count at a time."""
    return max((count for at, count in points if at <= seconds), default=0)


def train_figures(
    steps: Points, starts: Sequence[tuple[float, int, int]], curve: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """What every start of the workers cost, and how fast how many workers were.

    Args:
        steps: (seconds, step) when a step was first done.
        starts: (seconds, workers, steps that were behind them) of every start of the workers.
        curve: rows of `curve.jsonl`: `workers`, `seconds`.

    Returns:
        `resizes`: for each start but the first, `workers`, `repeated` (steps done before that were done again) and `held_up_s`
        (from the last new step before it to the first new step after it); `steps_per_s` by number of workers, from the
        median step.
    """
    resizes = []
    for at, workers, behind in starts[1:]:
        # What is heard of in the same moment comes after the start.
        reached = max(step for seconds, step in steps if seconds < at)
        last = max(seconds for seconds, step in steps if step <= reached)
        following = [seconds for seconds, step in steps if step > reached]
        held_up = round(min(following) - last, 1) if following else None
        resizes.append({"workers": workers, "repeated": reached - behind, "held_up_s": held_up})
    by_workers: dict[int, list[float]] = {}
    for row in curve:
        by_workers.setdefault(row["workers"], []).append(row["seconds"])
    pace = {str(n): round(1 / statistics.median(seconds), 2) for n, seconds in sorted(by_workers.items())}
    return {"resizes": resizes, "steps_per_s": pace}
