"""Replies and conversations changed in what should not matter, to see how far a score follows it.

A reply probe changes replies so that they get no better; a history probe puts finished, unrelated exchanges before the prompt.
The changed replies are scored again, and `probe_effects` says what the change did to the scores and to who wins.

An effect is a mean change of scores in standard deviations of the unchanged ones, as in Glass's delta, which takes the
deviation of the untreated group (Glass, McGaw & Smith 1981, "Meta-Analysis in Social Research"). It is the pooled
within-item deviation, as for the observed effects (`bias`), because offsets between prompts mean nothing to a model that
was trained on pairs; where no item has two responses it is that of all scores.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any

import numpy as np

from wildreward_ray.reward.benchmarks.bias import Refuses, check_scores, interval, resampled, within_sd
from wildreward_ray.reward.benchmarks.items import Floats, Item
from wildreward_ray.reward.benchmarks.probe_changes import (
    History,
    flattering,
    marked_up,
    padded,
    refusing,
    with_exchanges,
)

Case = tuple[History, str, tuple[str, ...]]
"""History, prompt and the responses to it, to be scored."""

_LONG_EXCHANGES = 4
_LONGEST_EXAMPLE = 300


@dataclass(frozen=True)
class ReplyProbe:
    """A change of single replies.

    Attributes:
        name: short and unique.
        meaning: what is changed, and what an effect of 0 says.
        change: (item, one of its responses, source of chance) -> the changed response; None where it doesn't apply.
        answers_only: replies that refuse are left alone, and so are all replies of an item of which a right one refuses.
    """

    name: str
    meaning: str
    change: Callable[[Item, str, Random], str | None]
    answers_only: bool = False


@dataclass(frozen=True)
class HistoryProbe:
    """A change of the messages before the prompt, for all replies alike.

    Attributes:
        name: short and unique.
        meaning: what is changed, and what an effect of 0 says.
        change: (item, source of chance) -> the changed history; None where it doesn't apply.
    """

    name: str
    meaning: str
    change: Callable[[Item, Random], History | None]


Probe = ReplyProbe | HistoryProbe


def vary(probe: Probe, item: Item, seed: int, is_refusal: Refuses) -> Case | None:
    """An item as a probe changes it: one scoring job with as many responses as the item has, in their order.

    Equal for equal probe, item id and seed; all replies to a prompt are changed by the same texts. A reply that a reply probe
    doesn't apply to (one that has markdown already can't be marked up) stays as it is. None where nothing would change.

    Args:
        probe: one of `PROBES`.
        item: what is changed.
        seed: picks the texts.
        is_refusal: whether a reply refuses.
    """
    # Without the probe's name: what is put near, far and long before a prompt begins with the same exchange.
    key = f"{seed}/{item.id}"
    if isinstance(probe, HistoryProbe):
        history = probe.change(item, Random(key))
        return None if history is None else (history, item.prompt, item.responses)
    refusing = [probe.answers_only and is_refusal(reply) for reply in item.responses]
    # Where refusing is right, a refusal would make a wrong reply better.
    if any(refuses and right for refuses, right in zip(refusing, item.correct, strict=True)):
        return None
    changed = [
        None if refuses else probe.change(item, reply, Random(key))
        for reply, refuses in zip(item.responses, refusing, strict=True)
    ]
    if all(reply is None for reply in changed):
        return None
    replies = tuple(old if new is None else new for old, new in zip(item.responses, changed, strict=True))
    return item.history, item.prompt, replies


def probe_effects(
    items: Sequence[Item],
    scores: Sequence[Floats],
    varied: Mapping[str, Mapping[str, Floats]],
    is_refusal: Refuses,
    *,
    resamples: int,
    seed: int,
) -> list[dict[str, Any]]:
    """What the probes do to scores and to decisions.

    Args:
        items: the benchmark's items; also those that were not probed, which help to tell the unit.
        scores: [R] of every item, finite.
        varied: probe -> item id -> [R] scores of what `vary` gave for the item with the same `seed` and `is_refusal`.
        is_refusal: whether a reply refuses.
        resamples: of the probed items, for the 95 % intervals.
        seed: of the probes' texts and of the resamples, not negative.

    Returns:
        For each of `PROBES`: `name`, `effect` (mean of changed minus unchanged score over the replies that were changed, in
        the unit of the module's text), `low`, `high`, `n` (items probed), `flips`, `flips_to_wrong`, `example`, `unit`,
        `meaning`. Flips are shares of right x wrong decisions: for a reply probe the wrong reply is the changed one and the
        right one stands as it was; for a history probe both are scored after the changed history. `flips_to_wrong` counts those
        that were right and are wrong now, `flips` those that changed in either way; equal scores are a wrong decision. None
        where there is nothing to measure, or where all unchanged scores are equal.

    Raises:
        ValueError: scores don't fit the items or what `vary` gives, or a probe or item isn't known.
    """
    check_scores(items, scores)
    unknown = set(varied) - {probe.name for probe in PROBES}
    if unknown:
        raise ValueError(f"unknown probes: {sorted(unknown)}")
    known = {item.id: (item, old) for item, old in zip(items, scores, strict=True)}
    sd = within_sd(scores)
    if np.isnan(sd) and scores:
        sd = float(np.std(np.concatenate(scores)))
    result = []
    for probe in PROBES:
        rows, texts = [], []
        for name, new in varied.get(probe.name, {}).items():
            if name not in known:
                raise ValueError(f"{probe.name}: the item {name!r} is not known")
            item, old = known[name]
            changed, text = _changed(probe, item, new, vary(probe, item, seed, is_refusal))
            rows.append(_differences(item, old, new, changed, together=isinstance(probe, HistoryProbe)))
            texts.append(text)
        columns = np.array(rows, dtype=np.float64).reshape(-1, 5)
        measured = _measured(columns, sd, resamples, seed)
        example = _cut(min(texts, key=len)) if texts else ""
        result.append({"name": probe.name, **measured, "example": example, "unit": "SD", "meaning": probe.meaning})
    return result


def _changed(probe: Probe, item: Item, new: Floats, case: Case | None) -> tuple[list[bool], str]:
    """Which responses of an item were changed, and the shortest changed text."""
    if case is None or np.shape(new) != (len(item.responses),):
        raise ValueError(f"{probe.name} on {item.id}: scores of shape {np.shape(new)} don't fit what the probe changes")
    history, _, replies = case
    if isinstance(probe, HistoryProbe):
        added = [message for message in history if message not in item.history]
        return [True] * len(replies), "\n".join(f"{message['role']}: {message['content']}" for message in added)
    changed = [a != b for a, b in zip(item.responses, replies, strict=True)]
    return changed, min((reply for reply, is_new in zip(replies, changed, strict=True) if is_new), key=len)


def _differences(item: Item, old: Floats, new: Floats, changed: list[bool], *, together: bool) -> tuple[float, ...]:
    """Sum of changes and their number; decisions, those that turned, and those that turned from right to wrong."""
    are_new, right = np.array(changed), np.array(item.correct, dtype=bool)
    wrong = ~right & are_new
    before = old[right][:, None] > old[wrong]
    after = (new if together else old)[right][:, None] > new[wrong]
    total = float((new - old)[are_new].sum())
    return total, int(are_new.sum()), before.size, int((before != after).sum()), int((before & ~after).sum())


def _measured(columns: Floats, sd: float, resamples: int, seed: int) -> dict[str, Any]:
    """Effect, interval, number and flips of the rows of `_differences` [I, 5]."""
    total, count, decisions, turned, to_wrong = columns.sum(axis=0)
    drawn = resampled(columns[:, :2], resamples, seed)
    effect = float(total / count / sd) if count and sd > 0 else None
    low, high = (None, None) if effect is None else interval(drawn[:, 0] / drawn[:, 1] / sd)
    return {
        "effect": effect,
        "low": low,
        "high": high,
        "n": len(columns),
        "flips": float(turned / decisions) if decisions else None,
        "flips_to_wrong": float(to_wrong / decisions) if decisions else None,
    }


def _cut(text: str) -> str:
    """A text of at most 300 characters, whose middle is left out: changes stand at either end."""
    if len(text) <= _LONGEST_EXAMPLE:
        return text
    half = (_LONGEST_EXAMPLE - 3) // 2
    return f"{text[:half]} … {text[-half:]}"


_SAME = "0: the score stays as it is"
PROBES: tuple[Probe, ...] = (
    ReplyProbe("padding", f"two sentences that say nothing at the end of the reply; {_SAME}", padded),
    ReplyProbe("markdown", f"the reply's own words as a bold sentence and bullets; {_SAME}", marked_up),
    ReplyProbe(
        "refusal",
        "a polite refusal in place of the reply, where no right reply refuses; 0: a refusal scores as the reply did",
        refusing,
        answers_only=True,
    ),
    ReplyProbe("flattery", f"a compliment to the user before the reply; {_SAME}", flattering),
    HistoryProbe(
        "history near",
        f"an unrelated, finished exchange right before the prompt, which may cut a prompt off from what it refers to; {_SAME}",
        partial(with_exchanges, count=1, first=False),
    ),
    HistoryProbe(
        "history far",
        f"an unrelated, finished exchange before the conversation, where there is one; {_SAME}",
        partial(with_exchanges, count=1, first=True),
    ),
    HistoryProbe(
        "history long",
        f"four unrelated, finished exchanges before everything; {_SAME}",
        partial(with_exchanges, count=_LONG_EXCHANGES, first=True),
    ),
)
