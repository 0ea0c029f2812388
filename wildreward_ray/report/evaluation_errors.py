"""Pairs to read: the prompt, the right and the wrong response side by side, and their scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from wildreward_ray.report.evaluation_blocks import fold
from wildreward_ray.report.markup import Child, Html, el
from wildreward_ray.report.page import (
    badge,
    note,
    passage,
)
from wildreward_ray.report.svg import shorten
from wildreward_ray.report.values import (
    decimal,
    items,
    mapping,
    number,
    rows,
    string,
)

# What is cut for good: the page would otherwise weigh what its longest texts weigh. The benchmark's files have them whole.
MAX_TEXT, MAX_MESSAGE, MAX_MESSAGES = 4_000, 1_000, 4
MAX_ERRORS, SHOWN_ERRORS = 30, 10


def errors_section(results: Mapping[str, Any]) -> list[Child]:
    """The worst errors of one model."""
    found = rows(results.get("errors"))[:MAX_ERRORS]
    if not found:
        text = "No wrong response beat a right one by its score" if "errors" in results else "Errors: not recorded"
        return [el("p", f"{text}.", class_="absent")]
    cards = [error_card(row, [("", row.get("right_score"), row.get("wrong_score"))]) for row in found]
    rest = cards[SHOWN_ERRORS:]
    return [
        note(
            "Pairs whose wrong response was scored highest above the right one, worst first. Read whether the model erred or "
            "the benchmark did. Texts are the benchmark's and not ours."
        ),
        *cards[:SHOWN_ERRORS],
        fold(f"{len(rest)} more", *rest) if rest else None,
    ]


def error_card(row: Mapping[str, Any], scores: Sequence[tuple[str, Any, Any]]) -> Html:
    """A pair to read, folded: prompt, both responses side by side, and their scores.

    Args:
        row: an entry of `errors` in results.json.
        scores: (model or "", score of the right response, score of the wrong one).
    """
    badges = [
        badge(
            f"{shorten(name, 200)}: " * bool(name) + f"right {decimal(right)}, wrong {decimal(wrong)}",
            _kind(right, wrong),
        )
        for name, right, wrong in scores
    ]
    summary = el(
        "summary",
        el(
            "div",
            badge(shorten(string(row.get("id")), 200)),
            badge(shorten(string(row.get("group")), 200)),
            *badges,
            class_="badges",
        ),
        el("span", shorten(string(row.get("prompt")), 800), class_="more flush"),
    )
    both = el("div", _text("Right", row.get("right")), _text("Wrong", row.get("wrong")), class_="pair")
    return el(
        "details", summary, _history(row.get("history")), _text("Prompt", row.get("prompt")), both, class_="card wide"
    )


def _kind(right: Any, wrong: Any) -> str:
    a, b = number(right), number(wrong)
    return "plain" if a is None or b is None else "good" if a > b else "warn"


def _history(history: Any) -> Html | None:
    messages = items(history)
    if not messages:
        return None
    shown = [mapping(m) for m in messages[-MAX_MESSAGES:]]
    said = [_text(string(m.get("role"))[:40], m.get("content"), MAX_MESSAGE) for m in shown]
    last = f", the last {len(shown)} of them here" if len(messages) > len(shown) else ""
    return fold(f"{len(messages):,} message{'s' * (len(messages) > 1)} before the prompt{last}", *said)


def _text(title: str, value: Any, limit: int = MAX_TEXT) -> Html:
    # A response may be empty, which is not the same as one that wasn't recorded.
    whole = "(empty)" if isinstance(value, str) and not value.strip() else string(value)
    if len(whole) <= limit:
        return passage(title, whole)
    return passage(f"{title}: the first {limit:,} of {len(whole):,} characters", whole[:limit])
