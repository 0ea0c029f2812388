"""Benchmarks that are put together from parts: means over the parts that are there, which parts are not whole, whose ids meet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from wildreward_ray.core.errors import UserError
from wildreward_ray.reward.benchmarks.items import DATA_FLAG, Floats, Item, check_unique


def weighted_mean(parts: Sequence[tuple[Floats, float]]) -> Floats:
    """The mean of values [...] with their weights; a NaN is left out, and its weight with it.

    Args:
        parts: at least one, of equal shapes; weights are positive.

    Returns:
        [...] float64, NaN where every part is.
    """
    values = np.stack([np.asarray(value, dtype=np.float64) for value, _ in parts])
    weights = np.array([weight for _, weight in parts]).reshape(-1, *(1,) * (values.ndim - 1))
    there = ~np.isnan(values)
    total = np.where(there, weights, 0.0).sum(axis=0)
    summed = np.where(there, values * weights, 0.0).sum(axis=0)
    mean: Floats = np.divide(summed, total, out=np.full(total.shape, np.nan), where=total > 0)
    return mean


def not_whole(found: Mapping[str, int], whole: Mapping[str, int]) -> tuple[str, ...]:
    """Groups with fewer records than a whole benchmark has: the name of one that is absent, `name (3 of 95)` of any other."""
    short = [(name, found.get(name, 0), of) for name, of in whole.items() if found.get(name, 0) < of]
    return tuple(f"{name} ({n} of {of})" if n else name for name, n, of in short)


def tell_apart(items: Sequence[Item]) -> tuple[Item, ...]:
    """The items with ids that differ.

    Benchmarks that are collected from others take over their ids, so that several items of a group may have one. The first
    keeps it, the second is `id#2`, in the order of the files.

    Raises:
        UserError: an item stands twice with all its texts.
    """
    known: dict[str, list[tuple[object, ...]]] = {}
    apart = []
    for item in items:
        texts = (item.history, item.prompt, item.responses)
        others = known.setdefault(item.id, [])
        if texts in others:
            raise UserError(
                f"{item.id!r} stands twice with the same texts",
                flag=DATA_FLAG,
                hint="give every file once, and one split of the benchmark",
            )
        others.append(texts)
        apart.append(item if len(others) == 1 else replace(item, own_id=f"{item.own_id}#{len(others)}"))
    check_unique(apart)
    return tuple(apart)
