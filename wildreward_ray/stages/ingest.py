"""Chat logs -> chunks of conversation rows, read in parallel and never held whole."""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from wildreward_ray.cluster.readers import (
    SUFFIXES,
    Broken,
    Record,
    Shard,
    UnreadableFileError,
    detect_format,
    plan_shards,
    read_shard,
)
from wildreward_ray.cluster.schema import CONVERSATIONS
from wildreward_ray.cluster.storage import Location, again, first_line, is_transient, list_files
from wildreward_ray.core.errors import StorageError
from wildreward_ray.feedback.conversation import Conversation, MalformedConversationError
from wildreward_ray.feedback.formats import PARSERS
from wildreward_ray.feedback.language import language_group
from wildreward_ray.stages.chunks import CHUNK_CHARACTERS, CHUNK_INTERACTIONS, Done, pack, part_name

if TYPE_CHECKING:
    import ray.data

_DETAIL_CHARACTERS = 500
_SCRIPT_CHARACTERS = 2000
# Files looked at at a time before the run: a store answers slowly, but many at once.
_PLANNERS = 32
_PAUSES_S = (1.0, 5.0, 20.0)


@dataclass(frozen=True)
class Plan:
    """What is read.

    Attributes:
        shards: parts of files that are read by a task each.
        files: (URI, bytes) of every file that is read.
        unreadable: `QUARANTINE` rows of files that can't be.
    """

    shards: list[Shard] = field(default_factory=list)
    files: list[tuple[str, int]] = field(default_factory=list)
    unreadable: list[dict[str, Any]] = field(default_factory=list)

    def state(self) -> list[list[str | int]]:
        """The input as JSON values: what a resumed run must find unchanged."""
        return [[uri, size] for uri, size in self.files]

    def digest(self) -> str:
        """A hash of `state`."""
        return hashlib.blake2b(json.dumps(self.state()).encode(), digest_size=16).hexdigest()


def plan(inputs: Sequence[str], format: str, *, strict: bool) -> Plan:
    """Find the files of all inputs and cut those that can be read into shards.

    Args:
        strict: whether a file that can't be read is an error.

    Raises:
        StorageError: an input that is missing or can't be reached, or several files of which none can be read.
        UnreadableFileError: a file that can't be read, or is of another format, if `strict` or the only one.
    """
    found = Plan()
    errors: list[UnreadableFileError] = []
    files = {file.uri: file for uri in inputs for file in list_files(uri, flag="--input", suffixes=SUFFIXES)}
    with ThreadPoolExecutor(_PLANNERS) as threads:
        for uri, result in zip(files, threads.map(lambda f: _plan_file(f, format), files.values()), strict=True):
            if not isinstance(result, UnreadableFileError):
                found.shards.extend(result[0])
                found.files.append((uri, result[1]))
            elif strict:
                raise result
            else:
                errors.append(result)
                found.unreadable.append(_quarantine_row(uri, 0, f"file:{result.reason}", str(result)))
    if not found.files:
        if len(errors) == 1:
            raise errors[0]
        raise StorageError(
            f"none of {len(errors)} input files can be read; the first: {errors[0].problem}", flag="--input"
        )
    return found


def _plan_file(file: Location, format: str) -> tuple[list[Shard], int] | UnreadableFileError:
    """The shards and the size of a file, or why it can't be read."""
    try:
        shards = again(lambda: plan_shards(file, detect_format(file) if format == "auto" else format))
        return shards, file.info().size or 0
    except UnreadableFileError as e:
        return e
    except OSError as e:
        raise StorageError(f"can't read {file.uri!r}: {first_line(e)}", flag="--input") from e


def read(shards: Sequence[Shard], *, size: int, limit: int | None, done: Mapping[str, Done]) -> ray.data.Dataset:
    """A streaming dataset of `CHUNKS` rows, one a block.

    With a limit all shards go through one reader in order, so that the same interactions are taken on every run.

    Args:
        size: conversations a chunk.
        done: finished chunks by shard; they are passed over, and whole shards of them aren't opened.
    """
    import ray.data

    left = list(shards) if limit is not None else [s for s in shards if not (s.key in done and done[s.key].whole)]
    groups = [left] if limit is not None else [[shard] for shard in left]
    sources = ray.data.from_items([{"group": i} for i in range(len(groups))], override_num_blocks=max(1, len(groups)))

    def read_group(batch: dict[str, Any]) -> Iterator[pa.Table]:
        for index in batch["group"]:
            for part, table in _persistent(groups[int(index)], size=size, limit=limit, done=done):
                yield pack(part, table)

    # A share of a CPU of its own keeps Ray from fusing reading into the judge's actors, where it would block the engine.
    return sources.map_batches(read_group, batch_size=1, num_cpus=0.25)


def _persistent(
    shards: Sequence[Shard], *, size: int, limit: int | None, done: Mapping[str, Done]
) -> Iterator[tuple[str, pa.Table]]:
    """`read_chunks`, begun anew where an object store cuts a file off; chunks that were given out are passed over then."""
    given: dict[str, set[int]] = {}
    for pause in (*_PAUSES_S, None):
        passed = {
            key: frozenset(given.get(key, ())) | (done[key].indices if key in done else set())
            for key in {*done, *given}
        }
        merged = {key: Done(indices, whole=False) for key, indices in passed.items()}
        try:
            for part, table in read_chunks(shards, size=size, limit=limit, done=merged):
                yield part, table
                shard, index = part.split("-")[:2]
                given.setdefault(shard, set()).add(int(index))
            return
        except OSError as e:
            if pause is None or not is_transient(e):
                raise
            time.sleep(pause)


def read_chunks(
    shards: Sequence[Shard], *, size: int, limit: int | None, done: Mapping[str, Done]
) -> Iterator[tuple[str, pa.Table]]:
    """(part, table of `CONVERSATIONS` rows) of every chunk that isn't done: conversations, quarantined records, a summary.

    After the limit is reached no further shard is opened, but the one at hand is read to its end and counted, so that its
    numbers and any damage in it are known.
    """
    left = limit
    for shard in shards:
        if left == 0:
            break
        finished = done.get(shard.key, Done(frozenset(), whole=False))
        index = 0
        chunk = _Chunk(shard)
        for item in read_shard(shard):
            if chunk.is_full(size):
                if index not in finished:
                    yield part_name(shard.key, index, end=False), chunk.table()
                index, chunk = index + 1, _Chunk(shard)
            used = chunk.add(item, left)
            if left is not None:
                left -= used
        if index not in finished:
            yield part_name(shard.key, index, end=True), chunk.table()


class _Chunk:
    """The rows of a chunk as it grows."""

    def __init__(self, shard: Shard) -> None:
        self._shard = shard
        self._rows: list[dict[str, Any]] = []
        self._counts: Counter[str] = Counter()
        self._characters = 0

    def is_full(self, size: int) -> bool:
        return (
            self._counts["records"] >= size
            or self._counts["interactions"] >= CHUNK_INTERACTIONS
            or self._characters >= CHUNK_CHARACTERS
        )

    def add(self, item: Record | Broken, left: int | None) -> int:
        """Take in a record. Returns how many interactions it uses up of those that are `left`."""
        if isinstance(item, Broken):
            self._counts["records"] += item.count
            self._quarantine(item.position, item.reason, item.detail, item.count)
            return 0
        self._counts["records"] += 1
        try:
            conversation = PARSERS[self._shard.format](item.value)
        except MalformedConversationError as e:
            self._quarantine(item.position, e.reason, str(e), 1)
            return 0
        self._counts.update({f"oddity:{name}": n for name, n in conversation.oddities.items()})
        turns = conversation.turns()
        self._counts["interactions"] += len(turns)
        if left is not None and len(turns) > left:
            self._counts["interactions_over_limit"] += len(turns) - left
            turns = turns[:left]
            if not turns:
                self._counts["records_over_limit"] += 1
                return 0
        if not turns:
            self._counts["no_feedback_turn"] += 1
            return 0
        self._rows.append(_conversation_row(conversation, self._shard, item.position, turns))
        self._characters += sum(len(m["content"]) for m in self._rows[-1]["messages"])
        return len(turns)

    def table(self) -> pa.Table:
        summary = {
            "kind": "summary",
            "source": self._shard.file.uri,
            "position": self._shard.first,
            "counts": json.dumps(dict(self._counts)),
        }
        return pa.Table.from_pylist([*self._rows, summary], schema=CONVERSATIONS)

    def _quarantine(self, position: int, reason: str, detail: str, count: int) -> None:
        self._counts[f"quarantined:{reason}"] += count
        source = self._shard.file.uri
        self._rows.append({"kind": "quarantine", **_quarantine_row(source, position, reason, detail)})


def _conversation_row(conversation: Conversation, shard: Shard, position: int, turns: list[int]) -> dict[str, Any]:
    # What follows the last turn's feedback is never looked at.
    messages = conversation.messages[: turns[-1] + 2]
    return {
        "kind": "conversation",
        "conversation_id": conversation.conversation_id,
        "user_id": conversation.user_id,
        "language": conversation.language,
        "language_group": language_group(conversation.language, _user_text(conversation)),
        "model": conversation.model,
        "timestamp": conversation.timestamp,
        "toxic": conversation.toxic,
        "redacted": conversation.redacted,
        "source": shard.file.uri,
        "position": position,
        "messages": [{"role": m.role, "content": m.content} for m in messages],
        "turns": turns,
    }


def _user_text(conversation: Conversation) -> str:
    """Enough of what the user wrote to tell its script."""
    return " ".join(m.content[:_SCRIPT_CHARACTERS] for m in conversation.messages if m.role == "user")[
        :_SCRIPT_CHARACTERS
    ]


def _quarantine_row(source: str, position: int, reason: str, detail: str) -> dict[str, Any]:
    return {"source": source, "position": position, "reason": reason, "detail": detail[:_DETAIL_CHARACTERS]}
