"""What a reward service is sent, which of its replies hold scores, and those of the service's own protocol, `/v1/score`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

from pydantic import ValidationError

from wildreward_ray.core.wire import Score, ScoreReply

# Scores are sums of float64 numbers that may have been printed with fewer digits on their way.
_TOLERANCE = 1e-6
RewardT = TypeVar("RewardT")


class Reply(NamedTuple):
    """A whole reply. `headers` finds a name in any case."""

    status: int
    headers: Mapping[str, str]
    content: bytes


@dataclass(frozen=True)
class Format(Generic[RewardT]):
    """What is posted for items, and what a reply to it says.

    Attributes:
        path: where it is posted to, below the service's URL.
        items: what the body calls its list of items.
        write: the body for items, as values that JSON has.
        read: one reward an item, in order, of a reply with status 200 to that many items. Raises `ValueError` where the reply
            can't be believed.
    """

    path: str
    items: str
    write: Callable[[Sequence[Mapping[str, Any]]], dict[str, Any]]
    read: Callable[[Reply, int], list[RewardT]]


def native_scores(reply: Reply, expected: int) -> list[Score]:
    """The scores of a reply with status 200. Raises `ValueError` where they can't be believed."""
    media_type = reply.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json" and not media_type.endswith("+json"):
        raise ValueError(f"its content type is {media_type!r} instead of application/json")
    try:
        # Strict: a score sent as text or as `true` is a mistake at the other end, not a number.
        scores = ScoreReply.model_validate_json(reply.content, strict=True).scores
    except ValidationError as e:
        raise ValueError(first_broken_rule(e)) from e
    if len(scores) != expected:
        raise ValueError(f"it holds {len(scores)} scores for {expected} items")
    for i, score in enumerate(scores):
        wrong = _wrong(score, levels=len(scores[0].p_gt) + 1)
        if wrong:
            raise ValueError(f"scores[{i}]: {wrong}")
    return scores


NATIVE_FORMAT: Format[Score] = Format("/v1/score", "items", lambda items: {"items": list(items)}, native_scores)


def _wrong(score: Score, levels: int) -> str | None:
    """Why a score can't be one of a model with `levels` levels. Comparisons are written so that NaN fails them."""
    if not (levels >= 2 and len(score.p_gt) == levels - 1 and len(score.level_probs) == levels):
        return f"{len(score.p_gt)} p_gt and {len(score.level_probs)} level_probs where the first has {levels} levels"
    if not all(0.0 <= p <= 1.0 for p in (*score.p_gt, *score.level_probs)):
        return "a probability is not in [0, 1]"
    if not 1.0 <= score.score <= levels:
        return f"score {score.score} is not in [1, {levels}]"
    if not abs(score.score - 1.0 - sum(score.p_gt)) <= _TOLERANCE:
        return f"score {score.score} is not 1 + the sum of p_gt, {1 + sum(score.p_gt)}"
    if not abs(1.0 - sum(score.level_probs)) <= _TOLERANCE:
        return f"level_probs add up to {sum(score.level_probs)}"
    return None


def first_broken_rule(error: ValidationError) -> str:
    """The first rule that a reply breaks, without the value."""
    found = error.errors(include_url=False, include_input=False, include_context=False)[0]
    return ": ".join(str(x) for x in (".".join(str(part) for part in found["loc"]), found["msg"]) if x)
