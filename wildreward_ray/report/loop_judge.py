"""What the judge did, and how far it can be believed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wildreward_ray.core.scale import JUDGE_LEVELS, LEVEL_NAMES
from wildreward_ray.report.blocks import heat_map
from wildreward_ray.report.markup import Html, el, join
from wildreward_ray.report.page import facts, figure, grid, not_run, table
from wildreward_ray.report.values import count, decimal, items, mapping, number, numbers, percent, seconds, string


def judge_facts(summary: Mapping[str, Any]) -> Html:
    """What the judge did and what it cost."""
    judge = mapping(summary.get("judge"))
    if not judge:
        return not_run("Judge")
    judged, took = number(judge.get("judged")), number(judge.get("engine_seconds"))
    rate = judged / took if judged is not None and took else None
    return join(
        el("h3", "The judge"),
        facts(
            ("model", string(judge.get("model")), "The language model that reads the next message."),
            (
                "prompt version",
                string(judge.get("prompt_version")),
                "Changes whenever the words put to the judge change.",
            ),
            ("judged", count(judge.get("judged")), "Interactions that got a level."),
            (
                "refusals judged",
                count(judge.get("refusals_judged")),
                "Replies that look like refusals, judged a second time.",
            ),
            ("prompt tokens", count(judge.get("prompt_tokens")), "Tokens the judge had to read."),
            (
                "prefix cache hits",
                percent(judge.get("prefix_cache_hit_share")),
                "Share of them that it had read before.",
            ),
            ("engine time", seconds(took), "Time the engine worked on them."),
            (
                "rate",
                f"{decimal(rate)} a second" if rate is not None else decimal(rate),
                "Interactions judged per second of it.",
            ),
        ),
    )


def agreement(summary: Mapping[str, Any]) -> Html:
    """How far the judge can be believed, measured where the level is known."""
    found = mapping(summary.get("judge_agreement"))
    heading = el("h3", "The judge against known levels")
    if not found:
        return join(heading, not_run("Agreement"))
    languages = [(str(name), mapping(values)) for name, values in mapping(found.get("by_language")).items()]
    cells = [numbers(row) for row in items(found.get("confusion"))]
    return join(
        heading,
        grid(
            figure(
                "Expected level against judged level",
                heat_map(
                    "Expected level against judged level",
                    cells,
                    [LEVEL_NAMES[level] for level in JUDGE_LEVELS],
                    row_title="expected",
                    column_title="judged",
                ),
                "Read along a row: all interactions of one known level, by the level the judge gave them. A perfect "
                "judge fills only the outlined diagonal; one step beside it is a near miss, and the far corners are "
                "praise read as blame or the other way round.",
            ),
            figure(
                "In numbers",
                facts(
                    ("interactions", count(found.get("n")), "Interactions whose level is known."),
                    ("exact", percent(found.get("exact")), "Same level of five."),
                    (
                        "always the commonest",
                        percent(found.get("majority_share")),
                        "What exact would be for a judge that never looks.",
                    ),
                    ("within one", percent(found.get("within_one")), "At most one level away."),
                    (
                        "balanced accuracy",
                        percent(found.get("balanced_accuracy_3")),
                        "Mean share found of negative, neutral and positive; 33.3 % is guessing.",
                    ),
                    (
                        "AUC",
                        decimal(found.get("auc")),
                        "Chance that a positive is rated above a negative; 0.5 is guessing.",
                    ),
                ),
            ),
        ),
        table(
            ["Language", "Interactions", "Exact", "Balanced accuracy", "AUC"],
            [
                [
                    name,
                    count(values.get("n")),
                    percent(values.get("exact")),
                    percent(values.get("balanced_accuracy_3")),
                    decimal(values.get("auc")),
                ]
                for name, values in languages
            ],
            numeric=(1, 2, 3, 4),
        )
        if languages
        else None,
    )
