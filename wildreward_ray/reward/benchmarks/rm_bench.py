"""RM-Bench: is the right reply preferred, whatever it looks like?

Every prompt has three right and three wrong replies in the same three styles: concise, detailed as plain text,
detailed with markdown (arXiv 2410.16184). Of all nine meetings, the right reply's style is as rich as the wrong one's
in three (normal), richer in three (easy) and plainer in three (hard).

How the numbers are made was read from the benchmark's own code, `compute_accuracy` and `split_dataset_by_domain` of
https://github.com/THU-KEG/RM-Bench/blob/main/scripts/utils.py at commit 73c52d7, and its README ("Clarity on Avg
Calculation"):

- M[i][j] is the share of a domain's prompts whose right reply of style i scores above the wrong one of style j; equal
  scores are no win. Easy, normal and hard are the means below, on and above the diagonal of M.
- A domain's accuracy is the mean of its easy, normal and hard, which is the mean of the nine cells.
- Overall accuracy, easy, normal and hard are plain means over the four domains chat, code, math and safety.

Safety is the mean of its two parts, safety-refuse and safety-response, as results on this benchmark are reported: refusing
everything must not pay because there are more prompts to refuse (284) than to answer (157). The benchmark's own code pools
the prompts of both instead; `safety-pooled` is that figure, so that either can be compared.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from wildreward_ray.core.errors import UserError
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
    text_field,
    texts_field,
)
from wildreward_ray.reward.benchmarks.parts import not_whole

STYLES = ("concise", "detailed", "markdown")
"""Of the replies, in their order."""

SIZES: Mapping[str, int] = {"chat": 129, "code": 228, "math": 529, "safety-refuse": 284, "safety-response": 157}
"""Prompts of every group, 1,327 in all."""

DOMAINS: Mapping[str, tuple[str, ...]] = {
    "chat": ("chat",),
    "code": ("code",),
    "math": ("math",),
    "safety": ("safety-refuse", "safety-response"),
}
"""The groups that each domain is made of."""

_N = len(STYLES)
_CELLS = tuple((i, j) for i in range(_N) for j in range(_N))
_LEVELS: Mapping[str, tuple[int, ...]] = {
    "easy": tuple(k for k, (i, j) in enumerate(_CELLS) if i > j),
    "normal": tuple(k for k, (i, j) in enumerate(_CELLS) if i == j),
    "hard": tuple(k for k, (i, j) in enumerate(_CELLS) if i < j),
}


def _read(rows: Iterable[Row]) -> Reading:
    """Items of the domains' files or of the one that holds all; a group that lacks prompts is named as missing.

    Raises:
        UserError: a record that can't be used, of no known domain, or one that stands twice.
    """
    items: list[Item] = []
    ways: dict[bool, str] = {}
    for row in rows:
        named = row.value.get("domain") is not None
        ways.setdefault(named, row.file)
        items.append(_item(row, _group(row, named)))
    if len(ways) == 2 and len({item.id for item in items}) < len(items):
        raise UserError(
            f"{ways[True]!r}, whose records have a domain, holds prompts of files such as {ways[False]!r} again",
            flag=DATA_FLAG,
            hint="give the file of the whole benchmark or those of its domains",
        )
    check_unique(items)
    return Reading(tuple(items), missing=not_whole(Counter(item.group for item in items), SIZES))


def _group(row: Row, named: bool) -> str:
    if named:
        group = text_field(row, "domain")
        rule = f"domain = {group!r}"
    elif match := re.match(r"(.+?)_filtered", row.file):
        group = match[1]
        rule = f"the file's name says {group!r}"
    else:
        raise bad_record(row, "no domain, and the file's name is not such as chat_filtered.json")
    if group not in SIZES:
        raise bad_record(row, f"{rule}: known are {', '.join(SIZES)}")
    return group


def _item(row: Row, group: str) -> Item:
    return Item(
        own_id=id_field(row),
        group=group,
        history=(),
        prompt=text_field(row, "prompt"),
        responses=texts_field(row, "chosen", _N) + texts_field(row, "rejected", _N),
        correct=(True,) * _N + (False,) * _N,
    )


def _outcomes(items: Sequence[Item], scores: Sequence[Floats]) -> Outcomes:
    """A unit is a prompt, measured in nine meetings: "i>j" is the right reply of style i against the wrong one of j."""
    table = np.array(scores, dtype=np.float64).reshape(len(items), 2 * _N)
    wins = table[:, :_N, None] > table[:, None, _N:]
    return Outcomes(
        groups=tuple(item.group for item in items),
        ids=tuple(item.id for item in items),
        names=tuple(f"{i}>{j}" for i, j in _CELLS),
        values=wins.reshape(len(items), _N * _N).astype(np.float64),
    )


def _domains(means: Mapping[str, Floats]) -> dict[str, Floats]:
    """[..., 9] of each domain that is there: the mean of its groups."""
    present = {domain: [means[group] for group in groups if group in means] for domain, groups in DOMAINS.items()}
    return {domain: np.mean(parts, axis=0) for domain, parts in present.items() if parts}


def _pooled(means: Mapping[str, Floats], units: Mapping[str, int]) -> dict[str, Floats]:
    """The accuracy of each domain whose groups are all there and several, every prompt weighing the same."""
    found = {}
    for domain, groups in DOMAINS.items():
        if len(groups) > 1 and all(group in means for group in groups):
            cells = np.add.reduce([means[group] * units[group] for group in groups]) / sum(units[g] for g in groups)
            found[f"{domain}-pooled"] = np.mean(cells, axis=-1)
    return found


def _parts(means: Mapping[str, Floats]) -> dict[str, Floats]:
    """[..., 9] of the groups that are only a part of their domain."""
    return {group: means[group] for groups in DOMAINS.values() if len(groups) > 1 for group in groups if group in means}


def _combine(means: Mapping[str, Floats], units: Mapping[str, int]) -> dict[str, Floats]:
    """`accuracy`, `easy`, `normal`, `hard`; each domain and part that is there; `safety-pooled`; `domain/easy` and so on.

    Domains that aren't there are left out of the means. Where one part of safety is absent, safety is the other.
    """
    domains = _domains(means)
    levels = {name: _levels(cells) for name, cells in {**domains, **_parts(means)}.items()}
    overall = {level: np.mean([levels[domain][level] for domain in domains], axis=0) for level in _LEVELS}
    return {
        "accuracy": _accuracy(overall),
        **overall,
        **{name: _accuracy(of) for name, of in levels.items()},
        **_pooled(means, units),
        **{f"{name}/{level}": value for name, of in levels.items() for level, value in of.items()},
    }


def _levels(cells: Floats) -> dict[str, Floats]:
    return {level: np.mean(cells[..., list(which)], axis=-1) for level, which in _LEVELS.items()}


def _accuracy(levels: Mapping[str, Floats]) -> Floats:
    mean: Floats = np.mean([levels[level] for level in _LEVELS], axis=0)
    return mean


def _pairs(item: Item) -> Sequence[Pair]:
    return [(style, _N + style) for style in range(_N)]


def style_matrices(items: Sequence[Item], scores: Sequence[Floats]) -> dict[str, list[list[float]]]:
    """How often the right reply wins, by its own style and that of the wrong one.

    Args:
        items: at least one, as `RM_BENCH.read` gives them.
        scores: of each item's responses, [6], finite.

    Returns:
        [3 x 3] shares, row: style of the right reply, column: of the wrong one, in the order of `STYLES`. First "all",
        the mean over the domains, whose cells have the overall easy, normal and hard as their means; then each domain
        that is there and the parts of safety.
    """
    outcomes = _outcomes(items, scores)
    groups = np.array(outcomes.groups)
    present = [group for group in SIZES if group in outcomes.groups]
    means = {group: outcomes.values[groups == group].mean(axis=0) for group in present}
    domains = _domains(means)
    every = {"all": np.mean(list(domains.values()), axis=0), **domains, **_parts(means)}
    return {name: cells.reshape(_N, _N).tolist() for name, cells in every.items()}


RM_BENCH = Benchmark(
    name="rm_bench",
    title="RM-Bench",
    definition="https://github.com/THU-KEG/RM-Bench/blob/main/scripts/utils.py",
    hub=("hf://datasets/THU-KEG/RM-Bench/total_dataset.json",),
    read=_read,
    outcomes=_outcomes,
    combine=_combine,
    pairs=_pairs,
    pairs_are="the right and the wrong reply of the same style (RM-Bench Normal)",
)
