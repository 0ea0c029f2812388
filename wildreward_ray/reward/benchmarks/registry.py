"""The benchmarks by the names that `--benchmark` takes."""

from __future__ import annotations

from wildreward_ray.reward.benchmarks.items import Benchmark
from wildreward_ray.reward.benchmarks.judgebench import JUDGEBENCH
from wildreward_ray.reward.benchmarks.labelled import LABELLED
from wildreward_ray.reward.benchmarks.pairs import PAIRS
from wildreward_ray.reward.benchmarks.ppe import PPE_CORRECTNESS, PPE_HUMAN
from wildreward_ray.reward.benchmarks.rewardbench import REWARDBENCH
from wildreward_ray.reward.benchmarks.rewardbench2 import REWARDBENCH2
from wildreward_ray.reward.benchmarks.rm_bench import RM_BENCH

BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        RM_BENCH,
        REWARDBENCH,
        REWARDBENCH2,
        PPE_HUMAN,
        PPE_CORRECTNESS,
        JUDGEBENCH,
        PAIRS,
        LABELLED,
    )
}
"""In the order of `core.config.evaluate.BenchmarkName`."""
