"""The report of one run of the whole loop: what went in, how it was labelled, trained, served and used.

`render` takes the contents of `summary.json`. A part that didn't run says so, and every number has a sentence that
tells what it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wildreward_ray.report import loop_data, loop_model, loop_policy
from wildreward_ray.report.markup import Html, el
from wildreward_ray.report.page import page, tile, tiles
from wildreward_ray.report.values import change, count, decimal, mapping, milliseconds, moment, number, percent, rows

TITLE = "From chat logs to a reward model to a better policy"


def render(summary: Mapping[str, Any]) -> str:
    """The page of a run as one HTML text that loads nothing from anywhere.

    Args:
        summary: contents of `summary.json`; whatever is missing is shown as not run or n/a.
    """
    return str(
        page(
            TITLE,
            el("h1", TITLE),
            el("p", f"WildReward on Ray, run of {moment(summary.get('created'))}", class_="made"),
            el(
                "p",
                "This page follows one run of the whole loop: chat logs are read, a judge turns each user's next "
                "message into a level of satisfaction with the reply before it, and a reward model learns from those "
                "levels. The reward model is then served over HTTP and asked by online DPO, which trains a small "
                "policy on its answers. Models that fit a laptop show that the parts work together and not how good "
                "the method can get: the reward need not rise in a run this short.",
                class_="lead",
            ),
            tiles(_headline(summary)),
            loop_data.funnel_section(summary),
            loop_data.label_section(summary),
            loop_data.example_section(summary),
            loop_model.reward_model_section(summary),
            loop_model.service_section(summary),
            loop_policy.online_dpo_section(summary),
            loop_policy.making_section(summary),
        )
    )


def write(summary: Mapping[str, Any], path: Path) -> None:
    """Write the page of a run to `path`, whose directory is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render(summary), encoding="utf-8")


def _headline(summary: Mapping[str, Any]) -> list[Html]:
    judge = mapping(summary.get("judge"))
    agreement = mapping(summary.get("judge_agreement"))
    metrics = mapping(mapping(summary.get("train")).get("metrics"))
    serve = mapping(summary.get("serve"))
    latency = mapping(serve.get("latency_ms"))
    dpo = mapping(summary.get("online_dpo"))
    first, held_out = mapping(dpo.get("first_pairs")), mapping(dpo.get("eval"))
    judged = judge.get("judged")
    if number(judged) is None:
        # A run that kept no numbers of its judge still counted its rows.
        judged = next((s.get("rows_out") for s in rows(summary.get("funnel")) if s.get("name") == "judge"), None)
    return [
        tile("Interactions judged", count(judged), "Replies that had a next message and got a level from the judge."),
        tile(
            "Judge against known levels",
            percent(agreement.get("balanced_accuracy_3")),
            "Balanced accuracy of negative, neutral and positive; guessing gives 33.3 %. "
            f"Measured on {count(agreement.get('n'))} interactions.",
        ),
        tile(
            "Reward model, held-out AUC",
            decimal(metrics.get("auc")),
            "Chance that a well received reply scores above a badly received one; 0.5 is guessing. "
            f"Measured on {count(metrics.get('n'))} held-out replies.",
        ),
        tile(
            "Service latency, p50",
            milliseconds(latency.get("p50")),
            f"Half of the requests were answered faster, with {count(serve.get('concurrency'))} at a time.",
        ),
        tile(
            "DPO margin, first pairs",
            change(first.get("margin_before"), first.get("margin_after")),
            "How much more than the reference the policy prefers the better reply, before and after training on the "
            "pair.",
        ),
        tile(
            "Reward on held-out prompts",
            change(held_out.get("reward_before"), held_out.get("reward_after")),
            f"Mean reward before and after online DPO, on {count(held_out.get('prompts'))} prompts it was not trained "
            "on.",
        ),
    ]
