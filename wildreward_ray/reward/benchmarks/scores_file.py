"""Scores that were computed elsewhere, matched with the items they belong to: all of them, or an error.

A line is an object in one of these forms, and one file may mix them:

- `{"id", "chosen": x or [x..], "rejected": y or [y..]}`: the scores of the right and of the wrong responses, each in the order
  the benchmark has them. `score_chosen` and `score_rejected` say the same; RM-Bench's own results
  (https://github.com/THU-KEG/RM-Bench/blob/main/scripts/run_rm.py) use these names, beside the texts in `chosen` and `rejected`;
- `{"id", "scores": [..]}`: one score a response, in the benchmark's order;
- `{"id", "response": index from 0, "score": x}`: one response.

`pair_id` and `question_id` stand for `id`. An id names an item by the one that the benchmark's file gives it, or as `group/id`;
a field `domain`, `subset` or `group` tells groups apart where it holds the name of one.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from wildreward_ray.core.errors import UserError
from wildreward_ray.reward.benchmarks.items import Floats, Item, some

SCORES_FLAG = "--scores"
_ID_NAMES = ("id", "pair_id", "question_id")
_GROUP_NAMES = ("domain", "subset", "group")
_SHOWN = 3

_NO_OBJECT, _NO_ID, _NO_SCORES, _NO_NUMBER = "not an object", "without an id", "without scores", "with what is no score"
_UNKNOWN, _AMBIGUOUS = "with scores for something not in the benchmark", "with an id that several prompts have"
_TWICE, _COUNT = "with scores that an earlier line gives already", "with a wrong number of scores"
# Read from the top: what is wrong with a line may be why a later rule is broken.
_HINTS: Mapping[str, str | None] = {
    _NO_OBJECT: 'a line is {"id", "chosen", "rejected"}, {"id", "scores"} or {"id", "response", "score"}',
    _NO_ID: f"it stands in {', '.join(_ID_NAMES)}, as a text or a whole number",
    _NO_SCORES: 'they stand in "chosen" and "rejected", in "scores", or in "score" beside the number of its "response"',
    _NO_NUMBER: "a score is a finite number",
    _UNKNOWN: "an id is that of the benchmark's file, or `group/id`",
    _AMBIGUOUS: "write `group/id`, or add a field `domain`, `subset` or `group`",
    _TWICE: None,
    _COUNT: None,
}


@dataclass(frozen=True)
class _Line:
    """What a line says: `parts` by their names, `response` where it speaks of one only."""

    number: int
    id: str
    group: str | None
    parts: Mapping[str, tuple[float, ...]]
    response: int | None = None

    @property
    def name(self) -> str:
        return repr(self.id) + (f" of {self.group!r}" if self.group else "")


class _UnusableError(Exception):
    """A line breaks a rule. `reason` is a key of `_HINTS`."""

    def __init__(self, reason: str, detail: str) -> None:
        self.reason, self.detail = reason, detail
        super().__init__(f"{reason}: {detail}")


class _Refused:
    """Lines that can't be used, by the rule they break."""

    def __init__(self) -> None:
        self._lines: dict[str, list[str]] = {}

    def add(self, number: int, error: _UnusableError) -> None:
        self._lines.setdefault(error.reason, []).append(f"line {number}: {error.detail}")

    def check(self) -> None:
        """Raise `UserError` with the count and the first few lines that break the first broken rule."""
        for reason, hint in _HINTS.items():
            if lines := self._lines.get(reason):
                more = f"; and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else ""
                count = f"{len(lines)} line{'s' if len(lines) > 1 else ''}"
                raise UserError(f"{count} {reason}: {'; '.join(lines[:_SHOWN])}{more}", flag=SCORES_FLAG, hint=hint)


def match_scores(items: Sequence[Item], records: Iterable[tuple[int, Any]]) -> list[Floats]:
    """The scores of every item's responses.

    Args:
        items: all of the benchmark, not a part of it: a score for anything else is refused.
        records: line number, and what the line holds.

    Returns:
        For every item float64 [R], finite, in the order of its responses.

    Raises:
        UserError: naming the first lines and their number: a line is no object or has no id or no scores; one is NaN,
            infinite, null or no number; an id is not in the benchmark or names several items; a response is scored twice;
            there are too few or too many scores for an item, or none. Nothing is ever matched in part.
    """
    refused = _Refused()
    lines: list[_Line] = []
    for number, value in records:
        try:
            lines.append(_parse(number, value))
        except _UnusableError as e:
            refused.add(number, e)
    refused.check()
    owners = _owners(lines, items, refused)
    refused.check()
    scores = [np.full(len(item.responses), np.nan) for item in items]
    givers = [np.zeros(len(item.responses), dtype=np.int64) for item in items]
    for line, index in zip(lines, owners, strict=True):
        try:
            for response, score in _placed(line, items[index]).items():
                if earlier := int(givers[index][response]):
                    raise _UnusableError(_TWICE, f"{items[index].id!r} (line {earlier})")
                scores[index][response], givers[index][response] = score, line.number
        except _UnusableError as e:
            refused.add(line.number, e)
    refused.check()
    _check_whole(items, scores)
    return scores


def _check_whole(items: Sequence[Item], scores: Sequence[Floats]) -> None:
    """Raise `UserError` if a response has no score."""
    given = [int(np.isfinite(one).sum()) for one in scores]
    missing = [item.id for item, count in zip(items, given, strict=True) if count == 0 and item.responses]
    if missing:
        raise UserError(
            f"scores for {len(items) - len(missing)} of {len(items)} prompts: missing {some(missing)}", flag=SCORES_FLAG
        )
    partly = [
        f"{item.id} ({count} of {len(item.responses)})"
        for item, count in zip(items, given, strict=True)
        if count < len(item.responses)
    ]
    if partly:
        raise UserError(
            f"responses without a score in {len(partly)} of {len(items)} prompts: {some(partly)}", flag=SCORES_FLAG
        )


def _parse(number: int, value: Any) -> _Line:
    if not isinstance(value, Mapping):
        raise _UnusableError(_NO_OBJECT, _short(value))
    one_id = _id_of(value)
    group = next((value[name] for name in _GROUP_NAMES if isinstance(value.get(name), str)), None)
    response = None
    if "scores" in value:
        names = ["scores"]
    elif "score_chosen" in value or "score_rejected" in value:
        # Looked for before `chosen` and `rejected`, which are then texts.
        names = ["score_chosen", "score_rejected"]
    elif "score" in value:
        names, response = ["score"], value.get("response")
        if isinstance(response, bool) or not isinstance(response, int) or isinstance(value["score"], (list, tuple)):
            raise _UnusableError(_NO_SCORES, f"{one_id!r} has a score, but the response is {_short(response)}")
    elif "chosen" in value or "rejected" in value:
        names = ["chosen", "rejected"]
    else:
        raise _UnusableError(_NO_SCORES, f"{one_id!r} has {_short(sorted(map(str, value)))}")
    parts = {name.removeprefix("score_"): _numbers(value[name], one_id, name) for name in names if name in value}
    return _Line(number, one_id, group, parts, response)


def _id_of(record: Mapping[str, Any]) -> str:
    name = next((name for name in _ID_NAMES if record.get(name) is not None), None)
    if name is None:
        raise _UnusableError(_NO_ID, _short(dict(record)))
    value = record[name]
    # Tables that hold a missing number elsewhere write whole numbers as 8.0.
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, (str, int)) or not str(value).strip():
        raise _UnusableError(_NO_ID, f"{name} = {_short(value)}")
    return str(value)


def _numbers(value: Any, one_id: str, name: str) -> tuple[float, ...]:
    return tuple(_number(one, one_id, name) for one in (value if isinstance(value, (list, tuple)) else [value]))


def _number(value: Any, one_id: str, name: str) -> float:
    # Python's JSON reader takes NaN and Infinity, which JSON does not have, and whole numbers beyond any float.
    try:
        if not isinstance(value, bool) and isinstance(value, (int, float)) and math.isfinite(value):
            return float(value)
    except OverflowError:
        pass
    raise _UnusableError(_NO_NUMBER, f"{one_id!r} has {name} = {_short(value)}")


def _owners(lines: Sequence[_Line], items: Sequence[Item], refused: _Refused) -> list[int]:
    """The index of the item that every line speaks of. What names none, or several, goes to `refused`."""
    groups = {item.group for item in items}
    named: dict[str, set[int]] = {}
    for index, item in enumerate(items):
        named.setdefault(item.own_id, set()).add(index)
        named.setdefault(item.id, set()).add(index)
    found = [
        {i for i in named.get(line.id, ()) if line.group not in groups or items[i].group == line.group}
        for line in lines
    ]
    if _in_order(lines, items, found):
        return list(range(len(items)))
    for line, candidates in zip(lines, found, strict=True):
        if not candidates:
            refused.add(line.number, _UnusableError(_UNKNOWN, line.name))
        elif len(candidates) > 1:
            names = [items[i].id for i in sorted(candidates)]
            refused.add(line.number, _UnusableError(_AMBIGUOUS, f"{line.name} may be {some(names)}"))
    return [min(candidates, default=-1) for candidates in found]


def _in_order(lines: Sequence[_Line], items: Sequence[Item], found: Sequence[set[int]]) -> bool:
    """Whether there is a line for every item and their ids are those of the items, one after the other.

    A line then belongs to the item in its place, also where its id stands in several groups, as 23 of RM-Bench's do. This is
    certain as long as every group has an id that no other group has: those ids show that each group stands where the
    benchmark has it, and within a group all ids follow each other as they do there. Groups that share all of their ids
    could have changed places unseen, so that nothing is concluded.
    """
    if [line.id for line in lines] != [item.own_id for item in items]:
        return False
    if any(index not in candidates for index, candidates in enumerate(found)):
        return False
    holders = Counter(own_id for own_id, _ in {(item.own_id, item.group) for item in items})
    return {item.group for item in items if holders[item.own_id] == 1} == {item.group for item in items}


def _placed(line: _Line, item: Item) -> dict[int, float]:
    """Scores by the index of their response."""
    count = len(item.responses)
    if line.response is not None:
        if not 0 <= line.response < count:
            raise _UnusableError(_COUNT, f"{item.id!r} has no response {line.response}, its {count} count from 0")
        return {line.response: line.parts["score"][0]}
    if "scores" in line.parts:
        return _zipped(range(count), line.parts["scores"], item, "scores")
    right = [i for i in range(count) if item.correct[i]]
    wrong = [i for i in range(count) if not item.correct[i]]
    return {
        **_zipped(right, line.parts.get("chosen", ()), item, "chosen"),
        **_zipped(wrong, line.parts.get("rejected", ()), item, "rejected"),
    }


def _zipped(places: Sequence[int], scores: Sequence[float], item: Item, name: str) -> dict[int, float]:
    if len(places) != len(scores):
        raise _UnusableError(_COUNT, f"{item.id!r} has {len(scores)} in {name}, {len(places)} are needed")
    return dict(zip(places, scores, strict=True))


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
