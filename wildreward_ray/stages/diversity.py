"""Training sets of equal size that are drawn from fewer and from more users.

Source: arXiv 2602.08829, user diversity: at equal size, sets from about ten times as many users give better reward models.

How a seed draws its sets, with multiples 1, 3 and 10:

1. Users with fewer than 10 training rows stand aside, as do rows without a user: each of the 10 U users must be able to give a
   row, and users who write little would otherwise make up the diverse sets only.
2. The M users that are left are sorted by a hash of the seed and their id. U is M // 10, the most for which there are 10 U users.
3. The first set is all rows of the first U users; their number is N. The other sets are drawn from the first 3 U and 10 U
   users, N rows each, as evenly over users as their rows allow; which rows of a user, a hash of the seed and the row's id decides.

So the users of a set are among those of every larger one; the rows need not be.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from wildreward_ray.cluster.schema import DATASET
from wildreward_ray.core.errors import UserError
from wildreward_ray.stages.variants import Extraction, Variant, add_held_out, new_variants, scan

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

_NOBODY = -1


@dataclass(frozen=True)
class Survey:
    """The training rows of a dataset, in the order in which they are read. 16 bytes a row and seed, at the most.

    Attributes:
        uri: of the dataset, for messages.
        users: ids of the users.
        user: [N] index into `users`, -1 for a row without one.
        keys: seed -> [N] uint64, by which a user's rows are ordered.
    """

    uri: str
    users: list[str]
    user: Ints
    keys: dict[int, npt.NDArray[np.uint64]]


@dataclass(frozen=True)
class Draw:
    """One set.

    Attributes:
        chosen: [N] whether a training row belongs to it.
        users: users that it is drawn from; each gives at least one row.
        dropped: the other rows by reason: `no_user`, `light_user` (too few rows), `other_user` (not drawn), `surplus` (of a
            drawn user, beyond what that user gives).
    """

    chosen: Bools
    users: int
    dropped: Counter[str]


def survey(extraction: Extraction, seeds: Sequence[int]) -> Survey:
    """Read the users and the ids of all training rows.

    Raises:
        UserError, StorageError: see `scan`.
    """
    numbers: dict[str, int] = {}
    user: list[npt.NDArray[np.int32]] = []
    keys: dict[int, list[npt.NDArray[np.uint64]]] = {seed: [] for seed in seeds}
    for batch in scan(extraction.place.child("dataset/train"), ["interaction_id", "user_id"]):
        ids = batch["user_id"].to_pylist()
        user.append(np.array([numbers.setdefault(u, len(numbers)) if u else _NOBODY for u in ids], np.int32))
        rows = batch["interaction_id"].to_pylist()
        for seed, found in keys.items():
            found.append(np.array([_key(seed, row) for row in rows], np.uint64))
    return Survey(
        extraction.uri,
        list(numbers),
        np.concatenate([np.zeros(0, np.int32), *user]).astype(np.int64),
        {seed: np.concatenate([np.zeros(0, np.uint64), *found]) for seed, found in keys.items()},
    )


def draw(rows: Survey, multiples: Sequence[int], seed: int) -> dict[int, Draw]:
    """The sets of one seed, by multiple. See the top of this module for the rule.

    Args:
        multiples: ascending, from 1.
        seed: one of those that were surveyed.

    Raises:
        UserError: no row names its user, or too few users have enough rows.
    """
    largest = multiples[-1]
    counts = np.bincount(rows.user[rows.user >= 0], minlength=len(rows.users))
    enough = np.flatnonzero(counts >= largest)
    if not rows.users:
        raise UserError(f"no training row of {rows.uri!r} names its user", flag="--dataset")
    if len(enough) < largest:
        raise UserError(
            f"{rows.uri!r} has {len(enough)} users with {largest} training rows or more ({len(rows.users)} users in all): "
            f"{largest} are needed",
            flag="--users",
            hint="give smaller multiples",
        )
    order = np.array(sorted(enough, key=lambda i: (_key(seed, rows.users[i]), rows.users[i])))
    fewest = len(order) // largest
    size = int(counts[order[:fewest]].sum())
    place = _place_in_user(rows.user, rows.keys[seed])
    return {m: _draw_from(order[: m * fewest], size, rows, counts, counts >= largest, place) for m in multiples}


def _draw_from(drawn: Ints, size: int, rows: Survey, counts: Ints, enough: Bools, place: Ints) -> Draw:
    """`size` rows of the users `drawn`."""
    quota = np.zeros(len(rows.users), np.int64)
    quota[drawn] = quotas(counts[drawn], size)
    named = rows.user >= 0
    user = np.where(named, rows.user, 0)
    chosen = named & (place < quota[user])
    reasons = {
        "no_user": ~named,
        "light_user": named & ~enough[user],
        "other_user": named & enough[user] & (quota[user] == 0),
        "surplus": named & (quota[user] > 0) & ~chosen,
    }
    dropped = Counter({reason: int(mask.sum()) for reason, mask in reasons.items() if mask.any()})
    return Draw(chosen, len(drawn), dropped)


def quotas(counts: Ints, size: int) -> Ints:
    """How many rows each user gives so that there are `size` in all, as evenly as possible.

    Everybody gives the same number, or all they have where that is less; what is missing by rounding, the first of those who
    have more give one each.

    Args:
        counts: [U] rows that each user has, `size` or more in all.

    Returns:
        [U] rows, at most `counts`, that add up to `size`.
    """
    low, high = 0, int(counts.max())
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if np.minimum(counts, middle).sum() <= size else (low, middle - 1)
    given = np.minimum(counts, low)
    given[np.flatnonzero(counts > low)[: size - int(given.sum())]] += 1
    return given


def write_sets(
    extraction: Extraction, rows: Survey, multiples: Sequence[int], seed: int, uris: Mapping[int, str]
) -> None:
    """Write the sets of one seed whose URIs are given, by multiple, in one pass over the dataset.

    Raises:
        UserError, StorageError: see `draw`, `scan` and `new_variants`.
    """
    started = time.monotonic()
    drawn = draw(rows, multiples, seed)
    with new_variants({set_name(m): uri for m, uri in uris.items()}) as variants:
        read = 0
        for batch in scan(extraction.place.child("dataset/train"), DATASET.names):
            table = pa.Table.from_batches([batch]).cast(DATASET)
            for multiple in uris:
                mask = drawn[multiple].chosen[read : read + table.num_rows]
                variants[set_name(multiple)].add("train", table.filter(pa.array(mask)))
            read += table.num_rows
        add_held_out(extraction, list(variants.values()))
        for multiple in uris:
            variant: Variant = variants[set_name(multiple)]
            variant.dropped.update(drawn[multiple].dropped)
            variant.finish(extraction, {"multiple": multiple, "seed": seed}, started)


def set_name(multiple: int) -> str:
    """The name of the set that is drawn from so many times as many users as the first one."""
    return f"users_x{multiple}"


def _place_in_user(user: Ints, keys: npt.NDArray[np.uint64]) -> Ints:
    """[N] the place of each row among the rows of its user, in order of the keys, from 0."""
    order = np.lexsort((keys, user))
    begins = np.searchsorted(user[order], user[order], side="left")
    place = np.empty(len(user), np.int64)
    place[order] = np.arange(len(user)) - begins
    return place


def _key(seed: int, name: str) -> int:
    digest = hashlib.blake2b(f"{seed}\x00{name}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest)
