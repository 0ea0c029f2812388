"""Sections on what flows through an online DPO run: which prompts give pairs, and where the time of a step goes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from wildreward_ray.report.dpo_charts import Line, Mark, line, line_chart, stacked_columns
from wildreward_ray.report.markup import Html
from wildreward_ray.report.page import facts, figure, grid, not_run, note, section, table
from wildreward_ray.report.values import ABSENT, count, counts, decimal, mapping, number, percent, seconds, words

Rows = Sequence[Mapping[str, Any]]

# What becomes of a prompt, from the bottom of a column up; the colours are those of dpo.css.
_REASONS = {
    "margin": "The best reply's reward is not far enough above the worst one's.",
    "identical": "Best and worst reply are the same text.",
    "similar": "Best and worst reply share nearly all their words.",
    "unsure": "The reward model's own probabilities leave open which reply is better.",
    "unfinished": "Too few replies ended before they were cut off.",
    "too_few": "Fewer than two replies can be compared.",
    "refused": "The reward service refuses the request.",
    "unavailable": "The reward service did not answer.",
}
_OTHER = "other"
_PARTS = {
    "rollout": "Writing replies.",
    "score": "Waiting for their rewards.",
    "learn": "The update of the policy.",
    "sync": "Handing the new weights to the engines that write.",
    "step": "From one step to the next.",
}
_WAITING = {
    "rollout": "Share of the time in which no replies were written.",
    "reward": "Share in which no rewards were asked for.",
    "learner": "Share in which the policy was not updated.",
}


def pairs_section(steps: Rows, allowed_staleness: float | None) -> Html:
    """Section 3: which prompts gave a pair, why the others didn't, and how old the sampling weights were."""
    title = "3. Pairs"
    if not steps:
        return section("pairs", title, not_run("Pairing"))
    entries = sorted(((_step(row, i), _kinds(row)) for i, row in enumerate(steps)), key=lambda entry: entry[0])
    totals = {key: math.fsum(found.get(key, 0.0) for _, found in entries) for key in ("pairs", *_REASONS, _OTHER)}
    kinds = [(key, _kind(key), f"var(--pair-{key.replace('_', '-')})") for key in totals]
    whole = math.fsum(totals.values())
    meanings = {"pairs": "Gave a pair to learn from.", **_REASONS, _OTHER: "Any other reason."}
    # Where all are 0 nothing is listed, and no share would be defined.
    named = [(key, n) for key, n in totals.items() if whole and (n or key == "pairs")]
    listed = [[_kind(key), count(n), percent(n / whole), meanings[key]] for key, n in named]
    mark = Mark(f"allowed {allowed_staleness:g}", allowed_staleness) if allowed_staleness is not None else None
    return section(
        "pairs",
        title,
        note("Of the replies to a prompt the best and the worst make a pair, unless a rule speaks against it."),
        grid(
            figure(
                "What became of the prompts",
                stacked_columns("What became of the prompts", entries, kinds, y_title="prompts a step"),
                "A column is a step, or the mean of several. Training learns from the lowest part alone: as it shrinks, there is less "
                "and less to learn.",
            ),
            figure(
                "In numbers",
                table(["Prompts", "Number", "Share", "Why"], listed, numeric=(1, 2)) if listed else None,
                "Sums over all steps; a prompt counts once for every time it was sampled.",
            ),
            figure(
                "Reward gap of the pairs",
                line_chart(
                    "Reward gap",
                    [line("of the pairs", steps, "margin"), line("of all prompts", steps, "reward_range")],
                    y_title="reward",
                    zero=True,
                ),
                "Reward of the best reply minus that of the worst one; without a gap there is nothing to learn.",
            ),
            figure(
                "Staleness",
                line_chart("Staleness", [line("lag", steps, "staleness")], y_title="steps", zero=True, mark=mark),
                "By how many updates the weights that wrote the replies lag behind those that learn from them; 0 is strictly "
                "on-policy.",
            ),
        ),
    )


def time_section(steps: Rows, summary: Mapping[str, Any]) -> Html:
    """Section 4: throughput, and where the time of a step goes."""
    title = "4. Time"
    if not steps:
        return section("time", title, not_run("Measurement of time"))
    took = mapping(summary.get("time"))
    known = [
        (
            "step, warmed up",
            seconds(took.get("step_seconds")),
            "Mean time from one step to the next, without the first ones.",
        ),
        ("slowest part", words(took.get("slowest_part")), "What the rest of the step waits for."),
        (
            "overlap ratio",
            decimal(took.get("overlap_ratio")),
            "Time of a step over that of its slowest part; 1 would be perfect overlap.",
        ),
    ]
    spent = [(words(key), _mean(steps, "seconds", key), meaning) for key, meaning in _PARTS.items()]
    waited = [(f"{key} idle", _mean(steps, "idle", key), meaning) for key, meaning in _WAITING.items()]
    return section(
        "time",
        title,
        note(
            "Parts of different steps run at the same time where weights may lag, so they can add up to more than the step."
        ),
        grid(
            figure(
                "Seconds of a step",
                line_chart("Seconds of a step", _lines(_PARTS, steps, "seconds"), y_title="seconds", zero=True),
                "How long each part took. The step can't be shorter than its slowest part.",
            ),
            figure(
                "Idle shares",
                line_chart(
                    "Idle shares", _lines(_WAITING, steps, "idle"), y_title="share of the step's time", zero=True
                ),
                "What stands idle could do more; what is never idle limits the run.",
            ),
            figure(
                "Throughput",
                line_chart(
                    "Throughput",
                    [line("written", steps, "rollout_tokens_per_s"), line("learnt", steps, "learn_tokens_per_s")],
                    y_title="tokens a second",
                    zero=True,
                ),
                "Tokens written and tokens learnt from, each a second of its own part.",
            ),
            figure(
                "In numbers",
                facts(
                    *((name, value, meaning) for name, value, meaning in known if value != ABSENT),
                    *((name, seconds(value), meaning) for name, value, meaning in spent if value is not None),
                    *((name, percent(value), meaning) for name, value, meaning in waited if value is not None),
                ),
                "Parts and idle shares are means of all steps.",
            ),
        ),
    )


def _lines(names: Mapping[str, str], steps: Rows, group: str) -> list[Line]:
    return [line(words(key), steps, f"{group}.{key}") for key in names]


def _step(row: Mapping[str, Any], position: int) -> float:
    step = number(row.get("step"))
    return float(position) if step is None else step


def _kinds(row: Mapping[str, Any]) -> dict[str, float]:
    """What became of the prompts of a step; reasons that this page doesn't know count as others."""
    found = {"pairs": max(number(row.get("pairs")) or 0.0, 0.0)}
    for reason, n in counts(row.get("skipped")).items():
        key = reason if reason in _REASONS else _OTHER
        found[key] = found.get(key, 0.0) + max(n, 0.0)
    return found


def _kind(key: str) -> str:
    return "pairs" if key == "pairs" else words(key)


def _mean(steps: Rows, group: str, key: str) -> float | None:
    found = [n for n in (number(mapping(row.get(group)).get(key)) for row in steps) if n is not None]
    return math.fsum(found) / len(found) if found else None
