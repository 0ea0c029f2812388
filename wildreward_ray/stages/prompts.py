"""Prompts for rollouts, from JSONL, Parquet or an extracted dataset: which can be used, and which a step uses."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
from jinja2 import TemplateError

from wildreward_ray.cluster.json_readers import read_lines
from wildreward_ray.cluster.records import Broken, Record
from wildreward_ray.cluster.storage import Location, first_line, list_files
from wildreward_ray.core.config.online_dpo import OnlineDpoConfig
from wildreward_ray.core.errors import UserError
from wildreward_ray.core.manifest import FunnelStep

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROLES = ("system", "user", "assistant", "tool")

_SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
_PARQUET_MAGIC = b"PAR1"
_BATCH_ROWS = 256
# Kept of each reason, to look at.
_EXAMPLES = 3


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


@dataclass(frozen=True)
class Unusable:
    """A record that is no prompt.

    Attributes:
        file: its URI.
        record: its number in the file, from 1; blank lines are no records.
        reason: a short stable word, see `load_prompts`.
        detail: one line.
    """

    file: str
    record: int
    reason: str
    detail: str


@dataclass
class Prompts:
    """What was read.

    Attributes:
        usable: in a seeded random order.
        dropped: records that can't be used, by reason.
        quarantine: the first three of each reason.
    """

    usable: list[Prompt] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    quarantine: list[Unusable] = field(default_factory=list)

    def funnel(self) -> FunnelStep:
        """The step of the funnel, in records."""
        kept = len(self.usable)
        dropped = dict(sorted(self.dropped.items()))
        return FunnelStep(
            name="prompts", unit="records", rows_in=kept + self.dropped.total(), rows_out=kept, dropped=dropped
        )

    def drop(self, reason: str, file: str, record: int, detail: str, count: int = 1) -> None:
        """Count a record, or `count` of them that begin at this one, under a reason."""
        if sum(unusable.reason == reason for unusable in self.quarantine) < _EXAMPLES:
            self.quarantine.append(Unusable(file, record, reason, detail))
        self.dropped[reason] += count


class _NoPromptError(Exception):
    """A record that is no prompt."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def load_prompts(config: OnlineDpoConfig, tokenizer: PreTrainedTokenizerBase) -> Prompts:
    """All usable prompts, and how many records are none, by reason.

    Files are streamed. Prompts are held in memory: 11 kB for one of 300 tokens (measured), so 20,000 such prompts take about
    230 MB. With `limit`, reading ends with the last prompt that is wanted; what comes after it is not counted.

    A record has `prompt`, a text, with the messages before it in `history`; or else `messages`, whose last user message is the
    prompt, replies after it being left off. Reasons:

    - `no_prompt`: neither, or messages that don't end in one of the user's.
    - `not_text`: a prompt, history or message of another shape, or a text with half a surrogate pair, which no service takes.
    - `bad_role`: a role other than `ROLES`.
    - `empty`: the prompt is blank.
    - `template_failed`: the policy's chat template refuses the messages, as some do a system message or two in a row of one role.
    - `too_long`: more tokens than `max_prompt_tokens`, or than leave room for `rollout.max_tokens` in the engine.
    - `duplicate`: an earlier one has the same tokens.
    - `invalid_json`, `invalid_utf8`, `not_an_object`, `record_too_large`, `truncated_file`, `damaged_file`: as the readers
      say. The records behind the place where a packed file breaks off are unknown in number and count as one.

    Raises:
        UserError: nothing to read, a Parquet file that can't be read or has neither column, or fewer usable prompts than are
            held out and one more.
        OSError: a file can't be reached.
    """
    found = Prompts()
    seen: set[tuple[int, ...]] = set()
    for file, number, item in _records(config.prompts):
        if isinstance(item, Broken):
            found.drop(item.reason, file.uri, number, item.detail, item.count)
            continue
        try:
            prompt = _prompt(item.value, config, tokenizer)
            if prompt.token_ids in seen:
                raise _NoPromptError("duplicate", "an earlier prompt has the same tokens")
        except _NoPromptError as e:
            found.drop(e.reason, file.uri, number, first_line(e))
            continue
        seen.add(prompt.token_ids)
        found.usable.append(prompt)
        if len(found.usable) == config.limit:
            break
    _check_enough(found, config)
    random.Random(config.seed).shuffle(found.usable)
    return found


def batch(prompts: Sequence[Prompt], step: int, size: int, seed: int) -> list[Prompt]:
    """The prompts of a step.

    Prompts are gone through pass by pass, each pass in an order of its own, and every step takes the next `size` of them. So
    the place is a function of the step alone, and a run that goes on needs to know nothing else. Within a pass no prompt comes
    twice; a batch that crosses the border of two passes, as all do that are larger than a pass, may have one twice.

    Args:
        prompts: at least one, in the same order at every step.
        step: from 1.
        size: prompts a step.
        seed: of the orders.
    """
    first, n = (step - 1) * size, len(prompts)
    chosen: list[Prompt] = []
    while len(chosen) < size:
        lap, place = divmod(first + len(chosen), n)
        order = list(range(n))
        # Of a text the seed is the same in every process, which a hash is not.
        random.Random(f"prompts {seed} {lap}").shuffle(order)
        chosen += [prompts[i] for i in order[place : place + size - len(chosen)]]
    return chosen


def _check_enough(found: Prompts, config: OnlineDpoConfig) -> None:
    wanted = config.eval.prompts + 1
    if len(found.usable) >= wanted:
        return
    if config.limit is not None and config.limit < wanted:
        raise UserError(
            f"at most {config.limit} prompts are used, {config.eval.prompts} of them held out (--eval.prompts): at least "
            f"{wanted} are needed",
            flag="--limit",
        )
    counts = ", ".join(f"{reason} {n}" for reason, n in found.dropped.most_common()) or "none"
    problem = (
        f"{config.prompts!r} has {len(found.usable)} usable prompts (left out: {counts}); at least {wanted} are needed, "
        f"{config.eval.prompts} of them held out (--eval.prompts)"
    )
    hint = None
    if found.dropped:
        reason = found.dropped.most_common(1)[0][0]
        first = next(unusable for unusable in found.quarantine if unusable.reason == reason)
        hint = f"{reason}: record {first.record} of {first.file!r}, {first.detail}"
    raise UserError(problem, flag="--prompts", hint=hint)


def _prompt(record: Any, config: OnlineDpoConfig, tokenizer: PreTrainedTokenizerBase) -> Prompt:
    """The prompt that a record is.

    Raises:
        _NoPromptError: it is none.
    """
    messages = _messages(record)
    if not messages[-1]["content"].strip():
        raise _NoPromptError("empty", "the prompt is blank")
    if config.system_prompt and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": config.system_prompt}, *messages]
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except (TemplateError, TypeError, ValueError, LookupError) as e:
        roles = ", ".join(message["role"] for message in messages)
        raise _NoPromptError("template_failed", f"roles {roles}: {first_line(e)}") from e
    ids = tuple(tokenizer.encode(text, add_special_tokens=False))
    if not ids:
        raise _NoPromptError("template_failed", "the messages become no tokens at all")
    room = config.rollout.engine.max_model_len - config.rollout.max_tokens
    if len(ids) > config.max_prompt_tokens:
        raise _NoPromptError("too_long", f"{len(ids)} tokens, at most {config.max_prompt_tokens} (--max-prompt-tokens)")
    if len(ids) > room:
        raise _NoPromptError(
            "too_long",
            f"{len(ids)} tokens, of {config.rollout.engine.max_model_len} (--rollout.engine.max-model-len) "
            f"{config.rollout.max_tokens} are for the reply (--rollout.max-tokens)",
        )
    return Prompt(tuple(messages[:-1]), messages[-1]["content"], ids)


def _messages(record: Any) -> list[dict[str, str]]:
    """The chat that ends with the prompt."""
    if record.get("prompt") is not None:
        history = record.get("history")
        if not isinstance(history, list | None):
            raise _NoPromptError("not_text", f"`history` is a {type(history).__name__}, not a list of messages")
        messages = [*(history or []), {"role": "user", "content": record["prompt"]}]
    elif isinstance(record.get("messages"), list):
        messages = list(record["messages"])
        while messages and isinstance(messages[-1], dict) and messages[-1].get("role") == "assistant":
            messages.pop()
    else:
        raise _NoPromptError("no_prompt", f"neither `prompt` nor `messages` among {', '.join(map(repr, record))}")
    checked = [_message(message, place) for place, message in enumerate(messages)]
    if not checked or checked[-1]["role"] != "user":
        raise _NoPromptError("no_prompt", "`messages` has no message of the user at its end")
    return checked


def _message(message: Any, place: int) -> dict[str, str]:
    if not isinstance(message, dict) or not isinstance(message.get("content"), str):
        found = message.get("content") if isinstance(message, dict) else message
        raise _NoPromptError("not_text", f"message {place} holds a {type(found).__name__} instead of a text")
    if message.get("role") not in ROLES:
        raise _NoPromptError(
            "bad_role", f"message {place} has the role {message.get('role')!r}, known are {', '.join(ROLES)}"
        )
    try:
        message["content"].encode()
    except UnicodeEncodeError as e:
        raise _NoPromptError("not_text", f"message {place}: {first_line(e)}") from e
    return {"role": message["role"], "content": message["content"]}


def _records(uri: str) -> Iterator[tuple[Location, int, Record | Broken]]:
    """Every record of every file, with its number in the file, from 1."""
    for file in list_files(uri, flag="--prompts", suffixes=_SUFFIXES):
        with file.open_input() as stream:
            is_parquet = bytes(stream.read(len(_PARQUET_MAGIC))) == _PARQUET_MAGIC
        number = 1
        for item in _parquet_rows(file) if is_parquet else read_lines(file, None):
            yield file, number, item
            number += item.count if isinstance(item, Broken) else 1


def _parquet_rows(file: Location) -> Iterator[Record]:
    position = 0
    try:
        with file.fs.open_input_file(file.path) as source:
            reader = pq.ParquetFile(source)
            names = reader.schema_arrow.names
            columns = [c for c in ("prompt", "history", "messages") if c in names]
            if not {"prompt", "messages"} & set(columns):
                raise UserError(
                    f"{file.uri!r} has neither a column 'prompt' nor 'messages' (it has {', '.join(names[:8])})",
                    flag="--prompts",
                )
            for rows in reader.iter_batches(batch_size=_BATCH_ROWS, columns=columns):
                for row in rows.to_pylist():
                    yield Record(position, row)
                    position += 1
    except (pa.ArrowException, OSError, UnicodeDecodeError) as e:
        raise UserError(
            f"{file.uri!r} can't be read as Parquet after row {position}: {first_line(e)}", flag="--prompts"
        ) from e
