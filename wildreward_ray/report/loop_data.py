"""Sections on the data: the funnel, the labels, and examples of what was labelled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from wildreward_ray.core.scale import JUDGE_LEVELS, LEVEL_NAMES
from wildreward_ray.report.blocks import Stage, bars, funnel
from wildreward_ray.report.loop_judge import agreement, judge_facts
from wildreward_ray.report.markup import Html, el, join
from wildreward_ray.report.page import badge, figure, grid, not_run, note, passage, section, table
from wildreward_ray.report.values import (
    count,
    counts,
    items,
    mapping,
    number,
    percent,
    rows,
    string,
    total,
    words,
)

LEVEL_COLORS = tuple(f"var(--l{level})" for level in JUDGE_LEVELS)
_MAX_LANGUAGES = 10
_MAX_EXAMPLES = 40

_STEPS = {
    "files": "Files of the input that can be read at all.",
    "read": "Records of the input that hold a conversation.",
    "feedback_turns": "Conversations in which the user wrote again after a reply.",
    "select": "Replies with a next message, up to the limit of the run.",
    "judge": "The judge reads the next message as feedback on the reply.",
    "repeats": "Interactions that the logs hold more than once stay once.",
    "hindsight": "A neutral turn takes the level of a positive one soon after it on the same topic.",
    "refusal": "Short refusals are judged again: right to refuse, or not.",
    "quality": "Personal data, other languages, requests that no text model can serve, and texts too short to judge leave.",
    "neutral": "Neutral turns say nothing about the reply and leave.",
    "confidence": "Labels whose side the judge is unsure of leave.",
    "duplicates": "Of prompts that are nearly the same one stays, so that none is on both sides.",
    "users": "Rows of a user beyond the most that one may have leave.",
    "split": "Users go wholly to the training or to the test side.",
}
_ORIGINS = {
    "explicit": "judged from the next message",
    "hindsight": "taken from a later turn",
    "refusal": "refusal judged again",
}


def funnel_section(summary: Mapping[str, Any]) -> Html:
    """Section 1: what came in, what went on, and why the rest did not."""
    steps = rows(summary.get("funnel"))
    title = "1. Funnel"
    if not steps:
        return section("funnel", title, not_run("Extraction"))
    stages = [
        Stage(words(s.get("name")), string(s.get("unit")), max(n_in, 0.0), max(n_out, 0.0))
        for s in steps
        if (n_in := number(s.get("rows_in"))) is not None and (n_out := number(s.get("rows_out"))) is not None
    ]
    return section(
        "funnel",
        title,
        note(
            "Every row that came in either goes on or is dropped for a reason that is counted. One conversation can "
            "hold several interactions, so widths compare only below the same unit."
        ),
        grid(
            figure(
                "What is left after each step",
                funnel("Rows in and out of every step", stages),
                "The number in a step is what went on; the one on the right is what it dropped.",
            ),
            figure("What the steps do", _step_list(steps), "Steps that only change levels drop nothing."),
        ),
        table(
            ["Step", "In", "Out", "Dropped, by reason", "Also counted"],
            [
                [
                    join(words(s.get("name")), el("div", string(s.get("unit")), class_="soft")),
                    count(s.get("rows_in")),
                    count(s.get("rows_out")),
                    _dropped(s),
                    _inline(counts(s.get("notes"))),
                ]
                for s in steps
            ],
            numeric=(1, 2),
        ),
    )


def label_section(summary: Mapping[str, Any]) -> Html:
    """Section 2: levels, origins and languages, and the judge against known levels."""
    labels = mapping(summary.get("labels"))
    title = "2. Labels"
    if not labels:
        return section("labels", title, not_run("Labelling"), agreement(summary))
    before, after = counts(labels.get("judge_level")), counts(labels.get("level"))
    levels = [
        (f"{level} {LEVEL_NAMES[level]}", [before.get(str(level)), after.get(str(level))]) for level in JUDGE_LEVELS
    ]
    origin, label, language = (counts(labels.get(name)) for name in ("origin", "label", "language"))
    return section(
        "labels",
        title,
        note(
            "The judge gives each reply one of five levels, read from what the user wrote next. Two refinements then "
            "mend levels that the next message alone gets wrong."
        ),
        grid(
            figure(
                "Levels before and after the refinements",
                bars("Interactions by level", levels, names=("judge", "refined")) if before or after else None,
                "Most users just go on, so neutral is large; the difference of the two bars is what the refinements "
                "moved.",
            ),
            figure(
                "Language",
                bars("Interactions by language", _largest(language)),
                "The language of the conversation, as the logs name it or as it was detected.",
            ),
            figure(
                "Training labels",
                bars("Dataset rows by training label", [(f"label {name}", [n]) for name, n in label.items()])
                if label
                else None,
                "What the reward model learns from: ordered labels, the higher the better, without the neutral level.",
            ),
            figure(
                "Where the level comes from",
                bars("Interactions by origin", [(words(name), [n]) for name, n in origin.items()]),
                "; ".join(f"{name}: {meaning}" for name, meaning in _ORIGINS.items()) + ".",
            ),
        ),
        judge_facts(summary),
        agreement(summary),
    )


def example_section(summary: Mapping[str, Any]) -> Html:
    """Section 3: what the judge saw and made of it."""
    examples = rows(summary.get("examples"))
    title = "3. Examples"
    if not examples:
        return section("examples", title, not_run("Examples"))
    shown = examples[:_MAX_EXAMPLES]
    rest = f" The first {len(shown)} of {len(examples):,} are shown." if len(examples) > len(shown) else ""
    return section(
        "examples",
        title,
        note(
            "Each card is one interaction: a request, the reply, and the next message, from which the level is "
            "read. Bars are the probabilities of the five levels; the wider they spread, the less sure the "
            "label." + rest
        ),
        grid(*map(_example, shown)),
    )


def _step_list(steps: Sequence[Mapping[str, Any]]) -> Html | None:
    known = [(words(name), _STEPS[name]) for s in steps if (name := string(s.get("name"))) in _STEPS]
    return table(["Step", "What it does"], known) if known else None


def _dropped(step: Mapping[str, Any]) -> str:
    dropped = counts(step.get("dropped"))
    written = _inline(dropped)
    n_in, n_out = number(step.get("rows_in")), number(step.get("rows_out"))
    if n_in is not None and n_out is not None and n_in - n_out != total(dropped):
        # A summary that doesn't add up must look that way.
        written = f"{written}; not accounted for: {count(n_in - n_out - total(dropped))}".removeprefix("none; ")
    return written


def _inline(values: Mapping[str, float]) -> str:
    return ", ".join(f"{words(name)} {count(n)}" for name, n in values.items() if n) or "none"


def _largest(values: Mapping[str, float]) -> list[tuple[str, list[float | None]]]:
    ordered = sorted(values.items(), key=lambda item: -item[1])
    top: list[tuple[str, list[float | None]]] = [(name, [n]) for name, n in ordered[:_MAX_LANGUAGES]]
    rest = ordered[_MAX_LANGUAGES:]
    return [*top, (f"{len(rest)} others", [sum(n for _, n in rest)])] if rest else top


def _example(example: Mapping[str, Any]) -> Html:
    level, expected = _level_name(example.get("level")), _level_name(example.get("expected_level"))
    badges = [badge(level or "level n/a")]
    if example.get("origin") is not None:
        badges.append(badge(string(example.get("origin"))))
    if expected is not None:
        agrees = example.get("level") == example.get("expected_level")
        badges.append(badge(f"expected {expected}", "good" if agrees else "warn"))
    if example.get("drop_reason") is not None:
        badges.append(badge(f"not in the dataset: {words(example.get('drop_reason'))}", "warn"))
    if example.get("language") is not None:
        badges.append(badge(string(example.get("language"))))
    return el(
        "article",
        el("div", *badges, class_="badges"),
        passage("User asked", example.get("prompt")),
        passage("Assistant replied", example.get("response")),
        passage("User wrote next", example.get("feedback")),
        _probabilities(example),
        class_="card",
    )


def _level_name(level: Any) -> str | None:
    n = number(level)
    return f"{round(n)} {LEVEL_NAMES[round(n)]}" if n is not None and round(n) in LEVEL_NAMES else None


def _probabilities(example: Mapping[str, Any]) -> Html | None:
    probs = [number(p) for p in items(example.get("level_probs"))]
    if len(probs) != len(JUDGE_LEVELS):
        return None
    cells: list[Html] = []
    for level, p in zip(JUDGE_LEVELS, probs, strict=True):
        chosen = "chosen" if example.get("level") == level else None
        width = 100 * min(1.0, max(0.0, p or 0.0))
        fill = el("div", class_="fill", style=f"width:{width:.1f}%;background:{LEVEL_COLORS[level - 1]}")
        cells += [
            el("span", f"{level} {LEVEL_NAMES[level]}", class_=chosen),
            el("div", fill, class_="track"),
            el("span", percent(p), class_=f"number {chosen or ''}".strip()),
        ]
    return el("div", *cells, class_="levels")
