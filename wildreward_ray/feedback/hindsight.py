"""Implicit feedback mining: a neutral turn takes the label of a positive turn soon after it on the same topic.

Source: arXiv 2602.08829, implicit feedback mining. A user who goes on without a word and is satisfied two messages later was
well served before, too, as long as the two requests are about the same thing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from wildreward_ray.core.scale import MIN_POSITIVE, NEUTRAL


@dataclass(frozen=True, slots=True)
class Hindsight:
    """A neutral turn that takes over a level.

    Attributes:
        turn, evidence: indices into the conversation's turns.
        level: the level taken over.
        similarity: cosine of the two requests' embeddings.
    """

    turn: int
    evidence: int
    level: int
    similarity: float


def candidates(levels: Sequence[int], window: int) -> list[tuple[int, int]]:
    """(neutral turn, positive turn) pairs at most `window` turns apart, nearest first for each neutral turn.

    Levels are the judge's own: a label that was itself mined is no evidence, so no label travels further than the window.
    """
    return [
        (i, j)
        for i, level in enumerate(levels)
        if level == NEUTRAL
        for j in range(i + 1, min(i + window, len(levels) - 1) + 1)
        if levels[j] >= MIN_POSITIVE
    ]


def mine(
    levels: Sequence[int],
    pairs: Sequence[tuple[int, int]],
    similarity: Callable[[int, int], float],
    threshold: float,
) -> tuple[list[Hindsight], int]:
    """Relabel neutral turns; the nearest positive on the same topic wins and each turn changes at most once.

    Args:
        pairs: as `candidates` gives them.
        similarity: cosine of the requests of two turns.

    Returns:
        the relabelled turns, and how many neutral turns had a positive turn near but only on other topics.
    """
    mined: dict[int, Hindsight] = {}
    for turn, evidence in pairs:
        if turn in mined:
            continue
        cosine = similarity(turn, evidence)
        if cosine >= threshold:
            mined[turn] = Hindsight(turn, evidence, levels[evidence], cosine)
    switched = len({turn for turn, _ in pairs} - mined.keys())
    return list(mined.values()), switched
