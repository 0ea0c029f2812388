"""The page of an evaluation: what a reward model scored on a benchmark, how sure that is, where it fails and what sways it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from wildreward_ray.report.dpo_outcome import signed
from wildreward_ray.report.evaluation_analyses import (
    bias_section,
    calibration_section,
    consistency_section,
    margins_section,
    scores_section,
    styles_section,
)
from wildreward_ray.report.evaluation_blocks import RM_BENCH, absent, ends, or_undefined, signed_ends
from wildreward_ray.report.evaluation_errors import errors_section
from wildreward_ray.report.evaluation_making import making_section
from wildreward_ray.report.evaluation_tables import (
    ACCURACY,
    LEVELS,
    UNDEFINED,
    Measured,
    incomplete,
    measured,
    metrics_block,
    metrics_of,
    model_name,
    reference_block,
    write_metric,
)
from wildreward_ray.report.markup import Child, Html, el
from wildreward_ray.report.page import (
    note,
    own_file,
    page,
    section,
    table,
    tile,
    tiles,
)
from wildreward_ray.report.values import (
    count,
    counts,
    decimal,
    mapping,
    moment,
    number,
    percent,
    rows,
    seconds,
    string,
    words,
)

Part = tuple[str, str, Sequence[Child]]


def evaluation_page(results: Mapping[str, Any]) -> str:
    """The page of an evaluation as one HTML text that loads nothing from anywhere. Whatever is missing is said to be missing.

    Args:
        results: content of results.json; any part of it may be missing, None or of another kind.
    """
    title = f"{model_name(results)} on {_benchmark(results)}"
    parts: list[Part] = [("metrics", "Metrics", _metrics(results))]
    if mapping(results.get("styles")) or results.get("benchmark") == RM_BENCH:
        parts.append(("styles", "Styles", styles_section(results)))
    parts += [
        ("scores", "Scores", scores_section(results)),
        ("margins", "Margins", margins_section(results)),
        ("calibration", "Calibration", calibration_section(results)),
        ("bias", "Bias", bias_section(results)),
        ("consistency", "Consistency across prompts", consistency_section(results)),
        ("errors", "Worst errors", errors_section(results)),
        ("making", "How it was made", making_section(results)),
    ]
    return str(
        page(
            title,
            el("h1", title),
            el("p", f"WildReward on Ray, evaluation of {moment(results.get('created'))}", class_="made"),
            el("p", _headline(results), class_="lead"),
            incomplete_box([results]),
            tiles(_tiles(results)),
            *(section(anchor, f"{i}. {name}", *body) for i, (anchor, name, body) in enumerate(parts, 1)),
            style=style(),
        )
    )


def style() -> str:
    """CSS of the pages of evaluations, after the common one."""
    return own_file("dpo.css") + own_file("evaluation.css")


def incomplete_box(found: Sequence[Mapping[str, Any]]) -> Html | None:
    """A box that names every evaluation whose number isn't the benchmark's own, and why; None if there is none."""
    reasons = [(model_name(results), incomplete(results)) for results in found]
    listed = [el("li", f"{name}: " if len(found) > 1 else None, "; ".join(why)) for name, why in reasons if why]
    if not listed:
        return None
    return el(
        "section",
        el("h2", "Incomplete: this is no official number"),
        el(
            "p",
            "The benchmark was not measured as a whole. The numbers here are over what was measured, and must not be "
            "compared with published ones.",
        ),
        el("ul", *listed),
        class_="alarms raised",
        id="incomplete",
    )


def _benchmark(results: Mapping[str, Any]) -> str:
    return string(results.get("title") or results.get("benchmark"))


def _headline(results: Mapping[str, Any]) -> str:
    accuracy = number(results.get(ACCURACY))
    if accuracy is None:
        return "The accuracy is not defined: nothing that was measured tells of it, or it was not recorded."
    interval = metrics_of(results).get(ACCURACY, Measured(None, None, None)).ends
    sure = f", 95 % interval {100 * interval[0]:.1f} to {percent(interval[1])}" if interval else ", without an interval"
    what = "Accuracy over what was measured" if incomplete(results) else "Accuracy"
    size = f"{count(results.get('items'))} prompts with {count(results.get('responses'))} responses"
    return f"{what}: {percent(accuracy)}{sure}. {size} of {_benchmark(results)}."


def _tiles(results: Mapping[str, Any]) -> list[Html]:
    metrics, pairs = metrics_of(results), mapping(results.get("pairs"))
    calibration, consistency = mapping(results.get("calibration")), mapping(results.get("consistency"))
    overall, speed = number(results.get("overall")), mapping(results.get("speed"))
    found = [
        tile(
            "Published number",
            UNDEFINED if overall is None else percent(overall),
            "What the benchmark's authors would report."
            if overall is not None
            else "Only a whole benchmark has one; see above for what was measured.",
        )
    ]
    levels = [metrics[level].value if level in metrics else None for level in LEVELS]
    if any(level is not None for level in levels):
        values = " / ".join(write_metric("", level, unit=False) for level in levels)
        found.append(
            tile("Easy / normal / hard, %", values, "The right reply has the richer, the same or the plainer style.")
        )
    size = f"{count(pairs.get('n'))} pairs: {string(pairs.get('are'))}. {count(pairs.get('ties'))} ties count as wrong."
    found += [
        tile("Pairs in order", or_undefined(pairs.get(ACCURACY)), f"{ends(measured(pairs, ACCURACY))}{size}"),
        tile("Calibration error", or_undefined(calibration.get("ece")), "ECE after Platt scaling on other pairs."),
        tile("Right against wrong, any prompts", or_undefined(consistency.get("auc")), "ROC-AUC of the raw scores."),
        _bias_tile(rows(mapping(results.get("bias")).get("observed"))),
    ]
    if speed:
        rate = number(speed.get("responses_per_s"))
        text = f"{seconds(speed.get('seconds'))} in all."
        found.append(tile("Responses a second", UNDEFINED if rate is None else decimal(rate), text))
    return found


def _bias_tile(observed: Sequence[Mapping[str, Any]]) -> Html:
    """The effect that is surest, by how far its interval keeps from 0."""
    effects = [(words(row.get("name")), string(row.get("unit")), measured(row, "effect")) for row in observed]
    sure = [(n, u, m) for n, u, m in effects if m.value is not None and m.ends and not m.ends[0] <= 0 <= m.ends[1]]
    if not sure:
        known = any(m.ends for _, _, m in effects)
        text = "No interval keeps off 0." if known else "Nothing was measured that tells of it."
        return tile("Surest bias", "none" if known else UNDEFINED, text)
    name, unit, m = max(sure, key=lambda entry: min(map(abs, entry[2].ends or (0.0,))))
    return tile(f"Surest bias: {name}", signed(m.value or 0.0), f"{unit}, 95 % interval {signed_ends(m)}.")


def _metrics(results: Mapping[str, Any]) -> list[Child]:
    sizes, excluded = counts(results.get("groups")), counts(results.get("excluded"))
    return [
        note(
            "Each metric as the benchmark's authors define it, with its 95 % bootstrap interval over prompts: had other "
            "prompts of the same kind been drawn, it would mostly lie in there. "
            f"Definition: {string(results.get('definition'))}"
        ),
        metrics_block(results),
        el("h3", "Beside published figures"),
        reference_block(results),
        el("h3", "What was measured"),
        table(["Group", "Prompts"], [[string(n), count(size)] for n, size in sizes.items()], numeric=(1,))
        if sizes
        else absent("Groups", "not recorded"),
        note(
            "Left out by the benchmark's own rules: "
            + (", ".join(f"{words(reason)} {count(n)}" for reason, n in excluded.items() if n) or "nothing")
            + "."
        ),
    ]
