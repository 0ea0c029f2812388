"""JudgeBench: a right and a wrong reply of one model to hard questions with known answers.

Read from the benchmark's own code, https://github.com/ScalerLab/JudgeBench at commit e2c52c2: `utils/metrics.py`
takes the share of pairs with the right decision, and `run_judge.py` gives it for the sources that begin with mmlu-pro
(knowledge), livebench-reasoning, livebench-math and livecodebench (coding), and for all pairs together, each of which
weighs the same (arXiv 2410.12784). A reward model is asked once per reply (`--single_game`).

In one thing this module differs: where both replies score the same, `utils/judges.py` decides for the second one,
which is right for 157 of the 350 pairs of GPT-4o. Here a tie is wrong, so that the order of the replies decides
nothing.

The replies of GPT-4o (350 pairs) and of Claude 3.5 Sonnet (270) are two files, which `run_judge.py` measures one by
one; the first is the one that is fetched, as most results that the authors publish are on it. Where both are given,
the accuracy is that over all 620.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from wildreward_ray.reward.benchmarks.items import (
    Benchmark,
    Floats,
    Item,
    Reading,
    Row,
    bad_record,
    check_unique,
    id_field,
    text_field,
    texts_field,
)
from wildreward_ray.reward.benchmarks.pairs import ACCURACY, all_pairs, micro_metrics, pair_outcomes, usable_group
from wildreward_ray.reward.benchmarks.parts import not_whole

CATEGORIES: Mapping[str, str] = {
    "knowledge": "mmlu-pro",
    "reasoning": "livebench-reasoning",
    "math": "livebench-math",
    "coding": "livecodebench",
}
"""What the sources of each category begin with, in the order of the authors' tables."""

_GPT_4O = {"knowledge": 154, "reasoning": 98, "math": 56, "coding": 42}
_CLAUDE = {"knowledge": 154, "reasoning": 51, "math": 34, "coding": 31}
_FIRST_IS_RIGHT = {"A>B": True, "B>A": False}


def _read(rows: Iterable[Row]) -> Reading:
    """Pairs in the order of the file; a source of no category is a group of its own name.

    The pairs of Claude alone are whole; anything else is held against those of GPT-4o.

    Raises:
        UserError: a record that can't be used, or a `pair_id` that stands twice.
    """
    items = [_item(row) for row in rows]
    check_unique(items)
    found = Counter(item.group for item in items)
    return Reading(tuple(items), missing=() if found == _CLAUDE else not_whole(found, _GPT_4O))


def _item(row: Row) -> Item:
    label = row.value.get("label")
    if not isinstance(label, str) or label not in _FIRST_IS_RIGHT:
        raise bad_record(row, f"label = {label!r}: 'A>B' or 'B>A' is needed")
    return Item(
        own_id=id_field(row, "pair_id"),
        group=_group(row),
        history=(),
        prompt=text_field(row, "question"),
        responses=texts_field(row, "response_A", 1) + texts_field(row, "response_B", 1),
        correct=(_FIRST_IS_RIGHT[label], not _FIRST_IS_RIGHT[label]),
    )


def _group(row: Row) -> str:
    source = text_field(row, "source")
    known = (category for category, beginning in CATEGORIES.items() if source.startswith(beginning))
    return usable_group(row, next(known, source))


def _combine(means: Mapping[str, Floats], units: Mapping[str, int]) -> dict[str, Floats]:
    """`accuracy` over all pairs, the categories in their order, and then other sources."""
    order = [*(category for category in CATEGORIES if category in means), *(g for g in means if g not in CATEGORIES)]
    groups = {group: means[group][..., 0] for group in order}
    return {ACCURACY: micro_metrics(means, units)[ACCURACY], **groups}


JUDGEBENCH = Benchmark(
    name="judgebench",
    title="JudgeBench",
    definition="https://github.com/ScalerLab/JudgeBench/blob/main/utils/metrics.py",
    hub=("hf://datasets/ScalerLab/JudgeBench/data/gpt-00000-of-00001.jsonl",),
    read=_read,
    outcomes=pair_outcomes,
    combine=_combine,
    pairs=all_pairs,
    pairs_are="the right and the wrong reply to a question",
)
