"""Chat logs -> conversation rows, read in parallel and never held whole."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from wildreward_ray.cluster.readers import Broken, Record, Shard, detect_format, plan_shards, read_shard
from wildreward_ray.cluster.schema import CONVERSATIONS
from wildreward_ray.cluster.storage import Location, check_readable, list_files
from wildreward_ray.feedback.conversation import Conversation, MalformedConversationError
from wildreward_ray.feedback.formats import PARSERS, WILDCHAT_OPTIONAL, WILDCHAT_REQUIRED
from wildreward_ray.feedback.language import language_group

if TYPE_CHECKING:
    import ray.data

_CHUNK_ROWS = 128
_SUFFIXES = (".parquet", ".json")
_DETAIL_CHARACTERS = 500
_SCRIPT_CHARACTERS = 2000


def plan(inputs: tuple[str, ...], format: str) -> list[Shard]:
    """Find the files of all inputs, check that each can be read and is of the format, and cut them into shards.

    Raises:
        UserError: an input that is missing, unreadable or of another format.
    """
    files: list[Location] = []
    for uri in inputs:
        files += list_files(uri, flag="--input", suffixes=_SUFFIXES)
    check_readable(files, flag="--input")
    shards: list[Shard] = []
    for file in files:
        found = detect_format(file) if format == "auto" else format
        shards += plan_shards(file, found, WILDCHAT_REQUIRED)
    return shards


def read(shards: list[Shard], limit: int | None) -> ray.data.Dataset:
    """A streaming dataset of `CONVERSATIONS` rows.

    With a limit all shards go through one reader in order, so that the same interactions are taken on every run.
    """
    import ray.data

    groups = [shards] if limit is not None else [[shard] for shard in shards]
    sources = ray.data.from_items([{"group": i} for i in range(len(groups))], override_num_blocks=len(groups))

    def read_group(batch: dict[str, Any]) -> Iterator[pa.Table]:
        for index in batch["group"]:
            yield from read_tables(groups[int(index)], limit)

    # A share of a CPU of its own keeps Ray from fusing reading into the judge's actors, where it would block the engine.
    return sources.map_batches(read_group, batch_size=1, num_cpus=0.25)


def read_tables(shards: list[Shard], limit: int | None) -> Iterator[pa.Table]:
    """Tables of `CONVERSATIONS` rows: conversations, quarantined records, and a summary row a shard.

    After the limit is reached no further shard is opened, but the one at hand is read to its end and counted, so that its
    numbers and any damage in it are known.
    """
    rows: list[dict[str, Any]] = []
    left = limit
    for shard in shards:
        if left == 0:
            break
        counts: Counter[str] = Counter()
        for item in read_shard(shard, WILDCHAT_REQUIRED + WILDCHAT_OPTIONAL):
            row, used = _row(item, shard, left, counts)
            if left is not None:
                left -= used
            if row is not None:
                rows.append(row)
            if len(rows) >= _CHUNK_ROWS:
                yield pa.Table.from_pylist(rows, schema=CONVERSATIONS)
                rows = []
        rows.append(_summary(shard, counts))
    yield pa.Table.from_pylist(rows, schema=CONVERSATIONS)


def _row(
    item: Record | Broken, shard: Shard, left: int | None, counts: Counter[str]
) -> tuple[dict[str, Any] | None, int]:
    """The row of a record (None where it gives none) and how many interactions it uses up."""
    counts["records"] += 1
    if isinstance(item, Broken):
        return _quarantined(shard, item.position, item.reason, item.detail, counts), 0
    try:
        conversation = PARSERS[shard.format](item.value)
    except MalformedConversationError as e:
        return _quarantined(shard, item.position, e.reason, str(e), counts), 0
    counts.update({f"oddity:{name}": n for name, n in conversation.oddities.items()})
    turns = conversation.turns()
    counts["interactions"] += len(turns)
    if left is not None and len(turns) > left:
        counts["interactions_over_limit"] += len(turns) - left
        turns = turns[:left]
        if not turns:
            counts["records_over_limit"] += 1
            return None, 0
    if not turns:
        counts["no_feedback_turn"] += 1
        return None, 0
    return _conversation_row(conversation, shard, item.position, turns), len(turns)


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


def _quarantined(shard: Shard, position: int, reason: str, detail: str, counts: Counter[str]) -> dict[str, Any]:
    counts[f"quarantined:{reason}"] += 1
    return {
        "kind": "quarantine",
        "source": shard.file.uri,
        "position": position,
        "reason": reason,
        "detail": detail[:_DETAIL_CHARACTERS],
    }


def _summary(shard: Shard, counts: Counter[str]) -> dict[str, Any]:
    return {"kind": "summary", "source": shard.file.uri, "position": shard.first, "counts": json.dumps(dict(counts))}
