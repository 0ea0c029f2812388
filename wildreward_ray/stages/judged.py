"""What the whole corpus of verdicts says: the judge's priors, the counts, and what goes into quarantine; one pass, streamed."""

from __future__ import annotations

import json
import tempfile
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from wildreward_ray.cluster.schema import QUARANTINE
from wildreward_ray.cluster.storage import Location, upload_file
from wildreward_ray.core.config.judge import JudgeSection
from wildreward_ray.feedback.conversation import interaction_id
from wildreward_ray.feedback.prior import Prior, PriorSum
from wildreward_ray.stages.chunks import list_parts, part_file

# Parts read ahead: an object store answers slowly, but many at once.
_AHEAD = 8
_COLUMNS = [
    "kind",
    "conversation_id",
    "language_group",
    "source",
    "position",
    "turns",
    "reason",
    "detail",
    "counts",
    "logprobs",
    "failures",
    "refusal_logprobs",
    "refusal_suspect",
]


@dataclass(frozen=True)
class Priors:
    """The judge's preferences for verdicts, of the feedback prompt and of the refusal prompt."""

    feedback: Prior
    refusal: Prior


@dataclass
class JudgedCorpus:
    """What was found in all judged parts.

    Attributes:
        summary: counts of reading, by name.
        judge: counts of judging, by name.
    """

    priors: Priors
    summary: Counter[str] = field(default_factory=Counter)
    judge: Counter[str] = field(default_factory=Counter)


def survey(
    judged: Location, section: JudgeSection, quarantine: Location, unreadable: Sequence[dict[str, Any]]
) -> JudgedCorpus:
    """Go once over all judged parts, and write what could not be used.

    Args:
        quarantine: the file that takes `QUARANTINE` rows: files, records and interactions, with the reason.
        unreadable: rows of files that were never opened.
    """
    corpus = JudgedCorpus(Priors(Prior({}, None), Prior({}, None)))
    with tempfile.TemporaryDirectory(prefix="wildreward-") as folder:
        file = Path(folder) / "quarantine.parquet"
        with pq.ParquetWriter(file, QUARANTINE) as writer:
            _survey(judged, section, writer, unreadable, corpus)
        upload_file(file, quarantine)
    return corpus


def _survey(
    judged: Location,
    section: JudgeSection,
    writer: pq.ParquetWriter,
    unreadable: Sequence[dict[str, Any]],
    corpus: JudgedCorpus,
) -> None:
    feedback, refusal = PriorSum(), PriorSum()
    if unreadable:
        writer.write_table(pa.Table.from_pylist(list(unreadable), schema=QUARANTINE))
    for batch in scan(judged, _COLUMNS):
        for kind, counter in (("summary", corpus.summary), ("judge", corpus.judge)):
            for text in _of_kind(batch, kind)["counts"].to_pylist():
                counter.update(json.loads(text))
        unusable = _of_kind(batch, "quarantine").select(["source", "position", "reason", "detail"]).to_pylist()
        conversations = _of_kind(batch, "conversation")
        unusable += _without_verdict(conversations)
        if unusable:
            writer.write_table(pa.Table.from_pylist(unusable, schema=QUARANTINE))
        if section.corrects_prior:
            _add(feedback, conversations, "logprobs", ordinary_only=False)
            _add(refusal, conversations, "refusal_logprobs", ordinary_only=True)
    corpus.priors = Priors(feedback.finish(), refusal.finish())


def scan(place: Location, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """Stream some columns of all parts of a directory, in the order of their names, some parts ahead."""
    parts = iter(list_parts(place))
    with ThreadPoolExecutor(_AHEAD) as threads:

        def begin() -> Iterator[Future[pa.Table]]:
            return (threads.submit(part_file(place, part).read_table, columns) for part in parts)

        waiting = deque(islice(begin(), _AHEAD))
        while waiting:
            table = waiting.popleft().result()
            waiting.extend(islice(begin(), 1))
            yield from table.to_batches()


def _of_kind(batch: pa.RecordBatch, kind: str) -> pa.RecordBatch:
    return batch.filter(pc.equal(batch["kind"], kind))


def _without_verdict(conversations: pa.RecordBatch) -> list[dict[str, Any]]:
    """`QUARANTINE` rows of the turns whose verdict could not be had."""
    failed = pc.list_flatten(conversations["failures"])
    if failed.null_count == len(failed):
        return []
    columns = ["conversation_id", "source", "position", "turns", "failures"]
    return [
        {
            "source": row["source"],
            "position": row["position"],
            "interaction_id": interaction_id(row["conversation_id"], reply),
            "reason": failure,
            "detail": "the judge gave no verdict on this interaction",
        }
        for row in conversations.select(columns).to_pylist()
        for reply, failure in zip(row["turns"], row["failures"], strict=True)
        if failure is not None
    ]


def _add(prior: PriorSum, conversations: pa.RecordBatch, column: str, *, ordinary_only: bool) -> None:
    """Add the verdicts of a batch to a prior.

    Args:
        ordinary_only: leave out turns that look like refusals: they are what the second verdict is about.
    """
    verdicts = pc.list_flatten(conversations[column])
    groups = conversations["language_group"].take(pc.list_parent_indices(conversations[column]))
    given = pc.is_valid(verdicts)
    if ordinary_only:
        given = pc.and_(given, pc.invert(pc.list_flatten(conversations["refusal_suspect"])))
    verdicts, groups = verdicts.filter(given), groups.filter(given)
    if not len(verdicts):
        return
    values = pc.list_flatten(verdicts).to_numpy(zero_copy_only=False).reshape(len(verdicts), -1)
    names: npt.NDArray[Any] = groups.to_numpy(zero_copy_only=False)
    for group in sorted(set(names)):
        chosen = values[names == group]
        prior.add_many(group, [float(v) for v in np.sum(chosen, axis=0)], len(chosen))
