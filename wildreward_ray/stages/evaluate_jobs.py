"""What an evaluation has scored: jobs, and the parts that their scores are kept in, so that a killed run goes on.

A part holds the scores of a fixed run of jobs and is written in one go, under a name that says which they are. Jobs depend on the
benchmark and the settings only, so a resumed run finds the same parts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from wildreward_ray.cluster.storage import Location
from wildreward_ray.core.errors import WildRewardError
from wildreward_ray.core.template import Message
from wildreward_ray.reward.benchmarks.items import Floats, some

PART = pa.schema([("job", pa.string()), ("scores", pa.list_(pa.float64()))])
_SUFFIX = ".parquet"


@dataclass(frozen=True)
class Job:
    """A prompt whose responses are scored together: they share all that comes before them.

    Attributes:
        id: unique among the jobs of an evaluation.
    """

    id: str
    history: tuple[Message, ...]
    prompt: str
    responses: tuple[str, ...]


@dataclass(frozen=True)
class Chunk:
    """A run of jobs that is scored and written as one part."""

    name: str
    jobs: tuple[Job, ...]

    @property
    def responses(self) -> int:
        """How many responses it has."""
        return sum(len(job.responses) for job in self.jobs)


def cut(jobs: Sequence[Job], most: int) -> Iterator[Chunk]:
    """Jobs in order, in chunks of at most `most` responses; a job with more is a chunk of its own."""
    held: list[Job] = []
    size = index = 0
    for job in jobs:
        if held and size + len(job.responses) > most:
            yield Chunk(f"{index:06d}", tuple(held))
            held, size, index = [], 0, index + 1
        held.append(job)
        size += len(job.responses)
    if held:
        yield Chunk(f"{index:06d}", tuple(held))


def digest(jobs: Sequence[Job]) -> str:
    """16 hex digits that name the jobs, their texts and their order."""
    found = hashlib.blake2b(digest_size=8)
    for job in jobs:
        found.update(json.dumps([job.id, [dict(m) for m in job.history], job.prompt, job.responses]).encode())
    return found.hexdigest()


class Parts:
    """The parts of an evaluation, below a folder."""

    def __init__(self, folder: Location) -> None:
        self._folder = folder

    def done(self) -> set[str]:
        """Names of the chunks whose scores are there."""
        return {name.removesuffix(_SUFFIX) for name in self._folder.names() if name.endswith(_SUFFIX)}

    def write(self, name: str, scores: Mapping[str, Sequence[float]]) -> None:
        """Write the scores of a chunk's jobs, by their ids."""
        table = pa.table({"job": list(scores), "scores": [list(values) for values in scores.values()]}, schema=PART)
        self._folder.child(name + _SUFFIX).write_table(table)

    def read(self, jobs: Sequence[Job]) -> dict[str, Floats]:
        """The scores of all jobs: float64 [R] by id.

        Raises:
            WildRewardError: a job has none, which is a bug or a folder that somebody changed.
        """
        found: dict[str, Floats] = {}
        for name in sorted(self.done()):
            table = self._folder.child(name + _SUFFIX).read_table()
            for job, scores in zip(table["job"].to_pylist(), table["scores"].to_pylist(), strict=True):
                found[job] = np.asarray(scores, dtype=np.float64)
        missing = [job.id for job in jobs if job.id not in found or len(found[job.id]) != len(job.responses)]
        if missing:
            raise WildRewardError(
                f"{self._folder.uri!r} lacks scores of {len(missing)} of {len(jobs)} prompts: {some(missing)}"
            )
        return found


@dataclass
class Failures:
    """Responses without a score, by the id of their job: an evaluation that has any is not finished."""

    found: dict[str, str]

    def check(self, jobs: int) -> None:
        """Return if there are none.

        Raises:
            WildRewardError: there are; says how many prompts, and why the first ones.
        """
        if self.found:
            shown = "; ".join(f"{job}: {why}" for job, why in list(self.found.items())[:3])
            more = f" and {len(self.found) - 3} more" if len(self.found) > 3 else ""
            raise WildRewardError(
                f"{len(self.found)} of {jobs} prompts have no scores, and a part is not the benchmark: {shown}{more}"
            )
