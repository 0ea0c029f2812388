"""Everything an evaluation says of a reward model, from the scores of a benchmark's items, as one JSON-ready mapping."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from wildreward_ray.core.config.evaluate import EvaluateConfig
from wildreward_ray.core.manifest import versions
from wildreward_ray.feedback.refusal import is_refusal
from wildreward_ray.reward.benchmarks.bias import observed
from wildreward_ray.reward.benchmarks.consistency import consistency, distributions
from wildreward_ray.reward.benchmarks.estimate import measure
from wildreward_ray.reward.benchmarks.items import Benchmark, Floats, Item, Outcomes, Reading
from wildreward_ray.reward.benchmarks.margins import PairScores, margin_curve, margin_table, pair_scores, pair_summary
from wildreward_ray.reward.benchmarks.pair_calibration import pair_calibration
from wildreward_ray.reward.benchmarks.probes import probe_effects
from wildreward_ray.reward.benchmarks.published import SOURCE, reference_rows
from wildreward_ray.reward.benchmarks.rm_bench import RM_BENCH, style_matrices

_WORST = 30


@dataclass(frozen=True)
class Scored:
    """A benchmark's items with their scores.

    Attributes:
        benchmark: what they are items of.
        reading: the items, what is missing, and what the benchmark leaves out.
        scores: [R] of every item, finite.
        varied: probe -> item id -> [R] scores of the changed replies; None where nothing was probed.
    """

    benchmark: Benchmark
    reading: Reading
    scores: Sequence[Floats]
    varied: Mapping[str, Mapping[str, Floats]] | None


def measured(
    config: EvaluateConfig, found: Scored, *, source: Mapping[str, Any], speed: Mapping[str, Any] | None
) -> tuple[dict[str, Any], Outcomes]:
    """The content of results.json, and the outcomes that comparisons with other models need.

    Args:
        source: where the scores come from.
        speed: how fast they were computed; None where they were given.
    """
    benchmark, items, scores = found.benchmark, found.reading.items, found.scores
    resamples, seed = config.bootstrap, config.seed
    outcomes = benchmark.outcomes(items, scores)
    metrics = measure(benchmark, outcomes, resamples=resamples, seed=seed)
    complete = not found.reading.missing and config.limit is None
    accuracy = metrics["accuracy"].value
    pairs = pair_scores(benchmark, items, scores)
    return {
        "benchmark": benchmark.name,
        "title": benchmark.title,
        "definition": benchmark.definition,
        "name": config.name or source["given"],
        "source": dict(source),
        "items": len(items),
        "responses": sum(len(item.responses) for item in items),
        "groups": dict(Counter(item.group for item in items)),
        "missing": list(found.reading.missing),
        "limit": config.limit,
        "complete": complete,
        "excluded": dict(found.reading.excluded),
        "accuracy": accuracy,
        "overall": accuracy if complete else None,
        "metrics": {name: asdict(estimate) for name, estimate in metrics.items()},
        "pairs": pair_summary(benchmark, pairs, resamples=resamples, seed=seed),
        "margins": {"table": margin_table(pairs, resamples=resamples, seed=seed), "curve": margin_curve(pairs)},
        "calibration": pair_calibration(pairs, splits=config.splits, seed=seed),
        "consistency": consistency(items, scores, resamples=resamples, seed=seed),
        "bias": {
            "observed": observed(items, scores, is_refusal, resamples=resamples, seed=seed),
            "probes": None
            if found.varied is None
            else probe_effects(items, scores, found.varied, is_refusal, resamples=resamples, seed=seed),
        },
        "distributions": distributions(items, scores),
        "styles": style_matrices(items, scores) if benchmark is RM_BENCH else None,
        "errors": worst(benchmark, items, scores, pairs),
        "reference": reference_rows(benchmark.name),
        "reference_source": SOURCE,
        "speed": None if speed is None else dict(speed),
        "versions": versions(),
        "config": config.model_dump(mode="json"),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }, outcomes


def worst(
    benchmark: Benchmark, items: Sequence[Item], scores: Sequence[Floats], pairs: PairScores
) -> list[dict[str, Any]]:
    """The pairs that were furthest from their right order, at most one an item, worst first."""
    gaps = iter(pairs.gap.tolist())
    found = []
    for item, own in zip(items, scores, strict=True):
        # In the order in which `pair_scores` lists them.
        listed = [(next(gaps), pair) for pair in benchmark.pairs(item)]
        if listed:
            gap, pair = min(listed)
            if gap <= 0:
                found.append((gap, item, own, pair))
    found.sort(key=lambda one: (one[0], one[1].id))
    return [error_entry(item, own, pair) for _, item, own, pair in found[:_WORST]]


def error_entry(item: Item, scores: Floats, pair: tuple[int, int]) -> dict[str, Any]:
    """A pair to read: its texts and its scores."""
    right, wrong = pair
    return {
        "id": item.id,
        "group": item.group,
        "history": [dict(message) for message in item.history],
        "prompt": item.prompt,
        "right": item.responses[right],
        "wrong": item.responses[wrong],
        "right_score": float(scores[right]),
        "wrong_score": float(scores[wrong]),
    }
