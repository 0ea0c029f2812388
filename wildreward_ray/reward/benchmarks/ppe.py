"""PPE, Preference Proxy Evaluations: people's choices, and best of K where correctness can be checked (arXiv 2410.14872).

The authors' repository, https://github.com/lmarena/PPE, could be read in parts only, from copies: the benchmarks' definitions,
which name data and scorers, the iterator over pairs of benchmarks/base.py, and the names of the scorers' results. The cards of
the data sets give fields and sizes. What was seen in that code is marked (code); what is marked (ours) is set down here.

`PPE_HUMAN`, 16,038 battles of Chatbot Arena. A pair is won if the reply that a person preferred scores above the other; equal
scores are no win (ours). Battles that ended in a tie have no preferred reply and are left out, `tie` (code, there for judges).
`accuracy` is the share of all pairs that are won, every pair counting once. The categories are those of the scorer (code) whose
meaning is plain from a field: `hard_prompt`, `easy_prompt`, `if_prompt`, `is_code`, `math_prompt`, and by `language` English, not
English, Chinese, Russian. Its `similar_response` and `shorter_won` are not given, as it was not seen what they cut at, nor are
its comparisons of rankings of models.

`PPE_CORRECTNESS`, five sets of prompts with K = 32 replies that are right or wrong:

- `accuracy` of a set is the share of won pairs among its `sampled_conflict_pairs`, pairs of a right and a wrong reply to one
  prompt that come with the data, each as often as it stands there (code); equal scores are no win (ours). The overall accuracy
  is the plain mean over the sets (ours).
- Prompts whose replies are all right or all wrong have no such pair. They are counted, `all_right` and `all_wrong`, and stay in
  the numbers on best of k. The scorers' further numbers have these names (code), but these formulas (ours):
- `auc`: the mean over prompts of the share of all pairs of right and wrong replies that are won, an equal score counting half.
  It is taken within prompts, so that no common scale of all prompts is asked for.
- Let c_k be how often the best of k replies is right (`best_of_k.py`), as a mean over a set's prompts. `end_score` is c_K and
  `max_score` the largest of c_1 .. c_K: it is above `end_score` where a model is led astray by more replies to choose from.
- `loss`: the mean over k of how often the best of k is wrong though a right one was among them. For right and wrong as 1 and 0 it
  is the expected squared difference from what a perfect model picks.
- Each of these is given of every set and as the plain mean over the sets.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from wildreward_ray.reward.benchmarks.best_of_k import best_of_curve, some_right_curve
from wildreward_ray.reward.benchmarks.items import (
    Benchmark,
    Floats,
    Item,
    Outcomes,
    Pair,
    Reading,
    Row,
    bad_record,
    id_field,
    text_field,
    texts_field,
)
from wildreward_ray.reward.benchmarks.parts import not_whole, tell_apart, weighted_mean

_CODE = "https://github.com/lmarena/PPE"
HUMAN_SIZE = 16_038
"""Battles, ties included."""

_ALL = "all"
_FLAGS = ("hard_prompt", "easy_prompt", "if_prompt", "is_code", "math_prompt")
CATEGORIES = (*_FLAGS, "english_prompt", "non_english_prompt", "chinese_prompt", "russian_prompt")

SETS: Mapping[str, int] = {"mmlu_pro": 512, "math": 512, "gpqa": 512, "ifeval": 512, "mbpp_plus": 507}
"""Prompts of each set."""

# What only the records of one set have, as their files on the hub all have one name. Looked at in this order.
_OWN_FIELDS: Mapping[str, tuple[str, ...]] = {
    "ifeval": ("ifeval_prompt", "instruction_id_list"),
    "gpqa": ("Record ID", "canary_string", "correct_choice_index"),
    "mmlu_pro": ("options", "answer_index"),
    "mbpp_plus": ("test_list", "test_imports", "test", "code", "assertion", "entry_point"),
    "math": ("problem", "level", "type"),
}
_MOST_PAIRS = 5
_RATIO = ("won", "pairs")
_FIXED = (*_RATIO, "auc", "loss")


def _read_human(rows: Iterable[Row]) -> Reading:
    """Items of the battles with a winner.

    Raises:
        UserError: a record that can't be used, or one that stands twice.
    """
    items: list[Item] = []
    excluded: Counter[str] = Counter()
    for row in rows:
        winner = text_field(row, "winner")
        if winner.startswith("tie"):
            excluded["tie"] += 1
        elif winner in ("model_a", "model_b"):
            items.append(_battle(row, (winner == "model_a", winner == "model_b")))
        else:
            raise bad_record(row, f"winner = {winner!r}: known are model_a, model_b and ties")
    found = len(items) + excluded["tie"]
    return Reading(tell_apart(items), not_whole({"battles": found}, {"battles": HUMAN_SIZE}), excluded)


def _battle(row: Row, correct: tuple[bool, bool]) -> Item:
    return Item(
        own_id=id_field(row, "question_id"),
        group=_ALL,
        history=(),
        prompt=text_field(row, "prompt"),
        responses=texts_field(row, "response_1", 1) + texts_field(row, "response_2", 1),
        correct=correct,
        attributes={"categories": _categories(row)},
    )


def _categories(row: Row) -> tuple[str, ...]:
    """Those the battle is in, in the order of `CATEGORIES`; one whose field isn't there has no battles."""
    found = []
    for name in _FLAGS:
        flag = row.value.get(name)
        if flag is not None and not isinstance(flag, bool):
            raise bad_record(row, f"{name} = {flag!r}: true or false is needed")
        if flag:
            found.append(name)
    if row.value.get("language") is not None:
        language = text_field(row, "language")
        found.append("english_prompt" if language == "English" else "non_english_prompt")
        if language in ("Chinese", "Russian"):
            found.append(f"{language.lower()}_prompt")
    return tuple(found)


def _human_outcomes(items: Sequence[Item], scores: Sequence[Floats]) -> Outcomes:
    """A unit is a battle; its win stands once for all and once for each category that it is in."""
    values = np.full((len(items), 1 + len(CATEGORIES)), np.nan)
    for at, (item, own) in enumerate(zip(items, scores, strict=True)):
        ((right, wrong),) = _human_pairs(item)
        columns = [0, *(1 + CATEGORIES.index(name) for name in item.attributes["categories"])]
        values[at, columns] = float(own[right] > own[wrong])
    return Outcomes(tuple(item.group for item in items), tuple(item.id for item in items), ("won", *CATEGORIES), values)


def _human_combine(means: Mapping[str, Floats], units: Mapping[str, int]) -> dict[str, Floats]:
    """`accuracy`, then the categories."""
    del units
    return {name: means[_ALL][..., k] for k, name in enumerate(("accuracy", *CATEGORIES))}


def _human_pairs(item: Item) -> Sequence[Pair]:
    return [(0, 1) if item.correct[0] else (1, 0)]


def _read_correctness(rows: Iterable[Row]) -> Reading:
    """Items of the sets.

    Raises:
        UserError: a record that can't be used, of no set that can be told, with another number of replies than the ones before,
            or one that stands twice.
    """
    items: list[Item] = []
    excluded: Counter[str] = Counter()
    for row in rows:
        item = _best_of_k(row)
        if items and len(item.responses) != len(items[0].responses):
            raise bad_record(row, f"{len(item.responses)} scores, but {len(items[0].responses)} in the records before")
        items.append(item)
        if all(item.correct) or not any(item.correct):
            excluded["all_right" if item.correct[0] else "all_wrong"] += 1
    return Reading(tell_apart(items), not_whole(Counter(item.group for item in items), SETS), excluded)


def _best_of_k(row: Row) -> Item:
    correct = _flags(row)
    size = len(correct)
    if f"response_{size + 1}" in row.value:
        raise bad_record(row, f"{size} scores, but there is a response_{size + 1}")
    responses = tuple(texts_field(row, f"response_{k}", 1)[0] for k in range(1, size + 1))
    return Item(
        own_id=id_field(row, "question_id"),
        group=_set_of(row),
        history=(),
        prompt=text_field(row, "prompt"),
        responses=responses,
        correct=correct,
        attributes={"pairs": _sampled_pairs(row, correct)},
    )


def _set_of(row: Row) -> str:
    """The set that the record's `benchmark` or its file's name says, or that its fields belong to."""
    for said in (row.value.get("benchmark"), row.file):
        words = re.sub(r"[^a-z]+", "", str(said or "").lower())
        for name in ("mmlu_pro", "gpqa", "ifeval", "mbpp_plus", "math"):
            if name.replace("_", "") in words:
                return name
    for name, fields in _OWN_FIELDS.items():
        if any(field in row.value for field in fields):
            return name
    raise bad_record(row, f"which set it is of can't be told; name the file after it: {', '.join(SETS)}")


def _flags(row: Row) -> tuple[bool, ...]:
    value = row.value.get("scores")
    if not isinstance(value, (list, tuple)) or len(value) < 2 or not all(flag in (0, 1) for flag in value):
        raise bad_record(row, "scores: a list of two or more true or false is needed")
    return tuple(bool(flag) for flag in value)


def _sampled_pairs(row: Row, correct: Sequence[bool]) -> tuple[Pair, ...]:
    """Each as (right, wrong), in the file's order, as often as it stands there."""
    value = row.value.get("sampled_conflict_pairs")
    if not isinstance(value, (list, tuple)):
        raise bad_record(row, "sampled_conflict_pairs: a list of pairs is needed")
    pairs = []
    for pair in value:
        known = isinstance(pair, (list, tuple)) and len(pair) == 2
        if not known or not all(isinstance(k, int) and 0 <= k < len(correct) for k in pair):
            raise bad_record(
                row, f"sampled_conflict_pairs has {pair!r}: two numbers from 0 to {len(correct) - 1} are needed"
            )
        first, second = pair
        if correct[first] == correct[second]:
            raise bad_record(row, f"sampled_conflict_pairs has {pair!r}: of the two one must be right and one wrong")
        pairs.append((first, second) if correct[first] else (second, first))
    if not pairs and any(correct) and not all(correct):
        raise bad_record(row, "sampled_conflict_pairs is empty, but there are right and wrong responses")
    return tuple(pairs)


def _correctness_outcomes(items: Sequence[Item], scores: Sequence[Floats]) -> Outcomes:
    """A unit is a prompt. Wins and pairs are counted, so that their ratio weighs every pair alike."""
    size = len(items[0].responses) if items else 0
    values = np.full((len(items), len(_FIXED) + size), np.nan)
    for at, (item, own) in enumerate(zip(items, scores, strict=True)):
        correct = np.array(item.correct)
        pairs = item.attributes["pairs"]
        if pairs:
            won = sum(own[right] > own[wrong] for right, wrong in pairs)
            gaps = own[correct][:, None] - own[~correct][None, :]
            values[at, :3] = float(won), len(pairs), ((gaps > 0) + 0.5 * (gaps == 0)).mean()
        curve = best_of_curve(correct, own)
        values[at, 3] = (some_right_curve(correct) - curve).mean()
        values[at, len(_FIXED) :] = curve
    names = (*_FIXED, *(f"best_of_{k}" for k in range(1, size + 1)))
    return Outcomes(tuple(item.group for item in items), tuple(item.id for item in items), names, values)


def _correctness_combine(means: Mapping[str, Floats], units: Mapping[str, int]) -> dict[str, Floats]:
    """`accuracy`, that of each set, the other numbers over all sets, and each set's as `set/auc` and so on."""
    del units
    found = {name: _of_set(means[name]) for name in SETS if name in means}
    names = ("accuracy", "auc", "end_score", "max_score", "loss")
    overall = {name: weighted_mean([(own[name], 1.0) for own in found.values()]) for name in names}
    return {
        "accuracy": overall["accuracy"],
        **{group: own["accuracy"] for group, own in found.items()},
        **{name: overall[name] for name in names[1:]},
        **{f"{group}/{name}": own[name] for group, own in found.items() for name in names[1:]},
    }


def _of_set(means: Floats) -> dict[str, Floats]:
    won, pairs, auc, loss = (means[..., k] for k in range(len(_FIXED)))
    curve = means[..., len(_FIXED) :]
    # A set without pairs has NaN for both counts, so this is never a division by 0.
    return {
        "accuracy": won / pairs,
        "auc": auc,
        "end_score": curve[..., -1],
        "max_score": curve.max(axis=-1),
        "loss": loss,
    }


def _correctness_pairs(item: Item) -> Sequence[Pair]:
    return list(dict.fromkeys(item.attributes["pairs"]))[:_MOST_PAIRS]


PPE_HUMAN = Benchmark(
    name="ppe_human",
    title="PPE human preference",
    definition=_CODE,
    hub=("hf://datasets/lmarena-ai/PPE-Human-Preference-V1/data",),
    read=_read_human,
    outcomes=_human_outcomes,
    combine=_human_combine,
    pairs=_human_pairs,
    pairs_are="the reply a person preferred and the other one",
)
PPE_CORRECTNESS = Benchmark(
    name="ppe_correctness",
    title="PPE correctness",
    definition=_CODE,
    hub=tuple(
        f"hf://datasets/lmarena-ai/PPE-{name}-Best-of-K/data"
        for name in ("MMLU-Pro", "MATH", "GPQA", "IFEval", "MBPP-Plus")
    ),
    read=_read_correctness,
    outcomes=_correctness_outcomes,
    combine=_correctness_combine,
    pairs=_correctness_pairs,
    pairs_are="sampled pairs of a right and a wrong reply to one prompt, at most five of each",
)
