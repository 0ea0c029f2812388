"""Sections on online DPO, and on what the run was made with."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from wildreward_ray.report.blocks import bars
from wildreward_ray.report.curves import averaged, line_chart
from wildreward_ray.report.loop_model import series
from wildreward_ray.report.markup import Html, el, join
from wildreward_ray.report.page import badge, facts, figure, grid, not_run, note, passage, section, table
from wildreward_ray.report.values import (
    change,
    count,
    counts,
    decimal,
    mapping,
    number,
    percent,
    rows,
    seconds,
    string,
    total,
    with_unit,
    words,
)

_PHASES = ("rollout", "score", "learn", "sync")
_MAX_BARS = 16
_MAX_SAMPLES = 12


def online_dpo_section(summary: Mapping[str, Any]) -> Html:
    """Section 6: the policy asks the reward service, learns from its answers, and asks again."""
    dpo = mapping(summary.get("online_dpo"))
    title = "6. Online DPO"
    if not dpo:
        return section("online-dpo", title, not_run("Online DPO"))
    steps = rows(dpo.get("steps"))
    run = averaged(len(steps))
    thinned = f" Each point is the mean of {run} steps." if run > 1 else ""

    def chart(y_title: str, *lines: tuple[str, str], spread: str | None = None, zero: bool = False) -> Html | None:
        drawn = [series(name, steps, key, spread) for name, key in lines]
        return line_chart(f"{y_title} by step", drawn, x_title="step", y_title=y_title, zero=zero)

    return section(
        "online-dpo",
        title,
        note(
            f"The policy ({string(dpo.get('policy'))}) writes several replies to each prompt and the reward service "
            "scores them. The best and the worst make a pair that DPO learns from, and the updated policy writes "
            "again. A small policy over a few steps may or may not gain reward; the margin shows whether learning "
            "itself works."
        ),
        grid(
            figure(
                "Reward of the policy's replies",
                chart("reward", ("reward", "reward_mean"), spread="reward_std"),
                "Mean reward of what the policy wrote at each step; the band is one standard deviation up "
                "and down. Each step has other prompts, so single ups and downs mean little." + thinned,
            ),
            figure(
                "Reward gap of the pairs",
                chart("reward", ("gap", "margin"), zero=True),
                "Reward of the better reply minus that of the worse one; without a gap there is nothing to learn.",
            ),
            figure(
                "Implicit margin",
                chart("margin", ("margin", "dpo_margin"), zero=True),
                "How much more than the frozen reference the policy prefers the better reply of the step's own pairs, before "
                "it learns from them. Over many steps it should rise.",
            ),
            figure(
                "DPO loss",
                chart("loss", ("loss", "dpo_loss")),
                "With the usual sigmoid loss a policy that knows nothing yet has ln 2, about 0.693; lower is better.",
            ),
            figure(
                "Distance from the reference",
                chart("KL in nats", ("KL", "kl"), zero=True),
                "How far the policy's replies have moved from the reference; a sudden rise is a warning. It is "
                "estimated from samples and can dip below 0.",
            ),
            figure(
                "Length of replies",
                chart("tokens", ("length", "response_length"), zero=True),
                "Mean tokens a reply; growth without better replies would mean that the policy games the reward.",
            ),
            figure(
                "Pairs ranked rightly",
                chart("share", ("pairs", "dpo_accuracy"), zero=True),
                "Share of pairs whose better reply the policy already prefers more than the reference does.",
            ),
            figure(
                "Where the time goes",
                _time_split(steps),
                "Seconds of a step: writing replies, scoring them, learning, and handing the new weights to the "
                "writer.",
            ),
        ),
        _outcome(dpo, steps),
        _samples(rows(dpo.get("samples"))),
    )


def making_section(summary: Mapping[str, Any]) -> Html:
    """Section 7: time, machine and versions."""
    took, machine = counts(summary.get("seconds")), mapping(summary.get("machine"))
    versions = mapping(summary.get("versions"))
    stages: list[tuple[str, list[float | None]]] = [(words(name), [n]) for name, n in took.items() if name != "total"]
    if not (took or machine or versions):
        return section("making", "7. How it was made", not_run("Measurement of time, machine and versions"))
    return section(
        "making",
        "7. How it was made",
        grid(
            figure(
                "Time per stage",
                bars("Seconds per stage", stages, write=seconds),
                f"Wall time of every stage, start of engines included; {seconds(took.get('total'))} for all.",
            ),
            figure(
                "Machine",
                facts(
                    ("CPUs", count(machine.get("cpus")), "Processors the run could use."),
                    ("GPUs", count(machine.get("gpus")), "Accelerators the run could use."),
                    ("memory", with_unit(machine.get("memory_gb"), "GB"), "Memory of the machine."),
                    (
                        "peak memory",
                        with_unit(machine.get("peak_memory_gb"), "GB"),
                        "The most that was in use at a time.",
                    ),
                ),
            ),
        ),
        table(["Package", "Version"], [[string(name), string(version)] for name, version in versions.items()])
        if versions
        else None,
    )


def _time_split(steps: Sequence[Mapping[str, Any]]) -> Html | None:
    # A bar a step; a long run gets a bar for several, or nobody could tell them apart.
    run = max(1, math.ceil(len(steps) / _MAX_BARS))
    groups: list[tuple[str, list[float | None]]] = []
    for start in range(0, len(steps), run):
        chunk = steps[start : start + run]
        spent = [counts(step.get("seconds")) for step in chunk]
        names = [_step_number(step, start + i) for i, step in enumerate(chunk)]
        name = f"step {names[0]}" if len(names) == 1 else f"steps {names[0]} to {names[-1]}"
        if any(spent):
            groups.append((name, [sum(s.get(phase, 0.0) for s in spent) / len(chunk) for phase in _PHASES]))
    return bars("Mean seconds of a step by phase", groups, names=_PHASES, stacked=True, write=seconds)


def _step_number(step: Mapping[str, Any], position: int) -> str:
    """The number of a step, or its position where it has none."""
    n = number(step.get("step"))
    return f"{position if n is None else n:g}"


def _outcome(dpo: Mapping[str, Any], steps: Sequence[Mapping[str, Any]]) -> Html:
    first, held_out = mapping(dpo.get("first_pairs")), mapping(dpo.get("eval"))
    skipped: Counter[str] = Counter()
    for step in steps:
        skipped.update({name: round(n) for name, n in counts(step.get("skipped")).items()})
    pairs = [n for n in (number(step.get("pairs")) for step in steps) if n is not None]
    reasons = ", ".join(f"{words(name)} {count(n)}" for name, n in skipped.items() if n)
    why = f"Prompts without a pair, by reason: {reasons}." if reasons else "Prompts without a pair."
    return join(
        el("h3", "Before and after"),
        facts(
            ("steps", count(len(steps) or None), "Rounds of writing, scoring and learning."),
            ("pairs", count(sum(pairs) if pairs else None), "Pairs learnt from."),
            ("skipped prompts", count(total(skipped) if steps else None), why),
            (
                "margin of first pairs",
                change(first.get("margin_before"), first.get("margin_after")),
                "Implicit margin on the pairs of the first step, before and after training.",
            ),
            ("held-out prompts", count(held_out.get("prompts")), "Prompts never trained on."),
            (
                "held-out reward",
                change(held_out.get("reward_before"), held_out.get("reward_after")),
                "Mean reward on them before and after; a small difference can be chance.",
            ),
            (
                "held-out length",
                change(held_out.get("length_before"), held_out.get("length_after")),
                "Mean tokens of a reply before and after.",
            ),
            (
                "win rate",
                percent(held_out.get("win_rate")),
                "Share of them on which the new reply scores above the old one.",
            ),
            (
                "rollout",
                with_unit(_mean(steps, "rollout_tokens_per_s"), "tokens/s"),
                "Tokens written per second, mean of the steps.",
            ),
            (
                "learning",
                with_unit(_mean(steps, "learn_tokens_per_s"), "tokens/s"),
                "Tokens learnt from per second, mean of the steps.",
            ),
        ),
    )


def _mean(steps: Sequence[Mapping[str, Any]], key: str) -> float | None:
    found = [n for n in (number(step.get(key)) for step in steps) if n is not None]
    return sum(found) / len(found) if found else None


def _samples(samples: Sequence[Mapping[str, Any]]) -> Html:
    heading = el("h3", "Replies before and after")
    if not samples:
        return join(heading, not_run("Samples"))
    shown = samples[:_MAX_SAMPLES]
    rest = f" The first {len(shown)} of {len(samples):,} are shown." if len(samples) > len(shown) else ""
    return join(
        heading,
        note("The same prompt answered by the policy before and after training, with the reward of each reply." + rest),
        *map(_sample, shown),
    )


def _sample(sample: Mapping[str, Any]) -> Html:
    def side(name: str, key: str) -> Html:
        reward = badge(f"reward {decimal(sample.get(f'reward_{key}'))}")
        return el("div", passage(name, sample.get(key)), el("div", reward, class_="badges"))

    return el(
        "article",
        passage("Prompt", sample.get("prompt")),
        el("div", side("Before", "before"), side("After", "after"), class_="pair"),
        class_="card wide",
    )
