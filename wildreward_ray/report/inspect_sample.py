"""Which interactions the page holds to browse: the same ones whatever the order of the files, and some of every kind.

Rows are grouped by origin and final level. Each group keeps the rows whose id has the smallest hash (a bottom-k sample), so
what is taken depends on the ids alone. Memory is that of `limit` ids for every group.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

Stratum = tuple[str, int]
# Of the places, 1 in so many is kept for turns that a mined level was taken from, so that its evidence can be looked at.
_EVIDENCE_SHARE = 10


@dataclass
class _Reservoir:
    """The rows of one group with the smallest hashes, as a heap whose first entry has the largest."""

    rows: int = 0
    heap: list[tuple[int, str, str]] = field(default_factory=list)
    held: set[str] = field(default_factory=set)

    def add(self, key: int, name: str, evidence: str, size: int) -> None:
        self.rows += 1
        if name in self.held or (len(self.heap) == size and -key <= self.heap[0][0]):
            return
        self.held.add(name)
        if len(self.heap) < size:
            heapq.heappush(self.heap, (-key, name, evidence))
        else:
            self.held.discard(heapq.heappushpop(self.heap, (-key, name, evidence))[1])

    def smallest(self, n: int) -> list[tuple[int, str, str]]:
        """(hash, id, id of the evidence or "") of the n smallest."""
        return sorted((-negative, name, evidence) for negative, name, evidence in self.heap)[:n]


@dataclass(frozen=True)
class Sample:
    """What was drawn.

    Attributes:
        ids: in order of their hashes; the evidence turns come last.
        strata: (origin, level or 0, rows of the extraction, rows drawn for the group).
        evidence: how many of `ids` are there because a mined level was taken from them.
    """

    ids: list[str]
    strata: list[tuple[str, int, int, int]]
    evidence: int


class Sampler:
    """Draws up to `limit` interactions from a stream."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._strata: dict[Stratum, _Reservoir] = {}

    def add(
        self,
        ids: Sequence[str],
        origins: Sequence[str | None],
        levels: Sequence[int],
        evidence: Sequence[str | None],
    ) -> None:
        """Offer rows: their ids, origins, final levels (0 for none) and the ids of the turns their level was taken from."""
        for name, origin, level, source in zip(ids, origins, levels, evidence, strict=True):
            reservoir = self._strata.setdefault((origin or "not recorded", level), _Reservoir())
            reservoir.add(hash_of(name), name, source or "", self._limit)

    def choose(self) -> Sample:
        """The sample: everything if it fits, else half of the places evenly over the groups and half by their size."""
        sizes = {key: reservoir.rows for key, reservoir in sorted(self._strata.items())}
        mined = sum(bool(e) for r in self._strata.values() for _, _, e in r.heap)
        reserved = min(self._limit // _EVIDENCE_SHARE, mined) if sum(sizes.values()) > self._limit else 0
        taken = self._drawn(sizes, self._limit - reserved)
        ids = {name for _, name, _ in taken}
        sources = [e for e in dict.fromkeys(e for _, _, e in taken) if e and e not in ids][:reserved]
        # Places that no evidence needs go to the groups.
        taken = self._drawn(sizes, self._limit - len(sources))
        names = [name for _, name, _ in taken]
        known = set(names)
        sources = [name for name in sources if name not in known]
        drawn = Counter(key for key, r in self._strata.items() for name in names if name in r.held)
        return Sample(names + sources, [(*key, n, drawn[key]) for key, n in sizes.items()], len(sources))

    def _drawn(self, sizes: Mapping[Stratum, int], places: int) -> list[tuple[int, str, str]]:
        """(hash, id, evidence) of the rows that all groups give together, in order of the hashes."""
        given = allocate(sizes, places)
        return sorted(entry for key, n in given.items() for entry in self._strata[key].smallest(n))


def hash_of(name: str) -> int:
    """64 bits that depend on the text alone; the order of these hashes is the order of the sample."""
    return int.from_bytes(blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest())


def allocate(sizes: Mapping[Stratum, int], places: int) -> dict[Stratum, int]:
    """How many rows every group gives; none gives more than it has, and all places are used if there are rows enough."""
    even = _evenly(sizes, places // 2 if sum(sizes.values()) > places else places)
    left = {key: size - even[key] for key, size in sizes.items()}
    rest = min(places - sum(even.values()), sum(left.values()))
    if rest <= 0:
        return even
    whole = sum(left.values())
    # Largest remainders, in whole numbers: floats could lose a place.
    share = {key: rest * n // whole for key, n in left.items()}
    order = sorted(left, key=lambda key: (-(rest * left[key] % whole), key))
    for key in order[: rest - sum(share.values())]:
        share[key] += 1
    return {key: even[key] + share[key] for key in sizes}


def _evenly(sizes: Mapping[Stratum, int], places: int) -> dict[Stratum, int]:
    """The same number for every group, where small groups leave what they can't fill to the others."""
    given = dict.fromkeys(sizes, 0)
    left = places
    smallest_first = sorted(sizes, key=lambda key: (sizes[key], key))
    for position, key in enumerate(smallest_first):
        given[key] = min(sizes[key], left // (len(smallest_first) - position))
        left -= given[key]
    return given
