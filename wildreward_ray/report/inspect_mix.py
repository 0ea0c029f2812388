"""Sections on an extraction's levels: how they differ between groups of rows, and how sure the judge is of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from wildreward_ray.core.scale import LEVEL_NAMES
from wildreward_ray.report.inspect_charts import Group, columns, level_matrix, level_mix, level_numbers
from wildreward_ray.report.inspect_groups import FURTHER, NOT_RECORDED, Mix
from wildreward_ray.report.inspect_stats import BINS, CONFIDENCE_STEPS, MAX_ENTROPY, Statistics, length_names
from wildreward_ray.report.markup import Html, el, join
from wildreward_ray.report.page import figure, grid, note, section, table
from wildreward_ray.report.values import count, decimal, percent

_MAX_GROUPS = 12


def mix_section(stats: Statistics) -> Html:
    """Section 2: final levels, over all rows and by group."""
    mixes = stats.mixes
    turns = sorted(mixes["turn"].counts)
    final = [(f"{level} {name}", int(stats.levels[level])) for level, name in LEVEL_NAMES.items()]
    n = int(stats.levels[1:].sum())
    unlabelled = int(stats.levels[0])
    return section(
        "mix",
        "2. Label mix",
        note(
            "Each bar is the whole of one group, divided into its final levels from 1 (rejection, left) to 5 (satisfaction, "
            "right); the number of rows stands behind it. Groups that differ much more than their readers do point to the "
            "judge, not to the replies."
            + (f" {count(unlabelled)} rows have no level and are left out." if unlabelled else "")
        ),
        table(
            ["Final level", "Rows", "Share"],
            [[k, count(v), percent(v / n) if n else "n/a"] for k, v in final],
            numeric=(1, 2),
        ),
        grid(
            _mix(
                "Language", stats.has("language"), _largest(mixes["language"]), "As the logs name it, or as detected."
            ),
            _mix("Model that replied", stats.has("model"), _largest(mixes["model"]), "As the logs name it."),
            _mix(
                "Origin",
                stats.has("origin"),
                _largest(mixes["origin"]),
                "Read from the next message, mined, or a refusal.",
            ),
            _mix(
                "Turn", stats.has("turn"), _groups(mixes["turn"], turns), "Position of the reply in its conversation."
            ),
            _mix(
                "Length of the prompt",
                stats.has("prompt"),
                _groups(mixes["prompt length"], length_names()),
                "In characters.",
            ),
            _mix(
                "Length of the response",
                stats.has("response"),
                _groups(mixes["response length"], length_names()),
                f"In characters. Spearman's correlation with the level is {decimal(stats.lengths.spearman())}; lengths "
                "above 4,096 are ranked in classes 1.1 % wide.",
            ),
            _mix(
                "Activity of the user",
                len(stats.users) > 0,
                [(name, _levels(row)) for name, row in stats.users.deciles()],
                "Users by decile of how many rows they have, lightest first, with the number of rows a user. Users with as "
                "many rows stay together, so deciles can be missing.",
            ),
            figure(
                "Judge's level and final level",
                level_matrix(stats.matrix.tolist()) if stats.has("judge_level") else _absent(),
                "What lies beside the outlined diagonal was moved by hindsight or by a verdict on a refusal.",
            ),
        ),
    )


def certainty_section(stats: Statistics) -> Html:
    """Section 3: entropy, confidence, and what a filter by confidence would drop."""
    mean, spread = stats.entropy_mean, stats.entropy_spread
    sided = int(stats.confidence_bins.sum())
    below = [
        [f"{step:g}", count(stats.unsure[step]), percent(stats.unsure[step] / sided)]
        for step in CONFIDENCE_STEPS
        if sided
    ]
    return section(
        "certainty",
        "3. How sure the judge is",
        grid(
            figure(
                "Entropy of the judge's five probabilities",
                columns(
                    "Rows by entropy", stats.entropy_bins.tolist(), MAX_ENTROPY, x_title="nats", y_title="interactions"
                )
                or _absent(),
                f"0 is certainty, {MAX_ENTROPY:.2f} nats five equal probabilities. Mean {decimal(mean)}, standard deviation "
                f"{decimal(spread)}, {BINS} bars.",
            ),
            figure(
                "Confidence in the side",
                columns(
                    "Kept rows by confidence", stats.confidence_bins.tolist(), 1.0, x_title="share", y_title="kept rows"
                )
                or _absent(),
                "Share of the label's side, negative or positive, in the probability of both, for kept rows that aren't "
                "neutral. It can lie under 0.5, because the likeliest level need not be on the likelier side.",
            ),
        ),
        table(["--quality.min-confidence", "Would drop", "Of these kept rows"], below, numeric=(1, 2))
        if below
        else None,
    )


def _mix(title: str, recorded: bool, groups: Sequence[Group], caption: str) -> Html:
    if not recorded:
        return figure(title, _absent())
    picture = level_mix(f"Final levels by {title.lower()}", groups)
    return figure(title, join(picture, level_numbers(title, groups)) if picture else None, caption)


def _absent() -> Html:
    return el("p", f"{NOT_RECORDED.capitalize()}.", class_="absent")


def _levels(row: Any) -> list[int]:
    return [int(n) for n in row[1:]]


def _groups(mix: Mix, names: Sequence[str]) -> list[Group]:
    return [(name, _levels(mix.counts[name])) for name in names if name in mix.counts]


def _largest(mix: Mix) -> list[Group]:
    """The largest groups, and the sum of the others."""
    ordered = sorted(mix.counts, key=lambda name: (name == FURTHER, -mix.rows(name), name))
    top, rest = ordered[:_MAX_GROUPS], ordered[_MAX_GROUPS:]
    others = [(f"{len(rest):,} others", _levels(sum(mix.counts[name] for name in rest)))] if rest else []
    return _groups(mix, top) + others
