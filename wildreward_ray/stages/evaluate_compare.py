"""`wildreward evaluate --compare A B`: evaluations of one benchmark side by side, and how sure their differences are."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from wildreward_ray.cluster.artifact import open_artifact
from wildreward_ray.core.config.evaluate import EvaluateConfig
from wildreward_ray.core.errors import UserError
from wildreward_ray.core.manifest import Manifest
from wildreward_ray.reward.benchmarks.estimate import compare
from wildreward_ray.reward.benchmarks.items import Floats, Pair, some
from wildreward_ray.reward.benchmarks.registry import BENCHMARKS
from wildreward_ray.stages.evaluate_files import PAGE, RESULTS, TABLES, Evaluation, read_evaluation, write_json
from wildreward_ray.stages.evaluate_results import error_entry

_SHOWN = 20
_FLAG = "--compare"


def run(config: EvaluateConfig) -> dict[str, Any]:
    """Compare. Returns the comparison: `results` of every evaluation, `differences` from the first one, `errors`.

    Raises:
        UserError: an evaluation that is not there or not whole, or two of different benchmarks or prompts.
    """
    started = time.monotonic()
    if config.compare is None:
        raise ValueError("nothing to compare")
    found = [read_evaluation(uri) for uri in config.compare]
    base, others = found[0], found[1:]
    for other in others:
        _check_comparable(base, other)
    results = [evaluation.results for evaluation in found]
    comparison = {
        "results": results,
        "differences": [_differences(config, base, other) for other in others],
        # With several others the pairs to read are those of the first.
        "errors": _changed(base, others[0], found),
    }
    with open_artifact(config.output, overwrite=config.overwrite) as artifact:
        from wildreward_ray.report.evaluation_compare import compare_page
        from wildreward_ray.report.evaluation_tables import latex_table, markdown_table

        work = artifact.work
        write_json(work.child(RESULTS), comparison)
        work.child(PAGE).write_bytes(compare_page(comparison).encode())
        for name, table in zip(TABLES, (markdown_table, latex_table), strict=True):
            work.child(name).write_bytes(table(results).encode())
        manifest = Manifest(
            kind="comparison",
            inputs=list(config.compare),
            config=config.model_dump(mode="json"),
            seconds=round(time.monotonic() - started, 1),
        )
        artifact.commit(manifest, [RESULTS, PAGE, *TABLES])
    return comparison


def _check_comparable(base: Evaluation, other: Evaluation) -> None:
    names = base.results["benchmark"], other.results["benchmark"]
    if names[0] != names[1]:
        raise UserError(f"{base.uri!r} is of {names[0]} and {other.uri!r} of {names[1]}", flag=_FLAG)
    theirs = {item.id: item for item in other.items}
    differing = [
        item.id
        for item in base.items
        if item.id not in theirs or (theirs[item.id].prompt, theirs[item.id].responses) != (item.prompt, item.responses)
    ]
    differing += sorted(theirs.keys() - {item.id for item in base.items})
    if differing:
        raise UserError(
            f"{other.uri!r} was measured on other prompts than {base.uri!r}: {len(differing)} differ, {some(differing)}",
            flag=_FLAG,
        )


def _differences(config: EvaluateConfig, base: Evaluation, other: Evaluation) -> dict[str, dict[str, float | None]]:
    benchmark = BENCHMARKS[base.results["benchmark"]]
    found = compare(benchmark, other.outcomes, base.outcomes, resamples=config.bootstrap, seed=config.seed)
    return {
        name: {"a": d.b, "b": d.a, "difference": d.difference, "low": d.low, "high": d.high, "p": d.p}
        for name, d in found.items()
    }


def _changed(base: Evaluation, other: Evaluation, found: Sequence[Evaluation]) -> dict[str, list[dict[str, Any]]]:
    """Pairs that one of two evaluations has in order and the other hasn't, the largest change first; one an item at the most."""
    scores = [{item.id: own for item, own in zip(e.items, e.scores, strict=True)} for e in found]
    theirs = scores[found.index(other)]
    changed: dict[str, list[tuple[float, dict[str, Any]]]] = {"fixed": [], "broken": []}
    for item, own, pairs in zip(base.items, base.scores, base.pairs, strict=True):
        moves = [(_gap(own, pair), _gap(theirs[item.id], pair), pair) for pair in pairs]
        for name, flipped in (
            ("fixed", [m for m in moves if m[0] <= 0 < m[1]]),
            ("broken", [m for m in moves if m[1] <= 0 < m[0]]),
        ):
            if flipped:
                before, after, pair = max(flipped, key=lambda m: abs(m[1] - m[0]))
                entry = error_entry(item, own, pair)
                del entry["right_score"], entry["wrong_score"]
                entry["scores"] = [[float(e[item.id][side]) for side in pair] for e in scores]
                changed[name].append((abs(after - before), entry))
    return {
        name: [entry for _, entry in sorted(entries, key=lambda e: (-e[0], e[1]["id"]))[:_SHOWN]]
        for name, entries in changed.items()
    }


def _gap(scores: Floats, pair: Pair) -> float:
    return float(scores[pair[0]] - scores[pair[1]])
