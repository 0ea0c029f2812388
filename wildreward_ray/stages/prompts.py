"""Prompts for rollouts, from JSONL, Parquet or an extracted dataset."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq

from wildreward_ray.cluster.readers import json_lines
from wildreward_ray.cluster.storage import Location, list_files
from wildreward_ray.core.config.online_dpo import OnlineDpoConfig
from wildreward_ray.core.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BATCH_ROWS = 256


@dataclass(frozen=True)
class Prompt:
    """One prompt: what the policy continues and what the reward model sees before the reply.

    Attributes:
        history: messages before the prompt, a system message included.
        prompt: the user message to answer.
        token_ids: the rendered chat, ready for the policy to continue.
    """

    history: tuple[dict[str, str], ...]
    prompt: str
    token_ids: tuple[int, ...]


def load_prompts(config: OnlineDpoConfig, tokenizer: PreTrainedTokenizerBase) -> tuple[list[Prompt], Counter[str]]:
    """All usable prompts in a seeded random order, and how many were left out by reason.

    Raises:
        UserError: nothing to read, a record without a prompt, or no prompt left.
    """
    kept: list[Prompt] = []
    skipped: Counter[str] = Counter()
    seen: set[tuple[int, ...]] = set()
    for messages in _messages(config.prompts):
        if config.limit is not None and len(kept) >= config.limit:
            break
        if not messages[-1]["content"].strip():
            skipped["empty"] += 1
            continue
        if config.system_prompt and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": config.system_prompt}, *messages]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids = tuple(tokenizer.encode(text, add_special_tokens=False))
        if len(ids) > config.max_prompt_tokens:
            skipped["too_long"] += 1
        elif ids in seen:
            skipped["duplicate"] += 1
        else:
            seen.add(ids)
            kept.append(Prompt(tuple(messages[:-1]), messages[-1]["content"], ids))
    wanted = config.eval_prompts + 1
    if len(kept) < wanted:
        raise UserError(
            f"{config.prompts!r} has {len(kept)} usable prompts ({dict(skipped)} left out): at least {wanted} are needed",
            flag="--prompts",
        )
    random.Random(config.seed).shuffle(kept)
    return kept, skipped


def _messages(uri: str) -> Iterator[list[dict[str, str]]]:
    """Chat messages that end with the prompt, of every record of every file."""
    for file in list_files(uri, flag="--prompts", suffixes=(".jsonl", ".parquet")):
        records = _parquet_rows(file) if file.path.endswith(".parquet") else json_lines(file, flag="--prompts")
        for number, record in enumerate(records):
            yield _prompt_messages(record, file, number)


def _prompt_messages(record: Any, file: Location, number: int) -> list[dict[str, str]]:
    messages: list[dict[str, str]] = []
    if isinstance(record, dict) and isinstance(record.get("prompt"), str):
        history = record.get("history") or []
        messages = [*history, {"role": "user", "content": record["prompt"]}]
    elif isinstance(record, dict) and isinstance(record.get("messages"), list):
        messages = list(record["messages"])
        while messages and messages[-1].get("role") == "assistant":
            messages.pop()
    if not messages or messages[-1].get("role") != "user":
        raise UserError(
            f"record {number} of {file.uri!r} has neither `prompt` nor `messages` with a user message", flag="--prompts"
        )
    return [{"role": str(m["role"]), "content": str(m["content"])} for m in messages]


def _parquet_rows(file: Location) -> Iterator[Any]:
    with file.fs.open_input_file(file.path) as source:
        reader = pq.ParquetFile(source)
        columns = [c for c in ("prompt", "history", "messages") if c in reader.schema_arrow.names]
        for batch in reader.iter_batches(batch_size=_BATCH_ROWS, columns=columns):
            yield from batch.to_pylist()
