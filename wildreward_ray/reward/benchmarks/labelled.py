"""Replies that were labelled one by one, such as the test part of an extracted dataset.

There are no pairs: every item has one response. `accuracy` is the area under the ROC curve across prompts: the chance that a
random positive reply scores above a random negative one, to whatever prompt, ties counting half (arXiv 2602.08829,
"cross-sample consistency"). With more than two labels, `spearman` is the rank correlation of score and label. Neither is
a mean over units, so both are computed from all units together.

What records may look like: `label`, and either `messages`, which end with the user's message and the assistant's reply and may
come after those of `history`, or `history`, `prompt` and `response`. Labels are 0 and 1, or true and false, and then say
themselves what is positive; or they are levels from 1 to the highest one found, whose upper half is positive
(`core.scale.is_positive_label`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from scipy.stats import rankdata

from wildreward_ray.core.errors import UserError
from wildreward_ray.core.scale import MAX_K, is_positive_label
from wildreward_ray.core.template import Message
from wildreward_ray.reward.benchmarks.consistency import WeightedAuc
from wildreward_ray.reward.benchmarks.estimate import ratio
from wildreward_ray.reward.benchmarks.items import (
    DATA_FLAG,
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
)

ACCURACY, SPEARMAN = "accuracy", "spearman"
NO_GROUP, UNKNOWN = "all", "unknown"
GROUP_FIELDS = ("language", "origin")
"""The first of these that any record has names the groups; records without it are of the group `unknown`."""

_ID_FIELDS = ("interaction_id", "id")
_RANK, _LABEL, _POSITIVE = range(3)
# More digits than any label has; Python refuses to read texts of some thousand digits.
_WHOLE_NUMBER = re.compile(r"\s*-?[0-9]{1,18}\s*")


def labelled_outcomes(items: Sequence[Item], scores: Sequence[Floats]) -> Outcomes:
    """A unit is a reply, with its score's rank, its label, and whether that is positive.

    Ranks, with ties at their mean and as shares of all replies, in (0, 1], lose nothing that is measured here. Models with scores
    of different size thereby become exchangeable, which a test that swaps their outcomes needs (Venkatraman & Begg 1996,
    "A distribution-free procedure for comparing receiver operating characteristic curves from a paired experiment",
    Biometrika 83, 835-848).

    Args:
        scores: of each item's one response, [1], finite.
    """
    score = np.array([float(own[0]) for own in scores], np.float64)
    label = [float(item.attributes["label"]) for item in items]
    positive = [float(item.correct[0]) for item in items]
    rank = rankdata(score) / max(1, len(score))
    return Outcomes(
        groups=tuple(item.group for item in items),
        ids=tuple(item.id for item in items),
        names=("rank", "label", "positive"),
        values=np.stack([rank, np.array(label), np.array(positive)], axis=1),
    )


def labelled_metrics(outcomes: Outcomes, weights: Floats) -> dict[str, Floats]:
    """[R] `accuracy`, `spearman` where there are more than two labels, and the accuracy within each group where there are several.

    Args:
        weights: [R, U] how often each unit counts.

    Returns:
        NaN where a resample has one side only, or no spread.
    """
    rank, label = outcomes.values[:, _RANK], outcomes.values[:, _LABEL]
    positive = outcomes.values[:, _POSITIVE] > 0
    result = {ACCURACY: WeightedAuc(rank, positive).of(weights)}
    if len(np.unique(label)) > 2:
        result[SPEARMAN] = weighted_spearman(rank, label, weights)
    names = list(dict.fromkeys(outcomes.groups))
    if len(names) > 1:
        groups = np.array(outcomes.groups)
        for name in names:
            own = groups == name
            result[name] = WeightedAuc(rank[own], positive[own]).of(weights[:, own])
    return result


def weighted_spearman(x: Floats, y: Floats, weights: Floats) -> Floats:
    """[R] rank correlation of [N] values x and y when rows count as often as weights [R, N] say; NaN where one has no spread."""
    x_rank, y_rank = _centred_ranks(x, weights), _centred_ranks(y, weights)
    both = np.einsum("rn,rn,rn->r", weights, x_rank, y_rank)
    spread = np.einsum("rn,rn,rn->r", weights, x_rank, x_rank) * np.einsum("rn,rn,rn->r", weights, y_rank, y_rank)
    return ratio(both, np.sqrt(spread))


def _centred_ranks(values: Floats, weights: Floats) -> Floats:
    """[R, N] mean rank of every value among all, less that of all."""
    _, group = np.unique(values, return_inverse=True)
    group = group.reshape(-1)
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    counts = np.add.reduceat(weights[:, order], starts, axis=1)
    ranks: Floats = np.cumsum(counts, axis=1) - counts / 2 - counts.sum(axis=1, keepdims=True) / 2
    return ranks[:, group]


def _read(rows: Iterable[Row]) -> Reading:
    """Items in the order of the records. One without an id is called by its number among all records, from 1.

    Raises:
        UserError: a record that can't be used, labels that can't be told to be levels or 0 and 1, labels on one side only, or an
            id that stands twice.
    """
    records = list(rows)
    labels = [_label(row) for row in records]
    positive = _positive(labels)
    field = next((name for name in GROUP_FIELDS if any(_present(row, name) for row in records)), None)
    items = []
    for number, (row, label) in enumerate(zip(records, labels, strict=True), start=1):
        history, prompt, response = _reply(row)
        name = next((name for name in _ID_FIELDS if row.value.get(name) is not None), None)
        items.append(
            Item(
                own_id=str(number) if name is None else id_field(row, name),
                group=_group(row, field),
                history=history,
                prompt=prompt,
                responses=(response,),
                correct=(positive[label],),
                attributes={"label": label},
            )
        )
    check_unique(items)
    return Reading(tuple(items))


def _label(row: Row) -> int:
    """A whole number, also where it is written as true, 3.0 or "3"."""
    value = row.value.get("label")
    if isinstance(value, (bool, int)):
        return int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and _WHOLE_NUMBER.fullmatch(value):
        return int(value)
    raise bad_record(row, f"label = {value!r}: a whole number is needed")


def _positive(labels: Sequence[int]) -> Mapping[int, bool]:
    """Which labels are positive.

    Raises:
        UserError: they are neither 0 and 1 nor levels, or all on one side.
    """
    found = sorted(set(labels))
    if not found:
        raise UserError("no labelled replies", flag=DATA_FLAG)
    shown = f"labels {', '.join(map(str, found[:MAX_K]))}"
    highest = found[-1]
    if found[0] < 0 or highest > MAX_K or (found[0] == 0 and highest > 1):
        raise UserError(f"{shown}: they must be 0 and 1, or levels from 1 to at most {MAX_K}", flag=DATA_FLAG)
    levels = found[0] > 0
    positive = {label: is_positive_label(label, highest) if levels else label == 1 for label in found}
    if len(set(positive.values())) < 2:
        raise UserError(f"{shown} only: positive and negative replies are needed", flag=DATA_FLAG)
    return positive


def _present(row: Row, name: str) -> bool:
    value = row.value.get(name)
    return isinstance(value, str) and bool(value.strip())


def _group(row: Row, field: str | None) -> str:
    if field is None:
        return NO_GROUP
    if not _present(row, field):
        return UNKNOWN
    name = text_field(row, field)
    if name in (ACCURACY, SPEARMAN):
        raise bad_record(row, f"a group can't be called {name!r}, as a metric over all groups is")
    return name


def _reply(row: Row) -> tuple[tuple[Message, ...], str, str]:
    """History, prompt and response of a record. A response may be empty: that is a reply too."""
    before = _messages(row, "history")
    if row.value.get("response") is not None:
        response = row.value["response"]
        if not isinstance(response, str):
            raise bad_record(row, f"response is a {type(response).__name__}: a text is needed")
        return before, text_field(row, "prompt"), response
    messages = _messages(row, "messages")
    if not messages:
        raise bad_record(row, "no reply: messages, or prompt and response, are needed")
    roles = [message["role"] for message in messages[-2:]]
    if roles != ["user", "assistant"]:
        raise bad_record(row, f"messages end with {', '.join(roles)}: they must with user, assistant")
    prompt, response = (message["content"] for message in messages[-2:])
    if not prompt.strip():
        raise bad_record(row, "the user's last message is empty")
    return before + messages[:-2], prompt, response


def _messages(row: Row, name: str) -> tuple[Message, ...]:
    """A list of messages; what isn't there, or is an empty text as in files that were a table once, stands for none."""
    value = row.value.get(name)
    if value is None or (isinstance(value, str) and not value.strip()):
        return ()
    return messages_field(row, name)


def _no_means(means: Mapping[str, Floats], units: Mapping[str, int]) -> dict[str, Floats]:
    raise TypeError("the metrics of labelled replies are no function of group means: Benchmark.whole gives them")


def _no_pairs(item: Item) -> Sequence[Pair]:
    return ()


LABELLED = Benchmark(
    name="labelled",
    title="Labelled replies",
    definition="https://arxiv.org/abs/2602.08829",
    hub=(),
    read=_read,
    outcomes=labelled_outcomes,
    combine=_no_means,
    pairs=_no_pairs,
    pairs_are="none: every reply is labelled on its own",
    whole=labelled_metrics,
)
