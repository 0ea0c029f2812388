"""Any set of prompts with better and worse replies.

A prompt's value is the share of its right x wrong pairs in which the right reply scores higher; equal scores are no
win. The accuracy is the mean over all prompts, as of any pairwise benchmark (RewardBench, arXiv 2403.13787).

What records may look like:

- `chosen` and `rejected`: a text or a list of texts, with `prompt`, a text, after the messages in `history`, if there
  are any; or with the messages up to and with the user's last one in `prompt` or in `history`;
- `chosen` and `rejected`: lists of messages that differ in the last one only, which is the assistant's. The rest is
  the prompt. A `prompt` of such a record, mostly the first message once more, is not read, unless the two hold the
  reply alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from wildreward_ray.core.template import Message
from wildreward_ray.reward.benchmarks.items import (
    Benchmark,
    Floats,
    Item,
    Outcomes,
    Pair,
    Reading,
    Row,
    bad_record,
    check_unique,
    id_field,
    messages_field,
    text_field,
    texts_field,
)

GROUP_FIELDS = ("subset", "category", "domain", "source")
"""The first of these that a record has names its group."""

NO_GROUP = "all"
ACCURACY = "accuracy"

Conversation = tuple[tuple[Message, ...], str]
"""Messages before the prompt, and the prompt."""


def pair_outcomes(items: Sequence[Item], scores: Sequence[Floats]) -> Outcomes:
    """A unit is an item; what is measured is the share of its right x wrong pairs that the right response wins.

    Args:
        items: each with a right and a wrong response at least.
        scores: of each item's responses, [R], finite.
    """
    shares = [_share_won(np.asarray(of), np.array(item.correct)) for item, of in zip(items, scores, strict=True)]
    return Outcomes(
        groups=tuple(item.group for item in items),
        ids=tuple(item.id for item in items),
        names=(ACCURACY,),
        values=np.array(shares, dtype=np.float64).reshape(len(items), 1),
    )


def micro_metrics(means: Mapping[str, Floats], units: Mapping[str, int]) -> dict[str, Floats]:
    """`accuracy`, in which every unit weighs the same, and then that of each group, where there are several.

    Args:
        means: [..., 1] of every group.
        units: of every group.
    """
    total = sum(units[group] for group in means)
    won: Floats = np.add.reduce([mean[..., 0] * units[group] for group, mean in means.items()])
    groups = {group: mean[..., 0] for group, mean in means.items()} if len(means) > 1 else {}
    return {ACCURACY: won / total, **groups}


def all_pairs(item: Item) -> Sequence[Pair]:
    """Every right response with every wrong one."""
    right = [i for i, correct in enumerate(item.correct) if correct]
    wrong = [i for i, correct in enumerate(item.correct) if not correct]
    return [(i, j) for i in right for j in wrong]


def usable_group(row: Row, group: str) -> str:
    """`group`, which is to name a metric.

    Raises:
        UserError: it is the name of the metric over all groups.
    """
    if group == ACCURACY:
        raise bad_record(row, f"a group can't be called {group!r}, as the metric over all groups is")
    return group


def _share_won(scores: Floats, correct: np.ndarray[Any, np.dtype[np.bool_]]) -> float:
    return float((scores[correct][:, None] > scores[~correct][None, :]).mean())


def _read(rows: Iterable[Row]) -> Reading:
    """Items in the order of the records. One without an `id` is called by its number among all records, from 1.

    Raises:
        UserError: a record that can't be used, or an id that stands twice in its group.
    """
    items = []
    for number, row in enumerate(rows, start=1):
        (history, prompt), chosen, rejected = _parts(row)
        items.append(
            Item(
                own_id=str(number) if row.value.get("id") is None else id_field(row),
                group=_group(row),
                history=history,
                prompt=prompt,
                responses=chosen + rejected,
                correct=(True,) * len(chosen) + (False,) * len(rejected),
            )
        )
    check_unique(items)
    return Reading(tuple(items))


def _group(row: Row) -> str:
    name = next((field for field in GROUP_FIELDS if row.value.get(field) is not None), None)
    return NO_GROUP if name is None else usable_group(row, text_field(row, name))


def _parts(row: Row) -> tuple[Conversation, tuple[str, ...], tuple[str, ...]]:
    """What was asked, the right replies and the wrong ones."""
    if not (_are_messages(row.value.get("chosen")) or _are_messages(row.value.get("rejected"))):
        return _asked(row), texts_field(row, "chosen"), texts_field(row, "rejected")
    before, right = _conversation(row, "chosen")
    before_wrong, wrong = _conversation(row, "rejected")
    if before != before_wrong:
        raise bad_record(row, "chosen and rejected differ in more than their last message")
    return (_split(row, "chosen", before) if before else _asked(row)), (right,), (wrong,)


def _asked(row: Row) -> Conversation:
    """History and prompt of a record whose replies are given alone."""
    prompt, history = row.value.get("prompt"), row.value.get("history")
    if isinstance(prompt, str):
        before = [] if history is None else list(messages_field(row, "history"))
        return tuple(before), text_field(row, "prompt")
    if prompt is not None and history:
        raise bad_record(row, "both prompt and history are messages: one of them is needed")
    name = "history" if prompt is None else "prompt"
    if row.value.get(name) is None:
        raise bad_record(
            row, "no prompt: prompt or history is needed, or the whole conversation in chosen and rejected"
        )
    return _split(row, name, list(messages_field(row, name)))


def _conversation(row: Row, name: str) -> tuple[list[Message], str]:
    """The messages before the reply that a field ends with, and the reply."""
    messages = list(messages_field(row, name))
    if not messages or messages[-1]["role"] != "assistant":
        raise bad_record(row, f"{name} does not end with a message of the assistant")
    return messages[:-1], messages[-1]["content"]


def _split(row: Row, name: str, messages: Sequence[Message]) -> Conversation:
    if not messages or messages[-1]["role"] != "user" or not messages[-1]["content"].strip():
        raise bad_record(row, f"{name} has no message of the user that is answered")
    return tuple(messages[:-1]), messages[-1]["content"]


def _are_messages(value: object) -> bool:
    return isinstance(value, (list, tuple)) and any(isinstance(part, Mapping) for part in value)


PAIRS = Benchmark(
    name="pairs",
    title="Preference pairs",
    definition="https://arxiv.org/abs/2403.13787",
    hub=(),
    read=_read,
    outcomes=pair_outcomes,
    combine=micro_metrics,
    pairs=all_pairs,
    pairs_are="every right reply with every wrong one of the same prompt",
)
