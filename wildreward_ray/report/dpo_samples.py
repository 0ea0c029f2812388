"""Replies to held-out prompts before and after an online DPO run: where the reward rose most, and where it fell most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from wildreward_ray.report.dpo_outcome import signed
from wildreward_ray.report.markup import Html, el, join
from wildreward_ray.report.page import badge, not_run, note, passage, section
from wildreward_ray.report.values import count, decimal, items, mapping, number, string

MAX_SHOWN = 12
# What is cut for good: the page would otherwise weigh what its longest replies weigh. The run keeps the whole texts.
MAX_TEXT, MAX_MESSAGE, MAX_MESSAGES = 4_000, 1_000, 4


class Ranked(NamedTuple):
    """Samples by how their reward changed.

    Attributes:
        gains: the largest rises first.
        losses: the largest falls first.
        same: how many kept their reward.
        unknown: how many lack a reward.
    """

    gains: list[tuple[float, Mapping[str, Any]]]
    losses: list[tuple[float, Mapping[str, Any]]]
    same: int
    unknown: int


def ranked(samples: Sequence[Mapping[str, Any]]) -> Ranked:
    """Samples in order of the change of their reward; those that changed alike stay in the order they came in."""
    known = [
        (after - before, row)
        for row in samples
        if (before := number(row.get("reward_before"))) is not None
        and (after := number(row.get("reward_after"))) is not None
    ]
    return Ranked(
        sorted((entry for entry in known if entry[0] > 0), key=lambda entry: -entry[0]),
        sorted((entry for entry in known if entry[0] < 0), key=lambda entry: entry[0]),
        sum(change == 0 for change, _ in known),
        len(samples) - len(known),
    )


def samples_section(samples: Sequence[Mapping[str, Any]]) -> Html:
    """Section 5: the same prompts answered before and after training, side by side."""
    title = "5. Replies before and after"
    if not samples:
        return section("samples", title, not_run("Samples"))
    found = ranked(samples)
    return section(
        "samples",
        title,
        note(
            f"{len(samples):,} held-out prompts, answered before the first step and after the last. The reward rose on "
            f"{len(found.gains):,}, fell on {len(found.losses):,} and stayed the same on {found.same:,}"
            + (f"; {found.unknown:,} lack a reward" if found.unknown else "")
            + ". Largest changes come first on both sides, so these are the extremes and not the average. Read them "
            "for what the numbers can't tell: is a gain really a better answer?"
        ),
        _side("Largest gains", found.gains, "The reward rose on no prompt."),
        _side("Largest losses", found.losses, "The reward fell on no prompt."),
    )


def _side(title: str, entries: Sequence[tuple[float, Mapping[str, Any]]], none: str) -> Html:
    if not entries:
        return join(el("h3", title), el("p", none, class_="absent"))
    shown = entries[:MAX_SHOWN]
    of = f"{title}: {len(shown)} of {len(entries):,}" if len(entries) > len(shown) else f"{title}: {len(shown)}"
    return join(el("h3", of), *(_card(change, row) for change, row in shown))


def _card(change: float, row: Mapping[str, Any]) -> Html:
    def reply(name: str, key: str) -> Html:
        length = number(row.get(f"length_{key}"))
        said = [badge(f"{count(length)} tokens")] if length is not None else []
        badges = el("div", badge(f"reward {decimal(row.get(f'reward_{key}'))}"), *said, class_="badges")
        return el("div", _passage(name, row.get(key), MAX_TEXT), badges)

    return el(
        "article",
        el("div", badge(f"reward {signed(change)}", "good" if change > 0 else "warn"), class_="badges"),
        _history(row.get("history")),
        _passage("Prompt", row.get("prompt"), MAX_TEXT),
        el("div", reply("Before", "before"), reply("After", "after"), class_="pair"),
        class_="card wide",
    )


def _history(history: Any) -> Html | None:
    """The conversation before the prompt, folded: its last messages."""
    messages = items(history)
    if not messages:
        return None
    shown = messages[-MAX_MESSAGES:]
    last = f", the last {len(shown)} of them here" if len(messages) > len(shown) else ""
    plural = "s" if len(messages) > 1 else ""
    said = [
        _passage(
            string(mapping(m).get("role")), mapping(m).get("content") if isinstance(m, Mapping) else m, MAX_MESSAGE
        )
        for m in shown
    ]
    fold = el("summary", el("span", f"{len(messages):,} message{plural} before the prompt{last}", class_="more flush"))
    return el("details", fold, *said, class_="history")


def _passage(title: str, value: Any, limit: int) -> Html:
    """A text of a stranger; one that is too long for the page says so in its title."""
    # A policy may answer with nothing, which is not the same as a reply that wasn't recorded.
    whole = "(empty)" if isinstance(value, str) and not value.strip() else string(value)
    title = title if len(title) <= 40 else title[:40] + "…"
    if len(whole) <= limit:
        return passage(title, whole)
    return passage(f"{title}: the first {limit:,} of {len(whole):,} characters", whole[:limit])
