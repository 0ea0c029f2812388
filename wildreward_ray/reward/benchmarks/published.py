"""Reward-model results as the paper's authors give them, to put beside what is measured.

None of these figures was measured here. They come from the table of reward-model results of arXiv 2602.08829, in
percent with one decimal. RM-Bench's accuracy is the mean of its easy, normal and hard, as the benchmark defines it.

The JudgeBench column can't be the share over all pairs of the benchmark: 65.8, 66.5, 70.1 and 70.2 are no whole number
of its 350 pairs of GPT-4o, 59.7, 66.0 and others none of its 270 of Claude, and 70.1 is none of all 620. It may be a
mean over categories, so read its distance to an `accuracy` with care.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SOURCE = "the authors' figures (WildReward, arXiv 2602.08829, table of reward-model results), not measured here"

_COLUMNS: Mapping[str, Mapping[str, int]] = {
    "rewardbench": {"accuracy": 0},
    "rm_bench": {"easy": 1, "normal": 2, "hard": 3},
    "ppe_human": {"accuracy": 4},
    "ppe_correctness": {"accuracy": 5},
    "judgebench": {"accuracy": 6},
}
# RewardBench, RM-Bench easy, normal, hard, PPE human, PPE correctness, JudgeBench.
_PERCENT: Mapping[str, tuple[float, ...]] = {
    "ArmoRM-Llama3-8B": (90.4, 80.4, 71.5, 55.8, 60.6, 60.6, 59.7),
    "Athene-RM-8B": (84.8, 89.8, 76.6, 51.4, 64.6, 62.0, 70.1),
    "Skywork-Reward-Llama-3.1-8B-v0.2": (93.1, 70.5, 74.2, 49.3, 62.2, 62.5, 62.9),
    "Skywork-Reward-Gemma-2-27B-v0.2": (94.3, 88.9, 71.9, 42.1, 63.6, 61.9, 66.5),
    "Llama-3.1-Nemotron-70B": (93.9, 92.2, 76.5, 47.8, 64.2, 63.2, 65.8),
    "INF-ORM-Llama3.1-70B": (95.1, 92.1, 80.0, 54.0, 64.2, 64.4, 70.2),
    "WildReward-4B": (83.6, 82.0, 77.0, 68.6, 61.6, 63.6, 61.1),
    "WildReward-8B": (86.0, 83.5, 78.4, 69.7, 62.5, 65.6, 66.0),
}


def reference_rows(benchmark: str) -> list[dict[str, Any]]:
    """The table's rows for a benchmark, in its order.

    Args:
        benchmark: as `--benchmark` takes it.

    Returns:
        `model`, and `metrics` in shares from 0 to 1, `accuracy` first. Empty for a benchmark that the table lacks.
    """
    columns = _COLUMNS.get(benchmark, {})
    return [{"model": model, "metrics": _metrics(columns, row)} for model, row in _PERCENT.items() if columns]


def _metrics(columns: Mapping[str, int], percent: tuple[float, ...]) -> dict[str, float]:
    shares = {metric: percent[column] / 100 for metric, column in columns.items()}
    return {"accuracy": sum(shares.values()) / len(shares), **shares}
